"""Run without the interpreter: kernels that compile again for another batch, and what a launch is noted with."""

from __future__ import annotations

import json

import torch
import triton
import triton.language as tl

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import launch
from argus_kernels.testing.mock_driver import mocked, second_compiles


@kernel
def sized_kernel(x, rows, stride, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(x + place * stride, 0.0, mask=place < rows)


@triton.jit
def specialised_kernel(x, rows, stride, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(x + place * stride, 0.0, mask=place < rows)


def again(function: object, **batches: tuple[int, int]) -> list[str]:
    """What another batch of (rows, BLOCK) would compile again."""
    calls = {}
    for name, (rows, block) in batches.items():
        with mocked() as launches:
            launch(function, (1,), {"x": torch.zeros(64), "rows": rows, "stride": 1, "BLOCK": block})
        calls[name] = launches
    return second_compiles(calls)


def refusal(**arguments: object) -> str:
    """What Triton says of a launch with these arguments."""
    try:
        with mocked():
            launch(sized_kernel, (1,), {"x": torch.zeros(4), "rows": 3, "stride": 1, "BLOCK": 64} | arguments)
    except (KeyError, TypeError) as error:
        return str(error)
    return ""


def noted() -> dict[str, object]:
    """A launch on the meta device, compiled."""
    arguments = {"x": torch.empty(4, dtype=torch.bfloat16, device="meta"), "rows": 2**31, "stride": 32, "BLOCK": 64}
    with mocked(compiles=True) as launches:
        launch(sized_kernel, (3,), arguments, warps=8, stages=2)
        launch(sized_kernel, (0,), arguments)
    (one,) = launches
    return {
        "signature": dict(one.signature),
        "constants": sorted(map(str, one.constants.items())),
        "options": dict(one.options),
        "compiled": len(sized_kernel.device_caches[90][0]),
    }


print(
    json.dumps(
        {
            "sized": again(sized_kernel, odd=(3, 64), one=(1, 64), sixteen=(16, 64)),
            "specialised": again(specialised_kernel, odd=(3, 64), one=(1, 64), sixteen=(16, 64)),
            "constexpr": again(sized_kernel, small=(3, 64), large=(90, 128)),
            "too many": refusal(more=1),
            "text": refusal(rows="3"),
            "noted": noted(),
        }
    )
)
