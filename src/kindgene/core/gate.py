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
- a region compiled by torch.compile cannot look at threads: it reads one attribute, which is poisoned while more
  than one thread has the gate open.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
    much: 0 where the gate is closed.
    """

    tailors: dict[str, Tensor]
    labels: dict[str, Tensor]
    tailor_index: Tensor
    label_index: Tensor
    weight: Tensor

    @property
    def batch(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class _Opened:
    selection: Selection
    graph_task: int


class _ThreadStack(threading.local):
    """What this thread has opened, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Opened] = []


class Gate:
    """One per model. `opened` is for the model's own forward; `current` is for its layers."""

    def __init__(self) -> None:
        self._local = _ThreadStack()
        self._lock = threading.Lock()
        self._open_threads = 0
        self._visible: Selection | None = None  # what a compiled region reads
        self._ambiguous = False

        self._select: Callable[..., Selection] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"select": self._select}  # an open gate is a matter of this process and moment: a copy starts closed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self._select = state["select"]

    def bind(self, select: Callable[..., Selection]) -> None:
        """Says how labels become a selection: the bank's `select`."""
        self._select = select

    def __call__(self, labels: Tensor, rows: Any = None) -> AbstractContextManager[None]:
        """``with model.gate(labels): ...`` opens the gate by hand, for a module whose forward takes no labels."""
        assert self._select is not None, "the gate was never bound to a bank"
        return self.opened(self._select(labels, rows))

    def is_open(self) -> bool:
        """Whether this thread's forward has opened the gate (in the backward pass it is running, if any)."""
        if torch.compiler.is_compiling():
            return self._visible is not None
        stack = self._stack()
        return bool(stack) and stack[-1].graph_task == _graph_task()

    def current(self, layer: str) -> Selection:
        """The selection of the forward that `layer` is part of. Raises GateError where that is not certain."""
        if torch.compiler.is_compiling():
            if self._visible is None or self._ambiguous:
                raise GateError(_CLOSED.format(layer=layer))
            return self._visible
        stack = self._stack()
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
        if torch.compiler.is_compiling():
            before = self._visible
            self._visible = selection
            try:
                yield
            finally:
                self._visible = before
            return
        stack = self._stack()
        stack.append(_Opened(selection, _graph_task()))
        self._publish(first=len(stack) == 1)
        try:
            yield
        finally:
            stack.pop()
            self._publish(last=not stack)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """``context_fn`` for torch.utils.checkpoint (not reentrant): the forward's selection, again in backward."""
        selection = self.current("a checkpointed function")
        return _nothing(), self._pushed(selection)

    @property
    def checkpoint(self) -> Callable[..., Any]:
        """torch.utils.checkpoint that restores this gate; for diffusers' ``enable_gradient_checkpointing``."""
        return functools.partial(self._checkpoint)

    def _checkpoint(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # the compiled graph recomputes itself and carries the labels as inputs
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, context_fn=self.checkpoint_contexts, **kwargs)

    def _stack(self) -> list[_Opened]:
        return self._local.stack

    def _publish(self, first: bool = False, last: bool = False) -> None:
        """Keeps what compiled regions read: the one open selection, or poison while several threads are inside."""
        with self._lock:
            self._open_threads += int(first) - int(last)
            if self._open_threads == 0:
                self._visible, self._ambiguous = None, False
            elif self._open_threads == 1 and not self._ambiguous:
                stack = self._stack()
                self._visible = stack[-1].selection if stack else self._visible
            else:
                self._ambiguous = True


@contextmanager
def _nothing() -> Iterator[None]:
    yield


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
