"""SASRec (Kang and McAuley 2018) with the attention and the loss of this package.

    python examples/sasrec/with_ops.py --steps 20

Histories are padded on the right to one length; item 0 is padding. Items are scored by the table that embeds them.
`plain.py` is what it was before: 7 lines are new below this text; compare.py runs both.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from argus_kernels import causal_attention, sampled_softmax_loss


@dataclass(frozen=True)
class Settings:
    """Sizes of a model and of its batches."""

    items: int = 20_000
    length: int = 1024
    width: int = 64
    heads: int = 2
    layers: int = 2
    negatives: int = 1024
    dropout: float = 0.0


class Attention(nn.Module):
    """Causal multi-head attention over [B, L, d]."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.query = nn.Linear(settings.width, settings.width)
        self.key = nn.Linear(settings.width, settings.width, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(settings.width, settings.width)
        self.output = nn.Linear(settings.width, settings.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]; an event sees itself and those before it."""
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)) for one in (self.query, self.key, self.value))
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        offsets = torch.arange(x.shape[0] + 1, device=x.device) * x.shape[1]
        attended = causal_attention(q, k, v, offsets, x.shape[1])
        return self.output(attended.view_as(x))


class Block(nn.Module):
    """Attention and a point-wise feed-forward network, each with a norm before it and a sum around it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.attention = Attention(settings)
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.feed_norm = nn.LayerNorm(width, eps=1e-8)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed(self.feed_norm(x)))


class SasRec(nn.Module):
    """States of a user after each event, and the loss of the event that follows."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.items = nn.Embedding(settings.items + 1, settings.width, padding_idx=0)
        self.positions = nn.Embedding(settings.length, settings.width)
        nn.init.normal_(self.items.weight, std=settings.width**-0.5)
        nn.init.normal_(self.positions.weight, std=settings.width**-0.5)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width, eps=1e-8)

    def states(self, history: Tensor) -> Tensor:
        """[B, L, d] of items [B, L] int64."""
        places = torch.arange(history.shape[1], device=history.device)
        x = self.items(history) * self.settings.width**0.5 + self.positions(places)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, history: Tensor, following: Tensor, negatives: Tensor) -> Tensor:
        """The mean loss over the events that have one after them.

        history, following: items [B, L] int64, 0 where there is none. negatives: [M] distinct items, drawn uniformly.
        """
        query = self.states(history).flatten(0, 1)
        target = following.flatten()
        positive = self.items(target)
        candidates = self.items(negatives)
        log_q = query.new_full((len(negatives),), math.log(len(negatives) / self.settings.items))
        known = target > 0
        loss, _ = sampled_softmax_loss(query, positive, candidates, target, negatives, log_q, row_weight=known.float())
        return (loss * known).sum() / known.sum()

    @torch.no_grad()
    def recommend(self, history: Tensor, count: int) -> Tensor:
        """The best items [B, count] after the last event of each history [B, L]."""
        last = (history > 0).sum(1) - 1
        users = torch.arange(len(history), device=history.device)
        scores = self.states(history)[users, last] @ self.items.weight.T
        scores[:, 0] = -math.inf
        return scores.topk(count).indices


def batch(settings: Settings, users: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Histories of users who go through the catalogue in steps of 1, 2 or 3; half of them fill the length."""
    first = torch.randint(settings.items, (users, 1), generator=generator)
    step = torch.randint(1, 4, (users, 1), generator=generator)
    lengths = torch.randint(settings.length // 2, settings.length + 1, (users, 1), generator=generator)
    lengths[: users // 2] = settings.length
    places = torch.arange(settings.length + 1)
    items = (first + step * places) % settings.items + 1
    history = torch.where(places < lengths, items, 0)[:, :-1]
    following = torch.where(places < lengths, items, 0)[:, 1:]
    negatives = torch.randperm(settings.items, generator=generator)[: settings.negatives] + 1
    return history, following, negatives


def main() -> None:
    """Trains some steps; prints the loss of the first and of the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    settings = Settings(items=500, length=64, negatives=128)
    model = SasRec(settings)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(*batch(settings, 8, generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {steps} steps")


if __name__ == "__main__":
    main()
