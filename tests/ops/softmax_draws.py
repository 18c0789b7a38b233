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


def require_same_reach(arguments: dict[str, Any], name: str, value: float, backend: str, bound: float) -> None:
    """A value that is not finite, in `name` or in the losses' gradients, reaches what it reaches in float64.

    Not the rows that leave the candidate out, nor candidates that the row leaves out, nor rows of weight 0.
    arguments: of more than 132 rows and candidates. bound: of errors beside the largest finite result, at least 1.
    """
    rows = arguments["query"].shape[0]
    d_loss = torch.linspace(-1, 2, rows)
    values = {**arguments, "d_loss": d_loss}[name].clone()
    values.view(values.shape[0], -1)[132, 0] = value
    if name == "d_loss":
        d_loss = values
    else:
        arguments = {**arguments, name: values}
    ours = results(arguments, backend, False, d_loss)
    truth = results(in_float64(arguments), "reference", False, d_loss)
    assert bool(truth["d_query"].isfinite().any())
    assert not all(bool(one.isfinite().all()) for one in truth.values())
    for result, expected in truth.items():
        # In d_scale a share of 0 times an infinite score is NaN or nothing, as the share is computed.
        if result == "d_scale" and name != "d_loss":
            continue
        finite = expected.isfinite()
        largest = float(expected[finite].abs().max()) if bool(finite.any()) else 1.0
        assert torch.equal(ours[result].isfinite(), finite), result
        near = bound * max(largest, 1.0)
        torch.testing.assert_close(ours[result][finite].double(), expected[finite], rtol=0, atol=near, msg=result)
