"""Which backend serves a call, and why the others do not.

A backend is a pair of plain functions behind an op's one torch boundary. `auto` takes the first in the room's order
that has no reason against it. A backend asked for by name that cannot serve raises with all its reasons: it never
becomes another one silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

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


_default = os.environ.get("ARGUS_BACKEND", "auto")


def default_backend() -> str:
    """The backend used where a call names none: `use_backend`, else ARGUS_BACKEND, else "auto"."""
    return _default


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes `name` the default backend inside the block, for the whole process (all threads).

    The backward pass of an op runs on the backend that was asked for at its forward call, wherever it happens.
    """
    global _default
    before, _default = _default, name
    try:
        yield
    finally:
        _default = before


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
    known = ", ".join(["auto", "eager", *(backend.name for backend in backends)])
    raise ValueError(f"{op}: backend is {wanted!r}, expected one of {known}")


class _Captured(Exception):
    """Carries an op's normalised arguments out of its public function; see `capture`."""

    def __init__(self, op: Any, arguments: tuple[Any, ...]) -> None:
        self.op = op
        self.arguments = arguments


_capturing = False


def is_capturing() -> bool:
    """True inside `capture`: ops report their arguments instead of computing."""
    return _capturing


def capture(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
    """Runs a public function up to the op boundary; returns the op and its arguments in schema order."""
    global _capturing
    _capturing = True
    try:
        function(*args, **kwargs)
    except _Captured as captured:
        return captured.op, captured.arguments
    finally:
        _capturing = False
    raise TypeError(f"{getattr(function, '__name__', function)} is not an op of argus_kernels")


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Verdict]:
    """Says for every backend of an op whether it would serve these inputs, and all reasons where it would not.

    `explain(argus_kernels.causal_attention, q, k, v, offsets)`: the arguments are those of the public function; the
    first verdict that serves is the one "auto" takes. Nothing is computed.
    """
    op, arguments = capture(function, *args, **kwargs)
    inputs = op.inputs(arguments)
    verdicts = []
    for backend in op.backends:
        reasons = tuple(backend.automatic_reasons(inputs))
        verdicts.append(Verdict(backend.name, not reasons, reasons))
    return verdicts


def needs_device(kind: str, **tensors: Tensor | None) -> list[str]:
    """One sentence for each tensor that is not on a device of type `kind`, or on another of them than the first."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    first = next((device for device in devices.values() if device.type == kind), None)
    return [
        f"{name} is on {device}, expected {first if device.type == kind else kind}"
        for name, device in devices.items()
        if device.type != kind or device != first
    ]


def needs_dtype(dtypes: Sequence[torch.dtype], **tensors: Tensor | None) -> list[str]:
    """One sentence for each tensor whose dtype is not among `dtypes`."""
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected one of {allowed}"
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype not in dtypes
    ]
