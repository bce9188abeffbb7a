"""Transfer strategies: what each of them starts from, what it trains, and what it leaves alone."""

import pytest
import torch

from kindgene import DiT, KindConfig, TrainConfig, load_digits, make_decomposable, train
from kindgene.transfer.strategies import full_finetuning, kind_transfer

NEW = ("6", "7", "8")
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 400, 900])
LABELS = "y_embedder.embedding_table.weight"


def dense(**settings):
    """A DiT whose every weight counts: none is left at zero."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "depth": 1, "class_names": ["0", "1"], **settings}
    model = DiT.from_preset("tiny/2", num_classes=2, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def pool():
    kind = KindConfig(num_classes=2, learngene_rank=4, tailor_rank=2, targets="paper+adaln", init="svd")
    return make_decomposable(dense(), kind).decompose()


@pytest.fixture(scope="module")
def digits():
    return load_digits().subset(NEW)


def step(transfer, data):
    train(
        transfer.model,
        data,
        TrainConfig(steps=2, batch_size=8, label_drop=transfer.label_drop, ema_decay=0.0, learning_rate=1e-2),
    )


def test_kind_starts_from_the_pools_learngene(pool):
    transfer = kind_transfer(pool, NEW, generator=torch.Generator().manual_seed(0))
    assert (transfer.strategy, transfer.label_drop) == ("kind", 0.0)
    assert transfer.model.class_names == NEW
    for name, value in transfer.model.module.state_dict().items():
        assert torch.equal(value, pool.learngene[name]), name
    null = transfer.model.null_class
    with torch.no_grad():
        expected = pool.to_model().eval()(X, T, torch.full((3,), 2))
        found = transfer.model.eval()(X, T, torch.full((3,), null))
        own = transfer.model(X, T, torch.arange(3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(own, found)


def test_kind_can_start_at_the_unconditional_model(pool):
    transfer = kind_transfer(pool, NEW, tailor_rank=3, start="zero")
    model = transfer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X, T, torch.arange(3)), model(X, T, torch.full((3,), 3)))


def test_kind_draws_with_its_generator(pool):
    rows = [
        kind_transfer(pool, NEW, generator=torch.Generator().manual_seed(seed)).model.bank.tailors.rows
        for seed in (0, 0, 1)
    ]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_kind_trains_tailors_and_label_rows_alone(pool, digits):
    transfer = kind_transfer(pool, NEW, generator=torch.Generator().manual_seed(0))
    width = 16
    matrices = 4 * [(width, width)] + [(width, 4 * width), (4 * width, width), (width, 6 * width)]
    tailor = sum(2 * (inputs + outputs + 1) for inputs, outputs in matrices)  # u, s and v of two components
    assert transfer.trained == {"bank.tailors.rows": 3 * tailor, "bank.labels.rows": 3 * width}
    before = {name: value.clone() for name, value in transfer.model.state_dict().items()}
    step(transfer, digits)
    changed = {name for name, value in transfer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(transfer.trained)


def test_full_finetuning_starts_from_the_same_function():
    model = dense()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    transfer = full_finetuning(model, NEW)
    assert torch.equal(torch.get_rng_state(), random)
    assert (transfer.strategy, transfer.label_drop) == ("full_finetune", 0.1)
    assert (transfer.model.class_names, transfer.model.null_class) == (NEW, 3)
    with torch.no_grad():
        null = model(X, T, torch.full((3,), 2))
        for label in range(4):  # the new classes begin as the null class, and it is what it was
            assert torch.equal(transfer.model.eval()(X, T, torch.full((3,), label)), null)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.num_classes, model.class_names) == (2, ("0", "1"))


def test_full_finetuning_trains_everything_and_only_its_own(digits):
    model = dense()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transfer = full_finetuning(model, NEW, label_drop=0.2)
    assert transfer.label_drop == 0.2
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert set(transfer.trained) == {name for name, _ in transfer.model.named_parameters()} - frozen
    assert frozen == {"pos_embed"}
    start = {name: value.clone() for name, value in transfer.model.state_dict().items()}
    step(transfer, digits)
    changed = {name for name, value in transfer.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == set(transfer.trained)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_full_finetuning_keeps_the_dtype(dtype):
    model = torch.nn.Module.to(dense(), dtype)
    state = full_finetuning(model, NEW).model.state_dict()
    assert {value.dtype for value in state.values()} == {dtype}
    for name, value in model.state_dict().items():
        expected = value[-1].repeat(4, 1) if name == LABELS else value
        assert torch.equal(state[name], expected), name


def test_full_finetuning_keeps_thin_pairs():
    model = dense(low_rank={"blocks.0.mlp.fc1": [3]})
    transfer = full_finetuning(model, NEW)
    assert transfer.model.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        found = transfer.model.eval()(X, T, torch.arange(3))
        assert torch.equal(found, model(X, T, torch.full((3,), 2)))


def test_what_cannot_be(pool):
    with pytest.raises(ValueError, match="has none"):
        full_finetuning(dense(null_row=False), NEW)
    for make in (lambda names: full_finetuning(dense(), names), lambda names: kind_transfer(pool, names)):
        for names, told in (((), "name at least one"), (("6", "6"), "more than once"), ("67", "list of names")):
            with pytest.raises(ValueError, match=told):
                make(names)
    with pytest.raises(ValueError, match="start must be"):
        kind_transfer(pool, NEW, start="one")
    with pytest.raises(ValueError, match="tailor_rank"):
        kind_transfer(pool, NEW, 99)
