"""A rehearsal of Triton's compilation: its real binder takes every launch, for sm_90, and nothing runs.

A kernel that another batch recompiles would take 0.3 s on a GPU in the middle of training.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from benchmarks.gpu_session.cases import op_of, tile_samples
from benchmarks.gpu_session.context import Context
from benchmarks.gpu_session.plan import OPS


def run(context: Context) -> None:
    """Binds several tiles of every op in two batches; a line for each sample."""
    driver = mock_driver()
    if driver is None:
        context.leave_out("binding Triton's launches", "argus_kernels.testing.mock_driver or triton is not there")
        return
    for name in OPS:
        op = op_of(name)
        for small in tile_samples(name, rehearse=True):
            large = next(sample for sample in tile_samples(name, rehearse=False) if sample.name == small.name)
            bound = {
                batch: driver.bind(op, sample, torch.bfloat16)
                for batch, sample in (("a large batch", large), ("a small batch", small))
            }
            context.say(
                "bound",
                op=name,
                case=large.name,
                kernels=[launch.name for launch in bound["a large batch"].triton],
                second_compiles=driver.second_compiles({batch: one.triton for batch, one in bound.items()}),
            )


def mock_driver() -> Any:
    """The module with the mock GPU driver; None if it is absent."""
    name = "argus_kernels.testing.mock_driver"
    if importlib.util.find_spec(name) is None or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(name)
