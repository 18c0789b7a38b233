"""Which kernels of a CUDA backend serve: those of TMA and wgmma (sm_90a), or those of mma.sync, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core.native import build_info

_CHUNK_BYTES = 16


def served_by(part: str, tensor: Tensor, reasons: Sequence[str], remaining: str = "") -> str:
    """What `explain` says of a part of an op whose kernels of sm_90a refuse `tensor`'s call for these reasons.

    One sentence, such as "forward runs on TMA and wgmma (sm_90a)"; tensor: on the GPU that would run it.
    remaining: what of the part runs on mma.sync even where these kernels run.
    """
    found = [*_without_hopper(tensor), *reasons]
    if found:
        return f"{part} runs on mma.sync, not on TMA and wgmma: {'; '.join(found)}"
    return f"{part} runs on TMA and wgmma (sm_90a){f', {remaining} on mma.sync' if remaining else ''}"


def needs_chunks(**matrices: Tensor) -> list[str]:
    """One sentence for each matrix, made contiguous, that TMA cannot load by rows: those of 16 bits alone are asked."""
    problems = []
    for name, matrix in matrices.items():
        row_bytes = matrix.shape[-1] * matrix.element_size()
        if row_bytes == 0 or row_bytes % _CHUNK_BYTES:
            problems.append(f"a row of {name} has {row_bytes} bytes, expected a multiple of {_CHUNK_BYTES}")
        offset = matrix.storage_offset() * matrix.element_size()
        if matrix.is_contiguous() and offset % _CHUNK_BYTES:
            problems.append(f"{name} begins {offset} bytes into its memory, expected a multiple of {_CHUNK_BYTES}")
    return problems


def needs_half(**tensors: Tensor) -> list[str]:
    """One sentence for each tensor that has no 16-bit elements."""
    return [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected bfloat16 or float16"
        for name, tensor in tensors.items()
        if tensor.element_size() != 2
    ]


def _without_hopper(tensor: Tensor) -> list[str]:
    if os.environ.get("ARGUS_WGMMA") == "0":
        return ["ARGUS_WGMMA is 0"]
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability != (9, 0):
        return [f"the GPU has compute capability {'.'.join(map(str, capability))}, expected 9.0"]
    built = build_info().get("libraries", {}).get("cuda", {}).get("architectures", [])
    names = [str(name).removesuffix("+PTX") for name in built]
    return [] if "90a" in names else [f"the CUDA library is built for {', '.join(names) or 'nothing'}, expected 90a"]
