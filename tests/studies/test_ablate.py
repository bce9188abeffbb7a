"""The ablate study at tiny scale: every variant changes what it says and nothing else, words follow from figures."""

import json
import shutil

import pytest
import torch

from kindgene.core.components import compose
from kindgene.studies import ablate
from kindgene.studies.ablate import (
    BASE,
    BY_CHANCE,
    GROUPS,
    NULL_TAILOR,
    ONE_TAILOR,
    PAPER,
    SCALES,
    SVD_FRESH,
    SVD_TRAINED,
    Ablate,
    ablate_settings,
    for_one_class,
    look_alikes,
)
from kindgene.studies.ablate_report import QUESTIONS, summarise, title_of, verdict, write_ablate
from kindgene.studies.cell import Curve
from kindgene.studies.cells import run_cells
from kindgene.studies.pretraining import SCALES as PRETRAINED
from kindgene.transfer.kind import NullTailored

NAMES = (
    BASE,
    "ranks-3-2",
    ONE_TAILOR,
    SVD_FRESH,
    SVD_TRAINED,
    NULL_TAILOR,
    "drop-0",
    PAPER,
    GROUPS,
    BY_CHANCE,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All cells of seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("ablate")
    cells = Ablate(out, scale="tiny", cache=out / "cache")
    assert run_cells([cells]) == (len(NAMES), len(NAMES))
    return cells


@pytest.fixture(scope="module")
def result(study):
    return study.result()


def again(study, out):
    """The same study elsewhere, with what was pre-trained."""
    shutil.copytree(study.root / "pretrain", out / "pretrain")
    return Ablate(out, scale="tiny", cache=study.cache)


def test_every_variant_is_trained_and_measured(result, study):
    assert tuple(result["variants"]) == study.names() == NAMES
    assert all(
        name.startswith(tuple(start for starts in QUESTIONS.values() for start in starts))
        for name in NAMES
        if name != BASE
    )
    base = study.base.get("decomposable/final")
    for found in result["variants"].values():
        assert len(found["validation"]) == 2
        assert found["rate"] == base["rate"]
        assert set(found["recognised"]) == set(found["fd"]) == {"1.0", "1.5"}
        assert set(found["null"]) == {"fd", "entropy"}
    assert result["variants"][BASE]["test"] == base["test"]
    tests = [found["test"] for found in result["variants"].values()]
    assert len(set(tests)) == len(tests)  # each is another model


def test_ranks_are_divided_otherwise(study):
    base, other = study.new(BASE), study.new("ranks-3-2")
    for name, layer in other.layers.items():
        assert set(layer.component_ranks) == {3}
        assert set(layer.tailor_ranks) == {2}
        assert set(base.layers[name].component_ranks) == {4}
        assert set(base.layers[name].tailor_ranks) == {1}
    assert for_one_class(other) == for_one_class(base)


def test_without_a_gate_all_classes_have_one_tailor(study):
    model, base = study.new(ONE_TAILOR), study.new(BASE)
    assert model.bank.tailors.count == 1
    assert model.bank.labels.count == base.bank.labels.count == 3
    assert model.bank.tailor_of.tolist() == [0, 0, 0]
    assert base.bank.tailors.count == 3


@pytest.mark.parametrize(("name", "kind"), [(SVD_FRESH, None), (SVD_TRAINED, "dense")])
def test_svd_begins_with_the_best_part_of_a_dense_model(study, name, kind):
    model = study.new(name)
    dense = study.base.new("dense") if kind is None else study.base.model(kind)
    for place, layer in model.layers.items():
        weights = dense.get_parameter(f"{place}.weight").chunk(layer.parts)
        for part, weight in zip(layer.learngene(), weights, strict=True):
            u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
            best = u[:, : part.rank] * s[: part.rank] @ v[: part.rank]
            assert torch.allclose(compose(part), best, atol=1e-5)
        for tailor in layer.tailor(model.bank.tailors.views(model.bank.tailors.rows)):
            assert not (tailor.u * tailor.s.unsqueeze(-1)).any()


def test_the_null_class_has_its_own_tailor(study):
    model, base = study.new(NULL_TAILOR), study.new(BASE)
    assert isinstance(model, NullTailored)
    assert (model.num_classes, model.null_class, model.bank.tailors.count) == (3, 3, 4)
    assert model.class_names == base.class_names == study.base.classes
    assert for_one_class(model) - for_one_class(base) == sum(t.rows.shape[1] for t in base.bank.tables.values())
    assert not base.bank.select(torch.tensor([3])).weight.any()
    assert model.bank.select(torch.tensor([3])).weight.all()


def test_label_drop_alone_is_changed(study):
    base, other = study.config(BASE), study.config("drop-0")
    assert (base.label_drop, other.label_drop) == (0.1, 0.0)
    assert {**base.to_dict(), "label_drop": 0.0} == other.to_dict()
    assert all(study.config(name) == base for name in NAMES if not name.startswith("drop-"))
    assert study.kind("drop-0") == study.kind(BASE)


def test_the_papers_targets_leave_adaln_dense(study):
    paper, base = study.new(PAPER), study.new(BASE)
    assert set(base.layers) - set(paper.layers) == {f"blocks.{block}.adaLN_modulation.1" for block in (0, 1)}


def test_groups_share_a_tailor(study):
    groups, chance = study.gate_map(GROUPS), study.gate_map(BY_CHANCE)
    assert sorted(map(groups.count, set(groups))) == sorted(map(chance.count, set(chance))) == [1, 2]
    for name, gate_map in ((GROUPS, groups), (BY_CHANCE, chance)):
        model = study.new(name)
        assert model.bank.tailors.count == 2
        assert model.bank.tailor_of.tolist() == gate_map
        named = study.get(name)["groups"]
        assert sorted(one for group in named for one in group) == sorted(study.base.classes)
        assert all(len({gate_map[study.base.classes.index(one)] for one in group}) == 1 for group in named)


def test_look_alikes_are_grouped():
    means = torch.tensor([[5.0, 0, 0], [0, 5, 0], [4.9, 0.1, 0], [0, 0.1, 4.8], [0.1, 5, 0], [0, 0, 5]]).double()
    groups = look_alikes(means, 3)
    assert groups[0] == groups[2] != groups[1] == groups[4] != groups[3] == groups[5]
    assert sorted(set(groups)) == [0, 1, 2]


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_keeps_the_numbers_for_one_class(scale):
    base, settings = PRETRAINED[scale], ablate_settings(scale)
    whole = base.learngene_rank + base.tailor_rank
    assert all(sum(pair) == whole for pair in settings.ranks)
    assert (base.learngene_rank, base.tailor_rank) not in settings.ranks
    assert 0.1 not in settings.drops
    assert 1 < settings.groups < base.classes


@pytest.mark.parametrize("name", [BASE, NULL_TAILOR, GROUPS])
def test_a_cell_again_gives_the_same_figures(study, tmp_path, name):
    cells = again(study, tmp_path)
    assert {**cells.get(name), "seconds": None} == {**study.get(name), "seconds": None}
    for picture in (name, f"{name}/null"):
        assert cells.picture(picture).read_bytes() == study.picture(picture).read_bytes()


def test_what_is_finished_is_not_computed_again(result, study, stages):
    heard, show = stages()
    assert Ablate(study.root, scale="tiny", cache=study.cache, show=show).result() == result
    assert heard == []
    assert not [path for path in (study.folder / "runs").rglob("*") if path.is_file()]  # checkpoints are large


def test_a_training_that_diverges_is_kept_as_such(study, tmp_path, monkeypatch):
    cells = again(study, tmp_path)
    monkeypatch.setattr(ablate, "train_curve", lambda *some: Curve([], None))
    assert cells.get(PAPER) == {"refused": "it diverged at a learning rate of 0.004, the base row's"}


def test_what_is_ahead_can_be_told(tmp_path):
    told = Ablate(tmp_path, scale="tiny").outlook()
    assert told["variants"] == list(NAMES)
    assert not list(tmp_path.iterdir())


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    report = write_ablate(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "ablate.json").read_text())
    assert found["seeds"] == [0, 1]
    told = (tmp_path / "README.md").read_text()
    assert "`kindgene study ablate --scale tiny --seeds 2`" in told
    assert all(sentence in told for sentence in report.verdict)
    assert "N_G 4, N_T 1 (base row)" in told
    page = (tmp_path / "ablate.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page
    for name in ("variants", "samples", "samples-null"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def summary(losses, seeds=1):
    """The summary of variants with these test losses; None: refused."""
    figures = {
        "parameters": 1,
        "macs": 1,
        "one_class": 1,
        "rate": 0.1,
        "recognised": {"1.5": 0.5},
        "fd": {"1.5": 1.0},
        "null": {"fd": 1.0, "entropy": None},
        "seconds": 1.0,
    }
    variants = {name: {"refused": "no"} if loss is None else {**figures, "test": loss} for name, loss in losses.items()}
    settings = {"groups": 2, "pretraining": {"learngene_rank": 4, "tailor_rank": 1}}
    one = {"scale": "tiny", "settings": settings, "variants": variants}
    return summarise([{**one, "seed": seed} for seed in range(seeds)])


def test_the_words_follow_from_the_figures():
    ranks, gate, groups = verdict(summary({BASE: 1.0, "ranks-3-2": 0.9, ONE_TAILOR: 1.2, GROUPS: 1.0, BY_CHANCE: 1.25}))
    assert ranks.startswith("N_G against N_T, with N_G + N_T kept, against the base row (recognised 50.0% at guidance")
    assert "N_G 3, N_T 2: test loss -10.0 % (one seed)" in ranks
    assert ranks.endswith("the least test loss has N_G 3, N_T 2.")
    assert "one tailor for all: test loss +20.0 % (one seed)" in gate
    assert "a group of look-alikes each: test loss even (+0.0 %)" in groups
    assert groups.endswith("look-alikes against groups by chance: test loss -20.0 % (one seed).")
    (other,) = verdict(summary({BASE: 1.0, "ranks-3-2": 1.1}, seeds=2))
    assert "N_G 3, N_T 2: test loss +10.0 %, in every seed" in other
    assert other.endswith("the least test loss has N_G 4, N_T 1.")


def test_what_could_not_be_is_told():
    found = summary({BASE: 1.0, "drop-0": None})
    assert verdict(found) == [
        "Label drop, against the base row (recognised 50.0% at guidance 1.5): label drop 0 could not be trained."
    ]
    assert title_of("drop-0", found) == "label drop 0"
    assert verdict(summary({BASE: None})) == ["The base row could not be measured."]


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        ablate_settings("huge")
