"""The grid: from the averages, the same each time, and training does not notice."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.gate import GateError
from kindgene.diffusion.path import DiffusionPath
from kindgene.models.dit import DiT
from kindgene.training import grid
from kindgene.training.ema import EMA
from kindgene.training.grid import averaged_rows, draw_grid, draw_samples, grid_labels, save_grid
from kindgene.training.optimizer import ModelAdamW
from kindgene.training.processes import Processes

CLASSES = 5


def model_of(kind: str, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=CLASSES, **{"hidden_size": 16, "depth": 1, **overrides})
    if kind == "dense":
        return dense
    config = KindConfig(num_classes=CLASSES, learngene_rank=4, tailor_rank=2, targets="paper+adaln")
    return make_decomposable(dense, config, torch.Generator().manual_seed(0))


class Training:
    """A loop with a fixed batch a step, in which only some classes come up."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer, self.ema = ModelAdamW(model), EMA(model, 0.9)
        self.generator = torch.Generator().manual_seed(3)
        self.kind: Any = model

    def step(self, *classes: int) -> None:
        labels = torch.tensor([*classes, CLASSES])
        shape = (len(labels), self.kind.config.in_channels, 8, 8)
        images = torch.randn(shape, generator=self.generator)
        decomposable = not isinstance(self.model, DiT)
        rows = self.kind.bank.gather(labels) if decomposable else None
        output = self.model(images, torch.full_like(labels, 500), labels, **({"rows": rows} if decomposable else {}))
        self.optimizer.zero_grad()
        (output[:, : shape[1]] - images).square().mean().backward()
        self.optimizer.step(1e-2, rows)
        self.ema.update(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        state = {**self.model.state_dict(), **self.optimizer.state(), **self.ema.state()}
        state |= {f"grad {name}": p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return {name: value.detach().clone() for name, value in state.items()}


def trained(kind: str, **overrides: Any) -> Training:
    training = Training(model_of(kind, **overrides))
    for classes in ((0, 1), (2,), (0, 3)):
        training.step(*classes)
    return training


def draw(training: Training, ema: EMA | None, labels: torch.Tensor | None = None) -> Any:
    labels = grid_labels(CLASSES) if labels is None else labels
    return draw_samples(training.model, ema, labels, DiffusionPath.of(training.model), seed=1, steps=3)


def test_classes_of_the_grid() -> None:
    assert grid_labels(1).tolist() == [0] * 4
    assert grid_labels(3).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert grid_labels(1000).tolist()[::4] == [0, 125, 250, 375, 500, 625, 750, 875]


@pytest.mark.parametrize("kind", ["kind", "dense"])
def test_it_is_drawn_from_the_averages(kind: str) -> None:
    training = trained(kind)
    averaged, raw = draw(training, training.ema), draw(training, None)
    assert (averaged.dtype, averaged.shape) == (np.uint8, (20, 8, 8, 1))
    training.ema.copy_to_model()
    assert np.array_equal(draw(training, None), averaged)
    assert not np.array_equal(raw, averaged)


def test_rows_are_the_averages_caught_up() -> None:
    training = trained("kind")
    rows = averaged_rows(training.kind, training.ema, torch.tensor([4, 1, 1, 0]))
    expected = training.ema.weights()
    assert rows.tailors.present.tolist() == [0, 1, 4]
    for name, table in (("tailors", rows.tailors), ("labels", rows.labels)):
        assert torch.equal(table.values[:3], expected[f"bank.{name}.rows"][[0, 1, 4]])


@pytest.mark.parametrize("kind", ["kind", "dense"])
def test_training_does_not_notice(kind: str, tmp_path: Path) -> None:
    quiet, watched = trained(kind), trained(kind)
    frozen = next(module for module in watched.model.modules() if isinstance(module, nn.LayerNorm))
    frozen.eval()
    modes = [module.training for module in watched.model.modules()]
    random = torch.get_rng_state()
    for classes in ((1,), (2, 4), (0,)):
        draw_grid(watched.model, watched.ema, DiffusionPath.of(watched.model), tmp_path, 1, seed=0)
        quiet.step(*classes)
        watched.step(*classes)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in watched.model.modules()] == modes
    before, after = quiet.tensors(), watched.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    if kind == "kind":
        assert not watched.kind.gate.is_open()
        with pytest.raises(GateError):
            watched.kind.gate.current("a layer")


def test_an_exception_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    training = trained("kind")
    before = training.tensors()

    def fail(model: Any, *_: Any, **__: Any) -> None:
        assert not torch.equal(model.model.module.pos_embed, torch.zeros(1))
        assert not torch.equal(training.kind.module.final_layer.linear.weight, before[name])
        raise KeyboardInterrupt

    name = "module.final_layer.linear.weight"
    monkeypatch.setattr(grid, "sample", fail)
    with pytest.raises(KeyboardInterrupt):
        draw(training, training.ema)
    after = training.tensors()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_same_noise_every_time() -> None:
    training = trained("kind")
    first = draw(training, training.ema)
    torch.manual_seed(99)
    assert np.array_equal(draw(training, training.ema), first)
    other = draw_samples(
        training.model, training.ema, grid_labels(CLASSES), DiffusionPath.of(training.model), seed=2, steps=3
    )
    assert not np.array_equal(other, first)


def test_bfloat16_weights_come_back() -> None:
    training = trained("kind")
    training.model.to(torch.bfloat16)
    training = Training(training.model)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    draw(training, training.ema)
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_latents_show_three_channels(channels: int, shown: int, tmp_path: Path) -> None:
    training = trained("kind", in_channels=channels)
    images = draw_grid(training.model, training.ema, DiffusionPath.of(training.model), tmp_path, 7, seed=0)
    assert images is not None
    assert images.shape == (20, 8, 8, shown)
    with Image.open(tmp_path / "samples" / "step-00000007.png") as image:
        assert (image.size, image.mode) == ((4 * 64, 5 * 64), "L" if shown == 1 else "RGB")


def test_a_learned_sigma(tmp_path: Path) -> None:
    training = trained("kind", learn_sigma=True)
    assert draw(training, training.ema).shape == (20, 8, 8, 1)


class Others(Processes):
    """Stands for all processes: what the others hold is added to what this one has."""

    added: ClassVar[list[torch.Tensor]] = []

    def sum_(self, *tensors: torch.Tensor) -> None:
        if self.rank == 1:
            self.added.extend(tensor.clone() for tensor in tensors)
            return
        for tensor in tensors:
            tensor += self.added.pop(0)


def test_rows_that_other_processes_hold() -> None:
    """Process 1 holds the classes 1, 2, 4 and process 0 the classes 0, 2, 3: both have 2."""
    expected = averaged_rows(trained("kind").kind, trained("kind").ema, torch.tensor([0, 1, 2]))
    for rank, held in ((1, [1, 2, 4]), (0, [0, 2, 3])):
        training = trained("kind")
        for name, table in (("tailors", training.kind.bank.tailors), ("labels", training.kind.bank.labels)):
            table.hold(torch.tensor(held))
            lazy = training.ema.rows[f"bank.{name}.rows"]
            lazy.average, lazy.last = lazy.average[held], lazy.last[held]
        processes = Others(rank, 2, torch.device("cpu"))
        found = averaged_rows(training.kind, training.ema, torch.tensor([0, 1, 2]), processes)
    for table, other in ((found.tailors, expected.tailors), (found.labels, expected.labels)):
        assert torch.equal(table.values, other.values)
        assert table.present.tolist() == [0, 1, 2]


FSDP = """
import copy, sys
import torch, torch.distributed as dist
from pathlib import Path
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, sys.argv[2])
from test_grid import draw, model_of, Training
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
plain = Training(model_of("kind"))
model = model_of("kind")
for block in model.module.blocks:
    fully_shard(block)
fully_shard(model.module)
sharded = Training(model)
for one in (plain, sharded):
    one.step(0, 1)
    one.step(2)
assert (draw(plain, plain.ema) == draw(sharded, sharded.ema)).all()
for one in (plain, sharded):
    one.step(0, 3)
whole = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in model.state_dict().items()}
assert all(torch.equal(value, whole[name]) for name, value in plain.model.state_dict().items())
dist.destroy_process_group()
print("same")
"""


@pytest.mark.slow
def test_a_sharded_learngene(tmp_path: Path) -> None:
    """Weights put together for the pictures are not used by the next step."""
    command = [sys.executable, "-c", FSDP, tmp_path / "store", Path(__file__).parent]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "same", run.stderr


def test_only_the_main_process_draws_a_whole_model(tmp_path: Path) -> None:
    class Second(Processes):
        def first(self, work: Any) -> None:
            assert not self.main

    training = trained("kind")
    path, second = DiffusionPath.of(training.model), Second(1, 2, torch.device("cpu"))
    assert draw_grid(training.model, training.ema, path, tmp_path, 7, seed=0, processes=second) is None
    assert list(tmp_path.iterdir()) == []


def test_samples_that_are_not_finite_cost_a_picture_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = trained("kind", in_channels=4)
    with torch.no_grad():
        training.ema.shared["module.final_layer.linear.bias"].fill_(torch.inf)
    with caplog.at_level(logging.WARNING):
        found = draw_grid(training.model, training.ema, DiffusionPath.of(training.model), tmp_path, 3, seed=0)
    assert found is None
    assert "no picture of samples at step 3" in caplog.text


def test_memory_that_does_not_suffice_costs_a_picture_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def decode(latents: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"no room for {len(latents)} images")

    training = trained("kind", in_channels=4)
    path = DiffusionPath.of(training.model)
    assert draw_grid(training.model, training.ema, path, tmp_path, 3, seed=0, decode=decode) is None
    assert "no picture of samples at step 3: no room for 20 images" in caplog.text


def test_where_every_cell_is(tmp_path: Path) -> None:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 40, 40, 1), dtype=np.uint8)
    save_grid(tmp_path / "new" / "grid.png", images, columns=3)
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.size == (120, 80)
        assert [image.getpixel((40 * x + 5, 40 * y + 5)) for y in (0, 1) for x in (0, 1, 2)] == [0, 1, 2, 3, 4, 0]
