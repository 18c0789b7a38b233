"""The interface of a peer: another implementation of an op, which people use today."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import Case

CUDA_ONLY = "runs on CUDA only"


def nothing_against(case: Case) -> str | None:
    """The `why_not` of a peer that runs everywhere."""
    return None


@dataclass(frozen=True)
class Peer:
    """Another implementation of some of the ops, timed beside ours on the same case.

    `why_not(case)` returns a sentence why it cannot run that case here, or None. `build(case)` returns the timed call;
    what a user would prepare once for many steps (masks, layouts, compiled code) belongs in `build`.
    `why_no_gradients(case)` returns why its backward pass cannot be timed, or None. A peer whose result differs by
    definition (`same_result` False) is timed without a comparison.
    """

    name: str
    ops: tuple[str, ...]
    build: Callable[[Case], Callable[[], Any]]
    why_not: Callable[[Case], str | None] = nothing_against
    why_no_gradients: Callable[[Case], str | None] = nothing_against
    same_result: bool = True
    own_leaves: Callable[[Any], Sequence[Tensor]] = lambda call: ()
    """Tensors that the built call holds itself and that backward must reach, besides the case's leaves."""
    compiles: bool = False
    """Its first run compiles, and so says nothing about time and memory."""


def not_installed(module: str, distribution: str) -> str | None:
    """Why a library cannot be used: not installed, or its import fails (built for another torch, say)."""
    if importlib.util.find_spec(module.split(".")[0]) is None:
        return f"{distribution} is not installed"
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"{distribution} cannot be imported beside torch {torch.__version__}: {lines[0][:160]}"
    return None


def needs_cuda(case: Case) -> str | None:
    """The reason on every device but CUDA."""
    return CUDA_ONLY if case.device != "cuda" else None


def no_missing_ids(case: Case) -> str | None:
    """The reason if an id or a row is −1: torch's lookups and sparse tensors use it as an index."""
    ids = case.arguments.get("ids", case.arguments.get("rows"))
    return "takes no id of −1, and the case has some" if ids is not None and bool((ids < 0).any()) else None


def first_reason(*reasons: str | None) -> str | None:
    """The first reason that is not None."""
    return next((reason for reason in reasons if reason), None)
