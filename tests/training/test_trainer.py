"""Training: resumed is uninterrupted, absent classes are untouched, and what goes wrong is said in time."""

import json
import logging
import math
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.files import read_safetensors
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress
from kindgene.training.checkpoint import latest_checkpoint
from kindgene.training.run import Origin
from kindgene.training.stop import Stopped
from kindgene.training.trainer import TrainConfig, TrainResult, learning_rate, load_checkpoint_model, train

CLASSES = 4
NAMES = ("a", "b", "c", "d")


def data(counts: tuple[int, ...] = (20, 7, 2, 1)) -> ArrayDataset:
    """Uneven by default: most steps of a small batch miss a class or two."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    means = torch.linspace(-0.5, 0.5, len(counts))[labels].reshape(-1, 1, 1, 1)
    images = (means + 0.1 * torch.randn(len(labels), 1, 8, 8, generator=generator)).clamp(-1, 1)
    return ArrayDataset(images, labels, NAMES[: len(counts)])


def model_of(kind: str, seed: int = 0, **overrides: Any) -> nn.Module:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "depth": 1, **overrides}
    dense = DiT.from_preset("tiny/2", num_classes=CLASSES, **size)
    if kind == "dense":
        return dense
    config = KindConfig(num_classes=CLASSES, learngene_rank=4, tailor_rank=2, targets="paper+adaln")
    return make_decomposable(dense, config, torch.Generator().manual_seed(seed))


CONFIG = TrainConfig(steps=20, batch_size=6, learning_rate=3e-3, warmup_steps=3, weight_decay=0.01, log_every=3)
SHORT = replace(CONFIG, steps=2, warmup_steps=0)


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """Everything the two runs left is the same, bit for bit; timings exempt."""
    one, other = latest_checkpoint(a / "checkpoints"), latest_checkpoint(b / "checkpoints")
    assert one is not None
    assert other is not None
    assert (one.step, one.names) == (other.step, other.names)
    for name in one.names:
        mine, theirs = one.tensors(name), other.tensors(name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert log(a) == log(b)


class Interrupt(NoProgress):
    """Presses Ctrl-C during a step."""

    def __init__(self, at: int, number: int = signal.SIGINT) -> None:
        self.at, self.number = at, number

    def update(self, done: int, *figures: float | None) -> None:
        if done == self.at:
            signal.raise_signal(self.number)


CASES = {
    "kind": ("kind", {}, {}),
    "kind accumulated": ("kind", {"gradient_accumulation_steps": 2}, {}),
    "kind cosine, no ema": ("kind", {"schedule": "cosine", "ema_decay": 0.0, "deterministic": True}, {}),
    "kind bfloat16": ("kind", {"mixed_precision": "bf16"}, {}),
    "kind learned sigma": ("kind", {"gradient_clip": None}, {"learn_sigma": True, "schedule": "cosine"}),
    "dense": ("dense", {}, {}),
    "dense accumulated": ("dense", {"gradient_accumulation_steps": 4}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(tmp_path: Path, case: str) -> None:
    kind, settings, overrides = CASES[case]
    config = replace(CONFIG, **settings)
    whole = model_of(kind, **overrides)
    straight = train(whole, data(), config, tmp_path / "whole")

    # Interrupted at step 10; resumed in a model of other initial weights.
    with pytest.raises(KeyboardInterrupt, match="SIGINT after step 10 of 20"):
        train(model_of(kind, **overrides), data(), config, tmp_path / "two", progress=Interrupt(10))
    fresh = model_of(kind, seed=1, **overrides)
    resumed = train(fresh, data(), config, tmp_path / "two", resume=True)

    assert_same_run(tmp_path / "whole", tmp_path / "two")
    for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert straight.losses == resumed.losses
    assert (straight.steps, straight.images) == (resumed.steps, resumed.images) == (20, 120)


def test_checkpoints_on_the_way_and_a_longer_run_change_nothing(tmp_path: Path) -> None:
    train(model_of("kind"), data(), CONFIG, tmp_path / "whole")
    often = replace(CONFIG, checkpoint_every=4, checkpoints_total_limit=2)
    train(model_of("kind"), data(), replace(often, steps=10, log_every=3), tmp_path / "two")
    train(model_of("kind"), data(), often, tmp_path / "two", resume=True)
    kept = sorted(path.name for path in (tmp_path / "two/checkpoints").iterdir())
    assert kept == ["step-00000016", "step-00000020"]
    for name in ("model", "optimizer", "ema", "history"):
        file = f"checkpoints/step-00000020/{name}.safetensors"
        a, b = (read_safetensors(tmp_path / run / file) for run in ("whole", "two"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_damaged_checkpoint_costs_steps_not_the_run(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every=5)
    train(model_of("kind"), data(), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(model_of("kind"), data(), config, tmp_path / "two", progress=Interrupt(12))
    (tmp_path / "two/checkpoints/step-00000012/ema.safetensors").write_bytes(b"")
    with (tmp_path / "two/log.jsonl").open("a") as file:
        file.write('{"step": 12, "los')  # what a kill leaves
    train(model_of("kind"), data(), config, tmp_path / "two", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "two")


def test_killed_before_any_step_can_go_on(tmp_path: Path) -> None:
    class Dies(NoProgress):
        def start(self, total: int, done: int = 0) -> None: ...

        def update(self, done: int, *figures: float | None) -> None:
            raise RuntimeError("killed")

    train(model_of("dense"), data(), CONFIG, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(model_of("dense"), data(), CONFIG, tmp_path / "two", progress=Dies())
    train(model_of("dense", seed=1), data(), CONFIG, tmp_path / "two", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "two")


def test_resuming_a_finished_run_gives_its_result(tmp_path: Path) -> None:
    model = model_of("kind")
    first = train(model, data(), CONFIG, tmp_path / "run")
    again = model_of("kind", seed=1)
    assert train(again, data(), CONFIG, tmp_path / "run", resume=True) == first
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": replace(CONFIG, batch_size=5)}, "config.batch_size was 6, is 5"),
        (
            {"config": replace(CONFIG, seed=1, ema_decay=0.5)},
            "config.ema_decay was 0.999, is 0.5; config.seed",
        ),
        ({"config": replace(CONFIG, steps=10)}, "is further than the 10 steps"),
        ({"data": data((19, 7, 2, 1))}, "data.images was 30, is 29"),
        ({"model": model_of("kind", depth=2)}, "model.backbone.depth was 1, is 2"),
        ({"model": model_of("dense")}, "model.kind"),
        ({"model": model_of("kind").freeze_learngene()}, "model.trained was"),  # type: ignore[operator]
    ],
)
def test_a_run_is_not_continued_as_another(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    config = replace(CONFIG, label_drop=0.0)
    train(model_of("kind"), data(), config, tmp_path / "run")
    if "config" in changed:
        changed = {**changed, "config": replace(changed["config"], label_drop=0.0)}
    new = {"model": model_of("kind"), "data": data(), "config": config, **changed}
    with pytest.raises(ValueError, match=message) as error:
        train(new["model"], new["data"], new["config"], tmp_path / "run", resume=True)
    assert "\n" not in str(error.value)


def test_folders_are_neither_overwritten_nor_mistaken(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=3)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(model_of("dense"), data(), config, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    train(model_of("dense"), data(), config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a run already: pass resume=True"):
        train(model_of("dense"), data(), config, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        train(model_of("dense"), data(), config, tmp_path / "file")
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        train(model_of("dense"), data(), config, resume=True)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 3}])
def test_a_class_without_data_is_untouched_bit_for_bit(settings: dict[str, Any]) -> None:
    model = model_of("kind")
    assert isinstance(model, Decomposable)
    before = {name: table.rows.detach().clone() for name, table in model.bank.tables.items()}
    train(model, data((9, 0, 9, 0)), replace(CONFIG, **settings))
    for name, table in model.bank.tables.items():
        assert torch.equal(table.rows[[1, 3]], before[name][[1, 3]])
        assert not torch.equal(table.rows[0], before[name][0])


def test_accumulation_is_the_same_step_within_rounding() -> None:
    results = []
    for parts in (1, 2, 4):  # 6 samples in 4: parts of 2, 2, 1, 1
        model = model_of("kind").double()
        result = train(model, data(), replace(CONFIG, gradient_accumulation_steps=parts))
        results.append((result.losses, [p.detach() for p in model.parameters()]))
    for losses, parameters in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-9)
        for a, b in zip(parameters, results[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_only_tailors_move_with_a_frozen_learngene() -> None:
    model = model_of("kind")
    assert isinstance(model, Decomposable)
    train(model, data(), CONFIG)  # a fresh output layer is zero and teaches tailors nothing
    model.freeze_learngene()
    shared = {name: value.clone() for name, value in model.module.state_dict().items()}
    rows = model.bank.tailors.rows.detach().clone()
    with pytest.raises(ValueError, match=r"the learngene is frozen.*label_drop=0"):
        train(model, data(), CONFIG)
    train(model, data(), replace(CONFIG, label_drop=0.0))
    assert all(torch.equal(value, shared[name]) for name, value in model.module.state_dict().items())
    assert not torch.equal(rows, model.bank.tailors.rows)


@pytest.mark.parametrize("kind", ["kind", "dense"])
def test_it_learns_and_leaves_the_model_as_promised(tmp_path: Path, kind: str) -> None:
    model = model_of(kind)
    config = replace(CONFIG, steps=80, batch_size=16, ema_decay=0.9, log_every=20)
    result = train(model, data(), config, tmp_path / "run")
    assert isinstance(result, TrainResult)
    assert result.final_loss < 0.7 * result.losses[0]
    assert not model.training
    assert result.out == tmp_path / "run"

    ema, raw = model_of(kind, seed=1), model_of(kind, seed=2)
    assert load_checkpoint_model(tmp_path / "run", ema) == 80
    load_checkpoint_model(tmp_path / "run", raw, weights="raw")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ema.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), raw.parameters(), strict=True))
    if isinstance(model, Decomposable):
        assert (model.weights, ema.weights, raw.weights) == ("ema", "ema", "raw")
    else:
        assert model.weights_loaded is True

    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines] == [20, 40, 60, 80]
    assert lines[1]["loss"] == pytest.approx(sum(result.losses[20:40]) / 20)
    assert lines[-1] == {**lines[-1], "images": 80 * 16, "classes_seen": 4, "lr": 3e-3}
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert described["config"]["batch_size"] == 16
    assert described["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert described["data"]["class_names"] == list(NAMES)


def test_what_is_told_of_the_origin_is_kept_beside_the_run_and_does_not_make_it(tmp_path: Path) -> None:
    broken = {"path": "a/\udcff.png", "kind": "broken", "reason": "cannot be read", "advice": "replace it"}
    origin = Origin({"recipe": "mine"}, [broken, {**broken, "path": "b.png"}, {**broken, "kind": "animated"}])
    with pytest.raises(Stopped):
        train(model_of("dense"), data(), CONFIG, tmp_path / "run", progress=Interrupt(2), origin=origin)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    skipped = {"total": 3, "kinds": {"broken": 2, "animated": 1}}
    assert facts["origin"] == {"recipe": "mine", "skipped": skipped}
    lines = (tmp_path / "run/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(origin.skipped)
    train(model_of("dense"), data(), CONFIG, tmp_path / "run", resume=True, origin=Origin({"recipe": "yours"}))
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["origin"] == {"recipe": "yours", "skipped": {"total": 0, "kinds": {}}}
    assert not (tmp_path / "run/skipped.jsonl").exists()


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_checkpoint_model(tmp_path, model_of("kind"))
    train(model_of("kind"), data(), replace(SHORT, ema_decay=0.0), tmp_path / "run")
    with pytest.raises(ValueError, match="kept no EMA weights"):
        load_checkpoint_model(tmp_path / "run", model_of("kind"))
    with pytest.raises(ValueError, match="of another model"):
        load_checkpoint_model(tmp_path / "run", model_of("dense"), weights="raw")
    with pytest.raises(ValueError, match=r"the model has torch.float64"):
        load_checkpoint_model(tmp_path / "run", model_of("kind").double(), weights="raw")
    with pytest.raises(ValueError, match="weights must be 'ema' or 'raw'"):
        load_checkpoint_model(tmp_path / "run", model_of("kind"), weights="best")  # type: ignore[arg-type]


def test_global_state_is_left_as_it_was() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    random = torch.get_rng_state()
    model = model_of("dense")
    torch.set_rng_state(random)
    train(model, data(), replace(SHORT, mixed_precision="bf16", deterministic=True))
    train(model, data(), SHORT)  # another precision in the same process
    assert AcceleratorState._shared_state == {}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gradient_left_over_by_the_caller_does_not_count() -> None:
    clean, dirty = model_of("dense"), model_of("dense")
    for parameter in dirty.parameters():
        parameter.grad = torch.full_like(parameter, 9.0)
    assert train(clean, data(), CONFIG).losses == train(dirty, data(), CONFIG).losses


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nothing_is_updated_from_what_is_not_finite(tmp_path: Path, where: str) -> None:
    model = model_of("dense")
    calls = 0

    def poison(value: Tensor) -> Tensor:
        return value * float("nan")

    def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7 and where == "loss":
            return poison(output)
        if calls == 7:
            output.register_hook(poison)
        return output

    model.register_forward_hook(after)
    told = "the loss is nan" if where == "loss" else r"the gradient's norm is nan \(first in x_embedder"
    pattern = rf"{told}.* in step 7 of 20, which was not taken; the last good checkpoint is .*step-00000005"
    with pytest.raises(FloatingPointError, match=pattern):
        train(model, data(), replace(CONFIG, checkpoint_every=5), tmp_path / "run")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


class Poisoned(DiT):
    """A DiT whose output is not finite in some calls."""

    calls = 0
    bad: tuple[int, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        type(self).calls += 1
        output = super().forward(*args, **kwargs)
        return output * float("inf") if type(self).calls in type(self).bad else output


def poisoned(*bad: int) -> DiT:
    Poisoned.calls, Poisoned.bad = 0, bad
    torch.manual_seed(0)
    return cast(DiT, Poisoned.from_preset("tiny/2", num_classes=CLASSES, hidden_size=16, depth=1))


def test_a_step_that_is_not_finite_can_be_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = replace(CONFIG, on_nonfinite="skip", log_every=1)
    model = poisoned(4, 6)  # the second step's forward is call 2, and call 5 looks for where call 4 went wrong
    with caplog.at_level(logging.WARNING):
        result = train(model, data(), config, tmp_path / "run")
    assert result.skipped == 2
    assert [step for step, loss in enumerate(result.losses) if not math.isfinite(loss)] == [3, 4]
    assert math.isfinite(result.final_loss)
    assert "in step 4 of 20, which was not taken (1 skipped so far)" in caplog.text
    lines = log(tmp_path / "run")
    assert [line.get("skipped", 0) for line in lines][:6] == [0, 0, 0, 1, 2, 2]
    assert lines[3]["loss"] is None
    # The update was left out, and nothing else: the next step begins from the same weights.
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    found = latest_checkpoint(tmp_path / "run/checkpoints")
    assert found is not None
    assert int(found.tensors("optimizer")["step.x_embedder.proj.weight"]) == 18


def test_too_many_such_steps_in_a_row_end_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"in step 13 of 20, which was not taken, as the 10 before it"):
        train(poisoned(*range(3, 99)), data(), replace(CONFIG, on_nonfinite="skip"))


def test_the_layer_where_it_began_is_named() -> None:
    model = model_of("dense")
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.weight")[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"the loss is nan \(first in blocks.0.mlp.fc1\) in step 1 of 20"):
        train(model, data(), CONFIG)


def test_where_no_layer_is_at_fault_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ArrayDataset, "sample", lambda _, indices, *__: torch.full((len(indices), 1, 8, 8), math.nan))
        with pytest.raises(FloatingPointError, match=r"first in the images.*\. Look at the data: an image has numbers"):
            train(model_of("dense"), data(), CONFIG)
    large = model_of("dense")
    with torch.no_grad():
        large.get_parameter("final_layer.linear.bias").fill_(1e30)  # finite, its square is not
    pattern = r"the loss is inf \(first in the loss itself, as every layer's output was finite when computed again\)"
    with pytest.raises(FloatingPointError, match=rf"{pattern} in step 1 of 20.*A lower learning rate"):
        train(large, data(), CONFIG)
    monkeypatch.setattr("kindgene.training.step.total_norms", lambda *_: (math.inf, 0.0))
    with pytest.raises(FloatingPointError, match=r"first in the sum of their squares, as every gradient is finite"):
        train(model_of("dense"), data(), CONFIG)


@pytest.mark.parametrize("kind", ["kind", "dense"])
def test_fp16_finds_its_loss_scale_and_resumes_with_it(tmp_path: Path, kind: str) -> None:
    config = replace(CONFIG, mixed_precision="fp16")
    whole = train(model_of(kind), data(), config, tmp_path / "whole")
    plain = train(model_of(kind), data(), CONFIG)
    assert whole.losses[-1] == pytest.approx(plain.losses[-1], rel=0.05)
    assert log(tmp_path / "whole")[-1]["loss_scale"] == 2.0**16 / 2**whole.skipped
    with pytest.raises(KeyboardInterrupt):
        train(model_of(kind), data(), config, tmp_path / "cut", progress=Interrupt(7))
    train(model_of(kind), data(), config, tmp_path / "cut", resume="latest")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_can_go_back_to_an_earlier_checkpoint(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every=5)
    train(model_of("kind"), data(), config, tmp_path / "a")
    train(model_of("kind"), data(), config, tmp_path / "b")
    checkpoints = tmp_path / "b" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        train(model_of("kind"), data(), config, tmp_path / "b", resume="step-00000010", progress=Interrupt(12))
    assert sorted(path.name for path in checkpoints.iterdir())[-1] == "step-00000012"  # later ones are gone
    train(model_of("kind"), data(), config, tmp_path / "b", resume=checkpoints / "step-00000005")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    for other in ("step-00000099", tmp_path / "a" / "checkpoints" / "step-00000005"):
        with pytest.raises(ValueError, match=r"is not a checkpoint of .*; it has step-00000000, step-00000005"):
            train(model_of("kind"), data(), config, tmp_path / "b", resume=other)


def test_what_a_backbone_draws_itself_is_resumed_too(tmp_path: Path) -> None:
    """Torch's own generator (dropout) follows from the step."""

    def noisy() -> nn.Module:
        model = model_of("dense")
        block = model.get_submodule("blocks.0.mlp")
        model.set_submodule("blocks.0.mlp", nn.Sequential(block, nn.Dropout(0.5)))
        return model

    train(noisy(), data(), CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(noisy(), data(), CONFIG, tmp_path / "cut", progress=Interrupt(7))
    torch.manual_seed(12345)
    train(noisy(), data(), CONFIG, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"num_workers": 2},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "num_workers": 1},
    ],
)
def test_ways_of_computing_a_step_agree(settings: dict[str, Any]) -> None:
    """To rounding, which Adam makes more of where a gradient is next to nothing. Compiled: test_several.py."""
    config = replace(CONFIG, steps=4)
    plain, other = model_of("kind").double(), model_of("kind").double()
    losses = train(plain, data(), config).losses
    assert train(other, data(), replace(config, **settings)).losses == pytest.approx(losses, rel=1e-10)
    assert not other.module.gradient_checkpointing
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), other.parameters(), strict=True):
            assert (mine - theirs).norm() <= 1e-5 * mine.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"elastic_shares": (0.5, 1.0)},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    ],
)
def test_in_half_precision_losses_are_those_of_float32(precision: Any, settings: dict[str, Any]) -> None:
    """Within the 2e-2 of bfloat16, over a whole run; 2e-3 at most was measured."""
    half = train(model_of("kind"), data(), replace(CONFIG, mixed_precision=precision, **settings)).losses
    exact = train(model_of("kind"), data(), replace(CONFIG, **settings)).losses
    assert half == pytest.approx(exact, rel=2e-2)
    assert half != exact


