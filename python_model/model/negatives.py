"""The negatives of the next-item loss: mixed from batch and catalogue, corrected for how often each is drawn.

A negative's logit is corrected by the log of its expected count among the M drawn,

    M · Q(j),   Q(j) = w · frequency(j) + (1 − w) / N,   w = in-batch share of the negatives, N = items,

so that the sum over the negatives estimates the sum over the catalogue. Frequencies come from a count-min sketch that
is updated with every step. Where several ranks train together, the batch is the union of their batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from argus_kernels.host import FrequencySketch
from python_model.config import TrainConfig
from python_model.training import process_group

UNIFORM_OWNER = -1
"""Owner of a negative that comes from no user of this rank's batch."""


@dataclass(frozen=True)
class Negatives:
    """M candidates: items int64 [M], owner int64 [M] (user of the batch, UNIFORM_OWNER), log_q float32 [M].

    mix: how many came from the batch and how many from the catalogue, before any were merged.
    """

    items: Tensor
    owner: Tensor
    log_q: Tensor
    mix: tuple[int, int]


class NegativeSampler:
    """Draws the negatives of a step, a function of (seed, step) and the sketch; the sketch is its only state."""

    def __init__(self, config: TrainConfig, items: int) -> None:
        self.config, self.items = config, items
        self.sketch = FrequencySketch(config.sketch_width, config.sketch_depth, config.seed)

    def draw(self, step: int, items: np.ndarray, owner: np.ndarray) -> Negatives:
        """Negatives for a batch with the given items [n] and their owners [n]; the sketch first counts the items.

        A collective call where ranks train together: all of them draw the same negatives.
        """
        return self.draw_for_batches(step, [(items, owner)])[0]

    def draw_for_batches(self, step: int, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Negatives]:
        """The same candidates for every batch of a step, drawn from the items of all of them, on all ranks.

        A batch knows the owners of its own items; items of other batches, which hold other windows, have no owner. All
        ranks must give equally many batches.
        """
        parts = [gather_across_ranks(items, owner) for items, owner in batches]
        items = np.concatenate([part for part, _ in parts])
        self.sketch.update(items)
        random = np.random.default_rng([self.config.seed, step])
        in_batch = min(self.config.negatives_in_batch, len(items))
        uniform = min(self.config.negatives_uniform, self.items)
        rows = random.choice(len(items), in_batch, replace=False, shuffle=False)
        drawn = random.choice(self.items, uniform, replace=False, shuffle=False)
        chosen = np.concatenate([items[rows], drawn])
        mix = (in_batch, uniform)
        log_q = self.log_q(chosen, mix)
        begins = np.cumsum([0, *(len(part) for part, _ in parts)])
        out = []
        for begin, (part, owner) in zip(begins, parts, strict=False):
            owners = np.full(len(items), UNIFORM_OWNER, np.int64)
            owners[begin : begin + len(part)] = owner
            of_chosen = np.concatenate([owners[rows], np.full(uniform, UNIFORM_OWNER, np.int64)])
            negatives = Negatives(torch.from_numpy(chosen), torch.from_numpy(of_chosen), log_q, mix)
            out.append(merge_repeated(negatives) if self.config.merge_negatives else negatives)
        return out

    def draw_unseen(self, step: int, items: np.ndarray, owner: np.ndarray) -> Tensor:
        """One item per event [n], drawn uniformly among those that its owner [n] does not have in the batch; int64 [n].

        An item of the owner is drawn again, at most ten times: a user may have seen the whole catalogue.
        """
        random = np.random.default_rng([self.config.seed, step, 1])
        seen = owner * self.items + items
        drawn = random.integers(0, self.items, len(items))
        for _ in range(10):
            amiss = np.flatnonzero(np.isin(owner * self.items + drawn, seen))
            if len(amiss) == 0:
                break
            drawn[amiss] = random.integers(0, self.items, len(amiss))
        return torch.from_numpy(drawn)

    def log_q(self, items: np.ndarray, mix: tuple[int, int]) -> Tensor:
        """The op's `log_q` of items [n] drawn in this mix: log(M · Q), or log Q for the refined form; float32 [n].

        log(M · Q) is 0 where every item of the catalogue is drawn once: the loss is then the full softmax. Without the
        correction it is 0 everywhere.
        """
        if not self.config.log_q:
            return torch.zeros(len(items))
        in_batch, uniform = mix
        expected = np.full(len(items), uniform / self.items)
        if in_batch:
            expected += in_batch * np.exp(self.sketch.log_q(items).astype(np.float64))
        draws = sum(mix) if self.config.softmax_form == "refined" else 1
        return torch.from_numpy(np.log(expected / draws).astype(np.float32))


def merge_repeated(negatives: Negatives) -> Negatives:
    """Each (item, owner) once, in ascending order; c equal candidates become one with log_q − log c.

    The standard form's sum is then the same number: equal candidates have equal scores and are left out together. The
    refined form counts candidates, so it cannot take merged ones.
    """
    pairs = torch.stack([negatives.items, negatives.owner], dim=1)
    distinct, place, counts = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
    log_q = negatives.log_q.new_empty(len(distinct)).index_copy_(0, place, negatives.log_q)
    return Negatives(distinct[:, 0], distinct[:, 1], log_q - counts.log().to(log_q.dtype), negatives.mix)


def gather_across_ranks(items: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items (int64 [n]) of all ranks' batches in the order of ranks, and their owners as this rank sees them.

    Other ranks hold other users, so their items have no owner here. On one rank, or without torch.distributed, returns
    its arguments.
    """
    count = process_group.size()
    if count == 1:
        return items, owner
    # Gather on the CPU, where negatives are drawn: nccl would cost two copies and a wait for the GPU.
    lengths = [torch.empty(1, dtype=torch.int64) for _ in range(count)]
    dist.all_gather(lengths, torch.tensor([len(items)]))
    padded = torch.zeros(max(map(int, lengths)), dtype=torch.int64)
    padded[: len(items)] = torch.from_numpy(items)
    gathered = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(gathered, padded)
    parts = [part[: int(length)] for part, length in zip(gathered, lengths, strict=True)]
    owners = [np.full(len(part), UNIFORM_OWNER, np.int64) for part in parts]
    owners[process_group.rank()] = owner
    return torch.cat(parts).numpy(), np.concatenate(owners)
