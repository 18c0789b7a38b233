"""Two ranks train one model with DistributedDataParallel; on the CPU over gloo.

    python examples/two_ranks.py

Each rank takes half of the users. Gradients are averaged, so that both ranks have the same weights after every step,
equal to those of one process that trains on all users.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from argus_kernels.nn import CausalAttention, FeedbackLoss, TripleEmbedding

RANKS, STEPS, LENGTH = 2, 3, 12


class Model(nn.Module):
    """Whether an item is liked, from the items before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = TripleEmbedding({"item": (50, 16)}, ["item"], 32)
        self.project = nn.Linear(32, 96)
        self.attention = CausalAttention(2, position_buckets=16)
        self.loss = FeedbackLoss(32, classes=[1])

    def forward(self, items: Tensor, liked: Tensor, offsets: Tensor) -> Tensor:
        """The loss of items and liked int64 [T], offsets [B + 1]."""
        q, k, v = self.project(self.embed(items[None])).unflatten(1, (3, 2, -1)).unbind(1)
        return self.loss(self.attention(q, k, v, offsets).flatten(1), liked[:, None]).sum()


def train(model: nn.Module, users: range) -> nn.Module:
    """Some steps on the histories of some users, each of LENGTH events."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    histories = torch.randint(50, (4, LENGTH), generator=torch.Generator().manual_seed(1))[users]
    items, offsets = histories.flatten(), torch.arange(len(users) + 1) * LENGTH
    for _ in range(STEPS):
        optimiser.zero_grad()
        model(items, items % 2, offsets).backward()
        optimiser.step()
    return model


def run_rank(rank: int, folder: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    share = 4 // RANKS
    model = Model()
    train(DistributedDataParallel(model), range(rank * share, (rank + 1) * share))
    torch.save(model.state_dict(), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def main() -> None:
    """Trains on two ranks and in one process; compares the weights."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(run_rank, args=(folder,), nprocs=RANKS)
        states = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]
    torch.manual_seed(0)
    alone = train(Model(), range(4)).state_dict()
    for name, expected in alone.items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], expected)
    print(f"{RANKS} ranks and one process: the same weights after {STEPS} steps")


if __name__ == "__main__":
    main()
