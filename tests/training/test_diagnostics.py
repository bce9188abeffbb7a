"""Diagnostics say what the whole matrices say, and leave no trace."""

import json
import math
import time
from typing import ClassVar

import pytest
import torch

from kindgene.core.components import compose
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.evaluation.structure import drift
from kindgene.models.dit import DiT
from kindgene.training.diagnostics import TAILORS, diagnose, gradient_norms
from kindgene.training.processes import Processes

CLASSES = 5


def model_of(classes: int = CLASSES, preset: str = "tiny/2", dtype: torch.dtype = torch.float64) -> Decomposable:
    torch.manual_seed(0)
    dense = DiT.from_preset(preset, num_classes=classes)
    config = KindConfig(
        num_classes=classes,
        learngene_rank={"*": 6, "blocks.0.attn.qkv": [3, 5, 4]},
        tailor_rank={"*": 2, "blocks.0.attn.qkv": [1, 3, 2]},
        targets="paper",
        init="random",
    )
    model = make_decomposable(dense, config, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in model.layers.values():
            layer.s.mul_(torch.rand(layer.s.shape) + 0.5)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_the_whole_matrices_say(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    found = diagnose(model)
    near = {"rel": 1e-4, "abs": 1e-6}
    pieces = model.bank.tailors.views(model.bank.tailors.rows.detach())
    energies = []
    for name, layer in model.layers.items():
        for index, (one, tailors) in enumerate(zip(layer.learngene(), layer.tailor(pieces), strict=True)):
            told = found["layers"][f"{name}.{index}" if layer.parts > 1 else name]
            one, tailors = one.to(torch.float64), tailors.to(torch.float64)
            singular = torch.linalg.svdvals(compose(one)).detach()[: one.rank]
            assert told["rank"] == one.rank
            assert told["singular_largest"] == pytest.approx(float(singular[0]), **near)
            assert told["singular_smallest"] == pytest.approx(float(singular[-1]), **near)
            assert told["singular_median"] == pytest.approx(float(singular.quantile(0.5)), **near)
            shared, own = float(singular.square().sum()), float(compose(tailors).square().sum()) / CLASSES
            energies.append((shared, own))
            assert told["tailor_energy"] == pytest.approx(own / (shared + own), **near)
            assert told["learngene_energy"] == pytest.approx(shared / (shared + own), **near)
            for side in "uv":
                expected = float(drift(getattr(one, side).detach())) * math.sqrt(one.rank - 1)
                assert told[f"orthogonality_{side}"] == pytest.approx(expected, **near)
    summary = found["summary"]
    assert (summary["layers"], summary["tailors"]) == (len(energies), CLASSES) == (12, 5)
    shared, own = (sum(column) for column in zip(*energies, strict=True))
    assert summary["tailor_energy"] == pytest.approx(own / (shared + own), **near)
    layers = found["layers"].values()
    for key in ("singular_largest", "singular_median", "singular_smallest", "orthogonality_u", "orthogonality_v"):
        assert summary[key] == pytest.approx(sum(layer[key] for layer in layers) / len(layers), **near)


def test_a_canonical_learngene_is_orthogonal() -> None:
    model = model_of().decompose([str(label) for label in range(CLASSES)]).to_model()
    assert diagnose(model)["summary"]["orthogonality_u"] < 1e-5
    assert diagnose(model)["summary"]["orthogonality_v"] < 1e-5


def test_it_leaves_no_trace() -> None:
    model = model_of(dtype=torch.float32)
    model.train()
    model.module.final_layer.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    json.dumps(diagnose(model), allow_nan=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None or bool((parameter.grad == 1).all()) for parameter in model.parameters())


def test_many_tailors_are_sampled() -> None:
    model, few = model_of(70), model_of(TAILORS)
    with torch.no_grad():
        few.module.load_state_dict(model.module.state_dict())
        few.bank.tailors.rows.copy_(model.bank.tailors.rows[[index * 70 // TAILORS for index in range(TAILORS)]])
    assert diagnose(model) == diagnose(few)
    assert diagnose(model)["summary"]["tailors"] == TAILORS


class Others(Processes):
    """Stands for all processes: what the first one has is added to what the second one has."""

    sums: ClassVar[list[torch.Tensor]] = []

    def sum_(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            if self.sums:
                tensor += self.sums.pop()
            else:
                self.sums.append(tensor.clone())


def test_tailors_on_several_processes_are_one_mean() -> None:
    whole = diagnose(model_of())
    for rank, held in enumerate(([0, 3], [1, 2, 4])):
        model = model_of()
        model.bank.tailors.hold(torch.tensor(held))
        found = diagnose(model, Others(rank, 2, torch.device("cpu")))
    assert found == whole
    model = model_of()
    model.bank.tailors.hold(torch.tensor([], dtype=torch.long))
    nobody = diagnose(model)["summary"]
    assert (nobody["tailors"], nobody["tailor_energy"], nobody["learngene_energy"]) == (0, None, None)


def test_zero_and_broken_weights_are_told_in_json() -> None:
    model = model_of()
    first, second = list(model.layers)[1:3]
    with torch.no_grad():
        model.layers[first].u.zero_()
        model.layers[second].v[0, 0] = math.nan
        model.bank.tailors.rows.zero_()
    found = json.loads(json.dumps(diagnose(model), allow_nan=False))
    zero, broken = found["layers"][first], found["layers"][second]
    assert (zero["singular_largest"], zero["orthogonality_u"], zero["tailor_energy"]) == (0.0, 0.0, None)
    assert broken["singular_largest"] is None
    assert found["summary"]["singular_largest"] is None


def test_a_plain_model_has_none() -> None:
    assert diagnose(DiT.from_preset("tiny/2")) == {}


def test_norms_of_gradients() -> None:
    shared = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert gradient_norms(shared, []) == {"learngene": 5.0, "tailors": 0.0}
    assert gradient_norms(iter(shared), iter([torch.tensor([-2.0])])) == {"learngene": 5.0, "tailors": 2.0}
    assert gradient_norms([torch.tensor([math.inf])], shared) == {"learngene": None, "tailors": 5.0}


def test_it_is_cheap() -> None:
    """About 12 ms were measured at this size on one core."""
    dense = DiT.from_preset("mini/2")
    model = make_decomposable(
        dense, KindConfig(num_classes=10, learngene_rank=24, tailor_rank=4, targets="paper+adaln")
    )
    diagnose(model)
    began = time.perf_counter()
    diagnose(model)
    assert time.perf_counter() - began < 0.3
