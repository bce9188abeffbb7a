"""The class gate: which tailors each sample of a batch may use.

Shapes: B batch, M tailors a sample may use at once (1 for one-hot labels), R rows at hand, C classes.

A model has one `Gate`. A forward opens it with a `Selection` and closes it afterwards; a layer asks the gate for the
selection of the forward it is part of. The state is kept so that the answer is right or an error, never silently
wrong (DESIGN, guarantee 9; the mechanism is ours):

- each thread has its own stack, so two threads may sample one model;
- a selection remembers the backward pass (autograd graph task) it was opened in, -1 for none: a layer recomputed in
  backward by a checkpoint that does not know the gate finds a foreign selection, or none, and raises;
- `checkpoint_contexts` is the ``context_fn`` that reopens the forward's own selection around its recomputation, in
  whatever thread that happens;
- a region compiled by torch.compile cannot ask for the backward pass: it reads this thread's innermost selection.
  One mistake goes unnoticed there, and there alone: compiled layers under a checkpoint that does not know the gate,
  recomputed by a backward that runs inside a ``with model.gate(...)`` of other labels.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class GateError(RuntimeError):
    """The gate is closed, opened twice, or met by a recomputation that does not carry its labels."""


@dataclass(frozen=True)
class Selection:
    """What one forward uses of the bank.

    ``tailors``: piece name -> [R, *shape], the components at hand; ``labels``: piece name -> [C', D], the label rows
    at hand; ``tailor_index`` and ``label_index`` [B, M] say which of them each sample uses and ``weight`` [B, M] how
    much: 0 where the gate is closed. ``share`` says how much of the learngene the forward uses: of each matrix the
    first ceil(share * N_G) components (1: all; less in elastic training, ours).
    """

    tailors: dict[str, Tensor]
    labels: dict[str, Tensor]
    tailor_index: Tensor
    label_index: Tensor
    weight: Tensor
    share: float = 1.0

    @property
    def batch(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class _Opened:
    selection: Selection
    graph_task: int


class _ThreadState(threading.local):
    """What this thread has opened, innermost last, and the innermost selection, which compiled regions read."""

    def __init__(self) -> None:
        self.stack: list[_Opened] = []
        self.visible: Selection | None = None


class Gate:
    """One per model. `opened` is for the model's own forward; `current` is for its layers."""

    def __init__(self) -> None:
        self._local = _ThreadState()
        self._select: Callable[..., Selection] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"select": self._select}  # an open gate is a matter of this process and moment: a copy starts closed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self._select = state["select"]

    def bind(self, select: Callable[..., Selection]) -> None:
        """Says how labels become a selection: the bank's `select`."""
        self._select = select

    def __call__(self, labels: Tensor, rows: Any = None, learngene_share: float = 1.0) -> AbstractContextManager[None]:
        """``with model.gate(labels): ...`` opens the gate by hand, for a module whose forward takes no labels."""
        assert self._select is not None, "the gate was never bound to a bank"
        return self.opened(self._select(labels, rows, learngene_share))

    def is_open(self) -> bool:
        """Whether this thread's forward has opened the gate (in the backward pass it is running, if any)."""
        if torch.compiler.is_compiling():
            return self._local.visible is not None
        stack = self._local.stack
        return bool(stack) and stack[-1].graph_task == _graph_task()

    def current(self, layer: str) -> Selection:
        """The selection of the forward that `layer` is part of. Raises GateError where that is not certain."""
        if torch.compiler.is_compiling():
            if self._local.visible is None:
                raise GateError(_CLOSED.format(layer=layer))
            return self._local.visible
        stack = self._local.stack
        if stack and stack[-1].graph_task == _graph_task():
            return stack[-1].selection
        raise GateError((_CLOSED if _graph_task() == -1 else _RECOMPUTED).format(layer=layer))

    @contextmanager
    def opened(self, selection: Selection) -> Iterator[None]:
        """Opens the gate for one forward. A forward within a forward of the same model is an error."""
        if self.is_open():
            raise GateError(
                "the class gate is open already: this model is being called inside `with model.gate(...)` or inside "
                "its own forward, with labels of its own. Give the labels in one place only"
            )
        with self._pushed(selection):
            yield

    @contextmanager
    def _pushed(self, selection: Selection) -> Iterator[None]:
        """A generator, because dynamo never compiles one by itself: a graph break sees all of this or nothing."""
        local = self._local
        before, local.visible = local.visible, selection
        if not torch.compiler.is_compiling():
            local.stack.append(_Opened(selection, _graph_task()))
        try:
            yield
        finally:
            if not torch.compiler.is_compiling():
                local.stack.pop()
            local.visible = before

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """``context_fn`` for torch.utils.checkpoint (not reentrant): the forward's selection, again in backward."""
        return nullcontext(), _Reopened(self, self.current("a checkpointed function"))

    @property
    def checkpoint(self) -> Callable[..., Any]:
        """torch.utils.checkpoint that restores this gate; for diffusers' ``enable_gradient_checkpointing``."""
        return functools.partial(self._checkpoint)

    def _checkpoint(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # the compiled graph recomputes itself and carries the labels as inputs
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, context_fn=self.checkpoint_contexts, **kwargs)


class _Reopened(AbstractContextManager[None]):
    """Opens a gate with a forward's selection, as often as that is recomputed: once in every backward pass."""

    def __init__(self, gate: Gate, selection: Selection) -> None:
        self._gate, self._selection = gate, selection
        self._entered = threading.local()  # two backward passes may recompute at once

    def __enter__(self) -> None:
        self._entered.context = self._gate._pushed(self._selection)
        self._entered.context.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._entered.context.__exit__(kind, error, trace)


def _graph_task() -> int:
    """The autograd graph task (one call of backward) that this thread is running; -1 outside any."""
    return int(torch._C._current_graph_task_id())


_CLOSED = (
    "layer {layer} was reached with the class gate closed. Call the model itself, with labels (`model(x, t, y)`, "
    "`model(..., class_labels=y)`), or open the gate around the call: `with model.gate(y): ...`"
)
_RECOMPUTED = (
    "layer {layer} is being recomputed in backward without the labels of its forward. Checkpoint with "
    "`model.gate.checkpoint` (diffusers: `model.enable_gradient_checkpointing()`), or pass "
    "`use_reentrant=False, context_fn=model.gate.checkpoint_contexts` to your checkpoint function"
)
