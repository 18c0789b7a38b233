"""The model of choice and feedback: the simulation draws from it, the oracle evaluates it.

A next track comes from one of eight components (COMPONENTS); `component_weights` says how likely each is on a surface,
the other functions give each component's distribution. `feedback` gives the probabilities of what the user then does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from python_model.data.synthetic.arithmetic import dot, exp, sigmoid
from python_model.data.synthetic.catalogue import Catalogue
from python_model.data.synthetic.config import (
    ALBUM,
    ARTIST,
    CYCLE,
    ESTIMATE,
    LOYALTY,
    RADIO,
    REPEAT,
    SURFACES,
    TASTE,
    SyntheticConfig,
)

DEVICE_EFFECT = np.array([0.0, 0.35, -0.15])
LIKED, SKIPPED, PLAYED = 4.0, 0.0, 1.0
PARTIAL_LOW, SKIP_LOW, SKIP_HIGH = 0.30, 0.02, 0.30
SHARE_EDGES = np.array([0.2, 0.4, 0.6, 0.8])
GRADES = "impressions only: 0 dislike, 1 skip, 2 listened in part, 3 listened to the end, 4 like; -1 for organic events"
_SURFACES = np.array(SURFACES)


def day_part(hour: np.ndarray) -> np.ndarray:
    """Night, morning, afternoon, evening: 6 hours each."""
    return hour // 6


@dataclass(frozen=True)
class Available:
    """Bool [n] each: whether there is a track to repeat, a track to continue, a past and a season of earlier years.

    A session can be continued where its last track was not skipped.
    """

    repeat: np.ndarray
    continued: np.ndarray
    past: np.ndarray
    season: np.ndarray


def component_weights(config: SyntheticConfig, source: np.ndarray, available: Available) -> np.ndarray:
    """[n, 8]: probability of each component on surface source [n].

    The share of an unavailable component goes to the user's taste on organic surfaces, to the policy's estimate on the
    others.
    """
    weights = _SURFACES[source]
    organic = source < RADIO
    weights[organic] *= config.first_choice_share
    weights[organic, LOYALTY], weights[organic, CYCLE] = config.loyalty, config.cycles
    fallback = np.where(organic, TASTE, ESTIMATE)
    rows = np.arange(len(source))
    continued = available.continued
    for component, possible in (
        (REPEAT, available.repeat), (ALBUM, continued), (ARTIST, continued), (LOYALTY, available.past),
        (CYCLE, available.season),
    ):  # fmt: skip
        lost = np.where(possible, 0.0, weights[:, component])
        weights[:, component] -= lost
        weights[rows, fallback] += lost
    return weights


def cluster_weights(catalogue: Catalogue, taste: np.ndarray, part: np.ndarray, sharpness: float) -> np.ndarray:
    """[n, C], unnormalised: popularity x e^(sharpness * <taste, centre> / sqrt(D) + day part)."""
    scale = sharpness / np.sqrt(taste.shape[-1])
    affinity = dot(taste[:, None, :], catalogue.centres[None])
    return catalogue.cluster_weight * exp(scale * affinity + catalogue.day_part[part])


def artist_weights(catalogue: Catalogue, taste: np.ndarray, cluster: np.ndarray, sharpness: float) -> np.ndarray:
    """[n, A], unnormalised, the artists of cluster [n]."""
    scale = sharpness / np.sqrt(taste.shape[-1])
    affinity = dot(taste[:, None, :], catalogue.artists[cluster])
    return catalogue.artist_weight[cluster] * exp(scale * affinity)


def item_weights(catalogue: Catalogue, vector: np.ndarray, part: np.ndarray, sharpness: float) -> np.ndarray:
    """[n, V]: probabilities of items drawn by a taste vector [n, D]: cluster, then artist, then track.

    Sums run from first to last, so a row does not depend on how many there are.
    """
    clusters, artists, _ = catalogue.artists.shape
    cluster = cluster_weights(catalogue, vector, part, sharpness)
    cluster /= np.cumsum(cluster, axis=1)[:, -1:]
    by_artist = np.empty((len(vector), clusters, artists))
    for c in range(clusters):
        weights = artist_weights(catalogue, vector, np.full(len(vector), c), sharpness)
        by_artist[:, c] = cluster[:, [c]] * weights / np.cumsum(weights, axis=1)[:, -1:]
    shares = by_artist.reshape(len(vector), clusters * artists, 1) * catalogue.track_share
    return shares.reshape(len(vector), len(catalogue.tracks))


def next_in_album(item: np.ndarray, tracks: int) -> np.ndarray:
    """The track after `item` in its album; the first track follows the last."""
    return item - item % tracks + (item % tracks + 1) % tracks


@dataclass(frozen=True)
class FeedbackModel:
    """Probabilities [n] of what the user does; like and dislike are unconditional."""

    skip: np.ndarray
    like: np.ndarray
    dislike: np.ndarray
    like_if_played: np.ndarray
    dislike_if_skipped: np.ndarray
    full_if_played: np.ndarray

    @property
    def utility(self) -> np.ndarray:
        """Expected grade (GRADES): the best possible score for ranking by grade."""
        played = self.like_if_played * 4.0 + (1.0 - self.like_if_played) * (2.0 + self.full_if_played)
        return (1.0 - self.skip) * played + self.skip * (1.0 - self.dislike_if_skipped)


def feedback(
    catalogue: Catalogue,
    taste: np.ndarray,
    item: np.ndarray,
    organic: np.ndarray,
    device: np.ndarray,
    leniency: np.ndarray,
    plays: np.ndarray,
    expectation: float,
) -> FeedbackModel:
    """Feedback of users (taste [n, D], leniency [n]) to item [n] on device [n]; organic [n] bool; recent plays [n]."""
    affinity = dot(taste, catalogue.tracks[item]) / np.sqrt(taste.shape[-1]) + catalogue.quality[item]
    pull = affinity + DEVICE_EFFECT[device] + 0.4 * leniency - 0.25 * plays + 0.25 * organic - expectation
    skip = sigmoid(0.65 - 2.1 * pull)
    like_if_played = sigmoid(2.0 * pull - 5.4)
    dislike_if_skipped = sigmoid(-1.4 - 1.0 * pull)
    return FeedbackModel(
        skip=skip,
        like=(1.0 - skip) * like_if_played,
        dislike=skip * dislike_if_skipped,
        like_if_played=like_if_played,
        dislike_if_skipped=dislike_if_skipped,
        full_if_played=sigmoid(1.4 * pull - 0.4),
    )


def share_probabilities(skip: np.ndarray, full_if_played: np.ndarray) -> np.ndarray:
    """[n, 5]: probability of each bin of the listened share (edges SHARE_EDGES)."""
    edges = np.concatenate([[0.0], SHARE_EDGES, [1.0]])

    def uniform_bins(low: float, high: float) -> np.ndarray:
        return np.diff(np.clip((edges - low) / (high - low), 0.0, 1.0))

    partial = (1.0 - skip) * (1.0 - full_if_played)
    bins = skip[:, None] * uniform_bins(SKIP_LOW, SKIP_HIGH) + partial[:, None] * uniform_bins(PARTIAL_LOW, 1.0)
    bins[:, -1] += (1.0 - skip) * full_if_played
    return bins
