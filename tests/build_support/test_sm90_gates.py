"""What nvcc makes of TMA and wgmma for sm_90a: the instructions, no spills, and products that stay asynchronous."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from build_support import decide, resources
from build_support.compile import nvcc_flags
from tests.build_support.test_compile_targets import PLANTED, figures

TOOLKIT = decide.find_toolkit(os.environ)
FLAGS = nvcc_flags(["90a"])

pytestmark = pytest.mark.skipif(TOOLKIT is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")


def test_the_product_loop_becomes_wgmma_and_tma_without_spills() -> None:
    found = figures(PLANTED / "sm90_kernels.cu", FLAGS)
    assert len(found) == 6
    for one in found:
        assert one.architecture == "90a" and one.spill_bytes == 0 and one.stack_bytes == 0, one
        if "::product<" in one.kernel:
            # What a launch of 384 threads gives each, for setmaxnreg to share out.
            assert one.registers == 168, one
        if resources.cuobjdump() is not None:
            assert one.instructions.get("HGMMA", 0) >= 4 and one.instructions.get("UTMALDG", 0) >= 1, one


def test_turns_become_bulk_copies_without_spills() -> None:
    (found,) = figures(PLANTED / "sm90_turns.cu", FLAGS)
    assert found.architecture == "90a" and found.spill_bytes == 0 and found.stack_bytes == 0, found
    if resources.cuobjdump() is not None:
        assert found.instructions.get("UBLKCP", 0) >= 1 and found.instructions.get("UBLKRED", 0) >= 1, found


@pytest.mark.slow
@pytest.mark.parametrize(("source", "kernels"), [("sm90_softmax.cu", 8), ("sm90_embedding.cu", 4)])
def test_the_ops_products_become_wgmma_and_tma_without_spills(source: str, kernels: int) -> None:
    """Serialized products would be an error of `measure`; 168 registers are what setmaxnreg shares out."""
    found = figures(PLANTED / source, FLAGS)
    assert len(found) == kernels
    for one in found:
        assert one.architecture == "90a" and one.spill_bytes == 0 and one.stack_bytes == 0, one
        assert one.registers == 168, one
        if resources.cuobjdump() is not None:
            assert one.instructions.get("HGMMA", 0) >= 4 and one.instructions.get("UTMALDG", 0) >= 1, one


@pytest.mark.slow
def test_the_forward_loop_of_attention_becomes_wgmma_and_tma_without_spills() -> None:
    """Two weights × two masks × two types × two widths, with and without biases. setmaxnreg shares out 64 K registers
    among four warpgroups (128 a thread at launch) where heads are narrow and sums are few, else among three (168)."""
    found = figures(PLANTED / "sm90_attention.cu", FLAGS)
    assert len(found) == 32
    assert sum(one.registers == 128 for one in found) == 3
    for one in found:
        assert one.architecture == "90a" and one.spill_bytes == 0 and one.stack_bytes == 0, one
        assert one.registers in (128, 168), one
        # Beside the tiles of 160 KiB, their alignment and the largest tables.
        assert one.shared_bytes <= (227 - 161 - 5) << 10, one
        if resources.cuobjdump() is not None:
            assert one.instructions.get("HGMMA", 0) >= 16 and one.instructions.get("UTMALDG", 0) >= 3, one


SERIALIZED = """
#include "common/cuda/sm90/wgmma.cuh"
using namespace argus::ptx;
__global__ void __launch_bounds__(128) wrong(uint64_t a, uint64_t b, float* d) {
  float sums[32];
  for (float& sum : sums) sum = d[threadIdx.x];
  wgmma_fence();
  wgmma<Major::k, Major::k>(sums, a, b, true, __half{});
  sums[3] *= 2.0f;
  wgmma<Major::k, Major::k>(sums, a, b, true, __half{});
  wgmma_commit();
  wgmma_wait<0>(sums);
  for (float sum : sums) d[threadIdx.x] += sum;
}
"""


def test_products_that_ptxas_serializes_are_refused(tmp_path: Path) -> None:
    assert TOOLKIT is not None
    source = tmp_path / "wrong.cu"
    source.write_text(SERIALIZED)
    with pytest.raises(decide.BuildError, match=r"ptxas serializes the wgmma of .*wrong\.cu"):
        resources.measure(source, TOOLKIT, flags=FLAGS)
