"""From a model to a pool: canonical pieces, names and record checked, the model left as it was."""

import copy
import json

import pytest
import torch

from kindgene.core.components import compose
from kindgene.core.pieces import layer_components
from kindgene.pool.decompose import decompose_model, names_of, new_tailors, tailor_ranks_of
from kindgene.pool.pool import Pool
from kindgene.pool.tensors import state_id

EYE = torch.eye(4, dtype=torch.float64)


def parts(state, ranks):
    """Every part of every target of a learngene or a tailor."""
    return {
        (target, index): part
        for target, own in ranks.items()
        for index, part in enumerate(layer_components(state, target, own))
    }


def test_pieces_are_canonical_and_stand_for_the_same_matrices(dit, names):
    model = dit.model(tailor_rank=3)
    config, learngene, tailors = decompose_model(model, names, None)
    banks = [model.bank.tailors.row(index) for index in range(5)]
    pairs = [(learngene, model.module.state_dict(), config.ranks)]
    pairs += [(t.components, bank, tailor_ranks_of(model)) for t, bank in zip(tailors, banks, strict=True)]
    for found, original, ranks in pairs:
        for key, part in parts(found, ranks).items():
            eye = EYE[: part.rank, : part.rank]
            assert torch.allclose(part.u @ part.u.mT, eye)
            assert torch.allclose(part.v @ part.v.mT, eye)
            assert (part.s[:-1] >= part.s[1:]).all()
            assert part.s[-1] > 0
            assert (part.u.gather(1, part.u.abs().argmax(1, keepdim=True)) > 0).all()
            assert torch.allclose(compose(part), compose(parts(original, ranks)[key]))


def test_what_is_no_component_stays_bit_for_bit(dit, names):
    model = dit.model()
    config, learngene, tailors = decompose_model(model, names, None)
    state = model.module.state_dict()
    assert learngene.keys() == state.keys()
    factors = {f"{target}.{factor}" for target in config.ranks for factor in "usv"}
    assert all(torch.equal(learngene[key], state[key]) for key in state.keys() - factors)
    for label, tailor in enumerate(tailors):
        assert tailor.classes == (names[label],)
        row = tailor.row_of(names[label])
        assert row.keys() == {"y_embedder.embedding_table"}
        assert torch.equal(row["y_embedder.embedding_table"], model.bank.labels.rows[label])


def test_a_pool_holds_copies(dit, names):
    model = dit.model()
    before = copy.deepcopy(model.state_dict())
    pool = model.decompose(names)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    known = state_id(pool.learngene), pool.tailors[0].to_bytes("")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    assert (state_id(pool.learngene), pool.tailors[0].to_bytes("")) == known


def test_classes_that_share_a_tailor_are_in_one_piece(dit, names):
    model = dit.model(gate_map=[1, 0, 1, 2, 0])
    config, _, tailors = decompose_model(model, names, None)
    assert [tailor.classes for tailor in tailors] == [
        (names[1], names[4]),
        (names[0], names[2]),
        (names[3],),
    ]
    assert tuple(config.classes) == names
    assert [entry.row for entry in config.classes.values()] == [0, 0, 1, 0, 1]


def test_the_config_says_what_the_model_is(dit, names):
    model = dit.model(tailor_rank={"blocks.*": 3, "blocks.0.attn.qkv": [2, 3, 4]})
    model.weights = "ema"
    config, learngene, _ = decompose_model(model, names, {"steps": 5})
    assert config.backbone == "DiT"
    assert config.weights == "ema"
    assert config.label_argument == "y"
    assert config.label_tables == ("y_embedder.embedding_table",)
    assert config.learngene_id == state_id(learngene)
    assert config.ranks["blocks.0.attn.qkv"] == (4, 4, 4)
    assert config.tailor_ranks_of(names[0])["blocks.0.attn.qkv"] == (2, 3, 4)
    assert config.tailor_ranks_of(names[0])["blocks.0.mlp.fc1"] == (3,)
    assert config.provenance == {"steps": 5}


