"""The part of the distance from popularity to the oracle that a lagged score can reach, on the synthetic service.

The oracle of pairwise accuracy knows the user's taste in the current session, its mood included. A score under the lag
knows nothing of that session. Two observers lie between popularity and the oracle. Both know what no model is told: the
vector and quality of every track and the equations of the feedback.

    past tastes   knows the true taste of every session that ended `pair_window` before; it estimates the current taste
                  by the conditional mean of the Gaussian process that tastes are drawn from. A lagged score can beat
                  it only through recent plays, which are left out here (the oracle loses .003 without them).
    feedback      knows of the past only what a model sees, the feedback given so far, and takes the taste that
                  maximises the posterior, with exponentially lower weight for older sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from python_model.data.schema import Dataset
from python_model.data.splits import temporal_split
from python_model.data.synthetic import OracleScores
from python_model.data.synthetic.behaviour import DEVICE_EFFECT
from python_model.data.synthetic.tastes import expected_taste
from python_model.evaluation import metrics
from python_model.evaluation.baselines import ItemAverage, Popularity
from python_model.evaluation.predictions import Predictor

MEMORIES = (3.0, 6.0, 12.0)
"""Memory of the feedback observer in sessions; the best value is reported, as an upper bound may be generous."""
LENIENCY = 0.4
STEPS = 6


@dataclass(frozen=True)
class Reach:
    """A row: pairwise accuracy and its share of the distance from popularity to the oracle."""

    name: str
    accuracy: float
    share: float


def reaches(dataset: Dataset, part: str = "test") -> list[Reach]:
    """The table for a synthetic data set; ValueError for another."""
    observers = _Observers(dataset, part)
    split = temporal_split(dataset)
    training = np.flatnonzero(split.train)
    plain: dict[str, Predictor] = {"popularity": Popularity(dataset, training)}
    plain["item_average"] = ItemAverage(dataset, training)
    scores = {name: predictor.predict(observers.rows).ranking for name, predictor in plain.items()}
    by_memory = [observers.from_feedback(memory) for memory in MEMORIES]
    scores["feedback"] = max(by_memory, key=observers.accuracy)
    scores["past tastes"] = observers.from_past_tastes()
    scores["oracle"] = observers.oracle.utility(observers.rows)
    found = {name: observers.accuracy(score) for name, score in scores.items() if score is not None}
    low, high = found["popularity"], found["oracle"]
    return [Reach(name, value, (value - low) / (high - low)) for name, value in found.items()]


def table(found: list[Reach]) -> str:
    """Markdown."""
    lines = ["| | pairwise accuracy | of the way from popularity to the oracle |", "|---|---:|---:|"]
    lines += [f"| {one.name} | {one.accuracy:.4f} | {one.share:.1%} |" for one in found]
    return "\n".join(lines) + "\n"


class _Observers:
    """The events that are compared and what the two observers score them with."""

    def __init__(self, dataset: Dataset, part: str) -> None:
        self.data, self.oracle = dataset, OracleScores(dataset.path)
        split = temporal_split(dataset)
        self.rows = np.flatnonzero(split.test if part == "test" else split.validation)
        catalogue, item = self.oracle.catalogue, dataset.item
        self.track = catalogue.tracks[item] / np.sqrt(self.oracle.config.dimensions)
        self.fixed = catalogue.quality[item] + DEVICE_EFFECT[dataset.context("device")] + 0.25 * dataset.organic
        self.session = np.asarray(self.oracle.event_session)
        self.first_session = self.session[dataset.offsets[dataset.user]]

    def accuracy(self, scores: np.ndarray) -> float:
        """Pairwise accuracy over the compared events."""
        users, starts = np.unique(self.data.user[self.rows], return_index=True)
        offsets = np.append(starts, len(self.rows)) if len(users) else np.zeros(1, np.int64)
        time, grade = self.data.time[self.rows], self.data.grade[self.rows]
        return metrics.count_pairs(scores, grade, offsets, time, self.data.info.pair_window).accuracy

    def from_past_tastes(self) -> np.ndarray:
        """Scores [rows] from the conditional mean of the taste given the tastes of the ended sessions."""
        tastes = np.asarray(self.oracle.session_taste, np.float64)

        def guess(row: int, known: int) -> np.ndarray:
            first, now = int(self.first_session[row]), int(self.session[row])
            last = int(self.session[known - 1]) + 1
            if last == now:  # the current session has not ended
                last -= 1
            sessions = np.append(np.arange(first, last), now)
            return expected_taste(self.oracle.config, tastes[first:last], sessions, self.oracle.calendar.at(sessions))

        return self._scores(guess)

    def from_feedback(self, memory: float) -> np.ndarray:
        """Scores [rows] from the most probable taste given the feedback; a session has weight e^(−age / memory)."""
        skip, like, dislike = (self.data.feedback(name) == 1 for name in ("skip", "like", "dislike"))
        design = np.concatenate([self.track, np.full((len(self.data), 1), LENIENCY)], axis=1)

        def guess(row: int, known: int) -> np.ndarray:
            past = slice(int(self.data.offsets[self.data.user[row]]), known)
            answers = (
                (skip[past], 0.65, -2.1, np.ones(known - past.start, bool)),
                (like[past], -5.4, 2.0, ~skip[past]),
                (dislike[past], -1.4, -1.0, skip[past]),
            )
            weight = np.exp((self.session[past] - self.session[row]) / memory)
            return _most_probable(design[past], self.fixed[past], weight, answers)[:-1]

        return self._scores(guess)

    def _scores(self, guess: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """Scores [rows] by a taste for each session; guess(row, known): from the user's rows before `known`."""
        out = np.zeros(len(self.rows))
        for places, row, known in self._sessions():
            if known > self.data.offsets[self.data.user[row]]:
                out[places] = self.track[self.rows[places]] @ guess(row, known)
        return out + self.fixed[self.rows]

    def _sessions(self) -> Iterator[tuple[np.ndarray, int, int]]:
        """The compared rows of each session, its first such row, and the row after the last event that is known."""
        session = self.session[self.rows]
        for places in np.split(np.arange(len(self.rows)), np.flatnonzero(np.diff(session)) + 1):
            row = int(self.rows[places[0]])
            first = int(self.data.offsets[self.data.user[row]])
            latest = self.data.time[row] - self.data.info.pair_window - 1
            yield places, row, first + int(np.searchsorted(self.data.time[first:row], latest, side="right"))


def _most_probable(
    design: np.ndarray, fixed: np.ndarray, weight: np.ndarray,
    answers: tuple[tuple[np.ndarray, float, float, np.ndarray], ...],
) -> np.ndarray:  # fmt: skip
    """Newton's method for the coefficients of logistic answers (given, offset, slope, mask) on one linear pull.

    The prior is normal: variance 1 for the taste and for the leniency, its last entry.
    """
    precision = np.ones(design.shape[1])
    found = np.zeros(design.shape[1])
    for _ in range(STEPS):
        pull = design @ found + fixed
        slope, curvature = np.zeros(len(pull)), np.zeros(len(pull))
        for given, offset, factor, asked in answers:
            p = 1 / (1 + np.exp(-(offset + factor * pull)))
            slope += weight * asked * factor * (given - p)
            curvature += weight * asked * factor**2 * p * (1 - p)
        hessian = (design * curvature[:, None]).T @ design + np.diag(precision)
        found = found + np.linalg.solve(hessian, design.T @ slope - precision * found)
    return found
