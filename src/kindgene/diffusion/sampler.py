"""Sampling: from noise to images of the classes asked for, with diffusers' schedulers and guidance.

Shapes: N samples asked for, B samples in one call of the model, C, H, W one sample.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kindgene.diffusion.path import DiffusionPath

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ClassConditional(Protocol):
    """What a model offers to be sampled from, besides being an `nn.Module` called as `model(x, t, y)`.

    The call returns a tensor [B, C or 2 C, H, W], or an object that has it as `.sample`, as diffusers' models
    do. The shape of a sample and the path are read from `config`, unless `sample` is told them.
    """

    config: Any

    @property
    def num_classes(self) -> int:
        """The number of classes, the null label not counted."""

    @property
    def null_class(self) -> int | None:
        """The null label, or None where there is none."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their ids, or None."""


def sample(
    model: Any,
    classes: Sequence[str | int | None] | Tensor,
    *,
    guidance: float = 1.0,
    negative: str | int | None = None,
    steps: int = 50,
    scheduler: str = "ddim",
    clip: float | None = None,
    generator: torch.Generator | None = None,
    path: DiffusionPath | None = None,
    shape: tuple[int, int, int] | None = None,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One sample for each entry of `classes`, float32 [N, C, H, W] on the CPU.

    - `model` offers what `ClassConditional` says, in any dtype, on any device; it is in eval mode meanwhile.
    - `classes` are names, ids, or None for the null label; or a tensor of ids.
    - `guidance` is w in `null + w (class - null)`, for every channel of the prediction; both halves run in
      one call of the model, and 1 asks for no null half. A learned variance is the class half's, as in DiT.
    - `negative` is the class that guidance leads away from in place of the null label (ours): the null tailor of a
      transfer far from what was pre-trained, say (`kindgene.transfer.kind`), or what a sample must not resemble.
    - `steps` and `scheduler` are those of `DiffusionPath.timesteps` and `DiffusionPath.scheduler`.
    - `clip` keeps the clean image each prediction amounts to within -clip .. clip: 1.0 for images, None for
      latents.
    - `generator` is the only source of randomness: the same state gives the same samples, bit for bit. None
      stands for torch's global one.
    - `batch_size` bounds the samples in one call of the model. Noise is drawn for all N before they are
      divided, so it changes the samples by rounding alone; all N stay on the model's device throughout.
    - `progress` is called with (steps done, steps in all) after each step.

    Raises ValueError, saying what is wrong, for anything above that cannot be; FloatingPointError where
    samples stop being finite.
    """
    labels_N = resolve_classes(model, classes)
    path = DiffusionPath.of(model) if path is None else path
    shape = _shape_of(model) if shape is None else _check_shape(shape)
    _check_numbers(guidance, clip, batch_size)
    away = _led_away_from(model, guidance, negative)
    walk, timesteps = path.scheduler(scheduler, steps), path.timesteps(steps)

    device, dtype = _home(model)
    labels_N = labels_N.to(device)
    x = _normal((len(labels_N), *shape), generator).to(device)
    with torch.no_grad(), _evaluating(model):
        for done, (place, t) in enumerate(zip(walk.timesteps.tolist(), timesteps, strict=True), start=1):
            batches = zip(x.split(batch_size), labels_N.split(batch_size), strict=True)
            parts = [_guided(model, path, x_B, t, y_B, away, guidance, clip, dtype) for x_B, y_B in batches]
            output = torch.cat(parts)  # [N, C or 2 C, H, W]
            if scheduler != "ddpm":
                output = output[:, : shape[0]]
            noise_source = {"generator": generator} if scheduler == "ddpm" else {}
            x = walk.step(output, place, x, **noise_source).prev_sample  # [N, C, H, W]
            if not x.isfinite().all():
                raise FloatingPointError(f"samples are no longer finite after step {done} of {steps} (timestep {t})")
            if progress is not None:
                progress(done, steps)
    return x.cpu()


def resolve_classes(model: ClassConditional, classes: Sequence[str | int | None] | Tensor) -> Tensor:
    """Names, ids and None as label ids, long [N] on the CPU.

    Raises ValueError for no classes at all, an unknown name (with those there are), an id out of range, and
    None where the model has no null label.
    """
    if isinstance(classes, Tensor):
        if classes.ndim != 1 or classes.dtype.is_floating_point or classes.dtype in (torch.bool, torch.complex64):
            found = f"{classes.dtype} {list(classes.shape)}"
            raise ValueError(f"classes as a tensor must be whole numbers, one a sample; found {found}")
        classes = classes.tolist()
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"classes must be a list with one entry a sample, found {classes!r}")
    if len(classes) == 0:
        raise ValueError("classes is empty: ask for at least one sample")
    names = {name: index for index, name in enumerate(model.class_names or ())}
    return torch.tensor([_resolve(model, names, one) for one in classes], dtype=torch.long)


def _resolve(model: ClassConditional, names: Mapping[str, int], one: object) -> int:
    if one is None:
        if model.null_class is None:
            raise ValueError("None asks for the null label, which this model does not have")
        return model.null_class
    if isinstance(one, str):
        if one not in names:
            raise ValueError(_unknown(one, names, model.num_classes))
        return names[one]
    if isinstance(one, bool) or not isinstance(one, Integral):
        raise ValueError(f"a class is a name, an id or None, found {one!r}")
    index = int(one)
    if not 0 <= index < model.num_classes and index != model.null_class:
        raise ValueError(f"class id {index} is out of range: this model has the ids 0 .. {model.num_classes - 1}")
    return index


def _led_away_from(model: ClassConditional, guidance: float, negative: str | int | None) -> int | None:
    """The label of the other half of a guided sample; None where there is no guidance."""
    if guidance == 1:
        if negative is not None:
            raise ValueError(f"negative {negative!r} is for guidance, and guidance 1 asks for none")
        return None
    if negative is not None:
        return int(resolve_classes(model, [negative])[0])
    if model.null_class is None:
        raise ValueError(
            f"guidance {guidance} needs a null label, which this model does not have: use guidance 1, or name a class "
            "to be led away from (negative)"
        )
    return model.null_class


def _unknown(name: str, names: Mapping[str, int], num_classes: int) -> str:
    if not names:
        return f"unknown class {name!r}: this model's classes have no names, use the ids 0 .. {num_classes - 1}"
    listed = ", ".join(map(repr, list(names)[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    near = difflib.get_close_matches(name, names, n=1)
    return f"unknown class {name!r}; this model has {listed}" + (f"; did you mean {near[0]!r}?" if near else "")


def _guided(
    model: Any,
    path: DiffusionPath,
    x: Tensor,
    t: int,
    y_B: Tensor,
    away: int | None,
    guidance: float,
    clip: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """The model's output, its prediction guided and clipped; float32 [B, C or 2 C, H, W]."""
    y = y_B if away is None else torch.cat([y_B, torch.full_like(y_B, away)])
    halves = len(y) // len(y_B)
    t_B = torch.full_like(y, t)
    output = model(x.repeat(halves, 1, 1, 1).to(dtype), t_B, y)
    output = output if isinstance(output, Tensor) else output.sample
    predicted, variance = path.split(output.float(), channels=x.shape[1])
    if away is not None:
        with_class, without = predicted.chunk(2)
        predicted = without + guidance * (with_class - without)
    if clip is not None:
        t_B = t_B[: len(x)]
        predicted = path.prediction_of(x, path.predict_x0(x, predicted, t_B).clamp(-clip, clip), t_B)
    return predicted if variance is None else torch.cat([predicted, variance[: len(x)]], dim=1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards exactly the modules that were training train again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what; a model without parameters counts as float32 on the CPU."""
    first = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Drawn where the generator lives, so that a CPU generator gives the same noise to every device."""
    device = torch.device("cpu") if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)


def _shape_of(model: ClassConditional) -> tuple[int, int, int]:
    config = model.config
    if "in_channels" not in config or "input_size" not in config:
        raise ValueError("this model's config does not say the shape of a sample: pass shape=(channels, height, width)")
    return (config["in_channels"], config["input_size"], config["input_size"])


def _check_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(shape) != 3 or not all(type(size) is int and size >= 1 for size in shape):
        raise ValueError(f"shape must be (channels, height, width), found {shape!r}")
    return shape[0], shape[1], shape[2]


def _check_numbers(guidance: float, clip: float | None, batch_size: int) -> None:
    if not isinstance(guidance, int | float) or not math.isfinite(guidance):
        raise ValueError(f"guidance must be a finite number, found {guidance!r}")
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"clip must be a finite number above 0, or None, found {clip!r}")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