def test_images_without_class_train_what_is_shared_alone() -> None:
    images = data((10, 10, 10, 10))
    unlabelled = replace(images, labels=torch.full((40,), CLASSES))
    model = model_of("kind")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, unlabelled, replace(CONFIG, ema_decay=0.0, weight_decay=0.0))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not any(name.startswith("bank.") for name in moved)
    with pytest.raises(ValueError, match="no null label: leave out the 40 images without class"):
        train(model_of("dense", null_row=False), unlabelled, replace(CONFIG, label_drop=0.0))
    frozen = cast(Decomposable, model_of("kind")).freeze_learngene()
    with pytest.raises(ValueError, match="would train nothing: leave out the 40 images without class"):
        train(frozen, unlabelled, replace(CONFIG, label_drop=0.0))


def test_sigterm_saves_too_and_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"SIGTERM after step 2 of 20; resume=True goes on from") as stopped:
        train(model_of("dense"), data(), CONFIG, tmp_path / "a", progress=Interrupt(2, signal.SIGTERM))
    assert stopped.value.number == signal.SIGTERM
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert (tmp_path / "a/checkpoints/step-00000002").is_dir()

    class Twice(Interrupt):
        def update(self, done: int, *figures: float | None) -> None:
            super().update(done, *figures)
            super().update(done, *figures)

    with pytest.raises(KeyboardInterrupt):
        train(model_of("dense"), data(), CONFIG, tmp_path / "b", progress=Twice(2))
    assert not (tmp_path / "b/checkpoints/step-00000002").exists()


