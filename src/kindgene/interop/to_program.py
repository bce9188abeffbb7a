"""To a program that runs without kindgene: torch.export (a .pt2 file) and ONNX.

Both hold one graph with the inputs x [B, C, H, W], t [B], y [B] and one output, gated or plain, for one batch size or
for any. Class ids are positions in the classes asked for; in a gated program the null class is the label after them.
A program cannot look at labels: an id out of range is an index error of the runtime.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kindgene.files import StrPath
from kindgene.interop.check import Inputs, checked_error, output_of
from kindgene.interop.folder import Export, whole_folder, write_record
from kindgene.interop.onnx_float64 import for_float64, with_exact_gelu
from kindgene.interop.source import Chosen, Form, Source, choose

PROGRAM_FILE, ONNX_FILE = "model.pt2", "model.onnx"
INPUTS, OUTPUT = ("x", "t", "y"), "output"
ONNX_DTYPES = (torch.float32, torch.float64)
PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes that one ONNX file can hold; larger weights go to a file beside it."""

_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


class Program(nn.Module):
    """What is exported: a model as a function of tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        output = self.model(x, t, y)
        return output if isinstance(output, Tensor) else cast(Tensor, output.sample)


def export_torch(
    source: Source,
    out: StrPath,
    classes: Sequence[str] | None = None,
    *,
    form: Form = "gated",
    batch: int | None = None,
    dtype: str | None = None,
) -> Export:
    """Writes model.pt2, which ``torch.export.load`` reads. `batch` fixes the batch size; None: any.

    It is checked by loading and running it. Raises ValueError for what cannot be exported, with nothing written.
    """
    with whole_folder(out) as folder:
        chosen = choose(source, classes, form, dtype)
        path = folder / PROGRAM_FILE
        program, inputs, expected = _traced(chosen, batch)
        with _quiet():
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
        error = checked_error("the torch.export program", _run(loaded, inputs, batch), expected)
        return write_record(folder, Export.of("torch-export", chosen, chosen.model, error, form=form, batch=batch))


def export_onnx(
    source: Source,
    out: StrPath,
    classes: Sequence[str] | None = None,
    *,
    form: Form = "gated",
    batch: int | None = None,
    dtype: str | None = None,
) -> Export:
    """Writes model.onnx (float32 or float64; weights of 2 GB and more in a file beside it).

    It is checked by running it in onnxruntime. Needs the extra: ``pip install 'kindgene[onnx]'``. Raises ValueError for
    what cannot be exported, with nothing written.
    """
    needs_onnx()
    with whole_folder(out) as folder:
        chosen = choose(source, classes, form, dtype)
        if chosen.dtype not in ONNX_DTYPES:
            raise ValueError(f"ONNX is exported in float32 or float64, not in {chosen.dtype}: give a dtype")
        if chosen.dtype == torch.float64:
            for_float64(chosen.model)
        program, inputs, expected = _traced(chosen, batch)
        path = folder / ONNX_FILE
        _write_onnx(program, path, chosen)
        error = checked_error("the ONNX program", _run(onnx_session(path), inputs, batch), expected)
        return write_record(folder, Export.of("onnx", chosen, chosen.model, error, form=form, batch=batch))


def needs_onnx() -> None:
    """Raises ValueError where what writes and runs ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError("ONNX needs onnx, onnxscript and onnxruntime: pip install 'kindgene[onnx]'") from error


def onnx_session(path: Path) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An ONNX file as a function, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(INPUTS, (x, t, y), strict=True)}
        return torch.from_numpy(session.run([OUTPUT], feed)[0])

    return run


def _traced(chosen: Chosen, batch: int | None) -> tuple[ExportedProgram, Inputs, Tensor]:
    """The program, and inputs with the output that they should give."""
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ValueError(f"batch must be a whole number of at least 1, or None for any, got {batch!r}")
    inputs, expected = chosen.trial()
    size = len(expected) if batch is None else batch
    example = tuple(value.repeat(-(-size // len(value)), *[1] * (value.dim() - 1))[:size] for value in inputs)
    shapes = None if batch is not None else [{0: Dim("batch")}] * len(INPUTS)
    program = Program(chosen.model).eval()
    with torch.no_grad(), _quiet():
        exported = torch.export.export(program, example, dynamic_shapes=shapes, strict=False)
    return exported, inputs, expected


def _run(program: Any, inputs: Inputs, batch: int | None) -> Tensor:
    """The program's output for all inputs, its own batch size at a time; a batch of any size is cut unevenly."""
    count = len(inputs[0])
    sizes = [1, count - 1] if batch is None else [batch] * -(-count // batch)
    padded = [value.repeat(2 + sum(sizes) // count, *[1] * (value.dim() - 1))[: sum(sizes)] for value in inputs]
    parts = zip(*(value.split(sizes) for value in padded), strict=True)
    return torch.cat([output_of(program, part) for part in parts])[:count]


def _write_onnx(program: ExportedProgram, path: Path, chosen: Chosen) -> None:
    import onnxruntime  # noqa: F401  # before the exporter: both load protobuf

    nbytes = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    with _quiet():
        if chosen.dtype == torch.float64:
            program = with_exact_gelu(program)
        # Not optimized: onnxruntime does that when it loads, and torch's own optimizer takes half of the export's time.
        exported: Any = torch.onnx.export(
            program, dynamo=True, input_names=list(INPUTS), output_names=[OUTPUT], verbose=False, optimize=False
        )
        exported.model.metadata_props["kindgene.classes"] = json.dumps(list(chosen.classes), ensure_ascii=False)
        exported.save(path, external_data=nbytes >= PROTOBUF_LIMIT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks: torchvision that is not there, constants that were not folded."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # torch copies its own deprecated class (torch.utils._pytree.LeafSpec) while it exports to ONNX.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
