"""`make_decomposable`: which modules it takes, what it refuses (leaving the module alone), and the first values."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kindgene.core.config import KindConfig
from kindgene.core.convert import find_targets, make_decomposable
from kindgene.core.linear import ClassRows, KindLinear


def config(**options):
    settings = {"num_classes": 3, "learngene_rank": 3, "tailor_rank": 2, "targets": ["first"], "class_rows": ["table"]}
    return KindConfig(**{**settings, "label_argument": "y", "init": "random", **options})


def assert_refused(module, settings, message, error=ValueError):
    """Refused in one line, and the module is bit for bit, type for type what it was."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    types = {name: (type(child), id(child)) for name, child in module.named_modules()}
    with pytest.raises(error, match=message) as refusal:
        make_decomposable(module, settings)
    assert "\n" not in str(refusal.value)
    assert {name: (type(child), id(child)) for name, child in module.named_modules()} == types
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["nothing.*"]}, r"target pattern 'nothing\.\*' matches nothing; there is: first, last"),
        ({"targets": ["first", "frist"]}, "target pattern 'frist' matches nothing; there is: first, last"),
        ({"targets": [""]}, "target pattern '' matches nothing; there is: first, last"),
        ({"class_rows": ["labels"]}, "class_rows pattern 'labels' matches nothing; there is: table"),
        ({"class_rows": ["last"]}, "class_rows last is a Linear; only nn.Embedding can hold label rows"),
        ({"targets": ["table"]}, "target table is a Embedding; only modules of exactly nn.Linear can be targets"),
        ({"learngene_rank": 0}, "learngene_rank must be at least 1, got 0 for first"),
        ({"tailor_rank": -1}, "tailor_rank must be at least 1, got -1 for first"),
        ({"learngene_rank": 7}, r"learngene_rank 7 is more than first can have: at most min\(in, out\) = 6"),
        ({"tailor_rank": 7}, r"tailor_rank 7 is more than first can have: at most min\(in, out\) = 6"),
        ({"learngene_rank": 1.5}, "learngene_rank as a share of the width must lie between 0 and 1, got 1.5 for first"),
        ({"fused": {"first": 2}, "tailor_rank": 5}, r"at most min\(in, out\) = 4"),
        ({"fused": {"first": 2}, "tailor_rank": [1, 1, 1]}, "tailor_rank of first has 3 entries for 2 parts"),
        ({"fused": {"first": 3}}, "first has 8 outputs, which do not divide into 3 fused parts"),
        ({"fused": {"first": 0}}, "first has 8 outputs, which do not divide into 0 fused parts"),
        ({"fused": {"last": 2}}, "fused pattern 'last' matches no target; targets: first"),
        ({"learngene_rank": {"last": 2}}, "learngene_rank pattern 'last' matches no target; targets: first"),
        ({"tailor_rank": {"*": 2, "last": 2}}, "tailor_rank pattern 'last' matches no target; targets: first"),
        ({"tailor_rank": {"first": 1}, "targets": ["*st"]}, "tailor_rank has no pattern for target last; patterns: f"),
        ({"num_classes": 5}, "label table table has 4 rows; 5 classes need 5, or 6 with the null row last"),
        ({"num_classes": 2}, "label table table has 4 rows; 2 classes need 2, or 3 with the null row last"),
        (
            {"label_argument": "label"},
            r"Toy\.forward has no argument 'label' \(it has x, y\); give label_argument=",
        ),
        ({"targets": "paper"}, "targets='paper' has no meaning yet for Toy .*give a list of patterns.*first, last"),
        ({"targets": "everything"}, "targets must be 'paper', 'paper.adaln' or a list of patterns, got 'everything'"),
    ],
)
def test_what_does_not_fit_is_refused_naming_it(toy, options, message):
    assert_refused(toy(), config(**options), message)


def test_a_long_list_of_what_there_is_is_cut_short():
    many = nn.ModuleDict({f"layer{index}": nn.Linear(2, 2) for index in range(50)})
    assert_refused(many, config(targets=["x"]), "there is: layer0, layer1, .*layer39, and 10 more$")