def test_in_another_thread() -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(train(model_of("kind"), data(), CONFIG)))
    thread.start()
    thread.join(60)
    assert results[0].losses == train(model_of("kind"), data(), CONFIG).losses


def test_progress_hears_everything() -> None:
    heard: list[Any] = []

    class Ear:
        def start(self, total: int, done: int = 0) -> None:
            heard.append((total, done))

        def update(self, done: int, loss: float, images_per_second: float, memory: float) -> None:
            assert images_per_second > 0
            assert memory > 2**20
            heard.append((done, loss))

        def close(self) -> None:
            heard.append("closed")

    result = train(model_of("dense"), data(), replace(CONFIG, steps=3), progress=Ear())
    assert heard == [(3, 0), *enumerate(result.losses, start=1), "closed"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the data has 3 classes, the model 4"):
        train(model_of("dense"), data((3, 3, 3)), CONFIG)
    with pytest.raises(ValueError, match=r"the model's classes are \['d'"):
        train(model_of("dense", class_names=["d", "c", "b", "a"]), data(), CONFIG)
    with pytest.raises(ValueError, match="no null label: set label_drop=0"):
        train(model_of("dense", null_row=False), data(), CONFIG)
    with pytest.raises(ValueError, match="nothing in this model is trainable"):
        train(model_of("dense").requires_grad_(False), data(), CONFIG)
    train(model_of("dense", null_row=False), data(), replace(SHORT, label_drop=0.0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"gradient_accumulation_steps": 7}, "more than batch_size 6"),
        ({"learning_rate": 0.0}, "learning_rate must be a number in"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number in"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number in"),
        ({"warmup_steps": 21}, "warmup_steps is 21, more than the 20 steps"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of at least 0"),
        ({"schedule": "linear"}, "schedule must be one of 'constant', 'cosine', got 'linear'"),
        ({"betas": (0.9, 1.0)}, "each of betas must be a number in"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"gradient_clip": 0.0}, "gradient_clip must be"),
        ({"label_drop": 1.1}, "label_drop must be"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be below"),
        ({"log_every": 0}, "log_every must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit must be"),
        ({"deterministic": "yes"}, "deterministic must be one of"),
        ({"parallel": "pipeline"}, "parallel must be one of 'data', 'tailor', got 'pipeline'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of"),
        ({"compile": 1.5}, "compile must be one of"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0"),
        ({"diagnose_every": 4}, "diagnose_every is 4, no multiple of log_every, 3"),
        ({"sample_every": 0}, "sample_every must be"),
        ({"report_to": ("mlflow",)}, "each of report_to must be one of 'tensorboard', 'wandb', 'trackio'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        replace(CONFIG, **setting)
    assert "\n" not in str(error.value)


def test_learning_rate() -> None:
    config = TrainConfig(steps=10, learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    config = replace(config, schedule="cosine")
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(config, 10) == pytest.approx(0.0)


def test_pictures_of_latents_are_what_decodes_them(tmp_path: Path) -> None:
    seen = []

    def decode(latents: Tensor) -> Tensor:
        seen.append(latents.shape)
        return latents[:, :1].repeat_interleave(2, -1).repeat_interleave(2, -2).sign()

    config = replace(SHORT, sample_every=2)
    train(model_of("kind"), data(), config, tmp_path / "a", decode=decode)
    train(model_of("kind"), data(), config, tmp_path / "b")
    assert seen == [(16, 1, 8, 8)]
    with Image.open(tmp_path / "a/samples/step-00000002.png") as one:
        assert set(np.unique(np.asarray(one))) <= {0, 128, 255}
    for name in ("model", "ema", "optimizer"):
        mine, theirs = (
            read_safetensors(tmp_path / run / f"checkpoints/step-00000002/{name}.safetensors") for run in "ab"
        )
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_watching_a_run_changes_nothing_and_is_resumed(tmp_path: Path) -> None:
    """Diagnostics, pictures, a tracker: the same weights to the bit, and one log after a resume."""
    pytest.importorskip("tensorboard")
    watched = replace(CONFIG, diagnose_every=6, sample_every=10, report_to=("tensorboard",))
    train(model_of("kind"), data(), CONFIG, tmp_path / "plain")
    train(model_of("kind"), data(), watched, tmp_path / "watched")
    with pytest.raises(KeyboardInterrupt):
        train(model_of("kind"), data(), watched, tmp_path / "cut", progress=Interrupt(13))
    train(model_of("kind"), data(), watched, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "watched", tmp_path / "cut")
    plain, seen = latest_checkpoint(tmp_path / "plain/checkpoints"), latest_checkpoint(tmp_path / "watched/checkpoints")
    assert plain is not None
    assert seen is not None
    for name in ("model", "ema", "optimizer"):
        mine, theirs = plain.tensors(name), seen.tensors(name)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    lines = {line["step"]: line for line in log(tmp_path / "cut")}
    assert [step for step, line in lines.items() if "diagnostics" in line] == [6, 12, 18]
    norms = lines[6]["diagnostics"]["gradient_norm"]
    assert math.hypot(norms["learngene"], norms["tailors"]) == pytest.approx(lines[6]["grad_norm"])
    for out in ("watched", "cut"):
        pictures = sorted(path.name for path in (tmp_path / out / "samples").iterdir())
        assert pictures == ["step-00000010.png", "step-00000020.png"]
        assert list((tmp_path / out / "tensorboard").iterdir())
    one, other = ((tmp_path / out / "samples/step-00000020.png").read_bytes() for out in ("watched", "cut"))
    assert one == other
    facts = json.loads((tmp_path / "cut/run.json").read_text())
    assert facts["versions"]["torch"]
    assert facts["command"]
    for setting in ({"sample_every": 10}, {"report_to": ("tensorboard",)}):
        with pytest.raises(ValueError, match="needs the folder of the run"):
            train(model_of("kind"), data(), replace(CONFIG, **setting))