def test_the_record_is_kept_as_json_will_hold_it(dit, names, tmp_path):
    record = {"steps": 3, "sizes": (1, 2), "ü": {"a": None}}
    pool = dit.model().decompose(names, provenance=record)
    assert pool.config.provenance == {"steps": 3, "sizes": [1, 2], "ü": {"a": None}}
    record["ü"]["a"] = 5
    folder = pool.save_pretrained(tmp_path / "pool")
    assert Pool.from_pretrained(folder).config == pool.config
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["provenance"]["ü"] == {"a": None}


@pytest.mark.parametrize(
    "record",
    [{"a": {1, 2}}, {"a": float("nan")}, {1: 2}, {"a": "\ud800"}, {"a": torch.zeros(2)}, [1], "text", {"a": b""}],
)
def test_a_record_that_json_cannot_hold_is_refused(dit, names, record):
    with pytest.raises(ValueError, match=r"^provenance must ") as refused:
        dit.model().decompose(names, provenance=record)
    assert "\n" not in str(refused.value)


def test_names_are_given_or_the_model_s_own(dit, names):
    model = dit.model()
    with pytest.raises(ValueError, match=r"no names yet: pass class_names=\[\.\.\.\]"):
        model.decompose()
    model.class_names = names
    assert names_of(model, None) == names
    assert names_of(model, list("abcde")) == tuple("abcde")
    with pytest.raises(ValueError, match="4 class names for a model of 5 classes"):
        model.decompose(names[:4])
    with pytest.raises(ValueError, match="more than once"):
        model.decompose(["a", "a", "b", "c", "d"])
    with pytest.raises(ValueError, match="control character"):
        model.decompose(["a\n", "b", "c", "d", "e"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda model: model.module.blocks[0].attn.proj.u, r"this model: blocks\.0\.attn\.proj\.u has values"),
        (lambda model: model.module.pos_embed, r"this model: pos_embed has values"),
        (lambda model: model.bank.tailors.rows[2], r"the tailor of 'c': blocks\.0\..* has values"),
        (lambda model: model.bank.labels.rows[1], r"the tailor of 'b': y_embedder\.embedding_table has values"),
    ],
)
def test_weights_that_are_not_finite_are_named(dit, place, message, value):
    model = dit.model()
    with torch.no_grad():
        place(model).view(-1)[0] = value
    with pytest.raises(ValueError, match=message):
        model.decompose(list("abcde"))


def test_new_tailors_need_the_pool_s_learngene_bit_for_bit(dit, names, scatter):
    pool = dit.model().decompose(names)
    fresh = scatter(pool.transfer(["new"]))
    (tailor,) = new_tailors(fresh, None, pool.learngene)
    assert tailor.classes == ("new",)
    for part in parts(tailor.components, tailor_ranks_of(fresh)).values():
        assert torch.allclose(part.u @ part.u.mT, EYE)
    (renamed,) = new_tailors(fresh, ["another"], pool.learngene)
    assert renamed.classes == ("another",)
    with torch.no_grad():
        fresh.module.pos_embed[0, 0, 0] += 1e-12
    with pytest.raises(ValueError, match=r"learngene is not the pool's: .*must stay frozen"):
        new_tailors(fresh, None, pool.learngene)


def test_new_tailors_that_are_not_finite_are_named(pool_folder, content, scatter):
    pool = Pool.from_pretrained(pool_folder)
    before = content(pool_folder)
    fresh = scatter(pool.transfer(["new", "newer"]))
    with torch.no_grad():
        fresh.bank.tailors.rows[1, 7] = float("nan")
    with pytest.raises(ValueError, match=r"the tailor of 'newer': .* not finite"):
        pool.add(fresh)
    assert content(pool_folder) == before
    assert "new" not in pool.classes
