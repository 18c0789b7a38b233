"""What nvcc makes of TMA and wgmma for sm_90a: the instructions, no spills, and products that stay asynchronous."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from build_support import decide, resources
from build_support.compile import nvcc_flags
from tests.build_support.test_compile_targets import PLANTED, compiled, figures

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
            assert one.instructions.get(resources.MULTICAST, 0) >= ("::product<" in one.kernel), one


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
            # Clusters share the operands of sampled_softmax_loss.
            assert one.instructions.get(resources.MULTICAST, 0) >= (source == "sm90_softmax.cu"), one


@pytest.mark.slow
def test_keys_of_sampled_softmax_take_no_turns_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 threads look up 256 candidates and enter a row's two keys: two atomics of each. A thread's number that ptxas
    takes for negative gives each loop over candidates a third turn in the code."""
    if resources.cuobjdump() is None:
        pytest.skip("no cuobjdump in Triton's package")
    found = compiled(PLANTED / "sm90_softmax.cu", flags=FLAGS)
    assert found is not None
    # Not before: the figures that compiled() keeps are the other test's.
    monkeypatch.setattr(resources, "COUNTED", ("ATOMS",))
    counts = {
        kernel: count
        for (kernel, _), count in resources._instructions(found[0]).items()
        if "scores" in kernel or "sum_exp" in kernel
    }
    assert len(counts) == 4
    assert all(count == {"ATOMS": 4} for count in counts.values()), counts


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


def backward_tiles(kernel: str) -> tuple[int, int]:
    """Bytes of dynamic shared memory of attention's backward loop, with the largest tables where it has any, and the
    instructions of wgmma in its five products."""
    width, biases = (128 if ", 128, " in kernel else 64), "true>" in kernel
    many = width == 64 and not biases and "::CausalMask" in kernel and "::Softmax" in kernel
    queries, keys, stages = 128 if many else 64, 128, 2
    # K and V; queries and d_out in stages; two tiles of d_S; a tile of d_Q in float32.
    tiles = 2 * (2 * keys * width) + stages * 2 * (2 * queries * width) + 2 * (2 * queries * keys) + 4 * queries * width
    # Their alignment; the largest tables take less than 4 KiB.
    return 1024 + tiles + biases * (4 << 10), 2 * width // 16 + 2 * queries // 16 + keys // 16


@pytest.mark.slow
def test_the_backward_loop_of_attention_becomes_wgmma_and_tma_without_spills() -> None:
    """Two weights × two masks × two types × two widths, with and without biases: preparation, loop and finish."""
    found = figures(PLANTED / "sm90_attention_backward.cu", FLAGS)
    for one in found:
        assert one.architecture == "90a" and one.spill_bytes == 0 and one.stack_bytes == 0, one
    for part in ("preparation", "loop", "finish"):
        assert sum(f"::backward_{part}_kernel<" in one.kernel for one in found) == 32
    assert len(found) == 96
    for one in (one for one in found if "::backward_loop_kernel<" in one.kernel):
        dynamic, products = backward_tiles(one.kernel)
        assert one.registers == 168 and one.shared_bytes + dynamic <= resources.SHARED_LIMIT["90a"], one
        if resources.cuobjdump() is not None:
            assert one.instructions.get("HGMMA", 0) >= products and one.instructions.get("UTMALDG", 0) >= 4, one
            assert one.instructions.get("UBLKRED", 0) >= 1 and one.instructions.get("UBLKCP", 0) >= 1, one


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
