"""The true probabilities of a synthetic data set: the most that a model could know before an event.

The oracle sees the hidden taste of the session and the policy's estimate of it, the past, and the context of the
event (surface and hour). It does not see the random draws.
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
    artist_weights,
    cluster_weights,
    component_weights,
    day_part,
    next_in_album,
    share_probabilities,
)
from python_model.data.synthetic.catalogue import Catalogue, build_catalogue
from python_model.data.synthetic.config import ALBUM, ARTIST, ESTIMATE, POPULAR, REPEAT, TASTE, SyntheticConfig
from python_model.data.synthetic.generate import ORACLE
from python_model.io.arrays import ArrayFile
from python_model.io.errors import DataError
from python_model.io.files import require_file

_ROWS_AT_ONCE = 4096


class OracleScores:
    """True probabilities of a synthetic data set.

    ValueError where `dataset_dir` holds no oracle, DataError where its files are missing or damaged.
    """

    def __init__(self, dataset_dir: str | Path) -> None:
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
        if task != "share":
            return self.dataset.column(f"oracle_feedback_{task}")[rows]
        skip = self.dataset.column("oracle_feedback_skip")[rows].astype(np.float64)
        return share_probabilities(skip, self.full_listen[rows].astype(np.float64)).astype(np.float32)

    def utility(self, event_rows: np.ndarray) -> np.ndarray:
        """float32 [n]: expected grade of the events' items, the best score for ranking impressions."""
        return self.dataset.column("oracle_affinity")[self._check(event_rows)]

    def _check(self, event_rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(event_rows, np.int64)
        if rows.ndim != 1 or ((rows < 0) | (rows >= len(self.dataset))).any():
            raise ValueError(f"event_rows: expected row numbers [n] in [0, {len(self.dataset) - 1}]")
        return rows

    @cached_property
    def _play_weight(self) -> np.ndarray:
        like, skip = self.dataset.feedback("like"), self.dataset.feedback("skip")
        return np.where(like == 1, LIKED, np.where(skip == 1, SKIPPED, PLAYED))

    def _recent(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last `recent` events before each row: items [n, R] (-1: none) and weights [n, R], newest first."""
        past = rows[:, None] - 1 - np.arange(self.config.recent)
        present = past >= self.dataset.offsets[self.dataset.user[rows]][:, None]
        past = np.maximum(past, 0)
        return np.where(present, self.dataset.item[past], -1), np.where(present, self._play_weight[past], 0.0)

    def _next_item_probabilities(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, V]: the mixture of all components."""
        config, catalogue, n = self.config, self.catalogue, np.arange(len(rows))
        items, weights = self._recent(rows)
        same_session = (rows > 0) & (self.event_session[rows] == self.event_session[np.maximum(rows - 1, 0)])
        can_continue = same_session & (weights[:, 0] > 0)
        repeat = weights.copy()
        repeat[:, 0] = 0.0
        can_repeat = (repeat > 0).any(axis=1)
        mixture = component_weights(self.dataset.context("source")[rows], can_repeat, can_continue)
        part = day_part(self.dataset.context("hour")[rows])
        session = self.event_session[rows]
        total = mixture[:, [POPULAR]] * catalogue.popularity
        for kind, vectors, sharpness in (
            (TASTE, self.session_taste, config.organic_sharpness),
            (ESTIMATE, self.session_estimate, config.policy_sharpness),
        ):
            used = np.flatnonzero(mixture[:, kind] > 0)
            vector = vectors[session[used]].astype(np.float64)
            total[used] += mixture[used, kind, None] * self._by_vector(vector, part[used], sharpness)
        share = repeat / np.where(can_repeat, repeat.sum(axis=1), 1.0)[:, None]
        np.add.at(total, (n[:, None], np.maximum(items, 0)), mixture[:, [REPEAT]] * share)
        last = np.maximum(items[:, 0], 0)
        np.add.at(total, (n, next_in_album(last, config.tracks)), mixture[:, ALBUM])
        artist = last // config.tracks
        tracks = artist[:, None] * config.tracks + np.arange(config.tracks)
        np.add.at(total, (n[:, None], tracks), mixture[:, [ARTIST]] * catalogue.track_share[artist])
        return total

    def _by_vector(self, vector: np.ndarray, part: np.ndarray, sharpness: float) -> np.ndarray:
        """[n, V]: items drawn by a taste vector [n, D]: cluster, then artist, then track."""
        config, catalogue = self.config, self.catalogue
        cluster = cluster_weights(catalogue, vector, part, sharpness)
        cluster /= cluster.sum(axis=1, keepdims=True)
        by_artist = np.empty((len(vector), config.clusters, config.artists))
        for c in range(config.clusters):
            weights = artist_weights(catalogue, vector, np.full(len(vector), c), sharpness)
            by_artist[:, c] = cluster[:, [c]] * weights / weights.sum(axis=1, keepdims=True)
        artists = by_artist.reshape(len(vector), config.clusters * config.artists, 1)
        return (artists * catalogue.track_share).reshape(len(vector), config.items)


def _load(file: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """An array of the oracle; DataError where it is missing, unreadable or of another type or shape."""
    require_file(file)
    return ArrayFile(file, dtype, shape).read()
