"""Drawn arguments and collected results of sampled_softmax_loss, for tests at sizes beyond one tile."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from argus_kernels import sampled_softmax_loss
from argus_kernels.testing import require_close

LEAVES = ("query", "positive", "candidates", "scale")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = ["standard", "refined"]


def draw(
    rows: int, drawn: int, width: int, dtype: torch.dtype = torch.float32, form: str = "standard", catalogue: int = 40
) -> dict[str, Any]:
    """Every optional argument; a catalogue so small that each row leaves out many candidates."""
    generator = torch.Generator().manual_seed(rows + drawn)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def integers(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    weight = torch.rand(rows, generator=generator) + 0.5
    weight[1::3] = 0
    return {
        "query": normal(rows, width),
        "positive": normal(rows, width),
        "candidates": normal(drawn, width),
        "positive_ids": integers(0, catalogue, rows) + 2**40,
        "candidate_ids": integers(0, catalogue, drawn) + 2**40,
        "log_q": torch.rand(drawn, generator=generator) - 3,
        "positive_log_q": torch.rand(rows, generator=generator) - 3,
        "scale": torch.tensor(1 / math.sqrt(width)),
        "row_weight": weight,
        "query_owner": integers(0, 6, rows),
        "candidate_owner": integers(-1, 7, drawn),
        "form": form,
    }


def results(
    arguments: dict[str, Any], backend: str, both: bool = True, d_loss: Tensor | None = None
) -> dict[str, Tensor]:
    """Loss, lse and the four gradients; those of the outputs are a ramp or `d_loss`, and 0 for lse if not `both`."""
    given = {name: value.detach().clone() if name in LEAVES else value for name, value in arguments.items()}
    leaves = [given[name].requires_grad_() for name in LEAVES]
    loss, lse = sampled_softmax_loss(**given, backend=backend)
    ramp = torch.linspace(-1, 2, loss.shape[0], dtype=loss.dtype) if d_loss is None else d_loss.to(loss.dtype)
    found = torch.autograd.grad((loss * ramp + (lse * ramp.flip(0) if both else 0)).sum(), leaves)
    named = {f"d_{name}": gradient for name, gradient in zip(LEAVES, found, strict=True)}
    return {"loss": loss.detach(), "lse": lse.detach(), **named}


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def require_right(arguments: dict[str, Any], backend: str) -> None:
    """The error rule for both outputs and the gradients of the three matrices; a bound for that of scale."""
    ours, theirs = results(arguments, backend), results(arguments, "eager")
    truth = results(in_float64(arguments), "eager")
    kept = arguments["row_weight"] != 0
    for name in ("loss", "lse", "d_query", "d_positive", "d_candidates"):
        rows = slice(None) if name == "d_candidates" else kept
        require_close(name, ours[name][rows], truth[name][rows], theirs[name][rows])
    # Of a single number no error's distribution can be judged.
    bound = 1e-6 * max(float(truth["d_query"].abs().sum()), 1.0)
    assert abs(float(ours["d_scale"]) - float(truth["d_scale"])) <= bound
