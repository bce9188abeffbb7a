"""A fixed grid of samples while a model is trained: the same classes and the same noise every time.

Shapes: B samples of the grid, R rows gathered, H, W, C an image.

Samples come from the averaged weights. The bank is never copied: what is shared is swapped for its averages and back,
bit for bit, and of the tailors only the rows of the grid's classes are gathered, caught up. Nothing that training uses
is left changed, and no random number of its own is drawn (kindgene.random): a run is the same run with pictures and
without (tested).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from kindgene import files, random
from kindgene.core.bank import GatheredRows, GatheredTable, RowTable
from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.path import DiffusionPath
from kindgene.diffusion.sampler import sample
from kindgene.training.ema import EMA, averaged_weights
from kindgene.training.optimizer import shared_parameters
from kindgene.training.processes import ALONE, Processes

CLASSES, EACH = 8, 4
"""A grid has at most so many classes, evenly spaced, a row of so many samples each (ours)."""
STEPS = 25
"""Steps of DDIM a sample takes (ours): enough to see what is learned, at the price of about 25 forwards of the grid."""
GUIDANCE = 1.0
"""The model as it is (ours): guidance doubles the cost, and asks for a null half that not every run trains."""
LATENT_RANGE = 3.0
"""Latents have a variance of about 1, so this many standard deviations make black and white; one scale for all steps,
or two pictures could not be compared (ours)."""

_CELL = 64  # pixels; smaller images are enlarged by a whole factor, so that a picture of 8x8 digits can be seen

_LOG = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[Tensor], Tensor]
"""Latents [B, C, h, w] of the model, where it computes, to images [B, 1 or 3, H, W] of about -1 to 1 on the CPU."""


def grid_labels(num_classes: int) -> Tensor:
    """The labels of the grid, long [B] on the CPU, class by class."""
    chosen = min(num_classes, CLASSES)
    return (torch.arange(chosen) * num_classes // chosen).repeat_interleave(EACH)


def draw_grid(
    model: nn.Module,
    ema: EMA | None,
    path: DiffusionPath,
    folder: Path,
    step: int,
    *,
    seed: int,
    shape: tuple[int, int, int] | None = None,
    decode: Decode | None = None,
    processes: Processes = ALONE,
) -> Pixels | None:
    """Draws the grid and writes ``folder/samples/step-00001000.png``; returns it, uint8 [B, H, W, 1 or 3].

    `model` is not wrapped for several processes (their own `Spread.model`). All of them call this: the main one draws
    and writes, the others help where it does not hold the whole model. `shape` [C, H, W] is needed where the model's
    config does not tell it. A picture is not worth a run: samples that stop being finite, or do not fit the memory, are
    a warning (``logging``) and None. None too where a process had nothing to draw. Raises ValueError or OSError where
    it cannot be written.
    """
    labels_B = grid_labels(_facts(model).num_classes)
    images: Pixels | None = None
    if processes.main or _in_parts(model):
        try:
            images = draw_samples(
                *(model, ema, labels_B, path), seed=seed, shape=shape, decode=decode, processes=processes
            )
        except (FloatingPointError, torch.OutOfMemoryError) as error:
            if processes.main:
                _LOG.warning("no picture of samples at step %d: %s", step, error)
    file = folder / "samples" / f"step-{step:08d}.png"
    processes.first(lambda: None if images is None else save_grid(file, images))
    return images


def draw_samples(
    model: nn.Module,
    ema: EMA | None,
    labels_B: Tensor,
    path: DiffusionPath,
    *,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    shape: tuple[int, int, int] | None = None,
    decode: Decode | None = None,
    processes: Processes = ALONE,
) -> Pixels:
    """Samples of these classes from the averaged weights (without `ema`: the raw ones), uint8 [B, H, W, 1 or 3].

    The noise is a function of the seed and B alone. Of latents the main process shows what `decode` makes of them, or
    else their first three channels (the first, where there are two), scaled by `LATENT_RANGE`. Where each process holds
    a part of the model only, all `processes` call this. Raises FloatingPointError where the samples stop being finite,
    ValueError as `sample` does. Whatever happens, the model is left as it was, bit for bit.
    """
    generator = torch.Generator().manual_seed(random.step_integer(seed, random.Purpose.GRID, 0, 0, 2**63 - 1))
    facts = _facts(model)
    if shape is None and "in_channels" in facts.config:
        size = facts.config["input_size"]
        shape = (facts.config["in_channels"], size, size)
    latent = decode is not None or (shape is not None and shape[0] not in (1, 3))
    with swapped(model, ema):
        samples = sample(
            _WithRows(model, averaged_rows(model, ema, labels_B, processes))
            if isinstance(model, Decomposable)
            else model,
            labels_B,
            guidance=guidance,
            steps=steps,
            clip=None if latent else 1.0,
            generator=generator,
            path=path,
            shape=shape,
        )
    if decode is not None and processes.main:
        samples = decode(samples.to(next(model.parameters()).device))
    elif latent:
        samples = samples[:, : 3 if samples.shape[1] >= 3 else 1] / LATENT_RANGE
    pixels = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


@contextmanager
def swapped(model: nn.Module, ema: EMA | None) -> Iterator[None]:
    """The averages of what is shared in place of its weights, which come back bit for bit, also after an exception.

    Values are copied, not pointers exchanged, so it holds for whatever else looks at the same memory (FSDP, CUDA
    graphs). Meanwhile the weights are kept beside them: as many bytes as the gradients, which are not there then.
    """
    averages = {} if ema is None else ema.shared
    parameters = {name: value for name, value in shared_parameters(model).items() if name in averages}
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    try:
        _put(model, parameters, averages)
        yield
    finally:
        _put(model, parameters, kept)


@torch.no_grad()
def averaged_rows(model: Decomposable, ema: EMA | None, labels_B: Tensor, processes: Processes = ALONE) -> GatheredRows:
    """The rows of these classes [R, P] for a forward, their averages caught up; the lazy state of `ema` stays.

    Where a process holds some of the rows only, all `processes` call this with the same labels.
    """
    classes = labels_B[labels_B != model.null_class].to(model.bank.tailor_of.device).unique()
    wanted = {"tailors": model.bank.tailor_of[classes].unique(), "labels": classes}
    tables = {"tailors": model.bank.tailors, "labels": model.bank.labels}
    return GatheredRows(
        **{name: _averaged(f"bank.{name}.rows", table, wanted[name], ema, processes) for name, table in tables.items()}
    )


def _averaged(name: str, table: RowTable, ids: Tensor, ema: EMA | None, processes: Processes) -> GatheredTable:
    """Rows `ids` [R], ascending, of one table; without an average (what is not trained) as they are."""
    here = torch.ones_like(ids, dtype=torch.bool) if table.held is None else torch.isin(ids, table.held)
    place = table.positions(ids[here])
    own = table.rows.detach().index_select(0, place)
    if ema is not None and name in ema.rows:
        lazy = ema.rows[name]
        state = {
            f"average.{name}": lazy.average.index_select(0, place),
            f"last.{name}": lazy.last.index_select(0, place.to(lazy.last.device)),
            "log_decay": torch.tensor(ema.log_decay, dtype=torch.float64),
        }
        own = averaged_weights(state, {name: own})[name].to(own.dtype)
    values = own
    if table.held is not None:
        holders = here.to(own.dtype)
        values = own.new_zeros(len(ids), own.shape[1])
        values[here] = own
        processes.sum_(values, holders)
        values /= holders.unsqueeze(1)  # some rows are held by all
    return GatheredTable(ids, values, len(ids), place)


@torch.no_grad()
def _put(model: nn.Module, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a whole copy that was put together before is not used again


def _in_parts(model: nn.Module) -> bool:
    """Whether this process holds a part of the model only."""
    if isinstance(model, Decomposable) and model.bank.labels.held is not None:
        return True
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def save_grid(path: Path, images_BHWC: Pixels, columns: int = EACH) -> None:
    """Writes images as one PNG, `columns` a row, small ones enlarged; whole, or not at all (then OSError)."""
    count, height, width, channels = images_BHWC.shape
    factor = max(1, _CELL // max(height, width))
    lines = -(-count // columns)
    padded = np.zeros((lines * columns, height, width, channels), dtype=np.uint8)
    padded[:count] = images_BHWC
    page = padded.reshape(lines, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    page = page.reshape(lines * height, columns * width, channels).repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(page[:, :, 0] if channels == 1 else page).save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, buffer.getvalue())


class _WithRows(nn.Module):
    """A decomposable model that computes with gathered rows, as `sample` calls models."""

    def __init__(self, model: nn.Module, rows: GatheredRows) -> None:
        super().__init__()
        self.model, self.rows = model, rows
        facts = _facts(model)
        self.config, self.class_names = facts.config, facts.class_names
        self.num_classes, self.null_class = facts.num_classes, facts.null_class

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Any:
        return self.model(x, t, y, rows=self.rows)


def _facts(model: nn.Module) -> Any:
    """The model as what `sampler.ClassConditional` says, which nn.Module's type does not tell."""
    return model
