"""Settings of the synthetic music service and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SOURCES = ("library", "search", "radio", "feed")
DEVICES = ("phone", "speaker", "desktop")
LIBRARY, SEARCH, RADIO, FEED = range(4)
COMPONENTS = ("repeat", "album", "artist", "taste", "estimate", "popular")
REPEAT, ALBUM, ARTIST, TASTE, ESTIMATE, POPULAR = range(6)

# How often each surface takes its next track from each component (rows: SOURCES, columns: COMPONENTS).
SURFACES = (
    (0.55, 0.15, 0.10, 0.20, 0.00, 0.00),
    (0.05, 0.45, 0.20, 0.30, 0.00, 0.00),
    (0.00, 0.00, 0.20, 0.00, 0.70, 0.10),
    (0.00, 0.00, 0.00, 0.00, 0.55, 0.45),
)


@dataclass(frozen=True)
class SyntheticConfig:
    """Everything that decides what the service generates; equal settings give equal bytes.

    users and events_per_user are the size (events_per_user is a mean); clusters x artists x tracks is the catalogue.
    The rest are parameters of the model, whose equations are in docs/data.md. expectation is what users have got used
    to: a larger catalogue serves a taste better, and it is raised to keep skips and listened shares where they are.
    """

    users: int = 2000
    events_per_user: float = 150.0
    days: int = 60
    clusters: int = 16
    artists: int = 8
    tracks: int = 8
    dimensions: int = 8
    seed: int = 0
    recommended_share: float = 0.44
    session_length: float = 9.0
    mode_persistence: float = 0.85
    drift: float = 0.92
    organic_sharpness: float = 2.4
    policy_sharpness: float = 1.8
    policy_noise: float = 0.6
    expectation: float = 0.0
    recent: int = 10

    def __post_init__(self) -> None:
        for name in ("users", "days", "clusters", "artists", "tracks", "dimensions", "recent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("recommended_share", "mode_persistence", "drift"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a value in [0, 1), found {getattr(self, name)}")
        if self.recent < 2:
            raise ValueError(f"recent: expected at least 2, found {self.recent}")
        if not 1 <= self.session_length <= 20:
            raise ValueError(f"session_length: expected a value in [1, 20], found {self.session_length}")
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

    def to_params(self) -> dict[str, Any]:
        """For `DatasetInfo.params`."""
        return asdict(self)

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
}


def preset(name: str, **changes: Any) -> SyntheticConfig:
    """A preset with some settings changed; ValueError for an unknown preset or setting."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    known = {f.name for f in fields(SyntheticConfig)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return replace(PRESETS[name], **changes)
