"""Which backend serves a call, and why the others do not.

A backend is a pair of plain functions behind an op's one torch boundary. `auto` takes the first backend without a
reason against it, on a CPU in the room's order, on a GPU in that of `tuning/order.json`. A backend that is asked for by
name and cannot serve raises with all its reasons; it is never replaced silently.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.problems import said
from argus_kernels.core.records import Given, tensors_among
from argus_kernels.core.tuning import Rule, backend_order


def serves_everything(given: Given) -> list[str]:
    """The `why_not` of a backend without limits, such as `reference`."""
    return []


def checks_nothing(given: Given) -> bool:
    """The `checks_values` of a backend that relies on the op's check."""
    return False


def has_one_set(given: Given) -> str:
    """The `kernels` of a backend that has one set of kernels for all inputs."""
    return ""


_generation = 0


def generation() -> int:
    """Changes where `forget_verdicts` was called."""
    return _generation


def forget_verdicts() -> None:
    """Makes every call ask its backends anew: what they answered may not hold any more."""
    global _generation
    _generation += 1


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    `forward(given)` takes the op's record and returns a tensor or a tuple of tensors.
    `backward(gradients, outputs, needs, given)` takes the outputs' gradients, the outputs, which gradients are wanted
    (by argument name) and the record; it returns one gradient per differentiable argument, in order, None where not
    wanted (a list of tensors for a list argument).
    `why_not(given)` returns every reason why these arguments cannot be served, in sentences; an empty list serves.
    `available()` returns the reason why no input at all can be served on this machine, or None.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Sequence[Any]] | None = None
    why_not: Callable[[Given], list[str]] = serves_everything
    available: Callable[[], str | None] = lambda: None
    excluded_from_auto: Callable[[], str | None] = lambda: None
    """Why "auto" passes over this backend on this machine, though it serves where it is named; None if it does not."""
    checks_values: Callable[[Given], bool] = checks_nothing
    """Whether `forward` itself refuses, before it changes anything, every value that the op's check refuses; from
    metadata alone."""
    kernels: Callable[[Given], str] = has_one_set
    """Of a backend that has several: which of its kernels run for arguments that it serves, and why not the others."""

    def reasons(self, given: Given) -> list[str]:
        """Why this backend cannot serve `given`; empty if it can."""
        missing = self.available()
        return [missing] if missing else self.why_not(given)

    def automatic_reasons(self, given: Given) -> list[str]:
        """Why "auto" does not take this backend for `given`; empty if it does."""
        passed_over = self.excluded_from_auto()
        return self.reasons(given) or ([passed_over] if passed_over else [])


@dataclass(frozen=True)
class Verdict:
    """What `explain` says of one backend; `order` is why a GPU's backends stand in this order, the same for all.

    `kernels` says which of its kernels a backend that serves would run, where it has several.
    """

    backend: str
    serves: bool
    reasons: tuple[str, ...]
    order: str = ""
    kernels: str = ""


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


def rule_for(op: str, given: Given, part: str = "forward") -> Rule | None:
    """The rule of tuning/order.json for these arguments; None on a CPU, where the room's order holds."""
    first = next((tensor for tensor in tensors_among(given) if tensor.is_floating_point()), None)
    if first is None or first.device.type != "cuda":
        return None
    biased = any(getattr(given, name, None) is not None for name in ("position_bias", "time_bias"))
    return backend_order(op, part, first.dtype, torch.cuda.get_device_capability(first.device)[0], biased)


def in_order(op: str, backends: Sequence[Backend], given: Given, part: str = "forward") -> list[Backend]:
    """The backends as "auto" asks them: first those of the rule for this call, then the others in the room's order."""
    rule = rule_for(op, given, part)
    names = () if rule is None else rule.order
    places = {name: place for place, name in enumerate(names)}
    return sorted(backends, key=lambda backend: places.get(backend.name, len(names)))


def choose(op: str, backends: Sequence[Backend], wanted: str, given: Given, part: str = "forward") -> Backend:
    """The backend that serves a pass ("forward", "backward"), or an error with every reason why there is none."""
    if wanted != "auto":
        return _named(op, backends, wanted, given)
    refusals = []
    for backend in in_order(op, backends, given, part):
        reasons = backend.automatic_reasons(given)
        if not reasons:
            return backend
        refusals.append(f"{op}[{backend.name}]: {'; '.join(reasons)}")
    raise ValueError(f"{op}: no backend can serve these inputs. " + " | ".join(refusals))


def _named(op: str, backends: Sequence[Backend], wanted: str, given: Given) -> Backend:
    for backend in backends:
        if backend.name == wanted:
            reasons = backend.reasons(given)
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
    given: Given = None


def capture(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Given]:
    """The op behind a public function, and what the function makes of these arguments: the op's record."""
    probe = Probe("probe")
    if _names_a_backend(function):
        function(*args, **{**kwargs, "backend": probe})
    if probe.op is None:
        raise TypeError(f"{getattr(function, '__name__', function)} is not an op of argus_kernels")
    return probe.op, probe.given


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
    op, given = capture(function, *args, **kwargs)
    rule = rule_for(op.name, given)
    why = "" if rule is None else rule.sentence
    verdicts = []
    for backend in in_order(op.name, op.backends, given):
        reasons = tuple(backend.automatic_reasons(given))
        verdicts.append(Verdict(backend.name, not reasons, reasons, why, "" if reasons else backend.kernels(given)))
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
