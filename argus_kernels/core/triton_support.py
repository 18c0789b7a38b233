"""What the Triton backends of all ops share: when they can serve, how they launch, and what the compile gates compile.

Importing this module does not import triton: a room's `triton_backend.py` answers `why_not` without it and imports
the room's `triton_kernels.py` at the first call.

Every kernel is launched through `launch`. Inside `recorded_launches` nothing runs: each launch is noted with the
signature that Triton would compile it for. So the compile gates take their cases from the launchers themselves, fed
with tensors on the meta device, and a launcher that needs a value from the device cannot pass them.

Sizes and strides reach a kernel as int32 where they fit. A kernel therefore widens a row to int64 before it multiplies
it by a stride.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.registry import Backend, Inputs, needs_device, needs_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the Triton kernels compute on; float64 is the reference's."""

TYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}
"""torch's dtypes as Triton's signatures have them."""

_INT32 = torch.iinfo(torch.int32)
_ALIGNMENT = 16


@dataclass(frozen=True)
class Launch:
    """One launch as `recorded_launches` notes it; with these arguments triton.compile makes what would have run.

    signature: the type of every argument by name, a tuple of types for a tuple. constants: what is compiled in, by
    place: (2,) is the third argument, (2, 0) the first of its tuple. divisible: the places of arguments known to be
    multiples of 16, as pointers are. options: num_warps, num_stages.
    """

    kernel: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[tuple[int, ...], Any]
    divisible: tuple[tuple[int, ...], ...]
    options: Mapping[str, int]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)


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


@dataclass
class _Recording:
    launches: list[Launch] = field(default_factory=list)


_recording: _Recording | None = None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1, set before triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def available() -> str | None:
    """Why no Triton kernel can serve anything here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "torch sees no GPU, and TRITON_INTERPRET=1 does not ask for Triton's interpreter"
    return None


def by_name_only() -> str | None:
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
    return [] if interpreted() else needs_device("cuda", **tensors)


def triton_backend(
    forward: Callable[..., Any], why_not: Callable[[Inputs], list[str]], backward: Callable[..., Any] | None = None
) -> Backend:
    """A room's `triton` backend, with what all of them have in common."""
    return Backend("triton", forward, backward, why_not, available, by_name_only)


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


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one: Triton launches there, not where its arguments lie."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], *, warps: int = 4, stages: int = 3
) -> None:
    """Launches `kernel` on the current stream with its arguments by name; an empty grid launches nothing.

    arguments: tensors, numbers, None, tuples of these, and the kernel's constexprs. warps, stages: Triton's num_warps
    and num_stages.
    """
    if _recording is not None:
        _recording.launches.append(_recorded(kernel, arguments, warps, stages))
    elif all(grid):
        with on_device(next(value for value in arguments.values() if isinstance(value, Tensor))):
            kernel[grid](**arguments, num_warps=warps, num_stages=stages)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside the block `launch` notes instead of launching, for the whole process."""
    global _recording
    before, _recording = _recording, _Recording()
    try:
        yield _recording.launches
    finally:
        _recording = before


def _recorded(kernel: Any, arguments: Mapping[str, Any], warps: int, stages: int) -> Launch:
    names = [parameter.name for parameter in kernel.params]
    if set(names) != set(arguments):
        raise TypeError(f"{kernel.__name__} takes {sorted(names)}, got {sorted(arguments)}")
    signature: dict[str, str | tuple[str, ...]] = {}
    constants: dict[tuple[int, ...], Any] = {}
    divisible: list[tuple[int, ...]] = []
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[index,] = "constexpr", value
            continue
        parts = value if isinstance(value, tuple) else (value,)
        kinds = tuple(_kind(part) for part in parts)
        for inner, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
            place = (index, inner) if isinstance(value, tuple) else (index,)
            if kind == "constexpr":
                constants[place] = part
            elif isinstance(part, Tensor) or (kind in ("i32", "i64") and part % _ALIGNMENT == 0):
                divisible.append(place)
        signature[parameter.name] = kinds if isinstance(value, tuple) else kinds[0]
    return Launch(kernel, signature, constants, tuple(divisible), {"num_warps": warps, "num_stages": stages})


def _kind(value: Any) -> str:
    """The type that Triton gives an argument; None and 1 it compiles in."""
    if isinstance(value, Tensor):
        return "*" + TYPE_NAMES[value.dtype]
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
        return "constexpr"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if _INT32.min <= value <= _INT32.max else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"a kernel's argument is {type(value).__name__}, expected a tensor, a number or None")