def test_a_model_that_is_itself_a_linear_layer_has_no_part_to_replace():
    assert_refused(nn.Linear(2, 2), config(targets=["*"]), "matches nothing; there is: nothing")


def test_only_exactly_linear_modules(toy):
    class Special(nn.Linear):
        pass

    module = toy()
    module.first = Special(6, 8)
    assert_refused(module, config(), "target first is a Special; only modules of exactly nn.Linear can be targets")


def test_a_convolution_that_a_pattern_catches_is_refused_not_skipped(dit):
    settings = KindConfig(num_classes=5, learngene_rank=1, tailor_rank=1, targets=["x_embedder.*"])
    assert_refused(dit.dense(1), settings, r"target x_embedder\.proj is a Conv2d; only modules of exactly nn\.Linear")


def test_tied_weights(toy):
    module = toy()
    module.again = nn.Linear(6, 8)
    module.again.weight = module.first.weight
    assert_refused(module, config(), r"target first shares its weight with again\.weight: tied weights cannot be")
    module = toy()
    module.again = module.first
    assert_refused(module, config(), r"target first shares its weight with again\.weight: tied weights cannot be")


def test_a_label_table_that_is_used_twice(toy):
    """The second place would go on reading the dense table."""
    module = toy()
    module.again = module.table
    assert_refused(module, config(), r"label table table shares its weight with again\.weight: tied weights cannot be")


def test_weights_that_are_computed(toy):
    module = toy()
    parametrize.register_parametrization(module.first, "weight", nn.Identity())
    assert_refused(module, config(), "target first is a ParametrizedLinear; only modules of exactly nn.Linear can be")
    module = toy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module.first)
    assert_refused(module, config(), r"target first computes its weight from others \(weight_norm\?\)")
    module = toy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module.table)
    assert_refused(module, config(), r"label table table computes its weight from others \(weight_norm\?\)")


@pytest.mark.parametrize("init", ["random", "svd"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(toy, init, value):
    module = toy()
    with torch.no_grad():
        module.last.weight[0, 0] = value
    settings = config(init=init, targets=["first", "last"])
    before = module.first
    with pytest.raises(ValueError, match="the weight of target last is not finite everywhere"):
        make_decomposable(module, settings)
    assert module.first is before


def test_loaded_weights_are_not_thrown_away_unasked(dit, toy):
    settings = KindConfig(num_classes=5, learngene_rank=2, tailor_rank=1)
    fresh = dit.dense(1)
    loaded = copy.deepcopy(fresh)
    loaded.load_state_dict(fresh.state_dict())
    assert_refused(loaded, settings, "weights were loaded, or it cannot tell: say init='svd' .* or init='random'")
    cannot_tell = toy()
    del cannot_tell.weights_loaded
    assert_refused(cannot_tell, config(init=None), "weights were loaded, or it cannot tell")
    assert make_decomposable(fresh, settings).layers


# What it makes.


def test_the_module_is_consumed_and_only_its_targets_and_tables_change(toy):
    module = toy()
    kept = {name: value for name, value in module.named_parameters() if "table" not in name and name != "first.weight"}
    model = make_decomposable(module, config())
    assert model.module is module
    assert type(module.first) is KindLinear
    assert type(module.table) is ClassRows
    assert type(module.last) is nn.Linear
    own = dict(module.named_parameters())
    assert all(own[name] is value for name, value in kept.items())
    assert own.keys() - kept.keys() == {"first.u", "first.s", "first.v", "table.null_row"}
    assert model.kind == config()


def test_layers_keep_the_module_s_order_whatever_the_patterns_say(toy):
    found = find_targets(toy(), config(targets=["last", "f*", "*st"]))
    assert [target.name for target in found] == ["first", "last"]


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ({"*": 1, "first": 2}, [2, 1]),
        ({"first": 2, "*": 1}, [2, 1]),  # a full name beats a pattern
        ({"*": 1, "l*": 3, "f*": 2}, [2, 3]),  # among patterns the last that fits
        (0.5, [3, 2]),
    ],
)
def test_ranks_by_pattern(toy, rank, expected):
    settings = config(targets=["first", "last"], learngene_rank=rank, tailor_rank=rank)
    found = find_targets(toy(), settings)
    assert [target.ranks for target in found] == [(rank,) for rank in expected]
    assert [target.tailor_ranks for target in found] == [(rank,) for rank in expected]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_everything_has_the_dtype_of_what_it_replaces(toy, dtype):
    model = make_decomposable(toy().to(dtype), config())
    assert {value.dtype for value in model.parameters()} == {dtype}


