"""One list per user: the whole catalogue ranked once, from what is known before the held-out day of the Yambda split.

The evaluated users have a Listen+ event in the held-out day and an event before the gap. Items heard before stay in
the ranking. With n relevant items, DCG@k = Σ_{their ranks r ≤ k} 1 / log2(1 + r), and IDCG@k the same sum over the
ranks 1 … min(k, n). Two definitions (DEFINITIONS):

"per-user"    The items of the day's Listen+ events, each once, are relevant.
              NDCG@k = mean of DCG@k / IDCG@k over users, recall@k = mean share of the relevant items in the first k.
"benchmark"   The published evaluation of the Yambda benchmark. Every Listen+ event of the day counts, so an item heard
              twice counts twice in n, although it stands in the ranking once; users need a Listen+ event before the
              gap. NDCG@k = mean DCG@k / mean IDCG@k, recall@k as above.

A model predicts as in `argus recommend`, for the beginning of the day.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from python_model.data.schema import Dataset
from python_model.data.splits import YAMBDA_GAP, Split, positive_events, yambda_starts
from python_model.evaluation import metrics


@dataclass(frozen=True)
class Requests:
    """Requests: users int64 [n], rising; ends int64 [n], one past the last known event's row; time in seconds."""

    users: np.ndarray
    ends: np.ndarray
    time: int


@runtime_checkable
class ListPredictor(Protocol):
    """A predictor that can order the catalogue for a user at a given time."""

    def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
        """Scores [n_i, V] of consecutive users, in blocks that fit in memory."""
        ...


def ranks_of(scores: Tensor, items: Tensor) -> np.ndarray:
    """int64 [n]: ranks of items [n] among scores [V], 1 = best; ties count against the predictor."""
    ordered = scores.sort().values
    return (len(scores) - torch.searchsorted(ordered, scores[items])).cpu().numpy()


DEFINITIONS = ("per-user", "benchmark")


class UserLists:
    """The requests of a held-out day and their relevant items."""

    def __init__(
        self, dataset: Dataset, split: Split, part: str, users: np.ndarray, definition: str = "per-user"
    ) -> None:
        """part: "validation" or "test"; users: int, rising, the users to evaluate; definition: one of DEFINITIONS."""
        self._benchmark = definition == "benchmark"
        start, positive = yambda_starts(dataset)[part], positive_events(dataset)
        wanted = (split.test if part == "test" else split.validation) & positive
        before = dataset.time < start - YAMBDA_GAP
        known = _count_by_user(dataset, before)
        required = _count_by_user(dataset, before & positive) if self._benchmark else known
        events = np.stack([dataset.user[wanted], dataset.item[wanted]], axis=1).astype(np.int64)
        pairs, listens = np.unique(events, axis=0, return_counts=True)
        asked = np.intersect1d(users[required[users] > 0], pairs[:, 0])
        kept = np.isin(pairs[:, 0], asked)
        pairs, listens = pairs[kept], listens[kept]
        self._owner = np.searchsorted(asked, pairs[:, 0])
        self._item = torch.from_numpy(pairs[:, 1].copy())
        counted = listens if self._benchmark else np.ones(len(pairs))
        self._wanted = np.bincount(self._owner, weights=counted, minlength=len(asked)).astype(np.int64)
        self.requests = Requests(asked, dataset.offsets[asked] + known[asked], start)

    def __len__(self) -> int:
        """Number of evaluated users."""
        return len(self.requests.users)

    def ranks(self, predictor: ListPredictor) -> np.ndarray:
        """int64: rank of each relevant item of each user, 1 = best; ties count against the predictor."""
        parts, first = [np.zeros(0, np.int64)], 0
        for scores in predictor.catalogue_scores(self.requests):
            low, high = np.searchsorted(self._owner, [first, first + len(scores)])
            rows = torch.from_numpy(self._owner[low:high] - first).to(scores.device)
            # Row by row: a user may have many relevant items, and each would take a copy of the user's scores.
            for row in range(len(scores)):
                mine = self._item[low:high].to(scores.device)[rows == row]
                values = scores[row]
                if torch.isnan(values).any():
                    raise ValueError(f"scores: user {self.requests.users[first + row]} has NaN among them")
                parts.append(ranks_of(values, mine))
            first += len(scores)
        return np.concatenate(parts)

    def gains(self, ranks: np.ndarray, k: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Gain and weight of every user, float64 [n] each: a metric is sum of gains ÷ sum of weights."""
        found = {"ndcg": metrics.ndcg_gains(ranks, k), "recall": metrics.recall_gains(ranks, k)}
        summed = {name: np.bincount(self._owner, weights=gain, minlength=len(self)) for name, gain in found.items()}
        ideal, one = ideal_dcg(self._wanted, k), np.ones(len(self))
        ndcg = (summed["ndcg"], ideal) if self._benchmark else (summed["ndcg"] / ideal, one)
        return {"ndcg": ndcg, "recall": (summed["recall"] / self._wanted, one)}

    def row(self, predictor: object, k: Sequence[int]) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """The columns ndcg@k and recall@k and their standard errors; None for a predictor that makes no lists."""
        names = [f"{metric}@{cutoff}" for cutoff in k for metric in ("ndcg", "recall")]
        if not isinstance(predictor, ListPredictor) or len(self) == 0:
            return dict.fromkeys(names), dict.fromkeys(names)
        ranks = self.ranks(predictor)
        gains = {f"{metric}@{cutoff}": found for cutoff in k for metric, found in self.gains(ranks, cutoff).items()}
        errors = {name: metrics.clustered_standard_error(*gains[name]) for name in names}
        return (
            {name: float(gains[name][0].sum() / gains[name][1].sum()) for name in names},
            {name: None if np.isnan(errors[name]) else errors[name] for name in names},
        )


def ideal_dcg(wanted: np.ndarray, k: int) -> np.ndarray:
    """float64 [n]: DCG@k of lists that begin with all of their `wanted` int64 [n] relevant items."""
    best = np.concatenate([np.zeros(1), np.cumsum(1.0 / np.log2(1.0 + np.arange(1, k + 1)))])
    return best[np.minimum(wanted, k)]


def _count_by_user(dataset: Dataset, chosen: np.ndarray) -> np.ndarray:
    """int64 [users]: how many of the events chosen [T] each user has."""
    return np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(chosen)])[dataset.offsets])
