"""How the forward pass of sampled_softmax_loss in Triton cuts the candidates among programs."""

from __future__ import annotations

from torch import Tensor

from argus_kernels.core.triton_support import SHARED_LIMIT, ceil_div, gpu_generation
from argus_kernels.core.tuning import Config

CONFIG_NAMES = ("block_rows", "block_candidates", "block_depth", "warps", "stages")
MAX_SPLITS = 128
"""Parts that a row's candidates are cut into at most: each has 12 bytes in memory."""
START = 2
"""What a program of the forward pass costs beside its blocks of candidates, in blocks; not measured."""


def resident_programs(config: Config, query: Tensor) -> int:
    """The number of programs of the forward pass that a multiprocessor holds at once, by registers and shared memory.

    Up to 32 scores a thread take at most 128 registers, which leaves room for 16 warps.
    """
    rows, candidates, depth, warps, stages = (config[name] for name in CONFIG_NAMES)
    by_registers = 16 if rows * candidates <= 32 * 32 * warps else 8
    staged = (candidates * stages + rows) if query.shape[1] <= depth else (candidates + rows) * stages
    # A multiprocessor has 1 KiB more than a block may have, and takes 1 KiB for each block.
    limit = SHARED_LIMIT[min(gpu_generation(query.device), 10) * 10] + 1024
    return max(1, min(by_registers // warps, limit // (staged * depth * query.element_size() + 1024)))


def split_blocks(row_blocks: int, blocks: int, slots: int) -> int:
    """The number of blocks of candidates per program that minimises the work of the busiest multiprocessor.

    slots: programs that run at once. A program costs START blocks to start and to store, and a
    grid of 2.2 rounds costs 3: more and shorter programs fill the last round better.
    """

    def cost(split: int) -> tuple[int, int]:
        rounds = ceil_div(row_blocks * ceil_div(blocks, split), slots)
        return rounds * (split + START), -split

    shares = {ceil_div(blocks, splits) for splits in range(1, min(blocks, MAX_SPLITS) + 1)}
    return min(shares or {1}, key=cost)
