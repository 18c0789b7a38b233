"""The effect of the logQ correction: four losses on data with known true probabilities.

The service has `contexts` tastes over `items` items whose popularity falls like 1 / rank, so p(item | context) is known
exactly. One vector per context and per item is trained on events drawn from it, with the same events, the same initial
vectors and the same negatives (half from the batch, half uniform), under

    full        the softmax over the whole catalogue, which the others estimate
    standard    sampled softmax, logits minus log(M · Q)
    refined     the form of arXiv 2507.09331
    biased      sampled softmax without a correction

and evaluated over the whole catalogue: KL divergence from the truth, and the error of the model's log-probability for
popular and for rare items.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argus_kernels import sampled_softmax_loss
from python_model.config import TrainConfig
from python_model.io.disk import replace_text
from python_model.model.negatives import NegativeSampler
from python_model.reporting import charts
from python_model.studies.trials import read_study

LOSSES = ("full", "standard", "refined", "biased")
BUCKETS = 6
"""Groups of items by popularity, each with the same share of all events."""


@dataclass(frozen=True)
class Settings:
    """Size of the service and of the training."""

    items: int = 2000
    contexts: int = 64
    width: int = 16
    batch: int = 256
    negatives: int = 64
    steps: int = 3000
    learning_rate: float = 0.03
    seeds: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}, expected more than 0")
        if self.negatives > min(2 * self.items, 2 * self.batch):
            raise ValueError(
                f"negatives is {self.negatives}, expected at most twice the {self.batch} events of a batch and twice "
                f"the {self.items} items: half come from each"
            )


@dataclass(frozen=True)
class Outcome:
    """One trained model: KL divergence from the truth (nats, mean over contexts) during training and at the end.

    offset: by popularity bucket, most popular first, the mean of log p_model − log p_true under the truth, in nats.
    """

    loss: str
    seed: int
    steps: tuple[int, ...]
    divergence: tuple[float, ...]
    offset: tuple[float, ...]


class Service:
    """The known truth: log p(item | context), [contexts, items] float64, and the items' shares of all events."""

    def __init__(self, settings: Settings, seed: int) -> None:
        random = np.random.default_rng([seed, 0])
        popularity = -np.log(np.arange(1, settings.items + 1))
        taste = random.normal(size=(settings.contexts, 8)) @ random.normal(size=(8, settings.items)) / math.sqrt(8)
        logits = torch.from_numpy(popularity + taste)
        self.log_p = logits.log_softmax(dim=1)
        self.share = self.log_p.exp().mean(dim=0)
        # Stack the contexts' cumulative distributions, shifted by the context, into one sorted table to search.
        self._steps = (self.log_p.exp().cumsum(dim=1) + torch.arange(settings.contexts)[:, None]).flatten()

    def buckets(self) -> Tensor:
        """The popularity bucket of every item, int64 [items]: each bucket holds an equal share of the events."""
        order = self.share.argsort(descending=True)
        before = self.share[order].cumsum(0) - self.share[order]
        bucket = torch.empty_like(order)
        bucket[order] = (before * BUCKETS).long().clamp(max=BUCKETS - 1)
        return bucket

    def draw(self, events: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Contexts and items of that many events, int64 [events]."""
        contexts, items = self.log_p.shape
        context = torch.randint(contexts, (events,), generator=random)
        place = torch.searchsorted(self._steps, context + torch.rand(events, generator=random, dtype=torch.float64))
        return context, (place - context * items).clamp(0, items - 1)


def train_one(loss: str, settings: Settings, seed: int) -> Outcome:
    """Trains one model under one of LOSSES."""
    service = Service(settings, seed)
    random = torch.Generator().manual_seed(seed)
    contexts, items = (
        (0.1 * torch.randn(count, settings.width, generator=random)).requires_grad_()
        for count in (settings.contexts, settings.items)
    )
    bias = torch.zeros(settings.items, requires_grad=True)
    optimizer = torch.optim.Adam([contexts, items, bias], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps, settings.learning_rate / 100)
    sampler = _sampler(loss, settings, seed)
    steps, divergence = [], []
    for step in range(settings.steps):
        context, item = service.draw(settings.batch, random)
        optimizer.zero_grad()
        _loss(loss, sampler, step, context, item, *_with_bias(contexts, items, bias)).backward()
        optimizer.step()
        schedule.step()
        if step % max(1, settings.steps // 60) == 0 or step == settings.steps - 1:
            steps.append(step + 1)
            divergence.append(float(_divergence(service, *_with_bias(contexts, items, bias)).mean()))
    offset = _offset(service, *_with_bias(contexts, items, bias))
    return Outcome(loss, seed, tuple(steps), tuple(divergence), tuple(offset))


def _with_bias(contexts: Tensor, items: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Append the item's bias as a column, so that popularity need not be learnt through the product."""
    return torch.cat([contexts, torch.ones_like(contexts[:, :1])], 1), torch.cat([items, bias[:, None]], 1)


def _sampler(loss: str, settings: Settings, seed: int) -> NegativeSampler:
    config = TrainConfig(
        seed=seed, negatives_in_batch=settings.negatives // 2, negatives_uniform=settings.negatives // 2,
        softmax_form="refined" if loss == "refined" else "standard",
    )  # fmt: skip
    return NegativeSampler(config, settings.items)


def _loss(
    loss: str, sampler: NegativeSampler, step: int, context: Tensor, item: Tensor, contexts: Tensor, items: Tensor
) -> Tensor:
    if loss == "full":
        catalogue = torch.arange(len(items))
        rows, _ = sampled_softmax_loss(
            contexts[context], items[item], items, item, catalogue, torch.zeros(len(items))
        )  # fmt: skip
        return rows.mean()
    negatives = sampler.draw(step, item.numpy(), np.zeros(len(item), np.int64))
    refined = loss == "refined"
    rows, _ = sampled_softmax_loss(
        contexts[context], items[item], items[negatives.items], item, negatives.items,
        torch.zeros_like(negatives.log_q) if loss == "biased" else negatives.log_q,
        positive_log_q=sampler.log_q(item.numpy(), negatives.mix) if refined else None,
        form=sampler.config.softmax_form,
    )  # fmt: skip
    return rows.mean()


@torch.no_grad()
def _divergence(service: Service, contexts: Tensor, items: Tensor) -> Tensor:
    log_model = (contexts.double() @ items.double().T).log_softmax(dim=1)
    return (service.log_p.exp() * (service.log_p - log_model)).sum(dim=1)


@torch.no_grad()
def _offset(service: Service, contexts: Tensor, items: Tensor) -> list[float]:
    difference = (contexts.double() @ items.double().T).log_softmax(dim=1) - service.log_p
    weight, bucket = service.log_p.exp(), service.buckets()
    return [
        float((weight * difference)[:, bucket == one].sum() / weight[:, bucket == one].sum()) for one in range(BUCKETS)
    ]


def outcomes(settings: Settings, done: list[Outcome]) -> Iterator[Outcome]:
    """The outcomes that are not in `done` yet, one after the other."""
    finished = {(one.loss, one.seed) for one in done}
    for seed in range(settings.seeds):
        for loss in LOSSES:
            if (loss, seed) not in finished:
                yield train_one(loss, settings, seed)


def read(path: Path, settings: Settings) -> list[Outcome]:
    """The outcomes that an earlier run with the same settings left; ValueError where the settings differ."""
    return read_study(path, asdict(settings), "outcomes", Outcome)


def write(folder: Path, settings: Settings, found: list[Outcome]) -> None:
    """`logq.json` with every number, `logq.md` with the table, `logq_divergence.svg` and `logq_offset.svg`."""
    record: dict[str, Any] = {"settings": asdict(settings), "outcomes": [asdict(one) for one in found]}
    replace_text(folder / "logq.json", json.dumps(record) + "\n")
    replace_text(folder / "logq.md", table(found))
    curves = {loss: _mean_curve(found, loss) for loss in LOSSES if any(one.loss == loss for one in found)}
    divergence = charts.line_chart(curves, "steps", "KL from the truth, nats", smooth=False, from_zero=True)
    divergence.write(folder / "logq_divergence.svg")
    offsets = {
        loss: (np.arange(1, BUCKETS + 1), np.mean([one.offset for one in found if one.loss == loss], axis=0))
        for loss in curves
    }
    offset = charts.line_chart(
        offsets, "items by popularity, most popular first (each a sixth of all events)",
        "log p of the model − log p, nats", smooth=False,
    )  # fmt: skip
    offset.write(folder / "logq_offset.svg")


def _mean_curve(found: list[Outcome], loss: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = [one for one in found if one.loss == loss]
    return np.array(chosen[0].steps), np.mean([one.divergence for one in chosen], axis=0)


def table(found: list[Outcome]) -> str:
    """Markdown: a row per loss, means over the seeds with the lowest and highest in brackets."""
    lines = [
        "| loss | KL from the truth, nats | log p off, most popular sixth | log p off, least popular sixth |",
        "|---|---:|---:|---:|",
    ]
    for loss in LOSSES:
        chosen = [one for one in found if one.loss == loss]
        if chosen:
            last = [one.divergence[-1] for one in chosen]
            popular, rare = (np.mean([one.offset[place] for one in chosen]) for place in (0, -1))
            spread = f"({min(last):.4f}–{max(last):.4f})" if len(last) > 1 else ""
            lines.append(f"| `{loss}` | {np.mean(last):.4f} {spread} | {popular:+.3f} | {rare:+.3f} |")
    return "\n".join(lines) + "\n"
