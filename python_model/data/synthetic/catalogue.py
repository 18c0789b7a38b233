"""The catalogue of the synthetic service: clusters of artists, artists with an album of tracks, vectors, quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from python_model.data.synthetic.arithmetic import Draws
from python_model.data.synthetic.config import SyntheticConfig

_CENTRE, _ARTIST, _TRACK, _QUALITY, _CLUSTER_RANK, _ARTIST_RANK, _TRACK_RANK, _DAY_PART = range(100, 108)
DAY_PARTS = 4


@dataclass(frozen=True)
class Catalogue:
    """C clusters of A artists of P tracks; item = (cluster * A + artist) * P + track. All float64.

    centres [C, D], artists [C, A, D], tracks [V, D]: taste vectors; quality [V].
    cluster_weight [C], artist_weight [C, A], track_weight [C * A, P]: popularity, heavy-tailed at every level.
    day_part [4, C]: how much a part of the day favours a cluster, in logits.
    """

    centres: np.ndarray
    artists: np.ndarray
    tracks: np.ndarray
    quality: np.ndarray
    cluster_weight: np.ndarray
    artist_weight: np.ndarray
    track_weight: np.ndarray
    day_part: np.ndarray

    @property
    def popularity(self) -> np.ndarray:
        """[V]: the share of plays of each item when items are chosen by popularity alone."""
        cluster = self.cluster_weight / self.cluster_weight.sum()
        artist = cluster[:, None] * self.artist_weight / self.artist_weight.sum(axis=1, keepdims=True)
        return (artist.reshape(-1, 1) * self.track_share).reshape(-1)

    @property
    def track_share(self) -> np.ndarray:
        """[C * A, P]: the share of an artist's plays that each track gets."""
        return self.track_weight / self.track_weight.sum(axis=1, keepdims=True)


def build_catalogue(config: SyntheticConfig) -> Catalogue:
    """Build the catalogue, a function of the seed and of its sizes."""
    draws = Draws(config.seed)
    c, a, p, d = config.clusters, config.artists, config.tracks, config.dimensions
    dims = np.arange(d)
    centres = draws.normal(_CENTRE, np.arange(c)[:, None], dims)
    own = draws.normal(_ARTIST, np.arange(c * a)[:, None], dims).reshape(c, a, d)
    artists = 0.85 * centres[:, None, :] + 0.55 * own
    own = draws.normal(_TRACK, np.arange(c * a * p)[:, None], dims).reshape(-1, p, d)
    tracks = artists.reshape(c * a, 1, d) + 0.4 * own
    track_rank = draws.permutation(_TRACK_RANK, c * a, p)
    # An artist's better tracks are the more popular ones, but only on average.
    quality = 0.5 * draws.normal(_QUALITY, np.arange(c * a * p)) + 0.3 * (0.5 - track_rank.reshape(-1) / p)
    return Catalogue(
        centres=centres,
        artists=artists,
        tracks=tracks.reshape(-1, d),
        quality=quality,
        cluster_weight=1.0 / (draws.permutation(_CLUSTER_RANK, 1, c)[0] + 2.0),
        artist_weight=1.0 / (draws.permutation(_ARTIST_RANK, c, a) + 1.0),
        track_weight=1.0 / (track_rank + 1.0),
        day_part=0.5 * draws.normal(_DAY_PART, np.arange(DAY_PARTS)[:, None], np.arange(c)),
    )