@pytest.mark.parametrize("training", [True, False])
def test_training_or_not_stays_as_it_was(toy, training):
    model = make_decomposable(toy().train(training), config())
    assert {child.training for child in model.module.modules()} == {training}


def test_a_layer_without_bias_stays_without(toy):
    model = make_decomposable(toy(bias=False), config())
    assert model.module.first.bias is None
    assert "first.bias" not in model.module.state_dict()


@pytest.mark.parametrize("rows", [3, 4])
def test_label_rows_and_the_null_row_are_the_table_s(toy, rows):
    """A table with a row more than there are classes has the null row last; without one it starts at zero."""
    module = toy(rows)
    weight = module.table.weight.detach().clone()
    model = make_decomposable(module, config())
    assert torch.equal(model.bank.labels.rows, weight[:3])
    assert torch.equal(module.table.null_row, weight[3] if rows == 4 else torch.zeros(6))


def test_the_backbone_never_drops_labels_itself(backbone):
    """Diffusers' embedder would, in training."""
    model = backbone.model(depth=1).train()
    first, second = (backbone.run(model, backbone.batch(), torch.arange(6) % 5) for _ in range(2))
    assert torch.equal(first, second)
    dropping = [child for child in model.module.modules() if hasattr(child, "dropout_prob")]
    assert all(child.dropout_prob == 0 for child in dropping)
    assert bool(dropping) == (backbone.name == "diffusers")


def test_classes_may_share_tailors_but_not_label_rows(toy):
    model = make_decomposable(toy(), config(gate_map=[1, 0, 1]))
    assert model.bank.tailors.count == 2
    assert model.bank.labels.count == model.num_classes == 3
    assert model.bank.tailor_of.tolist() == [1, 0, 1]


# First values.


def test_random_components_come_from_the_generator_alone(backbone):
    made = []
    for noise in (1, 2):
        torch.manual_seed(7)
        dense = backbone.dense(1)
        torch.manual_seed(noise)
        settings = KindConfig(num_classes=5, learngene_rank=2, tailor_rank=1, targets=backbone.targets, init="random")
        made.append(make_decomposable(dense, settings, torch.Generator().manual_seed(3)).state_dict())
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())


def test_unfilled_components_are_zero_and_draw_nothing(backbone):
    dense, before = backbone.dense(1), torch.get_rng_state()
    settings = KindConfig(num_classes=5, learngene_rank=2, tailor_rank=1, targets=backbone.targets, init="random")
    model = make_decomposable(dense, settings, filled=False)
    assert torch.equal(torch.get_rng_state(), before)
    for layer in model.layers.values():
        assert not any(factor.any() for factor in (layer.u, layer.s, layer.v))
    assert not model.bank.tailors.rows.any()
    assert not model.bank.labels.rows.any()


