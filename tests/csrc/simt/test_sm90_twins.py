"""TMA, mbarrier and wgmma on the executor: exact products under every order, and every planted fault is reported."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.csrc.simt import host_executor
from tests.drawn_examples import examples

HERE = Path(__file__).parent
FAULT_SOURCES = ("sm90_faults", "sm90_gather_faults", "sm90_cluster_faults", "sm90_turn_faults", "sm90_bulk")
SOURCES = tuple(HERE / f"{name}.cpp" for name in ("registry", "sm90", "sm90_loop", *FAULT_SOURCES))
SEEDS = range(examples(12))

pytestmark = pytest.mark.skipif(host_executor.why_not() is not None, reason=str(host_executor.why_not()))

RIGHT = sorted(
    name
    for source in SOURCES
    for name in re.findall(r"^ARGUS_CASE\((\w+)\)", source.read_text(), re.MULTILINE)
    if not name.startswith("fault_")
)
THREAD = r"block \(0, 0, 0\) thread \(\d+, 0, 0\): "
SECOND = r"block \(1, 0, 0\) thread \(128, 0, 0\): "
BYTE = r"byte \d+ of dynamic shared memory"
LOAD = r"where a TMA load that the mbarrier at byte \d+ of shared array 'full' counts has not been waited for"
TILE, SUMS = r"byte \d+ of shared array 'tiles'", r"byte \d+ of buffer 'sums'"
COPY = "where a TMA or bulk copy of another block has not been waited for"
THIRD = r"chain: block \(2, 0, 0\) thread \(0, 0, 0\): "
CHAIN = (
    r"missing proxy fence: a bulk add adds to byte 0 of buffer 'data', which thread \(0, 0, 0\) of another block wrote"
)
NOTE = r"notes: block \(1, 0, 0\) thread \(63, 0, 0\): race: reads byte 0 of buffer 'notes', which thread "
CLUSTER_THREAD = r"block \([0-3], 0, 0\) thread \(\d+, 0, 0\): "
FULL = r"mbarrier at byte \d+ of shared array 'full' of cluster rank [01]"
PRODUCT = r"where a wgmma of threads 0 to 127 has not been waited for"
# Faults of a cluster of two blocks.
REMOTE = "mbarrier.arrive.shared::cluster"
LOST = "missing wait: the block of cluster rank [01] has exited, and nothing orders its end after the arrival of thread"
CLUSTER_FAULTS = {
    "no_cluster_barrier_after_init": rf"race: |(a TMA load|{REMOTE}) of an address at which no mbarrier is initialised",
    "released_at_the_own_block_only": r"deadlock: .*mbarrier.try_wait \(sm90_cluster_faults.cpp:\d+\): the mbarrier at "
    r"byte \d+ of shared array 'empty' of cluster rank [01] is in phase 0 and awaits 4 of 8 arrivals and 0 bytes",
    # Two copies of one block in a phase, or one in the next phase.
    "other_block_not_awaited": rf"missing wait: a TMA load (writes|counts on the {FULL} in phase)|"
    f"wrong byte count: TMA loads of 12288 bytes on the {FULL}, of which 8192",
    "mask_without_the_other_block": rf"deadlock: .*the {FULL} is in phase 0 and awaits 0 of 1 arrivals and 4096 bytes",
    "mask_of_too_many_blocks": CLUSTER_THREAD + "a TMA load names rank 2 of a cluster of 2 blocks",
    # The phase ends after one half, and the other half comes before or after that.
    "half_of_the_bytes_expected": rf"wrong byte count: TMA loads of (8192|4096) bytes on the {FULL}, of which (4096|0) "
    rf"bytes|missing wait: a TMA load counts on the {FULL} in phase 1",
    "other_half_not_waited_for": CLUSTER_THREAD + rf"(missing wait|undefined): a wgmma reads {BYTE}",
    "both_halves_at_one_offset": CLUSTER_THREAD + f"missing wait: a TMA load writes {BYTE} of cluster rank [01]",
    "half_of_the_other_rank": r"out\[\d+\] is \S+, expected",
    "released_at_an_uninitialised_barrier": CLUSTER_THREAD + f"{REMOTE} of an address at which no mbarrier is",
    "released_beyond_the_cluster": CLUSTER_THREAD + f"{REMOTE} names rank 2 of a cluster of 2 blocks",
    "exit_without_cluster_barrier": f"{REMOTE} in the shared memory of cluster rank ., whose block has exited|{LOST}",
    "exit_before_the_last_multicast": "in the shared memory of cluster rank 1, whose block has exited|"
    f"missing wait: the block has ended, and no thread has waited for {FULL}|{LOST}",
    "exchange_without_cluster_barrier": CLUSTER_THREAD + r"race: (reads|writes) byte \d+ of buffer 'numbers', which "
    r"thread \(0, 0, 0\) of cluster rank [01] (read|wrote)",
    # An arrival at another block's mbarrier releases no access of a thread.
    "exchange_by_arrival_at_an_mbarrier": CLUSTER_THREAD + r"race: (reads|writes) byte \d+ of buffer 'numbers', which "
    r"thread \(0, 0, 0\) of cluster rank [01] (read|wrote)",
    "cluster_arrived_at_twice": CLUSTER_THREAD
    + "barrier.cluster.arrive again, with no barrier.cluster.wait in between",
    "cluster_not_arrived_at": CLUSTER_THREAD + "barrier.cluster.wait without barrier.cluster.arrive",
    "pointer_handed_over": CLUSTER_THREAD + "reads 4 bytes of the shared memory of cluster rank [01], which only",
    "grid_of_half_a_cluster": r"a grid of \(3, 1, 1\) blocks in clusters of 2 cannot be launched",
    "cluster_of_too_many_threads": "blocks of 640 threads in clusters of 2, expected whole warpgroups and at most 1024",
}
FAULTS = {
    **CLUSTER_FAULTS,
    "barriers_not_fenced": THREAD + "missing fence: a TMA load counts on the mbarrier at byte 0 of shared array "
    "'full', with neither fence.mbarrier_init nor fence.proxy.async since its init",
    "barriers_not_announced": THREAD + r"(mbarrier.try_wait of an address at which no mbarrier is initialised|race: )",
    "copy_not_expected": THREAD + "wrong byte count: TMA loads of 8192 bytes on the mbarrier at byte 0 of shared array "
    "'full', of which 0 bytes were expected before",
    "too_few_bytes_expected": THREAD + "wrong byte count: TMA loads of 16384 bytes .*, of which 16368 bytes",
    "too_many_bytes_expected": r"block \(0, 0, 0\): deadlock: .*mbarrier.try_wait \(sm90_faults.cpp:\d+\): the "
    "mbarrier at byte 0 of shared array 'full' is in phase 0 and awaits 0 of 1 arrivals and 16 bytes",
    "unaligned_box": THREAD + "a TMA load of a shared address that is not a multiple of 128 bytes",
    "stage_not_waited_for": THREAD + rf"(missing wait: a wgmma reads {BYTE}, {LOAD}|undefined: a wgmma reads)",
    "wrong_parity": rf"missing wait: a wgmma reads {BYTE}, {LOAD}|undefined: a wgmma reads|deadlock: .*mbarrier",
    "stage_refilled_early": THREAD + rf"(over-arrival: |missing wait: a TMA load writes {BYTE}, {LOAD})",
    # A warp that is late may even miss the phase that it waits for.
    "stage_released_early": rf"missing wait: (a TMA load writes {BYTE}, {PRODUCT}|a wgmma reads {BYTE}, {LOAD})|"
    "deadlock: ",
    "over_arrival": THREAD + "over-arrival: mbarrier.arrive on the mbarrier at byte 8 of shared array 'full', whose "
    "phase has had all 1 arrivals",
    "stage_zeroed_without_proxy_fence": THREAD + rf"missing proxy fence: a TMA load writes {BYTE}, which thread "
    r"\(128, 0, 0\) wrote with no fence.proxy.async in between",
    "no_wgmma_fence": THREAD + "missing wgmma.fence: none comes before the first wgmma",
    "no_wgmma_fence_after_scaling": THREAD + "missing wgmma.fence: an accumulator was accessed since the last one",
    "accumulators_read_early": THREAD + "missing wait: reads an accumulator of a wgmma that has not been waited for",
    "accumulators_written_early": THREAD + "missing wait: writes an accumulator of a wgmma that has not been",
    "fragment_reused_early": THREAD + "missing wait: writes a register of A of a wgmma that has not been waited for",
    "wrong_stride_offset": r"out\[\d+\] is \S+, expected",
    "wrong_swizzle": r"out\[\d+\] is \S+, expected",
    "no_proxy_fence_before_store": THREAD + rf"missing proxy fence: a TMA store reads {BYTE}, which thread",
    "no_barrier_before_store": THREAD + rf"(race|undefined): a TMA store reads {BYTE}, which",
    "store_source_reused_early": THREAD + rf"missing wait: writes {BYTE}, where a TMA store of thread \(0, 0, 0\)",
    "stored_bytes_read_early": THREAD + r"missing wait: reads byte 0 of buffer 'out', where a TMA store of thread "
    r"\(0, 0, 0\) has not been waited for",
    "exit_before_store_is_read": THREAD + "missing wait: it exits, and a TMA store may not have read its shared",
    "named_barrier_of_too_many": r"block \(0, 0, 0\): deadlock: 128 threads wait in bar.sync \(sm90_faults.cpp:\d+\): "
    "128 of 160 threads have arrived",
    "phase_of_another_reader_missed": r"deadlock: .*mbarrier.try_wait .* is in phase \d+ and awaits 1 of 1 arrivals",
    "gathered_without_proxy_fence": THREAD + rf"missing proxy fence: a wgmma reads {BYTE}, which thread",
    "fenced_before_the_copies_landed": THREAD + rf"missing proxy fence: a wgmma reads {BYTE}, which thread",
    "announced_before_the_copies_landed": THREAD + rf"missing wait: a wgmma reads {BYTE}, where a cp.async of thread",
    "announced_before_the_other_lanes": THREAD + rf"(race|undefined|missing wait): a wgmma reads {BYTE}, wh",
    # Without a wait the gathering warp may also run past a phase that the consumers wait for.
    "gathered_into_a_stage_in_use": rf"missing wait: writes {BYTE}, {PRODUCT}|race: a wgmma reads {BYTE}|deadlock: ",
    "padding_cleared_without_proxy_fence": THREAD + rf"missing proxy fence: a wgmma reads {BYTE}, which thread",
    "too_many_registers": r"block \(0, 0, 0\): deadlock: .* threads wait in setmaxnreg.inc \(sm90_faults.cpp:\d+\): "
    r"\d+ of the block's 64512 registers are free",
    "turn_not_waited_for": SECOND
    + rf"race: a bulk add adds to {SUMS}, which a copy of another block wrote, in no fixed",
    "adds_in_no_order": rf"race: a bulk add adds to {SUMS}, which a copy of another block added to, in no fixed order",
    "wrong_predecessor": r"block \(1, 0, 0\): deadlock: .*1 threads wait in wait_turn \(sm90_turns.cuh:\d+\): "
    "byte 20 of buffer 'turns' holds 1, expected 2, which no earlier block has set",
    "turn_passed_when_only_read": SECOND + rf"missing wait: a bulk add adds to {SUMS}, {COPY}",
    "turn_passed_before_the_wait": SECOND + rf"missing wait: a bulk add adds to {SUMS}, {COPY}",
    "turn_passed_by_another_thread": SECOND + rf"missing wait: a bulk add adds to {SUMS}, {COPY}",
    "source_overwritten_early": THREAD
    + rf"missing wait: writes {TILE}, where a bulk store of thread \(128, 0, 0\) has not",
    "no_proxy_fence_before_the_add": THREAD + rf"missing proxy fence: a bulk store reads {TILE}, which thread",
    "no_global_fence_after_plain_writes": SECOND + rf"missing proxy fence: a bulk add adds to {SUMS}, which thread "
    r"\(\d+, 0, 0\) of another block wrote with no fence.proxy.async.global in between",
    "launch_not_in_order": "wait_turn in a launch that is not in_order: the block that it waits for may start later",
    "exit_before_the_add_is_read": THREAD + "missing wait: it exits, and a bulk store may not have read its shared",
    "added_to_fresh_memory": THREAD + rf"undefined: a bulk add adds to {SUMS}, which nothing has written yet",
    "bytes_not_in_chunks": THREAD + "a bulk store of 1016 bytes, not a multiple of 16",
    "bulk_add_to_misaligned_bytes": THREAD + "a bulk add to a global address that is not a multiple of 16 bytes",
    "bulk_add_past_the_end": THREAD + r"out of bounds: adds to 48 bytes at byte 16 of buffer 'sums' \(48 bytes\)",
    "chain_fenced_before_the_write": THIRD + CHAIN,
    "chain_without_a_fence": THIRD + CHAIN,
    "note_after_the_turn": NOTE + r"\(0, 0, 0\) of another block wrote",
    # The block that reads may even come first.
    "note_after_the_turn_in_a_cluster": r"notes: block \([0-2], 0, 0\) thread \(\d+, 0, 0\): race: (reads|writes) "
    r"byte \d+ of buffer 'notes', which thread",
    "note_by_another_warp": NOTE + r"\(63, 0, 0\) of another block wrote",
    "rewritten_beside_a_read": r"rewrite: block \(2, 0, 0\) thread \(0, 0, 0\): race: writes byte 0 of buffer 'data', "
    r"which thread \(0, 0, 0\) of another block read with",
    "rewritten_beside_a_load": r"rewrite: block \(2, 0, 0\) thread \(0, 0, 0\): missing wait: writes byte 0 of buffer "
    f"'data', {COPY}",
    "second_turn_after_the_barrier": r"two_turns: block \(2, 0, 0\) thread \(1, 0, 0\): race: reads byte 4 of buffer "
    r"'data', which thread \(0, 0, 0\) of another block wrote",
    "turn_by_exchange": r"two_turns: block \(2, 0, 0\) thread \([01], 0, 0\): race: reads byte 0 of buffer 'data', "
    r"which thread \(0, 0, 0\) of another block wrote",
    "bulk_add_fenced_for_shared_memory": THREAD + r"missing proxy fence: a bulk add adds to byte 0 of buffer 'sums', "
    r"which thread \(0, 0, 0\) wrote with no fence.proxy.async.global in between",
    "turn_without_contents": "undefined: atomically updates byte 0 of buffer 'turn', which nothing has written yet",
    "sums_read_without_a_barrier": rf"block \(6, 0, 0\) thread \(\d+, 0, 0\): missing wait: reads {SUMS}, {COPY}",
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return host_executor.load_cases("sm90", SOURCES)


@pytest.fixture(scope="module")
def run(library: ctypes.CDLL) -> Callable[[str, int], str]:
    """Runs a case under a seed; what went wrong, or the empty string."""
    return host_executor.runner(library, {*RIGHT, *(f"fault_{name}" for name in FAULTS)})


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass_under_every_seed(run: Callable[[str, int], str], name: str) -> None:
    assert [run(name, seed) for seed in SEEDS] == [""] * len(SEEDS)


@pytest.mark.parametrize("name", [name for name in RIGHT if "real_product" in name])
def test_real_products_pass_where_sums_are_truncated(
    library: ctypes.CDLL, run: Callable[[str, int], str], name: str
) -> None:
    with host_executor.pessimistic(library):
        assert [run(name, seed) for seed in SEEDS[:2]] == [""] * 2


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_reported_under_every_seed(run: Callable[[str, int], str], name: str) -> None:
    for seed in SEEDS:
        report = run(f"fault_{name}", seed)
        assert re.search(FAULTS[name], report), report


def test_a_launch_after_a_fault_is_unharmed(run: Callable[[str, int], str]) -> None:
    for name in FAULTS:
        assert run(f"fault_{name}", 3)
        assert run("pipeline", 3) == ""
        assert run("turns_full", 3) == ""
