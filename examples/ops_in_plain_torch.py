"""The ops in a plain torch model: packed histories in, next item and feedback out, trained for a few steps.

    python examples/ops_in_plain_torch.py --steps 60

Users have histories of different lengths. They are concatenated in one tensor, `offsets` says where each begins, and
there is no padding.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from argus_kernels.nn import CausalAttention, FeedbackLoss, SampledSoftmaxLoss, TripleEmbedding
from argus_kernels.optim import RowwiseAdagrad

ITEMS, WIDTH, HEADS = 300, 32, 2


class Block(nn.Module):
    """A pre-norm transformer block whose attention has position and time biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.project, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.attention = CausalAttention(HEADS, position_buckets=64, time_buckets=32)

    def forward(self, x: Tensor, offsets: Tensor, times: Tensor) -> Tensor:
        """States [T, d] → [T, d]."""
        q, k, v = self.project(self.norms[0](x)).unflatten(1, (3, HEADS, -1)).unbind(1)
        x = x + self.output(self.attention(q, k, v, offsets, times=times).flatten(1))
        return x + self.feed(self.norms[1](x))


class Model(nn.Module):
    """Two blocks; predicts the next item by sampled softmax, and whether it is liked."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = TripleEmbedding({"item": (ITEMS, WIDTH), "liked": (2, 8)}, ["item", "liked"], WIDTH, sparse=True)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.next_item = SampledSoftmaxLoss(ITEMS, in_batch=32, uniform=128, scale=WIDTH**-0.5)
        self.liked = FeedbackLoss(WIDTH, classes=[1])

    def forward(self, items: Tensor, liked: Tensor, times: Tensor, offsets: Tensor) -> Tensor:
        """The loss of a batch: items, liked and times int64 [T], offsets [B + 1]."""
        x = self.embed(torch.stack([items, liked]))
        for block in self.blocks:
            x = block(x, offsets, times)
        following = items.roll(-1).index_fill(0, offsets[1:].long() - 1, -1)  # −1: a user's last event has none
        next_item = self.next_item(x, following, lambda rows: self.embed.rows("item", rows))
        seen_next = torch.where(following >= 0, liked.roll(-1), -1)
        return next_item + self.liked(x, seen_next[:, None]).sum()


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users who step through the catalogue by 1, 2 or 3 and like even items."""
    lengths = torch.randint(5, 40, (8,), generator=generator)
    steps = torch.randint(1, 4, (8,), generator=generator)
    first = torch.randint(ITEMS, (8,), generator=generator)
    items = torch.cat([(f + s * torch.arange(n)) % ITEMS for f, s, n in zip(first, steps, lengths, strict=True)])
    times = torch.cat([torch.randint(1, 3600, (int(n),), generator=generator).cumsum(0) for n in lengths])
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0))
    return items, 1 - items % 2, times, offsets


def main() -> None:
    """Trains; prints the loss of the first and of the last steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Model()
    tables = list(model.embed.tables.values())
    rest = [p for p in model.parameters() if all(p is not table for table in tables)]
    optimisers = RowwiseAdagrad(tables, lr=0.05), torch.optim.AdamW(rest, lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(*batch(generator))
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
    tenth = max(steps // 10, 1)
    print(f"loss {sum(losses[:tenth]) / tenth:.3f} → {sum(losses[-tenth:]) / tenth:.3f} in {steps} steps")


if __name__ == "__main__":
    main()