@pytest.mark.parametrize("fused", [1, 2])
def test_the_active_weight_starts_with_the_dense_weight_s_variance(fused):
    """Learngene and one tailor together, each part on its own; the learngene alone has its share."""
    dense = nn.ModuleDict({"layer": nn.Linear(96, 128)})
    with torch.no_grad():
        dense.layer.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        dense.layer.weight[64:] *= 3
    parts = [part.var().item() for part in dense.layer.weight.chunk(fused)]
    settings = config(
        targets=["layer"], fused={"layer": fused}, class_rows=[], label_argument="", learngene_rank=24, tailor_rank=8
    )
    model = make_decomposable(dense, settings, torch.Generator().manual_seed(1))
    layer = model.layers["layer"]
    tailors = layer.tailor(model.bank.tailors.views(model.bank.tailors.rows))
    for learngene, tailor, variance in zip(layer.learngene(), tailors, parts, strict=True):
        shared = torch.einsum("ro,r,ri->oi", *learngene)
        own = torch.einsum("cro,cr,cri->coi", *tailor)
        assert (shared + own).var().item() == pytest.approx(variance, rel=0.15)
        assert shared.var().item() == pytest.approx(variance * 24 / 32, rel=0.15)


def test_a_zero_initialised_target_starts_as_exactly_zero_and_learns(dit):
    """AdaLN-Zero: every modulation is zero, so a block starts as the identity, and still moves."""
    torch.manual_seed(0)
    settings = KindConfig(num_classes=5, learngene_rank=2, tailor_rank=1, targets="paper+adaln")
    model = make_decomposable(dit.dense(1), settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        nn.init.normal_(model.module.final_layer.linear.weight, std=0.1)
    layer = model.layers["blocks.0.adaLN_modulation.1"]
    tailors = layer.tailor(model.bank.tailors.views(model.bank.tailors.rows))[0]
    for u, s, v in (layer.learngene()[0], tailors):
        assert not torch.einsum("...ro,...r,...ri->...oi", u, s, v).any()
        assert v.abs().min() > 0
    batch, labels = dit.batch(torch.float32), torch.tensor([0, 1, 2, 3, 4, 5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (dit.run(model, batch, labels) - 1).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert layer.u.grad.any()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    tailors = layer.tailor(model.bank.tailors.views(model.bank.tailors.rows.detach()))[0]
    assert all(matrix.any() for matrix in torch.einsum("cro,cr,cri->coi", *tailors))


def test_svd_at_full_rank_is_the_dense_model_for_every_class(backbone):
    """Whatever the class and the null label, apart from the label rows, which stay each class's own."""
    torch.manual_seed(0)
    dense = backbone.dense(1).double()
    with torch.no_grad():
        for name, value in dense.named_parameters():
            if value.requires_grad and not name.startswith("pos_embed"):
                value.copy_(torch.randn_like(value) * 0.2)
    dense.eval()
    batch, labels = backbone.batch(), torch.tensor([0, 1, 2, 3, 4, 5])
    expected = backbone.run_dense(dense, batch, labels)
    weights = {name: value.detach().clone() for name, value in dense.named_parameters()}
    settings = {"learngene_rank": 16, "tailor_rank": 2, "targets": backbone.targets, "init": "svd"}
    model = make_decomposable(dense, KindConfig(num_classes=5, **settings))
    found = backbone.run(model, batch, labels)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    pieces = model.bank.tailors.views(model.bank.tailors.rows)
    for name, layer in model.layers.items():
        shared = torch.cat([torch.einsum("ro,r,ri->oi", *part) for part in layer.learngene()])
        assert torch.allclose(shared, weights[f"{name}.weight"], rtol=1e-12, atol=1e-12)
        for u, s, v in layer.tailor(pieces):
            assert not torch.einsum("cro,cr,cri->coi", u, s, v).any()
            assert v.any()  # so that they learn


def test_svd_below_full_rank_keeps_the_best_part(toy):
    module = toy().double()
    weight = module.first.weight.detach().clone()
    model = make_decomposable(module, config(init="svd", learngene_rank=2))
    shared = torch.einsum("ro,r,ri->oi", *model.layers["first"].learngene()[0])
    lost = torch.linalg.svdvals(weight)[2:].square().sum().sqrt()
    assert (shared - weight).norm().item() == pytest.approx(lost.item(), rel=1e-12)
