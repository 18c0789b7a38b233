"""Settings of the synthetic music service and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from python_model.io.settings import Between, OneOf, checked, checked_settings

SOURCES = ("library", "search", "radio", "feed")
DEVICES = ("phone", "speaker", "desktop")
LIBRARY, SEARCH, RADIO, FEED = range(4)
UNFAMILIAR = 4
"""The surface of discovery, which only services with `discovery` have."""
COMPONENTS = ("repeat", "album", "artist", "taste", "estimate", "popular", "loyalty", "cycle")
REPEAT, ALBUM, ARTIST, TASTE, ESTIMATE, POPULAR, LOYALTY, CYCLE = range(8)

# How often each surface takes its next track from each component (rows: SOURCES and UNFAMILIAR, columns: COMPONENTS);
# `loyalty` and `cycles` take their shares from all components of the organic surfaces.
SURFACES = (
    (0.55, 0.15, 0.10, 0.20, 0.00, 0.00, 0.00, 0.00),
    (0.05, 0.45, 0.20, 0.30, 0.00, 0.00, 0.00, 0.00),
    (0.00, 0.00, 0.20, 0.00, 0.70, 0.10, 0.00, 0.00),
    (0.00, 0.00, 0.00, 0.00, 0.55, 0.45, 0.00, 0.00),
    (0.00, 0.00, 0.00, 0.00, 1.00, 0.00, 0.00, 0.00),
)
DAY = 86_400
YEAR = 31_557_600
"""Seconds of 365.25 days."""

MAX_NUMBERS = 1 << 28
"""Largest number of values in the vectors of the catalogue: 2 GiB."""
_Count = Annotated[int, Between(1, 10_000_000)]
_Share = Annotated[float, Between(0, 1, below=True)]
_Part = Annotated[float, Between(0, 1)]
_Strength = Annotated[float, Between(0, 1000)]
MEMORY = ("seasonality", "weekday_tastes", "hour_tastes", "seasons", "cycles", "loyalty", "discovery")
"""Settings of what a long history is worth; a data set records those that are not at their defaults."""


@dataclass(frozen=True)
class SyntheticConfig:
    """All settings of the service; equal settings give equal bytes.

    docs/data.md has the equations in which the parameters occur.

    users: how many. events_per_user: mean number of events of a user. days: length of the calendar, from 2024 on.
    clusters: of artists. artists: in a cluster. tracks: of an artist; the catalogue has clusters x artists x tracks.
    dimensions: of the vectors of taste. seed: of everything that is drawn. recommended_share: share of events that the
    recommender chose. session_length: mean number of events of a session. mode_persistence: probability that a run of
    organic or of recommended listening goes on. drift: how much of a slow taste stays from session to session.
    organic_sharpness: of the choices by taste. policy_sharpness: of the choices by the recommender's estimate.
    policy_noise: error of that estimate. expectation: subtracted from every user's pull; raised for a larger catalogue,
    which serves a taste better, to keep skips and listened shares constant. recent: tracks that a user may repeat.

    What a long history is worth, all off by default:
    seasonality, weekday_tastes, hour_tastes: shares of a taste's variance that belong to the user's season of the year,
    day of the week and part of the day, and return with them. seasons: of a year. cycles: share of the organic events
    that repeat an event that the user liked in the same season of an earlier year. loyalty: share of the organic events
    that repeat any event that the user ever liked. discovery: share of the recommended runs in which only items new to
    the user are recommended (the surface "unfamiliar").
    """

    users: Annotated[int, Between(1, 2**31 - 1)] = 2000
    events_per_user: Annotated[float, Between(1, 1_000_000)] = 150.0
    days: Annotated[int, Between(1, 10_000)] = 60
    clusters: _Count = 16
    artists: _Count = 8
    tracks: _Count = 8
    dimensions: Annotated[int, Between(1, 1024)] = 8
    seed: int = 0
    recommended_share: _Share = 0.44
    session_length: Annotated[float, Between(1, 20)] = 9.0
    mode_persistence: _Share = 0.85
    drift: _Share = 0.92
    organic_sharpness: _Strength = 2.4
    policy_sharpness: _Strength = 1.8
    policy_noise: _Strength = 0.6
    expectation: Annotated[float, Between(-1000, 1000)] = 0.0
    recent: Annotated[int, Between(2, 1000)] = 10
    seasonality: _Part = 0.0
    weekday_tastes: _Part = 0.0
    hour_tastes: _Part = 0.0
    seasons: Annotated[int, Between(2, 366)] = 12
    cycles: _Part = 0.0
    loyalty: _Part = 0.0
    discovery: _Part = 0.0

    def __post_init__(self) -> None:
        for name, value in checked_settings(SyntheticConfig, asdict(self), "the synthetic service").items():
            object.__setattr__(self, name, value)
        if self.items < 2:
            raise ValueError("clusters, artists, tracks: expected a catalogue of at least 2 items, found 1")
        if self.items * self.dimensions > MAX_NUMBERS:
            raise ValueError(
                f"clusters, artists, tracks: expected at most {MAX_NUMBERS // self.dimensions:,} items of "
                f"{self.dimensions} dimensions, found {self.items:,}"
            )
        for names in (("seasonality", "weekday_tastes", "hour_tastes"), ("cycles", "loyalty")):
            total = sum(getattr(self, name) for name in names)
            if total > 1 + 1e-9:
                raise ValueError(f"{', '.join(names)}: expected shares that add up to at most 1, found {total:.4g}")
        if self.mean_gap < 1:
            most = self.slots * self.session_length
            raise ValueError(
                f"events_per_user: {self.events_per_user} do not fit into {self.days} days of 3 sessions (under {most})"
            )

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return self.clusters * self.artists * self.tracks

    @property
    def slots(self) -> int:
        """Points in time at which a session may start: morning, afternoon and evening of every day."""
        return 3 * self.days

    @property
    def mean_gap(self) -> float:
        """Mean number of slots between two sessions of a user."""
        # 1.06 is the mean of 1 / x for the users' own rates x in [0.6, 1.4].
        return 1.06 * self.slots * self.session_length / self.events_per_user

    @property
    def lasting_share(self) -> float:
        """Share of a taste's variance that no season, weekday or hour brings back."""
        # Shares such as .9 and .1 leave less than nothing in floating point.
        return max(0.0, 1.0 - self.seasonality - self.weekday_tastes - self.hour_tastes)

    @property
    def first_choice_share(self) -> float:
        """Share of the organic events that neither loyalty nor cycles repeat."""
        return max(0.0, 1.0 - self.loyalty - self.cycles)

    @property
    def has_seasons(self) -> bool:
        """Whether the season of the year changes what users choose; it is then a context of every event."""
        return self.seasonality > 0 or self.cycles > 0

    @property
    def sources(self) -> tuple[str, ...]:
        """The surfaces, in order of their numbers in the context `source`."""
        return (*SOURCES, "unfamiliar") if self.discovery > 0 else SOURCES

    def to_params(self) -> dict[str, Any]:
        """For `DatasetInfo.params`."""
        off = {f.name: f.default for f in fields(self) if f.name in MEMORY}
        return {name: value for name, value in asdict(self).items() if name not in off or value != off[name]}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> SyntheticConfig:
        """Back from `DatasetInfo.params`; other keys there are left alone."""
        return cls(**{f.name: params[f.name] for f in fields(cls) if f.name in params})


PRESETS = {
    "demo": SyntheticConfig(),
    "small": SyntheticConfig(users=200, events_per_user=80.0, days=30, clusters=8, artists=5, tracks=5),
    "large": SyntheticConfig(
        users=100_000, events_per_user=500.0, days=365, clusters=100, artists=50, tracks=20, expectation=0.2
    ),
    "years": SyntheticConfig(
        users=120,
        events_per_user=8192.0,
        days=2192,
        clusters=32,
        dimensions=16,
        expectation=-0.1,
        seasonality=0.4,
        weekday_tastes=0.05,
        hour_tastes=0.05,
        seasons=24,
        cycles=0.4,
        loyalty=0.3,
        discovery=0.1,
    ),
}


def preset(name: str, **changes: Any) -> SyntheticConfig:
    """A preset with some settings changed; ValueError for an unknown preset or setting."""
    checked(Annotated[str, OneOf(tuple(PRESETS))], "preset", name)
    return replace(PRESETS[name], **checked_settings(SyntheticConfig, changes, "the synthetic service"))
