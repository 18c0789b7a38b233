"""Run without the interpreter: what checking the ids of five columns launches, and what it is compiled to."""

from __future__ import annotations

import json
import re

import torch

from argus_kernels import set_device_checks
from argus_kernels.ops.triple_embedding import OP, _check_values
from argus_kernels.ops.triple_embedding.triton_check import check_kernel
from argus_kernels.testing.mock_driver import TorchLaunches, mocked
from build_support.triton_resources import resource_usage

with torch.device("meta"):
    tables = [torch.empty(900, 16), torch.empty(1_000_000, 64)]
    ids, weight = torch.empty(5, 16_385, dtype=torch.int64), torch.empty(2 * 16 + 3 * 64, 256)
given = OP.record(ids, tables, [0, 1, 1, 0, 1], weight, None, False, True)


def launched(compiles: bool) -> tuple[list[str], list[str]]:
    """The launches of Triton and of torch."""
    with mocked(compiles) as launches, TorchLaunches() as counted:
        _check_values(given)
    return [launch.name for launch in launches], counted.names


of_triton, of_torch = launched(True)
(compiled,) = check_kernel.device_caches[90][0].values()
registers, stack = resource_usage(compiled.asm["cubin"])
set_device_checks(False)
print(
    json.dumps(
        {
            "triton": of_triton,
            "torch": of_torch,
            "turned off": launched(False)[0],
            "assertions": len(re.findall(r"\bassertMessage_\d+\[", compiled.asm["ptx"])),
            "registers": registers,
            "stack": stack,
        }
    )
)
