"""Top-k items for given users, and the part of their history that explains each item.

The model predicts one more event after a user's last one: an unknown item in the context of the last event. The ranker
of fine-tuning does not see events younger than its lag, so its time is set `lag` seconds later and it sees all events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from python_model.data.batches import BatchBuilder, JaggedBatch, history_windows
from python_model.data.schema import Dataset
from python_model.evaluation.metrics import BLOCK_SCORES
from python_model.model.argus import Argus
from python_model.model.base import Recommender
from python_model.serving.ids import IdTable

SCORES = ("next_item", "pair")


@dataclass(frozen=True)
class Recommended:
    """One item for one user.

    plays: how often it is in the user's history. features: name -> number, labels: name -> label of that number. why:
    the part of the history that explains it. title: None where it has none.
    """

    item_id: Any
    score: float
    plays: int
    features: dict[str, int]
    why: str
    title: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UserRecommendations:
    """The items of one user, best first."""

    user_id: Any
    events: int
    items: list[Recommended]


def find_users(dataset: Dataset, user_ids: Sequence[str]) -> np.ndarray:
    """Dense numbers int64 [n] of users given by their original ids; ValueError naming the first unknown id."""
    table = IdTable(dataset.user_ids, f"the users of {dataset.path}")
    found = np.array([table.number(text) for text in user_ids], np.int64)
    if (found < 0).any():
        unknown = user_ids[int(np.argmax(found < 0))]
        examples = ", ".join(str(value) for value in table.ids[:3])
        raise ValueError(f"user {unknown!r} is not in {dataset.path}; its users are {examples}, … ({len(table):,})")
    return found


@torch.inference_mode()
def recommend(
    model: Recommender, dataset: Dataset, users: np.ndarray, *, k: int = 10, window: int, exclude_seen: bool = False,
    score: str = "next_item", device: str | torch.device = "cpu", block_scores: int = BLOCK_SCORES,
) -> list[UserRecommendations]:  # fmt: skip
    """The k best items of the catalogue for each user.

    users: int [n], dense numbers. window: newest events of a user that the model sees. score: "next_item" (what comes
    next, the pre-trained head) or "pair" (the two-tower ranker that fine-tuning trains). exclude_seen leaves out the
    items of the user's whole history; fewer than k items come back where the catalogue has no more.
    """
    if score not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, found {score!r}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    model = model.to(device).eval()
    items = model.item_matrix()
    builder = BatchBuilder(dataset)
    # The placeholder takes one position of the window.
    windows = history_windows(dataset, dataset.offsets[users + 1] - 1, min(window, model.config.max_events) - 1)
    delay = model.config.lag if score == "pair" else 0
    block = max(1, block_scores // max(1, len(items)))
    out: list[UserRecommendations] = []
    for start in range(0, len(users), block):
        part = users[start : start + block]
        batch = append_next_event(builder.build(windows.take(slice(start, start + block))), delay)
        queries = _queries(model, batch.to(device), score)
        out += _best(dataset, part, queries @ items.T, k, exclude_seen)
    return out


def append_next_event(batch: JaggedBatch, delay: int = 0) -> JaggedBatch:
    """The batch with one more event at the end of every window, whose item, grade and feedback are unknown (-1).

    Its context and its organic flag are those of the window's last event; its time is that event's time + `delay`
    seconds. It is the only target of its window. Windows must not be empty.
    """
    windows = len(batch.users)
    last = batch.offsets[1:].long() - 1
    length = len(batch) + windows
    device = batch.offsets.device
    new = batch.offsets[1:].long() + torch.arange(windows, device=device)
    old = torch.ones(length, dtype=torch.bool, device=device)
    old[new] = False

    def extended(values: Tensor, appended: Tensor, dim: int = 0) -> Tensor:
        shape = list(values.shape)
        shape[dim] = length
        result = values.new_empty(shape)
        result.index_copy_(dim, old.nonzero()[:, 0], values)
        return result.index_copy_(dim, new, appended)

    unknown = torch.full((windows,), -1, dtype=torch.int64, device=device)
    return replace(
        batch,
        offsets=batch.offsets + torch.arange(windows + 1, device=device, dtype=batch.offsets.dtype),
        max_length=batch.max_length + 1,
        rows=extended(batch.rows, unknown),
        items=extended(batch.items, unknown),
        time=extended(batch.time, batch.time[last] + delay),
        organic=extended(batch.organic, batch.organic[last]),
        grade=extended(batch.grade, unknown),
        context=extended(batch.context, batch.context[:, last], dim=1),
        feedback=extended(batch.feedback, unknown[:, None].expand(-1, batch.feedback.shape[1])),
        is_target=~old,
    )


def _queries(model: Recommender, batch: JaggedBatch, score: str) -> Tensor:
    """[n, D]: vectors whose dot products with the item matrix order the catalogue."""
    if score == "next_item":
        vectors = model.target_queries(batch, as_served=True)
    elif isinstance(model, Argus):
        vectors = model.user_vectors(batch)[batch.is_target]
    else:
        raise ValueError(f"score: 'pair' is of ARGUS' two towers, and {model.config.model!r} has none")
    return vectors.float()


def _best(dataset: Dataset, users: np.ndarray, scores: Tensor, k: int, exclude_seen: bool) -> list[UserRecommendations]:
    if exclude_seen:
        for row, user in enumerate(users):
            seen = np.unique(dataset.item[dataset.offsets[user] : dataset.offsets[user + 1]])
            scores[row, torch.from_numpy(seen.astype(np.int64)).to(scores.device)] = -torch.inf
    values, indices = (part.cpu() for part in scores.topk(min(k, scores.shape[1]), dim=1))
    out = []
    for user, row_values, row_items in zip(users.tolist(), values, indices, strict=True):
        keep = row_values > -torch.inf
        out.append(_describe(dataset, user, row_items[keep].numpy(), row_values[keep].numpy()))
    return out


def _describe(dataset: Dataset, user: int, items: np.ndarray, scores: np.ndarray) -> UserRecommendations:
    rows = slice(int(dataset.offsets[user]), int(dataset.offsets[user + 1]))
    history = dataset.item[rows]
    liked = dataset.feedback("like")[rows] == 1 if "like" in dataset.info.feedback else np.zeros(len(history), bool)
    out = []
    for item, score in zip(items.tolist(), scores.tolist(), strict=True):
        same = history == item
        features = {name: int(dataset.item_column(f"item_{name}")[item]) for name in dataset.info.item_features}
        out.append(
            Recommended(
                item_id=_plain(dataset.item_column("item_id")[item]),
                score=score,
                plays=int(same.sum()),
                features=features,
                why=_why(dataset, history, liked, same, features),
                title=dataset.names.title(item),
                labels={name: dataset.names.label(f"item_{name}", number) for name, number in features.items()},
            )
        )
    return UserRecommendations(_plain(dataset.user_ids[user]), len(history), out)


def _why(dataset: Dataset, history: np.ndarray, liked: np.ndarray, same: np.ndarray, features: dict[str, int]) -> str:
    """The closest match in the history: the item itself, else the first item feature (in order) that it shares."""
    if same.any():
        return f"in the history {_times(int(same.sum()), int((same & liked).sum()))}"
    for name, value in features.items():
        shared = dataset.item_column(f"item_{name}")[history] == value
        if value >= 0 and shared.any():
            label = dataset.names.label(f"item_{name}", value)
            return f"{name} {label} in the history {_times(int(shared.sum()), int((shared & liked).sum()))}"
    return "new to this user"


def _times(count: int, likes: int) -> str:
    text = "once" if count == 1 else f"{count} times"
    return f"{text}, liked {likes}" if likes else text


def _plain(value: Any) -> Any:
    """A numpy scalar as a Python value, for printing and JSON."""
    return value.item() if isinstance(value, np.generic) else value
