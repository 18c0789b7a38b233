"""The metrics: full-ranking recall and NDCG, normalised entropy, AUC, pairwise accuracy.

Every function takes plain arrays, independent of models and data sets. NaN scores are refused everywhere: a NaN
compares false with everything, so the form of the comparison would decide whether it ranks best or worst.

Definitions
- rank: 1 + the number of other items that score at least as high as the target. Ties count against the predictor
  (pessimistic), so that a model whose scores have collapsed to one value gains nothing from it.
- recall@k: share of events whose target ranks in the first k. NDCG@k: mean of 1 / log2(1 + rank) where rank <= k, else
  0; one relevant item an event, so the ideal is 1.
- normalised entropy: mean log loss divided by the log loss of a predictor that knows only frequencies; 1 means nothing
  was learnt beyond them, 0 is certainty (He et al., "Practical Lessons from Predicting Clicks on Ads", 2014).
- AUC: probability that a positive scores above a negative, ties counting half.
- pairwise accuracy: share of pairs of one user's events, at most `window` seconds apart and of different grade, in
  which the better grade has the higher score; ties count half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_SCORES = 1 << 24
"""Scores in memory at once while the catalogue is ranked: 64 MiB of float32."""


class NaNScores(ValueError):
    """Scores hold NaN, which has no rank."""


@dataclass(frozen=True)
class Ranking:
    """The ranks of the targets of n events in the whole catalogue."""

    rank: np.ndarray
    """int64 [n], 1 = best."""
    log_loss: np.ndarray
    """float64 [n], nats: -log softmax(scores)[target] over the whole catalogue."""


def rank_scores(scores: Tensor, targets: Tensor) -> Ranking:
    """Rank each row's target among all items.

    scores: [n, V] floating point; targets: int64 [n]. ValueError where a score is NaN.
    """
    _refuse_nan(scores)
    target = scores.gather(1, targets[:, None])
    rank = (scores >= target).sum(dim=1)
    log_loss = torch.logsumexp(scores.double(), dim=1) - target[:, 0].double()
    return Ranking(rank.cpu().numpy(), log_loss.cpu().numpy())


def rank_catalogue(
    queries: Tensor, items: Tensor, targets: Tensor, scale: float = 1.0, block_scores: int = BLOCK_SCORES
) -> Ranking:
    """Rank targets by scale * <query, item> over the whole catalogue, at most `block_scores` scores at a time.

    queries: [n, D]; items: [V, D]; targets: int64 [n]. The block is never smaller than one event's V scores.
    """
    rows = max(1, block_scores // max(1, len(items)))
    parts = [
        rank_scores((queries[start : start + rows] @ items.T).float() * scale, targets[start : start + rows])
        for start in range(0, len(queries), rows)
    ]
    return concatenate_rankings(parts)


def concatenate_rankings(parts: list[Ranking]) -> Ranking:
    """Join the rankings of consecutive blocks of events."""
    if not parts:
        return Ranking(np.zeros(0, np.int64), np.zeros(0, np.float64))
    return Ranking(np.concatenate([p.rank for p in parts]), np.concatenate([p.log_loss for p in parts]))


def recall_gains(rank: np.ndarray, k: int) -> np.ndarray:
    """float64 [n]: 1 where the target ranks in the first k, else 0; the mean is recall@k."""
    return (rank <= k).astype(np.float64)


def ndcg_gains(rank: np.ndarray, k: int) -> np.ndarray:
    """float64 [n]: 1 / log2(1 + rank) where rank <= k, else 0; the mean is NDCG@k."""
    return np.where(rank <= k, 1.0 / np.log2(1.0 + rank), 0.0)


def entropy(labels: np.ndarray, classes: int) -> float:
    """Entropy in nats of the class frequencies of labels (int [n], values in [0, classes)); NaN where n = 0."""
    if len(labels) == 0:
        return float("nan")
    share = np.bincount(labels, minlength=classes) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def normalized_entropy(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean log loss over the entropy of the labels' own frequencies.

    log_probabilities: float [n, C], natural logarithms; labels: int [n] in [0, C). NaN (not defined) where there is no
    label or only one class occurs. ValueError where a log-probability of an observed label is NaN.
    """
    if len(labels) == 0:
        return float("nan")
    base = entropy(labels, log_probabilities.shape[1])
    if base == 0.0:
        return float("nan")
    chosen = log_probabilities[np.arange(len(labels)), labels].astype(np.float64)
    _refuse_nan(chosen)
    return float(-chosen.mean() / base)


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve; NaN (not defined) where one of the two classes does not occur.

    scores: float [n]; labels: bool or 0/1 [n]. Equal scores share their mean rank, which makes a tie count half.
    """
    _refuse_nan(scores)
    positive = labels.astype(bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = (last - (counts - 1) / 2.0)[inverse]
    above = mean_rank[positive].sum() - positives * (positives + 1) / 2.0
    return float(above / (positives * negatives))


@dataclass(frozen=True)
class Pairs:
    """Pairs of different grade within a window, counted for each user: three int64 [B] columns."""

    pairs: np.ndarray
    concordant: np.ndarray
    ties: np.ndarray

    @property
    def total(self) -> int:
        """Number of pairs."""
        return int(self.pairs.sum())

    @property
    def gains(self) -> np.ndarray:
        """float64 [B]: pairs ordered correctly, ties as halves."""
        return self.concordant + 0.5 * self.ties

    @property
    def accuracy(self) -> float:
        """Share of pairs ordered correctly, ties as halves; NaN without pairs."""
        return float(self.gains.sum() / self.total) if self.total else float("nan")


def count_pairs(scores: np.ndarray, grades: np.ndarray, offsets: np.ndarray, times: np.ndarray, window: int) -> Pairs:
    """Count the pairs of every user.

    scores: float [T]; grades: int [T], -1 = takes no part; offsets: int [B + 1]; times: int64 [T] seconds, sorted
    within a user; window: seconds, inclusive. Compares every event with the one d places later, d = 1, 2, ... until no
    pair is left within the window: memory stays at O(T) and no pair list is built.
    """
    users = len(offsets) - 1
    keep = grades >= 0
    user = np.repeat(np.arange(users), np.diff(offsets))[keep]
    score, grade, time = scores[keep].astype(np.float64), grades[keep].astype(np.int64), times[keep]
    _refuse_nan(score)
    counts = np.zeros((3, users), np.int64)
    first = np.arange(len(user))
    for distance in range(1, len(user)):
        # An event with no partner at this distance has none further away: times rise within a user.
        first = first[first + distance < len(user)]
        second = first + distance
        near = (user[first] == user[second]) & (time[second] - time[first] <= window)
        first, second = first[near], second[near]
        if len(first) == 0:
            break
        better = np.sign(grade[second] - grade[first])
        order = np.sign(score[second] - score[first])
        owner = user[first]
        for column, holds in enumerate((better != 0, (better != 0) & (order == better), (better != 0) & (order == 0))):
            counts[column] += np.bincount(owner[holds], minlength=users)
    return Pairs(*counts)


def clustered_standard_error(gains: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of sum(gains) / sum(weights) when clusters (users), not events, are independent.

    gains, weights: float [B], one entry a user. First-order (delta method) variance of a ratio; NaN below two users.
    """
    total = float(weights.sum())
    users = int((weights > 0).sum())
    if users < 2 or total == 0:
        return float("nan")
    residual = gains - weights * (gains.sum() / total)
    return float(np.sqrt((residual**2).sum() * users / (users - 1)) / total)


def _refuse_nan(scores: Tensor | np.ndarray) -> None:
    missing = int(torch.isnan(scores).sum() if isinstance(scores, Tensor) else np.isnan(scores).sum())
    if missing:
        raise NaNScores(f"scores: {missing} values are NaN, expected numbers (shape {list(scores.shape)})")
