"""What the Triton backends of all ops share: when they can serve, how they launch, and what the compile gates compile.

Importing this module does not import triton: a room answers `why_not` without it and imports
the room's `triton_kernels.py` at the first call.

Every kernel is launched through `launch`. The compile gates take their cases from the launchers themselves, fed with
tensors on the meta device under a driver that runs nothing (`argus_kernels.testing.mock_driver`): a launcher that needs
a value from the device cannot pass them.

Sizes and strides reach a kernel as int32 where they fit. A kernel therefore widens a row to int64 before it multiplies
it by a stride.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.records import Given, tensors_by_name
from argus_kernels.core.registry import Backend, forget_verdicts, needs_device, needs_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the Triton kernels compute on; float64 is the reference's."""

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that a block may have on sm_80, sm_90 and sm_100 (CUDA programming guide, table of compute
capabilities)."""


TMA_ALIGNMENT = 16
"""Bytes to which TMA wants the address, all strides but the last, and the innermost side of a box."""


@dataclass(frozen=True)
class CompileCase:
    """Calls a room's launchers as a user would, on meta tensors; a room lists its own in `compile_cases()`.

    name: what tells it from the room's other cases, such as "bfloat16-64". matrix: False where a large tl.dot is not
    expected to become the target's own matrix instruction, with the reason beside it. twin: compiled by the command
    only, not in tests, because another case is all but the same (float16 beside bfloat16).
    """

    name: str
    call: Callable[[], Any]
    matrix: bool = True
    twin: bool = False


_architecture: int | None = None
"""What a driver that runs nothing stands in for; see `served_without_gpu`."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1, set before triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def available() -> str | None:
    """Why no Triton kernel can serve anything here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (interpreted() or _architecture or torch.cuda.is_available()):
        return "torch sees no GPU, and TRITON_INTERPRET=1 does not ask for Triton's interpreter"
    return None


def excluded_from_auto() -> str | None:
    """Why "auto" passes over the Triton kernels, or None: the interpreter serves who asks for it."""
    return "triton serves by name only: its interpreter is for tests" if interpreted() else None


def problems(dtypes: Sequence[torch.dtype] = DTYPES, **tensors: Tensor | None) -> list[str]:
    """One sentence for each floating tensor that the Triton kernels do not take: its device and its dtype."""
    found = device_problems(**tensors) + needs_dtype(dtypes, **tensors)
    if interpreted():
        found += [
            f"{name} is bfloat16, which Triton's interpreter computes wrongly"
            for name, tensor in tensors.items()
            if tensor is not None and tensor.dtype == torch.bfloat16
        ]
    return found


def device_problems(**tensors: Tensor | None) -> list[str]:
    """One sentence for each tensor that is not on a GPU; the interpreter takes the CPU's."""
    return [] if interpreted() or _architecture else needs_device("cuda", **tensors)


@contextmanager
def served_without_gpu(architecture: int) -> Iterator[None]:
    """Inside the block tensors of any device are taken, for the whole process: a driver that runs nothing is active.

    architecture: 80, 90, 100: of the GPU that it stands in for.
    """
    global _architecture
    before, _architecture = _architecture, architecture
    forget_verdicts()
    try:
        yield
    finally:
        _architecture = before
        forget_verdicts()


def triton_backend(module: str, why_not: Callable[[Given], list[str]], *, differentiable: bool = True) -> Backend:
    """A room's `triton` backend, whose kernels, and triton with them, are imported at the first call.

    module: the full name of the room's `triton_kernels`, which has `forward` and, of a differentiable op, `backward`.
    """

    def forward(given: Given) -> Any:
        return import_module(module).forward(given)

    def backward(gradients: list[Tensor], outputs: list[Tensor], needs: dict[str, bool], given: Given) -> Any:
        return import_module(module).backward(gradients, outputs, needs, given)

    def reasons(given: Given) -> list[str]:
        found = why_not(given)
        return found + [sentence for sentence in _one_gpu(given) if sentence not in found]

    return Backend("triton", forward, backward if differentiable else None, reasons, available, excluded_from_auto)


def _one_gpu(given: Given) -> list[str]:
    """One sentence for each tensor on another GPU than the first: rooms look at the arguments in several parts."""
    return needs_device("cuda", **{name: one for name, one in tensors_by_name(given).items() if one.is_cuda})


def ceil_div(value: int, divisor: int) -> int:
    """The least whole number that is not below value / divisor."""
    return -(-value // divisor)


def next_power_of_two(value: int) -> int:
    """The least power of two that is not below `value`, at least 1."""
    return 1 << max(value - 1, 0).bit_length()


def processors(device: torch.device, default: int = 132) -> int:
    """How many multiprocessors the device has: what a persistent kernel's grid is sized by; `default` without a GPU."""
    if device.type != "cuda":
        return 1 if interpreted() and device.type == "cpu" else default
    return torch.cuda.get_device_properties(device).multi_processor_count


def gpu_generation(device: torch.device) -> int:
    """The first number of the device's compute capability: 8, 9, 10; without a GPU what is stood in for, or 9."""
    if device.type != "cuda":
        return (_architecture or 90) // 10
    return torch.cuda.get_device_capability(device)[0]


def loads_by_tma(*tensors: Tensor) -> bool:
    """Whether the kernels take tensor descriptors of these tensors: 16 bits on sm_90, aligned as TMA wants it."""

    def fits(tensor: Tensor) -> bool:
        element, (*outer, last) = tensor.element_size(), tensor.stride()
        aligned = all(stride * element % TMA_ALIGNMENT == 0 for stride in outer)
        return element == 2 and tensor.numel() > 0 and last == 1 and aligned and tensor.data_ptr() % TMA_ALIGNMENT == 0

    return gpu_generation(tensors[0].device) == 9 and all(map(fits, tensors))


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one: Triton launches there, not where its arguments lie."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Mapping[str, Any],
    *,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
) -> None:
    """Launches `kernel` on the current stream with its arguments by name; an empty grid launches nothing.

    arguments: tensors, numbers, None, tuples of these (a tensor with its strides), and the kernel's constexprs.
    warps, stages, registers: Triton's num_warps, num_stages and maxnreg, the most registers of a thread (None: ptxas
    decides).
    """
    if all(grid):
        values = (one for value in arguments.values() for one in (value if isinstance(value, tuple) else (value,)))
        with on_device(next(value for value in values if isinstance(value, Tensor))):
            kernel[grid](**arguments, num_warps=warps, num_stages=stages, maxnreg=registers)
