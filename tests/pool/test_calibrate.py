"""What a component is worth on data: the estimator against the definition, and plans that are better for it."""

import pytest
import torch
from torch import nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.pool.calibrate import output_importance

NAMES = ["a", "b", "c", "d", "e"]


class OneNumber(nn.Module):
    """Two layers with one output: a random sign squared is 1, so that the estimate is no estimate."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x, y):
        return self.last(torch.tanh(self.first(x)))


def one_number():
    torch.manual_seed(0)
    kind = KindConfig(
        num_classes=3,
        learngene_rank={"first": 3, "last": 1},
        tailor_rank={"first": 2, "last": 1},
        targets=["first", "last"],
        label_argument="y",
        init="random",
    )
    return make_decomposable(OneNumber().double(), kind)


def derivative(model, x, y, values, index):
    """s dy/ds of one component, by central differences."""
    step = 1e-6
    outputs = []
    for sign in (1, -1):
        with torch.no_grad():
            values[index] *= 1 + sign * step
            outputs.append(model(x, y).item())
            values[index] /= 1 + sign * step
    return (outputs[0] - outputs[1]) / (2 * step)


def test_it_is_the_squared_change_of_the_output_relative_to_its_norm():
    model = one_number()
    batches = [(torch.randn(1, 6, dtype=torch.float64), torch.tensor([label])) for label in (2, 0, 3)]
    found = output_importance(model, batches)
    assert found.measure == "output"
    assert found.additive
    energy = sum(model(*batch).item() ** 2 for batch in batches)
    for (name, part), (shared, own) in found.values.items():
        layer = model.layers[name]
        assert part == 0
        for index in range(len(shared)):
            expected = sum(derivative(model, *batch, layer.s.data, index) ** 2 for batch in batches) / energy
            assert shared[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-12)
        tailors = [model.bank.tailors.row(row)[f"{name}.s"] for row in range(3)]
        for index in range(len(own)):
            expected = sum(derivative(model, *batch, tailor, index) ** 2 for batch in batches for tailor in tailors)
            assert own[index].item() == pytest.approx(expected / energy, rel=1e-4, abs=1e-12)


def test_random_signs_have_the_definition_as_their_mean(dit):
    model = dit.model().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    batch = (x, torch.arange(4) * 200, torch.tensor([0, 3, 5, 1]))
    layer = model.layers["blocks.0.mlp.fc1"]
    found = output_importance(model, [batch] * 400, seed=3).values["blocks.0.mlp.fc1", 0][0]

    exact, step = torch.zeros(len(layer.s), dtype=torch.float64), 1e-6
    with torch.no_grad():
        energy = model(*batch).square().sum()
        for index in range(len(exact)):
            outputs = []
            for sign in (1, -1):
                layer.s[index] *= 1 + sign * step
                outputs.append(model(*batch))
                layer.s[index] /= 1 + sign * step
            exact[index] = ((outputs[0] - outputs[1]) / (2 * step)).square().sum() / energy
    torch.testing.assert_close(found, exact, rtol=0.25, atol=0)


def test_the_model_is_left_as_it_was(dit):
    model = dit.model()
    model.module.pos_embed.requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    done = []
    output_importance(model, [{"x": x, "t": torch.tensor([1, 2]), "y": torch.tensor([0, 5])}], progress=done.append)
    assert done == [1]
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
        assert value.grad is None


def test_no_data_and_outputs_that_are_not_finite_are_refused(dit):
    with pytest.raises(ValueError, match="at least one batch"):
        output_importance(dit.model(), [])
    x = torch.full((1, 1, 4, 4), torch.nan, dtype=torch.float64)
    with pytest.raises(ValueError, match="not finite"):
        output_importance(dit.model(), [(x, torch.tensor([1]), torch.tensor([0]))])


@pytest.mark.parametrize("form", ["gated", "merged"])
def test_a_plan_from_data_changes_the_output_less_than_one_from_energies(dit, form):
    """A module that multiplies one matrix's input by a small number: large energy, small worth."""
    model = dit.model(learngene_rank=6)
    with torch.no_grad():
        model.layers["blocks.0.mlp.fc2"].u *= 0.01  # what fc1 makes of it hardly counts
    pool = model.decompose(NAMES)
    generator = torch.Generator().manual_seed(4)

    def batches(count):
        for _ in range(count):
            x = torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
            yield x, torch.randint(1000, (4,), generator=generator), torch.zeros(4, dtype=torch.long)

    whole = pool.recombine(["b"], form=form)
    limit = int(0.8 * sum(value.numel() for value in whole.parameters()))
    errors = {}
    for calibration in (None, batches(40)):
        plan = pool.plan(["b"], form=form, max_parameters=limit, calibration=calibration)
        small = pool.recombine(plan=plan)
        with torch.no_grad():
            change = [(small(*batch) - whole(*batch)).norm() / whole(*batch).norm() for batch in batches(5)]
        errors[plan.measure] = torch.stack(change).mean().item()
    assert errors["output"] < errors["energy"]
