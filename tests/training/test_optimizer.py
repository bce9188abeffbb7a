"""AdamW over rows is AdamW, for the classes that are there; the others are not touched, bit for bit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.models.dit import DiT
from kindgene.training.optimizer import ModelAdamW, RowAdamW, row_tables, shared_parameters

BETAS, EPS = (0.9, 0.95), 1e-8


def tiny(classes: int = 3, gate_map: list[int] | None = None) -> Decomposable:
    torch.manual_seed(0)
    config = KindConfig(num_classes=classes, learngene_rank=4, tailor_rank=2, targets="paper+adaln", gate_map=gate_map)
    model = make_decomposable(DiT.from_preset("tiny/2", num_classes=classes), config).double()
    with torch.no_grad():  # a fresh DiT's output is zero, and so are most gradients
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def gradients(model: Decomposable, labels: Tensor, seed: int, gathered: bool = True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 1, 8, 8, generator=generator, dtype=torch.float64)
    target = torch.randn(len(labels), 1, 8, 8, generator=generator, dtype=torch.float64)
    rows = model.bank.gather(labels, len(labels)) if gathered else None
    t = torch.arange(len(labels)) * 100
    (model(x, t, labels, rows=rows) - target).square().mean().backward()
    return rows


@given(
    present=st.lists(st.sets(st.integers(0, 4), max_size=5), min_size=1, max_size=8),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
@settings(max_examples=25)
def test_a_row_is_updated_as_adamw_would_in_the_steps_it_is_part_of(
    present: list[set[int]], weight_decay: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    alone = [nn.Parameter(row.clone()) for row in rows]
    theirs = [torch.optim.AdamW([p], lr=0.1, betas=BETAS, eps=EPS, weight_decay=weight_decay) for p in alone]
    mine = RowAdamW(rows, BETAS, weight_decay, EPS)
    for step, classes in enumerate(present):
        ids = torch.tensor(sorted(classes), dtype=torch.long)
        gradient = torch.randn(len(ids), 7, dtype=torch.float64, generator=generator)
        before = [tensor.clone() for tensor in (rows, mine.exp_avg, mine.exp_avg_sq, mine.steps)]
        lr = 0.1 / (step + 1)
        mine.step(ids, gradient, lr)
        for i, gradient_P in zip(ids.tolist(), gradient, strict=True):
            alone[i].grad = gradient_P
            theirs[i].param_groups[0]["lr"] = lr
            theirs[i].step()
        absent = [i for i in range(5) if i not in classes]
        for old, new in zip(before, (rows, mine.exp_avg, mine.exp_avg_sq, mine.steps), strict=True):
            assert torch.equal(old[absent], new[absent])
    torch.testing.assert_close(rows, torch.stack([p.detach() for p in alone]), rtol=1e-12, atol=1e-12)
    assert mine.steps.tolist() == [sum(i in classes for classes in present) for i in range(5)]


def test_every_class_present_is_torch_adamw_on_the_whole_model() -> None:
    mine, theirs = tiny(), tiny()
    optimizer = ModelAdamW(mine, betas=BETAS, weight_decay=0.05)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=BETAS, weight_decay=0.05)
    for step in range(6):
        labels = torch.tensor([0, 1, 2, 0, 3])  # 3 is null
        optimizer.zero_grad()
        rows = gradients(mine, labels, step)
        optimizer.step(1e-2, rows)
        reference.zero_grad()
        gradients(theirs, labels, step, gathered=False)
        reference.step()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)


def test_absent_classes_are_not_touched() -> None:
    model = tiny(4)
    optimizer = ModelAdamW(model, weight_decay=0.1)
    for step, labels in enumerate([[0, 1, 2, 3], [0, 2, 4, 0], [2, 2, 4, 4], [4, 4, 4, 4]]):
        state = {key: value.clone() for key, value in optimizer.state().items()}
        old = {name: table.rows.detach().clone() for name, table in row_tables(model).items()}
        optimizer.zero_grad()
        rows = gradients(model, torch.tensor(labels), step)
        optimizer.step(1e-2, rows)
        absent = [c for c in range(4) if c not in labels]
        present = [c for c in range(4) if c in labels]
        for name, table in row_tables(model).items():
            assert torch.equal(table.rows[absent], old[name][absent])
            assert all(not torch.equal(table.rows[c], old[name][c]) for c in present)
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(optimizer.state()[f"{key}.{name}"][absent], state[f"{key}.{name}"][absent])


def test_classes_that_share_a_tailor_keep_label_rows_of_their_own() -> None:
    model = tiny(4, gate_map=[0, 1, 0, 1])
    optimizer = ModelAdamW(model)
    old = {name: table.rows.detach().clone() for name, table in row_tables(model).items()}
    optimizer.step(1e-2, gradients(model, torch.tensor([0, 0, 4]), 0))
    changed = {
        name: [i for i in range(table.count) if not torch.equal(table.rows[i], old[name][i])]
        for name, table in row_tables(model).items()
    }
    assert changed == {"bank.tailors.rows": [0], "bank.labels.rows": [0]}


def test_what_is_frozen_has_no_state_and_does_not_move() -> None:
    model = tiny().freeze_learngene()
    optimizer = ModelAdamW(model)
    assert set(optimizer.shared) == set()
    assert {key.split(".", 1)[1] for key in optimizer.state()} == {"bank.tailors.rows", "bank.labels.rows"}
    shared = {name: value.clone() for name, value in model.module.state_dict().items()}
    optimizer.step(1e-2, gradients(model, torch.tensor([0, 1]), 0))
    assert all(torch.equal(value, shared[name]) for name, value in model.module.state_dict().items())

    model = tiny()
    model.bank.requires_grad_(False)
    optimizer = ModelAdamW(model)
    assert optimizer.rows == {}
    rows = gradients(model, torch.tensor([0, 1]), 0)
    optimizer.step(1e-2, rows)
    assert torch.equal(model.bank.tailors.rows, tiny().bank.tailors.rows)
    assert not any(key.split(".")[1] == "bank" for key in optimizer.state())

    with pytest.raises(ValueError, match="nothing in this model is trainable"):
        ModelAdamW(model.requires_grad_(False))


def test_a_plain_model_is_all_shared() -> None:
    dense = DiT.from_preset("tiny/2", num_classes=3)
    trained = [name for name, parameter in dense.named_parameters() if parameter.requires_grad]
    assert list(shared_parameters(dense)) == trained
    assert row_tables(dense) == {}


def test_saved_state_goes_on_bit_for_bit() -> None:
    models = tiny(), tiny()
    first, second = (ModelAdamW(model, weight_decay=0.1) for model in models)
    batches = [torch.tensor(labels) for labels in ([0, 0, 3], [1, 1, 0], [2, 3, 1])]
    for step, labels in enumerate(batches):
        first.zero_grad()
        first.step(1e-2, gradients(models[0], labels, step))
        if step == 1:
            models[1].load_state_dict(models[0].state_dict())
            second.load({key: value.clone() for key, value in first.state().items()}, "here")
    second.step(1e-2, gradients(models[1], batches[2], 2))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in first.state().items():
        assert torch.equal(value, second.state()[key])


def test_foreign_state_is_refused() -> None:
    optimizer = ModelAdamW(tiny())
    state = optimizer.state()
    with pytest.raises(ValueError, match=r"a file: step\.bank\.tailors\.rows is missing"):
        optimizer.load({}, "a file")
    with pytest.raises(ValueError, match="a file: unexpected foreign"):
        optimizer.load({**state, "foreign": torch.zeros(1)}, "a file")
    with pytest.raises(ValueError, match=r"step\.bank\.tailors\.rows has shape \[4\], expected \[3\]"):
        optimizer.load({**state, "step.bank.tailors.rows": torch.zeros(4)}, "a file")
