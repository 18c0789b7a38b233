"""One list per user: the whole catalogue ranked once, from what is known before the held-out day of the Yambda split.

The evaluated users have an event before the gap and a Listen+ event in the held-out day. The items of their Listen+
events of that day, each once, are the relevant items. Items heard before stay in the ranking. With n relevant items

    NDCG@k  =  Σ_{their ranks r ≤ k} 1 / log2(1 + r)  ÷  Σ_{r = 1}^{min(k, n)} 1 / log2(1 + r)
    recall@k = number of relevant items that rank in the first k ÷ n

averaged over users. The benchmark's own evaluation differs: see docs/cli.md. A model predicts as in `argus recommend`,
for the beginning of the day.
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


class UserLists:
    """The requests of a held-out day and their relevant items."""

    def __init__(self, dataset: Dataset, split: Split, part: str, users: np.ndarray) -> None:
        """part: "validation" or "test"; users: int, rising, the users to evaluate."""
        start = yambda_starts(dataset)[part]
        wanted = (split.test if part == "test" else split.validation) & positive_events(dataset)
        known = np.concatenate([np.zeros(1, np.int64), np.cumsum(dataset.time < start - YAMBDA_GAP)])[dataset.offsets]
        pairs = np.unique(np.stack([dataset.user[wanted], dataset.item[wanted]], axis=1).astype(np.int64), axis=0)
        asked = np.intersect1d(users[np.diff(known)[users] > 0], pairs[:, 0])
        pairs = pairs[np.isin(pairs[:, 0], asked)]
        self._owner = np.searchsorted(asked, pairs[:, 0])
        self._item = torch.from_numpy(pairs[:, 1].copy())
        self.requests = Requests(asked, dataset.offsets[asked] + np.diff(known)[asked], start)

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
                ordered = values.sort().values
                parts.append((len(values) - torch.searchsorted(ordered, values[mine])).cpu().numpy())
            first += len(scores)
        return np.concatenate(parts)

    def gains(self, ranks: np.ndarray, k: int) -> dict[str, np.ndarray]:
        """NDCG@k and recall@k of every user, float64 [n] each."""
        wanted = np.bincount(self._owner, minlength=len(self))
        best = np.concatenate([np.zeros(1), np.cumsum(1.0 / np.log2(1.0 + np.arange(1, k + 1)))])
        found = {"ndcg": metrics.ndcg_gains(ranks, k), "recall": metrics.recall_gains(ranks, k)}
        summed = {name: np.bincount(self._owner, weights=gain, minlength=len(self)) for name, gain in found.items()}
        return {"ndcg": summed["ndcg"] / best[np.minimum(wanted, k)], "recall": summed["recall"] / wanted}

    def row(self, predictor: object, k: Sequence[int]) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """The columns ndcg@k and recall@k and their standard errors; None for a predictor that makes no lists."""
        names = [f"{metric}@{cutoff}" for cutoff in k for metric in ("ndcg", "recall")]
        if not isinstance(predictor, ListPredictor) or len(self) == 0:
            return dict.fromkeys(names), dict.fromkeys(names)
        ranks = self.ranks(predictor)
        gains = {f"{metric}@{cutoff}": gain for cutoff in k for metric, gain in self.gains(ranks, cutoff).items()}
        errors = {name: metrics.clustered_standard_error(gain, np.ones(len(gain))) for name, gain in gains.items()}
        return (
            {name: float(gains[name].mean()) for name in names},
            {name: None if np.isnan(errors[name]) else errors[name] for name in names},
        )
