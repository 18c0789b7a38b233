"""Simulates a chunk of users; each step adds one event to all of them.

Every random number is a hash of (seed, stream, user, session or event number), so users do not depend on each other
and the chunk size changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from python_model.data.synthetic.arithmetic import Draws, choose
from python_model.data.synthetic.behaviour import (
    LIKED,
    PARTIAL_LOW,
    PLAYED,
    SHARE_EDGES,
    SKIP_HIGH,
    SKIP_LOW,
    SKIPPED,
    Available,
    FeedbackModel,
    artist_weights,
    cluster_weights,
    component_weights,
    day_part,
    feedback,
    item_weights,
    next_in_album,
)
from python_model.data.synthetic.catalogue import Catalogue
from python_model.data.synthetic.config import (
    ALBUM,
    ARTIST,
    COMPONENTS,
    CYCLE,
    DAY,
    FEED,
    LIBRARY,
    LOYALTY,
    POPULAR,
    RADIO,
    REPEAT,
    SEARCH,
    TASTE,
    UNFAMILIAR,
    SyntheticConfig,
)
from python_model.data.synthetic.past import Past
from python_model.data.synthetic.tastes import BASE, MOOD, SLOW, START, Calendar, returning, season_number

SLOT_HOURS = np.array([7, 13, 19])
LONGEST_SESSION = 40

(
    _BASE, _DRIFT, _MOOD, _NOISE, _RATE, _PROPENSITY, _LENIENCY, _GAP, _MINUTE, _DEVICE, _STAY, _MODE, _SURFACE,
    _COMPONENT, _RECENT, _CLUSTER, _ARTIST, _TRACK, _POPULAR_CLUSTER, _POPULAR_ARTIST, _SKIP, _LIKE, _DISLIKE, _FULL,
    _SHARE, _CONTINUE, _PAUSE, _LENGTH, _LOYALTY, _CYCLE, _UNFAMILIAR, _NEW,
) = range(32)  # fmt: skip
UNFAMILIAR_COMPONENT = len(COMPONENTS)
"""Stands for the estimate on the surface of discovery, which is restricted to new items."""
NEW_AT_ONCE = 1 << 22
"""Weights of items in memory at once while new items are drawn: 32 MiB."""

_DEVICE_BY_SLOT = np.array([[0.70, 0.20, 0.10], [0.40, 0.15, 0.45], [0.45, 0.45, 0.10]])


def lenience(config: SyntheticConfig, user: np.ndarray) -> np.ndarray:
    """float64 [n]: how lenient users [n] are, constant over the years."""
    return Draws(config.seed).normal(_LENIENCY, user)


@dataclass
class Chunk:
    """Events of the chunk's users in order of (user, time); user numbers are local, sessions are rows of `sessions`.

    columns: the event columns of the prepared schema and `session` (local row), `full_listen` float32 and
    `played_pct` int64; sessions: `taste`, `estimate` float32 [S, D] and `user` [S].
    """

    columns: dict[str, np.ndarray]
    sessions: dict[str, np.ndarray]


class ChunkSimulation:
    """State of users first .. last - 1 between two events; `run` simulates to the end of the calendar."""

    def __init__(self, config: SyntheticConfig, catalogue: Catalogue, first: int, last: int) -> None:
        self.config, self.catalogue = config, catalogue
        self.draws = Draws(config.seed)
        self.user = np.arange(first, last)
        self.first = first
        n, dims = len(self.user), np.arange(config.dimensions)
        draws, user = self.draws, self.user
        self.base = draws.normal(_BASE, user[:, None], dims)
        self.slow = draws.normal(_DRIFT, user[:, None], 0, dims)
        self.noise = draws.normal(_NOISE, user[:, None], dims)
        self.gap = config.mean_gap * (0.6 + 0.8 * draws.uniform(_RATE, user))
        self.propensity = config.recommended_share * (0.5 + draws.uniform(_PROPENSITY, user))
        self.leniency = lenience(config, user)
        self.taste = np.zeros((n, config.dimensions))
        self.estimate = np.zeros((n, config.dimensions))
        self.slot = np.full(n, -1)
        self.session = np.full(n, -1)
        self.events = np.zeros(n, np.int64)
        self.in_session = np.zeros(n, np.int64)
        self.time = np.zeros(n, np.int64)
        self.device = np.zeros(n, np.int64)
        self.recommended = np.zeros(n, bool)
        self.unfamiliar = np.zeros(n, bool)
        self.past = Past(config, n)
        self.recent_item = np.full((n, config.recent), -1)
        self.recent_weight = np.zeros((n, config.recent))
        self._steps: list[dict[str, np.ndarray]] = []
        self._sessions: list[dict[str, np.ndarray]] = []

    def run(self) -> Chunk:
        """Simulate every user of the chunk to the end of the calendar."""
        active = np.arange(len(self.user))
        self._start_sessions(active)
        while len(active):
            self._step(active)
            leaving = active[self._session_ends(active)]
            self._start_sessions(leaving)
            active = active[self.slot[active] < self.config.slots]
        return self._collect()

    def _start_sessions(self, rows: np.ndarray) -> None:
        """Move `rows` to their next session: slot, time, device, taste, the policy's estimate of it."""
        self.session[rows] += 1
        user, session, draws, config = self.user[rows], self.session[rows], self.draws, self.config
        uniform = draws.uniform(_GAP, user, session)
        # The first session falls anywhere in the first gap, the others come 1 .. 2 gap - 1 slots after the last one.
        later = self.slot[rows] + 1 + np.floor(uniform * np.maximum(2 * self.gap[rows] - 1, 1.0)).astype(np.int64)
        first = np.minimum(np.floor(uniform * self.gap[rows]).astype(np.int64), config.slots - 1)
        self.slot[rows] = np.where(session == 0, first, later)
        rows = rows[self.slot[rows] < config.slots]
        user, session, slot = self.user[rows], self.session[rows], self.slot[rows]
        minute = np.floor(draws.uniform(_MINUTE, user, session) * 180).astype(np.int64)
        self.time[rows] = START + slot // 3 * DAY + SLOT_HOURS[slot % 3] * 3600 + minute * 60
        self.device[rows] = choose(_DEVICE_BY_SLOT[slot % 3], draws.uniform(_DEVICE, user, session))
        self.in_session[rows] = 0
        self._move_taste(rows)

    def _move_taste(self, rows: np.ndarray) -> None:
        """Update slow taste, mood, and the policy's estimate, which is one session late, noisy and without the mood."""
        config, dims = self.config, np.arange(self.config.dimensions)
        user, session = self.user[rows, None], self.session[rows, None]
        lasting = np.sqrt(config.lasting_share)
        known = np.sqrt(BASE) * self.base[rows] + np.sqrt(SLOW) * self.slow[rows]
        self.estimate[rows] = lasting * known + config.policy_noise * self.noise[rows]
        keep = config.drift
        fresh = np.sqrt(1.0 - keep * keep) * self.draws.normal(_DRIFT, user, session + 1, dims)
        self.slow[rows] = keep * self.slow[rows] + fresh
        mood = self.draws.normal(_MOOD, user, session, dims)
        taste = np.sqrt(BASE) * self.base[rows] + np.sqrt(SLOW) * self.slow[rows] + np.sqrt(MOOD) * mood
        if config.lasting_share < 1:
            calendar = Calendar.of(self.time[rows], config)
            taste = lasting * taste + returning(config, self.draws, self.user[rows], calendar)
        self.taste[rows] = taste
        self._sessions.append(
            {
                "user": rows,
                "session": self.session[rows],
                "taste": self.taste[rows].astype(np.float32),
                "estimate": self.estimate[rows].astype(np.float32),
            }
        )

    def _step(self, rows: np.ndarray) -> None:
        """Simulate one event of every row (surface, item, feedback) and update the state."""
        source = self._surface(rows)
        hour = (self.time[rows] - START) // 3600 % 24
        item = self._item(rows, source, day_part(hour))
        organic = source < RADIO
        plays = (self.recent_item[rows] == item[:, None]).sum(axis=1)
        model = feedback(
            self.catalogue,
            self.taste[rows],
            item,
            organic,
            self.device[rows],
            self.leniency[rows],
            plays,
            self.config.expectation,
        )
        outcome = self._outcome(rows, model)
        played = np.where(outcome["like"], 4, 2 + outcome["full"])
        impression = np.where(outcome["skip"], 1 - outcome["dislike"], played)
        self._steps.append(
            {
                "user": rows,
                "item": item,
                "time": self.time[rows],
                "organic": organic,
                "grade": np.where(organic, -1, impression),
                "context_hour": hour,
                "context_day_of_week": (self.time[rows] - START) // DAY % 7,
                "context_device": self.device[rows],
                "context_source": source,
                **self._season(rows),
                "feedback_like": outcome["like"],
                "feedback_dislike": outcome["dislike"],
                "feedback_skip": outcome["skip"],
                "feedback_share": np.searchsorted(SHARE_EDGES * 100, outcome["percent"], side="right"),
                "oracle_affinity": model.utility,
                "oracle_feedback_like": model.like,
                "oracle_feedback_dislike": model.dislike,
                "oracle_feedback_skip": model.skip,
                "full_listen": model.full_if_played,
                "played_pct": outcome["percent"],
                "session": self.session[rows],
            }
        )
        self._remember(rows, item, outcome)

    def _season(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The season of the year as a column, where the service has seasons."""
        if not self.config.has_seasons:
            return {}
        return {"context_season": season_number(self.time[rows], self.config.seasons) % self.config.seasons}

    def _surface(self, rows: np.ndarray) -> np.ndarray:
        """Draw surfaces. Organic and recommended listening come in runs; a run keeps its kind, not its surface.

        A recommended run is one of discovery, or draws its surface for every event.
        """
        user, event, draws = self.user[rows], self.events[rows], self.draws
        redraw = (self.in_session[rows] == 0) | (draws.uniform(_STAY, user, event) >= self.config.mode_persistence)
        drawn = draws.uniform(_MODE, user, event) < self.propensity[rows]
        self.recommended[rows] = np.where(redraw, drawn, self.recommended[rows])
        second = draws.uniform(_SURFACE, user, event) < 0.45
        recommended = np.where(second, FEED, RADIO)
        if self.config.discovery > 0:
            unfamiliar = draws.uniform(_UNFAMILIAR, user, event) < self.config.discovery
            self.unfamiliar[rows] = np.where(redraw, unfamiliar, self.unfamiliar[rows])
            recommended = np.where(self.unfamiliar[rows] & self.past.has_new(rows), UNFAMILIAR, recommended)
        return np.where(self.recommended[rows], recommended, np.where(second, SEARCH, LIBRARY))

    def _item(self, rows: np.ndarray, source: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Draw each row's component, then an item from it."""
        user, event, draws, time = self.user[rows], self.events[rows], self.draws, self.time[rows]
        repeat = self.recent_weight[rows].copy()
        repeat[:, 0] = 0.0
        available = Available(
            repeat=(repeat > 0).any(axis=1),
            continued=(self.in_session[rows] > 0) & (self.recent_weight[rows, 0] > 0),
            past=self.past.has_likes(rows),
            season=self.past.season_likes(rows, time)[1].sum(axis=1) > 0,
        )
        weights = component_weights(self.config, source, available)
        component = choose(weights, draws.uniform(_COMPONENT, user, event))
        component[source == UNFAMILIAR] = UNFAMILIAR_COMPONENT
        last = self.recent_item[rows, 0]
        item = np.empty(len(rows), np.int64)
        for kind in np.unique(component):
            chosen = np.flatnonzero(component == kind)
            key = user[chosen], event[chosen]
            if kind == REPEAT:
                place = choose(repeat[chosen], draws.uniform(_RECENT, *key))
                item[chosen] = self.recent_item[rows[chosen], place]
            elif kind == ALBUM:
                item[chosen] = next_in_album(last[chosen], self.config.tracks)
            elif kind == ARTIST:
                item[chosen] = self._track(last[chosen] // self.config.tracks, *key)
            elif kind == LOYALTY:
                item[chosen] = self.past.draw(rows[chosen], draws.uniform(_LOYALTY, *key))
            elif kind == CYCLE:
                item[chosen] = self.past.draw_of_season(rows[chosen], time[chosen], draws.uniform(_CYCLE, *key))
            elif kind == UNFAMILIAR_COMPONENT:
                item[chosen] = self._new_item(rows[chosen], part[chosen])
            else:
                item[chosen] = self._track(self._artist(kind, rows[chosen], part[chosen]), *key)
        return item

    def _new_item(self, rows: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Draw an item that is new to the user, by the policy's estimate."""
        item = np.empty(len(rows), np.int64)
        block = max(1, NEW_AT_ONCE // self.config.items)
        for start in range(0, len(rows), block):
            some = rows[start : start + block]
            weights = item_weights(
                self.catalogue, self.estimate[some], part[start : start + block], self.config.policy_sharpness
            )
            weights *= self.past.new(some)
            uniform = self.draws.uniform(_NEW, self.user[some], self.events[some])
            item[start : start + block] = choose(weights, uniform)
        return item

    def _artist(self, kind: int, rows: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Draw a cluster and one of its artists: by taste, by the policy's estimate, or by popularity."""
        user, event, draws, catalogue = self.user[rows], self.events[rows], self.draws, self.catalogue
        if kind == POPULAR:
            by_cluster = np.broadcast_to(catalogue.cluster_weight, (len(rows), self.config.clusters))
            cluster = choose(by_cluster, draws.uniform(_POPULAR_CLUSTER, user, event))
            artist = choose(catalogue.artist_weight[cluster], draws.uniform(_POPULAR_ARTIST, user, event))
            return cluster * self.config.artists + artist
        organic = kind == TASTE
        vector = self.taste[rows] if organic else self.estimate[rows]
        sharpness = self.config.organic_sharpness if organic else self.config.policy_sharpness
        weights = cluster_weights(catalogue, vector, part, sharpness)
        cluster = choose(weights, draws.uniform(_CLUSTER, user, event))
        weights = artist_weights(catalogue, vector, cluster, sharpness)
        return cluster * self.config.artists + choose(weights, draws.uniform(_ARTIST, user, event))

    def _track(self, artist: np.ndarray, user: np.ndarray, event: np.ndarray) -> np.ndarray:
        track = choose(self.catalogue.track_weight[artist], self.draws.uniform(_TRACK, user, event))
        return artist * self.config.tracks + track

    def _outcome(self, rows: np.ndarray, model: FeedbackModel) -> dict[str, np.ndarray]:
        """Draw skip, like, dislike, full listen (bool) and the listened share in percent (int64)."""
        user, event, draws = self.user[rows], self.events[rows], self.draws
        skip = draws.uniform(_SKIP, user, event) < model.skip
        full = draws.uniform(_FULL, user, event) < model.full_if_played
        share = draws.uniform(_SHARE, user, event)
        skipped = SKIP_LOW + (SKIP_HIGH - SKIP_LOW) * share
        played = np.where(full, 1.0, PARTIAL_LOW + (1.0 - PARTIAL_LOW) * share)
        return {
            "skip": skip,
            "like": ~skip & (draws.uniform(_LIKE, user, event) < model.like_if_played),
            "dislike": skip & (draws.uniform(_DISLIKE, user, event) < model.dislike_if_skipped),
            "full": full,
            "percent": np.floor(100.0 * np.where(skip, skipped, played)).astype(np.int64),
        }

    def _remember(self, rows: np.ndarray, item: np.ndarray, outcome: dict[str, np.ndarray]) -> None:
        weight = np.where(outcome["like"], LIKED, np.where(outcome["skip"], SKIPPED, PLAYED))
        self.past.add(rows, self.time[rows], item, outcome["like"])
        self.recent_item[rows, 1:] = self.recent_item[rows, :-1]
        self.recent_weight[rows, 1:] = self.recent_weight[rows, :-1]
        self.recent_item[rows, 0], self.recent_weight[rows, 0] = item, weight
        user, event = self.user[rows], self.events[rows]
        length = 120 + np.floor(self.draws.uniform(_LENGTH, item) * 120).astype(np.int64)
        pause = 2 + np.floor(self.draws.uniform(_PAUSE, user, event) * 28).astype(np.int64)
        self.time[rows] += length * outcome["percent"] // 100 + pause
        self.events[rows] += 1
        self.in_session[rows] += 1

    def _session_ends(self, rows: np.ndarray) -> np.ndarray:
        stop = 1.0 / self.config.session_length
        drawn = self.draws.uniform(_CONTINUE, self.user[rows], self.events[rows]) < stop
        return drawn | (self.in_session[rows] >= LONGEST_SESSION)

    def _collect(self) -> Chunk:
        """The steps and sessions, each in order of (user, number)."""
        columns = {name: np.concatenate([step[name] for step in self._steps]) for name in self._steps[0]}
        order = np.argsort(columns["user"], kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        sessions = {name: np.concatenate([part[name] for part in self._sessions]) for name in self._sessions[0]}
        order = np.argsort(sessions["user"], kind="stable")
        sessions = {name: values[order] for name, values in sessions.items()}
        starts = np.searchsorted(sessions["user"], np.arange(len(self.user)))
        columns["session"] = starts[columns["user"]] + columns["session"]
        columns["user"] = columns["user"] + self.first
        return Chunk(columns, sessions)
