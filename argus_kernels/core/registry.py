"""Which backend serves a call, and why the others do not.

A backend is a pair of plain functions behind an op's one torch boundary. `auto` takes the first in the room's order
that has no reason against it. A backend asked for by name that cannot serve raises with all its reasons: it never
becomes another one silently.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from argus_kernels.core.problems import said

Inputs: TypeAlias = SimpleNamespace
"""An op's arguments by name, as its schema has them: `inputs.q`, `inputs.offsets` …"""


def serves_everything(inputs: Inputs) -> list[str]:
    """The `why_not` of a backend without limits, such as `reference`."""
    return []


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    `forward(*arguments)` takes the op's arguments in schema order and returns a tensor or a tuple of tensors.
    `backward(gradients, outputs, needs, *arguments)` takes the outputs' gradients, the outputs, which gradients are
    wanted (by argument name) and the arguments; it returns one gradient per differentiable argument, in order, None
    where not wanted (a list of tensors for a list argument).
    `why_not(inputs)` returns every reason why these inputs cannot be served, in sentences; an empty list serves.
    `available()` returns the reason why no input at all can be served on this machine, or None.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Sequence[Any]] | None = None
    why_not: Callable[[Inputs], list[str]] = serves_everything
    available: Callable[[], str | None] = lambda: None
    by_name_only: Callable[[], str | None] = lambda: None
    """Why "auto" passes over this backend on this machine, though it serves where it is named; None if it does not."""

    def reasons(self, inputs: Inputs) -> list[str]:
        """Why this backend cannot serve `inputs`; empty if it can."""
        missing = self.available()
        return [missing] if missing else self.why_not(inputs)

    def automatic_reasons(self, inputs: Inputs) -> list[str]:
        """Why "auto" does not take this backend for `inputs`; empty if it does."""
        passed_over = self.by_name_only()
        return self.reasons(inputs) or ([passed_over] if passed_over else [])


@dataclass(frozen=True)
class Verdict:
    """What `explain` says of one backend."""

    backend: str
    serves: bool
    reasons: tuple[str, ...]


_process_default = os.environ.get("ARGUS_BACKEND", "auto")
_chosen: ContextVar[str] = ContextVar("argus_kernels_backend", default=_process_default)


class _Traced(threading.local):
    """The thread's default backend once more, where torch.compile can read and guard it.

    Dynamo traces no ContextVar. It guards an attribute of a threading.local by its value in the calling thread, if the
    attribute is set by `__init__`; a default on the class it would take for a constant.
    """

    def __init__(self) -> None:
        self.backend = _process_default


_traced = _Traced()


def default_backend() -> str:
    """The backend used where a call names none: `use_backend`, else ARGUS_BACKEND, else "auto"."""
    return _traced.backend if torch.compiler.is_compiling() else _chosen.get()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes `name` the default backend inside the block, for the thread or asyncio task that is in it.

    Other threads, also those started inside the block, keep ARGUS_BACKEND or "auto"; give a new thread the caller's
    context by `contextvars.copy_context().run`. The backward pass of an op runs on the backend that was asked for at
    its forward call, wherever it happens. A graph of torch.compile is traced anew under another default; there the
    default is that of the thread, whatever its tasks.

    Raises ValueError for a name that is no string; what names there are, an op says at its call.
    """
    if not isinstance(name, str):
        raise ValueError(f"use_backend: name is {said(name)}, expected a string")
    token = _chosen.set(name)
    _traced.backend = name
    try:
        yield
    finally:
        _chosen.reset(token)
        _traced.backend = _chosen.get()


def choose(op: str, backends: Sequence[Backend], wanted: str, inputs: Inputs) -> Backend:
    """The backend that serves `inputs`, or an error with every reason why there is none."""
    if wanted != "auto":
        return _named(op, backends, wanted, inputs)
    refusals = []
    for backend in backends:
        reasons = backend.automatic_reasons(inputs)
        if not reasons:
            return backend
        refusals.append(f"{op}[{backend.name}]: {'; '.join(reasons)}")
    raise ValueError(f"{op}: no backend can serve these inputs. " + " | ".join(refusals))


def _named(op: str, backends: Sequence[Backend], wanted: str, inputs: Inputs) -> Backend:
    for backend in backends:
        if backend.name == wanted:
            reasons = backend.reasons(inputs)
            if reasons:
                raise ValueError(f"{op}[{wanted}]: {'; '.join(reasons)}")
            return backend
    raise ValueError(unknown_backend(op, backends, wanted))


def unknown_backend(op: str, backends: Sequence[Backend], wanted: object) -> str:
    """The sentence about a backend that the op does not have."""
    known = ", ".join(["auto", "eager", *(backend.name for backend in backends)])
    return f"{op}: backend is {said(wanted)}, expected one of {known}"


class Probe(str):
    """Takes the place of a backend's name to learn what a public function would compute with, and computes nothing.

    `Op` notes itself and its arguments here, and returns outputs of the right shapes that nobody has filled.
    """

    op: Any = None
    arguments: tuple[Any, ...] = ()


def capture(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
    """The op behind a public function, and what the function makes of these arguments: the op's, in schema order."""
    probe = Probe("probe")
    if _names_a_backend(function):
        function(*args, **{**kwargs, "backend": probe})
    if probe.op is None:
        raise TypeError(f"{getattr(function, '__name__', function)} is not an op of argus_kernels")
    return probe.op, probe.arguments


def _names_a_backend(function: Callable[..., Any]) -> bool:
    try:
        return "backend" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # not a callable, or a builtin without a signature
        return False


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Verdict]:
    """Says for every backend of an op whether it would serve these inputs, and all reasons where it would not.

    `explain(argus_kernels.causal_attention, q, k, v, offsets)`: the arguments are those of the public function; the
    first verdict that serves is the one "auto" takes. Nothing is computed. Raises ValueError as the op does for
    arguments that it does not take, TypeError where `function` is no op.
    """
    op, arguments = capture(function, *args, **kwargs)
    inputs = op.inputs(arguments)
    verdicts = []
    for backend in op.backends:
        reasons = tuple(backend.automatic_reasons(inputs))
        verdicts.append(Verdict(backend.name, not reasons, reasons))
    return verdicts


def needs_device(kind: str, **tensors: Tensor | None) -> list[str]:
    """One sentence for each tensor that is not on a device of type `kind`."""
    return [
        f"{name} is on {tensor.device}, expected {kind}"
        for name, tensor in tensors.items()
        if tensor is not None and tensor.device.type != kind
    ]


def needs_dtype(dtypes: Sequence[torch.dtype], **tensors: Tensor | None) -> list[str]:
    """One sentence for each tensor whose dtype is not among `dtypes`."""
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected one of {allowed}"
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype not in dtypes
    ]
