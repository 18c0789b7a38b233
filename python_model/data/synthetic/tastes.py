"""The tastes of users over their sessions: what they are made of, and what past sessions say about the current one.

A taste is a sum of independent normal vectors, each with its share of the variance:

    lasting · (BASE base_u + SLOW slow_us + MOOD mood_us) + seasonality season_u,k + weekday_tastes weekday_u,d
    + hour_tastes hour_u,p

with k the season of the year, d the day of the week and p the part of the day in which the session begins. So the
tastes of a user are a Gaussian process whose dimensions are independent and alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from python_model.data.synthetic.arithmetic import Draws
from python_model.data.synthetic.behaviour import day_part
from python_model.data.synthetic.config import DAY, YEAR, SyntheticConfig

START = 1_704_067_200  # Monday, 1 January 2024, 00:00 UTC
BASE, SLOW, MOOD = 0.5, 0.25, 0.25
"""Shares of the lasting variance."""
# Streams of `Draws`; `simulation` has those below.
_SEASON, _WEEKDAY, _HOUR = 40, 41, 42


def season_number(time: np.ndarray, seasons: int) -> np.ndarray:
    """int64: seasons since the start of the calendar; modulo `seasons` it is the season of the year."""
    return (np.asarray(time, np.int64) - START) * seasons // YEAR


@dataclass(frozen=True)
class Calendar:
    """When sessions begin: season of the year, day of the week and part of the day, int64 [S] each."""

    season: np.ndarray
    weekday: np.ndarray
    part: np.ndarray

    @classmethod
    def of(cls, time: np.ndarray, config: SyntheticConfig) -> Calendar:
        """Of sessions that begin at `time` [S] in seconds."""
        since = np.asarray(time, np.int64) - START
        season = season_number(time, config.seasons) % config.seasons
        return cls(season, since // DAY % 7, day_part(since // 3600 % 24))

    def at(self, sessions: np.ndarray | slice) -> Calendar:
        """Of some of the sessions."""
        return Calendar(self.season[sessions], self.weekday[sessions], self.part[sessions])


def returning(config: SyntheticConfig, draws: Draws, user: np.ndarray, calendar: Calendar) -> np.ndarray:
    """The part [S, D] of tastes that season, weekday and hour bring back, of users [S]."""
    dims = np.arange(config.dimensions)
    total = np.zeros((len(user), config.dimensions))
    for stream, share, key in (
        (_SEASON, config.seasonality, calendar.season),
        (_WEEKDAY, config.weekday_tastes, calendar.weekday),
        (_HOUR, config.hour_tastes, calendar.part),
    ):
        if share > 0:
            total += np.sqrt(share) * draws.normal(stream, user[:, None], key[:, None], dims)
    return total


def covariance(config: SyntheticConfig, session: np.ndarray, calendar: Calendar) -> np.ndarray:
    """[S, S]: covariance of one dimension of a user's tastes in sessions [S], by their numbers and beginnings."""

    def same(key: np.ndarray) -> np.ndarray:
        return (key[:, None] == key).astype(np.float64)

    distance = np.abs(session[:, None] - session)
    lasting = BASE + SLOW * config.drift**distance + MOOD * np.eye(len(session))
    return (
        config.lasting_share * lasting + config.seasonality * same(calendar.season)
        + config.weekday_tastes * same(calendar.weekday) + config.hour_tastes * same(calendar.part)
    )  # fmt: skip


def expected_taste(config: SyntheticConfig, tastes: np.ndarray, session: np.ndarray, calendar: Calendar) -> np.ndarray:
    """[D]: mean of the taste in the last of sessions [S + 1], given the tastes [S, D] of all before it."""
    known = len(tastes)
    if known == 0:
        return np.zeros(tastes.shape[1])
    all_ = covariance(config, session, calendar)
    weights: np.ndarray = np.linalg.solve(all_[:known, :known], all_[:known, known])
    return weights @ tastes
