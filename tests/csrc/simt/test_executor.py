"""Device code on the CPU: right kernels pass under every order of the threads, and every planted fault is reported."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.csrc.simt import host_executor
from tests.drawn_examples import examples

HERE = Path(__file__).parent
SOURCES = tuple(HERE / name for name in ("registry.cpp", "faults.cpp", "language.cpp", "matrix.cpp"))
SEEDS = range(examples(12))

pytestmark = pytest.mark.skipif(host_executor.why_not() is not None, reason=str(host_executor.why_not()))

RIGHT = sorted(
    name
    for source in SOURCES
    for name in re.findall(r"^ARGUS_CASE\((\w+)\)", source.read_text(), re.MULTILINE)
    if not name.startswith("fault_")
)
THREAD = r"block \(\d+, 0, 0\) thread \(\d+, 0, 0\): "
TILE = r"byte \d+ of shared array 'tile'"
EARLY = "undefined: reads"
"""What a missing barrier looks like where the reader comes before the writer."""
FAULTS = {
    "missing_barrier": THREAD
    + rf"(race: (reads|writes) {TILE}, which thread \(\d+, 0, 0\) (wrote|read) with no barrier "
    rf"in between|{EARLY} {TILE})",
    "global_read_past_the_end": r"block \(1, 0, 0\) thread \(31, 0, 0\): out of bounds: reads 4 bytes at byte 256 of "
    r"buffer 'in' \(256 bytes\)",
    "global_read_before_the_beginning": r"block \(0, 0, 0\) thread \(0, 0, 0\): out of bounds: reads 4 bytes at byte "
    r"-4 of buffer 'in' \(256 bytes\)",
    "global_read_far_away": THREAD + "out of bounds: reads 4 bytes at an address that is in no device buffer",
    "global_write_past_the_end": r"block \(1, 0, 0\) thread \(31, 0, 0\): out of bounds: writes 4 bytes at byte 252",
    "host_pointer": THREAD + "out of bounds: reads 4 bytes",
    "write_to_constant_input": THREAD + "writes 4 bytes of buffer 'in', read-only",
    "shared_read_past_the_end": r"block \(0, 0, 0\) thread \(31, 0, 0\): out of bounds: reads 4 bytes at byte 128 of "
    r"shared array 'tile' \(128 bytes\)",
    "shared_read_before_the_beginning": r"thread \(0, 0, 0\): out of bounds: reads 4 bytes at byte -4 of shared array "
    "'tile'",
    "barrier_without_exited_threads": r"block \(1, 0, 0\): divergent barrier: 48 threads wait in __syncthreads "
    r"\(faults.cpp:\d+\), the first is thread \(0, 0, 0\); 16 threads have exited, the first is thread \(48, 0, 0\)",
    "two_barriers": THREAD + r"divergent barrier: it waits in __syncthreads \(faults.cpp:\d+\), but thread "
    r"\(\d+, 0, 0\) in __syncthreads \(faults.cpp:\d+\)",
    "shuffle_without_half_the_warp": r"block \(0, 0, 0\): divergent barrier: 16 threads wait in __shfl_xor_sync "
    r"\(faults.cpp:\d+, mask 0xffffffff\), the first is thread \(0, 0, 0\); 16 threads have exited",
    "shuffle_without_itself": THREAD + r"__shfl_xor_sync \(faults.cpp:\d+\) names lanes 0xff00, and its own",
    "shared_race": THREAD + r"race: (reads|writes) byte \d+ of shared array 'local', which thread \(\d+, 0, 0\) ",
    "race_between_blocks": THREAD + r"race: writes byte \d+ of buffer 'out', which thread \(\d+, 0, 0\) of another "
    "block wrote",
    "spinning": THREAD + "spins: 4194304 accesses without a barrier",
    "missing_warp_barrier": THREAD + rf"(race: (reads|writes)|{EARLY}) {TILE}",
    "async_copy_without_wait": THREAD + r"missing wait: reads 1 byte at byte \d+ of shared array 'stages', where a "
    r"cp.async of thread \(\d+, 0, 0\) has not arrived",
    "async_copy_with_too_short_a_wait": THREAD + "missing wait: reads 1 byte",
    "async_copy_without_barrier": THREAD + "(race|missing wait|undefined): ",
    "async_copy_misaligned": THREAD + "cp.async of 16 bytes from a global address that is not a multiple of them",
    "misaligned_vector_load": THREAD + r"undefined behaviour: a null or misaligned pointer.* \(faults.cpp:\d+\)",
    "index_in_registers": THREAD + r"undefined behaviour: an index outside its array \(faults.cpp:\d+\)",
    "integer_overflow": THREAD + r"undefined behaviour: a multiplication overflows \(faults.cpp:\d+\)",
    "shared_memory_that_nothing_wrote": r"thread \(9, 0, 0\): undefined: reads byte 36 of dynamic shared memory, which "
    "nothing has written yet",
    "fresh_memory_added_to": THREAD + r"undefined: reads byte \d+ of buffer 'sums', which nothing has written yet",
    "too_little_dynamic_shared_memory": r"thread \(31, 0, 0\): out of bounds: writes 4 bytes at byte 124 of dynamic",
    "no_dynamic_shared_memory": THREAD + "uses dynamic shared memory, and the launch gave none",
    "too_much_shared_memory": "the block's shared arrays take 232452 bytes, more than the 232448 a block can have",
    "ldmatrix_of_global_memory": THREAD + "ldmatrix of an address that is not in shared memory",
    "tiled_product_overwrites_a_stage": THREAD + r"race: (reads|writes) byte \d+ of shared array 'tile_[ab]'",
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return host_executor.load_cases("cases", SOURCES)


@pytest.fixture(scope="module")
def run(library: ctypes.CDLL) -> Callable[[str, int], str]:
    """Runs a case under a seed; what went wrong, or the empty string."""
    return host_executor.runner(library, {*RIGHT, *(f"fault_{name}" for name in FAULTS)})


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass_under_every_seed(run: Callable[[str, int], str], name: str) -> None:
    assert [run(name, seed) for seed in SEEDS] == [""] * len(SEEDS)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_reported_under_every_seed(run: Callable[[str, int], str], name: str) -> None:
    # A spinning thread takes its time to be called that.
    for seed in SEEDS[:1] if name == "spinning" else SEEDS:
        assert re.search(FAULTS[name], run(f"fault_{name}", seed)), run(f"fault_{name}", seed)


def test_a_launch_after_a_fault_is_unharmed(run: Callable[[str, int], str]) -> None:
    for name in FAULTS.keys() - {"spinning"}:
        assert run(f"fault_{name}", 0)
        assert run("tiled_product", 0) == ""


@pytest.mark.slow
@pytest.mark.skipif(host_executor.why_not_address() is not None, reason=str(host_executor.why_not_address()))
class TestUnderTheAddressSanitizer:
    """The same cases, executor included, built with the compiler's own sanitizers in place of the executor's checks."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        built = host_executor.program("cases", SOURCES)
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        return subprocess.run([built, *words], capture_output=True, text=True, env=environment)

    def test_right_kernels_are_clean(self) -> None:
        done = self.run("3", *RIGHT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{name} " for name in RIGHT for _ in range(3)]

    @pytest.mark.parametrize(
        ("name", "error", "function"),
        [
            ("global_read_past_the_end", "AddressSanitizer: use-after-poison", "shift"),
            ("global_read_before_the_beginning", "AddressSanitizer: use-after-poison", "shift"),
            ("global_write_past_the_end", "AddressSanitizer: use-after-poison", "shift"),
            ("shared_read_past_the_end", "AddressSanitizer: use-after-poison", "neighbour"),
            ("shared_read_before_the_beginning", "AddressSanitizer: use-after-poison", "neighbour"),
            ("index_in_registers", "index 4 out of bounds for type 'float [4]'", "in_registers"),
        ],
    )
    def test_out_of_bounds(self, name: str, error: str, function: str) -> None:
        done = self.run("1", f"fault_{name}")
        assert done.returncode != 0
        assert error in done.stderr
        assert re.search(rf"#\d+ 0x\w+ in .*{function}", done.stderr)

    def test_barriers_are_held_too(self) -> None:
        done = self.run("1", "fault_barrier_without_exited_threads")
        assert "divergent barrier: 48 threads wait in __syncthreads" in done.stdout


def test_rounding_to_narrow_types_is_that_of_torch(library: ctypes.CDLL) -> None:
    bits = torch.randint(-(2**31), 2**31, (40_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    numbers = torch.cat(
        [
            bits.to(torch.int32).view(torch.float32),
            torch.randn(10_000) * 100,
            halves.view(torch.float16).float(),
            # Halfway between two neighbours, where the rule for ties decides.
            ((halves.int() << 16) | 0x8000).view(torch.float32),
        ]
    )
    given = numbers.numpy()
    rounded = [np.empty(len(given), np.uint16) for _ in range(2)]
    library.round_numbers(*(array.ctypes.data_as(ctypes.c_void_p) for array in (given, *rounded)), len(given))
    for array, dtype in zip(rounded, (torch.bfloat16, torch.float16), strict=True):
        ours = torch.from_numpy(array.view(np.int16)).view(dtype).float()
        torch.testing.assert_close(ours, numbers.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
