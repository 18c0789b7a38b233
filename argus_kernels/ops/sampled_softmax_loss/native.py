"""The compiled backends of sampled_softmax_loss: `cpp` (C++ on the CPU) and `cuda` (CUDA C++).

The scores are computed tile by tile in both passes and never stored; the forward pass leaves two numbers a row for the
backward pass. Sums run in an order that follows from the sizes, for any number of threads and on any GPU; on compute
capability 9.0 products in 16 bits have an order of their own (TMA and wgmma).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import hopper, native
from argus_kernels.core.gradients import or_none
from argus_kernels.core.registry import needs_device, needs_dtype
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments

_STORED = (torch.float32, torch.bfloat16, torch.float16)


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [N], lse [N], statistics [2, N]) as `reference.forward`."""
    loss, lse, statistics = native.op("sampled_softmax_loss")(*_native(given))
    return loss, lse, statistics


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[Tensor | None]:
    """Gradients of query, positive, candidates and scale, None where not wanted."""
    wanted = [needs[name] for name in ("query", "positive", "candidates", "scale")]
    d_lse = or_none(gradients, 1)
    found = native.op("sampled_softmax_loss_backward")(gradients[0], d_lse, outputs[2], *wanted, *_native(given))
    return [gradient if needed else None for gradient, needed in zip(found, wanted, strict=True)]


def both(d_loss: Tensor, given: Arguments) -> tuple[Tensor, ...]:
    """(loss, lse, d_query, d_positive, d_candidates, d_scale) in three products on the CPU; on a GPU in four."""
    found: tuple[Tensor, ...] = native.op("sampled_softmax_loss_with_gradients")(
        d_loss, True, True, True, True, *_native(given)
    )
    return found


def _native(given: Arguments) -> tuple[object, ...]:
    return (*given[: given._fields.index("form")], given.form == "refined")


def available_cpp() -> str | None:
    """Why the C++ backend cannot serve anything here, or None."""
    return native.why_not("cpu")


def available_cuda() -> str | None:
    """Why the CUDA backend cannot serve anything here, or None."""
    return native.why_not("cuda")


def why_not_cpp(given: Arguments) -> list[str]:
    """Every reason why the C++ backend cannot serve these arguments."""
    return [*_tensors_on("cpu", given), *needs_dtype((*_STORED, torch.float64), query=given.query)]


def why_not_cuda(given: Arguments) -> list[str]:
    """Every reason why the CUDA backend cannot serve these arguments."""
    return [*_tensors_on("cuda", given), *needs_dtype(_STORED, query=given.query)]


def kernels_cuda(given: Arguments) -> str:
    """Which kernels of the CUDA backend run, and why not those of sm_90a."""
    return hopper.served_by("every product", given.query, why_not_loop(given))


def why_not_loop(given: Arguments) -> list[str]:
    """Every reason why the product loop of sm_90a does not take these arguments: fits_product_loop of the C++ side."""
    problems = hopper.needs_half(query=given.query)
    if problems:
        return problems
    problems = hopper.needs_chunks(query=given.query, candidates=given.candidates)
    if not given.candidates.shape[0]:
        problems.append("candidates has no row, expected at least one")
    largest = max(*given.query.shape, given.candidates.shape[0])
    if largest > 1 << 30:
        problems.append(f"a size is {largest}, expected at most {1 << 30}")
    return problems


def _tensors_on(kind: str, given: Arguments) -> list[str]:
    return needs_device(
        kind,
        query=given.query,
        positive=given.positive,
        candidates=given.candidates,
        positive_ids=given.positive_ids,
        candidate_ids=given.candidate_ids,
        log_q=given.log_q,
        scale=given.scale,
    )
