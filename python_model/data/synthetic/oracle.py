"""The true probabilities of a synthetic data set: the most that a model could know before an event.

The oracle sees the hidden taste of the session and the policy's estimate of it, the past, and the context of the
event (surface, hour and season). It does not see the random draws.

The oracle restricted to a context of C events sees of the past only the user's last C events before the event. It
still knows the policy's estimate and the rules, but not the taste of the current session: it takes the mean of that
taste given the true tastes of the sessions that lie whole in the C events before the session. What it gains with C is
what a long history is worth. A model that reads the current session's mood from its first events knows something that
it does not.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from python_model.data.columns import require_range
from python_model.data.schema import INFO, Dataset, load_dataset
from python_model.data.synthetic.behaviour import (
    LIKED,
    PLAYED,
    SKIPPED,
    Available,
    FeedbackModel,
    component_weights,
    day_part,
    feedback,
    item_weights,
    next_in_album,
    share_probabilities,
)
from python_model.data.synthetic.catalogue import Catalogue, build_catalogue
from python_model.data.synthetic.config import (
    ALBUM,
    ARTIST,
    CYCLE,
    ESTIMATE,
    LOYALTY,
    POPULAR,
    REPEAT,
    TASTE,
    UNFAMILIAR,
    SyntheticConfig,
)
from python_model.data.synthetic.generate import ORACLE
from python_model.data.synthetic.simulation import lenience
from python_model.data.synthetic.tastes import Calendar, expected_taste, season_number
from python_model.io.arrays import ArrayFile
from python_model.io.errors import DataError
from python_model.io.files import require_file

_ROWS_AT_ONCE = 4096


class OracleScores:
    """True probabilities of a synthetic data set.

    context: events of the past that the oracle sees at most, None for all that is known, the hidden taste included.
    ValueError where `dataset_dir` holds no oracle, DataError where its files are missing or damaged.
    """

    def __init__(self, dataset_dir: str | Path, context: int | None = None) -> None:
        if context is not None and context < 1:
            raise ValueError(f"context is {context}, expected at least 1 event")
        self.context = context
        self._expected: dict[int, np.ndarray] = {}
        self.dataset: Dataset = load_dataset(dataset_dir)
        if not self.dataset.info.has_oracle or self.dataset.info.source != "synthetic":
            source = self.dataset.info.source
            raise ValueError(f"{dataset_dir}: a {source} data set has no oracle, only synthetic ones do")
        try:
            self.config = SyntheticConfig.from_params(self.dataset.info.params)
        except ValueError as error:
            raise DataError(self.dataset.path / INFO, str(error), column="params") from error
        self.catalogue: Catalogue = build_catalogue(self.config)
        directory = self.dataset.path / ORACLE
        events = len(self.dataset)
        file = directory / "event_session.npy"
        self.event_session = _load(file, (events,), np.int64)
        last = int(self.event_session[-1])
        require_range(self.event_session, 0, max(last, 0), file, "session")
        sessions = (last + 1, self.config.dimensions)
        self.full_listen = _load(directory / "full_listen.npy", (events,), np.float32)
        self.session_taste = _load(directory / "session_taste.npy", sessions, np.float32)
        self.session_estimate = _load(directory / "session_estimate.npy", sessions, np.float32)

    def next_item_scores(self, event_rows: np.ndarray) -> np.ndarray:
        """float32 [n, V]: log-probability of each item at events event_rows [n], before the item is known."""
        rows = self._check(event_rows)
        scores = np.empty((len(rows), self.config.items), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            with np.errstate(divide="ignore"):
                scores[part] = np.log(self._next_item_probabilities(rows[part]))
        return scores

    def feedback_probabilities(self, task: str, event_rows: np.ndarray) -> np.ndarray:
        """float32 [n] for a binary component, [n, classes] for `share`: true probabilities given the item shown."""
        rows = self._check(event_rows)
        if task not in self.dataset.info.feedback:
            raise ValueError(f"task: expected one of {', '.join(self.dataset.info.feedback)}, found {task!r}")
        if self.context is not None:
            model = self._feedback(rows)
            found = share_probabilities(model.skip, model.full_if_played) if task == "share" else getattr(model, task)
            return np.asarray(found, np.float32)
        if task != "share":
            return self.dataset.column(f"oracle_feedback_{task}")[rows]
        skip = self.dataset.column("oracle_feedback_skip")[rows].astype(np.float64)
        return share_probabilities(skip, self.full_listen[rows].astype(np.float64)).astype(np.float32)

    def utility(self, event_rows: np.ndarray) -> np.ndarray:
        """float32 [n]: expected grade of the events' items, the best score for ranking impressions."""
        rows = self._check(event_rows)
        if self.context is not None:
            return self._feedback(rows).utility.astype(np.float32)
        return self.dataset.column("oracle_affinity")[rows]

    def _check(self, event_rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(event_rows, np.int64)
        if rows.ndim != 1 or ((rows < 0) | (rows >= len(self.dataset))).any():
            raise ValueError(f"event_rows: expected row numbers [n] in [0, {len(self.dataset) - 1}]")
        return rows

    @cached_property
    def _play_weight(self) -> np.ndarray:
        like, skip = self.dataset.feedback("like"), self.dataset.feedback("skip")
        return np.where(like == 1, LIKED, np.where(skip == 1, SKIPPED, PLAYED))

    def _first_seen(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the first event of the past that is seen at each row."""
        first = self.dataset.offsets[self.dataset.user[rows]].astype(np.int64)
        return first if self.context is None else np.maximum(first, rows - self.context)

    def _recent(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last `recent` events before each row: items [n, R] (-1: none) and weights [n, R], newest first."""
        past = rows[:, None] - 1 - np.arange(self.config.recent)
        present = past >= self._first_seen(rows)[:, None]
        past = np.maximum(past, 0)
        return np.where(present, self.dataset.item[past], -1), np.where(present, self._play_weight[past], 0.0)

    @cached_property
    def _session_row(self) -> np.ndarray:
        """int64 [S]: the first event of each session."""
        return np.searchsorted(self.event_session, np.arange(len(self.session_taste)))

    @cached_property
    def calendar(self) -> Calendar:
        """When the sessions begin."""
        return Calendar.of(self.dataset.time[self._session_row], self.config)

    def _tastes(self, session: np.ndarray) -> np.ndarray:
        """float64 [n, D]: the tastes in sessions [n], or what the seen part of the past says about them."""
        if self.context is None:
            return self.session_taste[session].astype(np.float64)
        distinct, place = np.unique(session, return_inverse=True)
        for one in distinct.tolist():
            # Kept: one solves a system of as many equations as sessions are seen, and every metric asks again.
            if one not in self._expected:
                self._expected[one] = self._expected_taste(one)
        return np.stack([self._expected[one] for one in distinct.tolist()])[place]

    def _expected_taste(self, session: int) -> np.ndarray:
        row = int(self._session_row[session])
        first = int(self._first_seen(np.array([row]))[0])
        begin = int(np.searchsorted(self._session_row, first))
        sessions = np.arange(begin, session + 1)
        tastes = self.session_taste[begin:session].astype(np.float64)
        return expected_taste(self.config, tastes, sessions, self.calendar.at(sessions))

    def _feedback(self, rows: np.ndarray) -> FeedbackModel:
        data, item = self.dataset, self.dataset.item[rows].astype(np.int64)
        taste = self._tastes(self.event_session[rows])
        plays = (self._recent(rows)[0] == item[:, None]).sum(axis=1)
        return feedback(
            self.catalogue, taste, item, data.organic[rows], data.context("device")[rows],
            lenience(self.config, data.user[rows]), plays, self.config.expectation,
        )  # fmt: skip

    def _by_past(self, rows: np.ndarray, same_season: bool) -> np.ndarray:
        """[n, V]: likes of each item in the seen past: in the current season of earlier years, or in all of it."""
        like = self.dataset.feedback("like")
        out = np.zeros((len(rows), self.config.items))
        season = season_number(self.dataset.time, self.config.seasons) if same_season else np.zeros(0, np.int64)
        for n, (row, first) in enumerate(zip(rows, self._first_seen(rows), strict=True)):
            items, liked = self.dataset.item[first:row], like[first:row] == 1
            if same_season:
                ago = season[row] - season[first:row]
                liked = liked & (ago > 0) & (ago % self.config.seasons == 0)
            out[n] = np.bincount(items[liked], minlength=self.config.items)
        return out

    def _new(self, rows: np.ndarray) -> np.ndarray:
        """Bool [n, V]: items that the seen past does not have."""
        new = np.ones((len(rows), self.config.items), bool)
        for n, (row, first) in enumerate(zip(rows, self._first_seen(rows), strict=True)):
            new[n, self.dataset.item[first:row]] = False
        return new

    def _next_item_probabilities(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, V]: the mixture of all components."""
        config, catalogue, n = self.config, self.catalogue, np.arange(len(rows))
        items, weights = self._recent(rows)
        same_session = (rows > 0) & (self.event_session[rows] == self.event_session[np.maximum(rows - 1, 0)])
        repeat = weights.copy()
        repeat[:, 0] = 0.0
        nothing = np.zeros((len(rows), 1))
        past = {
            LOYALTY: self._by_past(rows, same_season=False) if config.loyalty > 0 else nothing,
            CYCLE: self._by_past(rows, same_season=True) if config.cycles > 0 else nothing,
        }
        available = Available(
            repeat=(repeat > 0).any(axis=1),
            continued=same_session & (weights[:, 0] > 0),
            past=past[LOYALTY].sum(axis=1) > 0,
            season=past[CYCLE].sum(axis=1) > 0,
        )
        source = self.dataset.context("source")[rows]
        mixture = component_weights(config, source, available)
        part = day_part(self.dataset.context("hour")[rows])
        session = self.event_session[rows]
        total = mixture[:, [POPULAR]] * catalogue.popularity
        for kind, sharpness in ((TASTE, config.organic_sharpness), (ESTIMATE, config.policy_sharpness)):
            used = np.flatnonzero(mixture[:, kind] > 0)
            estimated = self.session_estimate[session[used]].astype(np.float64)
            vector = self._tastes(session[used]) if kind == TASTE else estimated
            drawn = item_weights(catalogue, vector, part[used], sharpness)
            if kind == ESTIMATE:
                new = source[used] == UNFAMILIAR
                drawn[new] *= self._new(rows[used[new]])
                drawn[new] /= drawn[new].sum(axis=1, keepdims=True)
            total[used] += mixture[used, kind, None] * drawn
        share = repeat / np.where(available.repeat, repeat.sum(axis=1), 1.0)[:, None]
        np.add.at(total, (n[:, None], np.maximum(items, 0)), mixture[:, [REPEAT]] * share)
        for kind, counts in past.items():
            used = np.flatnonzero(mixture[:, kind] > 0)
            total[used] += mixture[used, kind, None] * counts[used] / counts[used].sum(axis=1, keepdims=True)
        last = np.maximum(items[:, 0], 0)
        np.add.at(total, (n, next_in_album(last, config.tracks)), mixture[:, ALBUM])
        artist = last // config.tracks
        tracks = artist[:, None] * config.tracks + np.arange(config.tracks)
        np.add.at(total, (n[:, None], tracks), mixture[:, [ARTIST]] * catalogue.track_share[artist])
        return total


def _load(file: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """An array of the oracle; DataError where it is missing, unreadable or of another type or shape."""
    require_file(file)
    return ArrayFile(file, dtype, shape).read()
