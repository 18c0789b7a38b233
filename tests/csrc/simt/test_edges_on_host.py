"""NaN and infinities in every floating argument of every op: the CUDA kernels give what float64 gives.

Attention, whose kernels take few of the small samples, has tests of its own: test_careful_rows_on_host.py.
"""

from __future__ import annotations

import pytest
import torch

from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, small_samples
from tests.csrc.simt.backends import BACKENDS, on_host
from tests.csrc.simt.host_executor import BACKEND
from tests.ops import test_edges


def served(op: Op) -> list[Sample]:
    """The small samples that the executor serves."""
    why_not = BACKENDS[op].why_not
    return [one for one in small_samples(op) if not why_not(captured_arguments(op, one.draw(torch.float32)))]


SAMPLES = [
    pytest.param(op, sample, id=f"{op.name}-{sample.name}", marks=[pytest.mark.slow] * (0 < place < len(found) - 1))
    for op, found in ((op, served(op)) for op in BACKENDS)
    for place, sample in enumerate(found)
]
"""`make test` takes the first and the last of an op."""


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_what_is_not_finite_reaches_only_what_it_may(op: Op, sample: Sample) -> None:
    with on_host(op):
        test_edges.require_what_float64_gives(op, BACKEND, sample)
