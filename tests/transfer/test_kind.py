"""KIND's transfers beyond the plain one, and per-class LoRA behind the same gate."""

import copy

import pytest
import torch

from kindgene import KindConfig, make_decomposable, sample
from kindgene.core.reference import model_reference
from kindgene.transfer.class_lora import class_lora
from kindgene.transfer.kind import null_name

NEW = ("6", "7", "8")


def unlabelled(batch):
    return torch.full_like(batch[2], 3)


def test_the_null_tailor_is_another_null_class(make, start, batch, fit, state_of, changed):
    """Samples without a label train it, and it alone; classes and learngene stay as they are."""
    x, t, y = batch
    plain, own = make("kind").model, make("kind_null_tailor").model
    model = start.pool.to_model()
    with torch.no_grad():
        base = model.eval()(x, t, torch.full_like(y, 2))
        torch.testing.assert_close(plain.eval()(x, t, unlabelled(batch)), base, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(own.eval()(x, t, unlabelled(batch)), base, rtol=1e-3)
        classes = own(x, t, y)
    shared = state_of(own.module)
    rows = own.bank.tailors.rows.detach().clone()
    losses = fit(own, labels=unlabelled(batch))
    assert losses[-1] < losses[0]
    assert not changed(own.module, shared)
    assert [torch.equal(a, b) for a, b in zip(own.bank.tailors.rows, rows, strict=True)] == [True, True, True, False]
    with torch.no_grad():
        assert torch.equal(own.eval()(x, t, y), classes)


def test_the_null_tailor_guides(make):
    own = make("kind_null_tailor").model
    assert (own.null_class, own.num_classes, own.bank.num_classes) == (3, 3, 4)
    drawn = [
        sample(own, ["7", None], guidance=w, steps=2, clip=1.0, generator=torch.Generator().manual_seed(0))
        for w in (1.0, 3.0)
    ]
    assert not torch.equal(drawn[0][0], drawn[1][0])
    torch.testing.assert_close(drawn[0][1], drawn[1][1])  # null guided by null


def test_the_null_tailor_goes_into_a_pool_as_a_class(make, start, batch, fit):
    x, t, y = batch
    own = make("kind_null_tailor").model
    fit(own, 2)
    grown = copy.deepcopy(start.pool)
    grown.add(own.with_null_as_class())
    assert grown.classes == ("0", "1", "6", "7", "8", "null")
    again = grown.recombine([*NEW, "null"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x, t, y), own.eval()(x, t, y), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again(x, t, unlabelled(batch)), own(x, t, unlabelled(batch)), rtol=1e-4, atol=1e-5)


def test_what_was_added_to_a_pool_is_guided_by_its_null_tailor_still(make, start, batch, fit):
    own = make("kind_null_tailor").model
    fit(own, 2)
    grown = copy.deepcopy(start.pool)
    grown.add(own.with_null_as_class())
    again = grown.recombine([*NEW, "null"])

    def drawn(model, **options):
        generator = torch.Generator().manual_seed(0)
        return sample(model, list(NEW), guidance=2.0, steps=2, clip=1.0, generator=generator, **options)

    torch.testing.assert_close(drawn(again, negative="null"), drawn(own), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(drawn(again), drawn(own), rtol=1e-2, atol=1e-2)  # the base learngene is another null


def test_a_class_may_be_called_null(make):
    assert null_name(("null", "null_")) == "null__"
    own = make("kind_null_tailor", names=("null", "7", "8")).model
    assert own.class_names == ("null", "7", "8")
    assert own.with_null_as_class().class_names == ("null", "7", "8", "null_")


def test_everything_trained_is_no_part_of_the_pool(make, start, fit):
    own = make("kind_everything").model
    assert not own.module.pos_embed.requires_grad
    fit(own, 1)
    with pytest.raises(ValueError, match="learngene is not the pool's"):
        copy.deepcopy(start.pool).add(own)


def test_class_lora_keeps_the_dense_matrices(make, start):
    model = make("class_lora").model
    for name, layer in model.layers.items():
        assert torch.equal(layer.weight, start.dense.get_submodule(name).weight)
        assert set(layer.ranks) == {None}
        assert not layer.v.numel()


def test_class_lora_is_dense_plus_tailor(make, batch, fit):
    """Against the slow, obvious reference, after some training."""
    x, t, y = batch
    model = make("class_lora").model
    fit(model, 4)
    with torch.no_grad():
        found = model.eval()(x, t, y)
        for one, expected in zip(found, model_reference(model, y, x, t, y), strict=True):
            torch.testing.assert_close(one, expected[0], rtol=1e-4, atol=1e-5)


def test_class_lora_has_the_tailors_of_kind(make_dense, batch, fit):
    """Same shapes as KIND's for the same rank, and a class never touches another's."""
    dense = make_dense()
    own = class_lora(dense, NEW, 3).model
    kind = KindConfig(num_classes=2, learngene_rank=4, tailor_rank=3, targets="paper+adaln", init="svd")
    theirs = make_decomposable(dense, kind)
    assert own.bank.tailors.shapes == theirs.bank.tailors.shapes
    assert own.bank.labels.shapes == theirs.bank.labels.shapes
    before = own.bank.tailors.rows.detach().clone()
    fit(own, 2, labels=torch.full_like(batch[2], 1))
    same = [torch.equal(a, b) for a, b in zip(own.bank.tailors.rows, before, strict=True)]
    assert same == [True, False, True]


def test_class_lora_refuses(make_dense):
    for rank in (0, 17):
        with pytest.raises(ValueError, match="tailor_rank"):
            class_lora(make_dense(), NEW, rank)
