"""Random numbers and functions that give the same bits on every machine, for any chunking of the users.

Draws are hashes of (seed, stream, keys), so a user's numbers depend on no other user. Everything uses only operations
that IEEE 754 defines to the last bit (+, -, *, /, comparison, rounding) in a fixed order: library exponentials, matrix
products and pairwise sums differ between machines and array shapes in the last bit, and one different bit can change
a chosen item.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93145751953125e-1, 1.42860682030941723212e-6
_FACTORIALS = (479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2)
_EXP_COEFFICIENTS = tuple(1.0 / factorial for factorial in _FACTORIALS)
# Four 16-bit digits: mean 4 * 65535 / 2, variance 4 * (2^32 - 1) / 12.
_NORMAL_MEAN, _NORMAL_SCALE = 131070.0, 1.0 / 37837.22706418044


def mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), elementwise on uint64."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX2
    return bits ^ (bits >> np.uint64(31))


class Draws:
    """Counter-based random numbers: each is a function of (seed, stream, keys) alone.

    Keys are non-negative integers or integer arrays, broadcast against each other.
    """

    def __init__(self, seed: int) -> None:
        self._seed = mix(np.array([seed % (1 << 64)], np.uint64) + _GOLDEN)[0]

    def bits(self, stream: int, *keys: np.ndarray | int) -> np.ndarray:
        """uint64 of the keys' common shape."""
        state = np.atleast_1d(np.uint64(stream)) * _GOLDEN + self._seed
        for key in keys:
            state = mix(state + (np.asarray(key).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return state

    def uniform(self, stream: int, *keys: np.ndarray | int) -> np.ndarray:
        """float64 in [0, 1)."""
        return (self.bits(stream, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, stream: int, *keys: np.ndarray | int) -> np.ndarray:
        """float64 of mean 0 and variance 1: a sum of four uniform digits, close to normal, within +-3.47."""
        bits = self.bits(stream, *keys)
        total = np.zeros(bits.shape, np.uint64)
        for shift in (0, 16, 32, 48):
            total += (bits >> np.uint64(shift)) & np.uint64(0xFFFF)
        return (total.astype(np.float64) - _NORMAL_MEAN) * _NORMAL_SCALE

    def permutation(self, stream: int, rows: int, length: int) -> np.ndarray:
        """int64 [rows, length]: a random order of 0 .. length - 1 in every row."""
        bits = self.bits(stream, np.arange(rows)[:, None], np.arange(length)[None, :])
        return np.argsort(bits, axis=1, kind="stable")


def exp(x: np.ndarray) -> np.ndarray:
    """e^x in float64 to about 1 ulp, |x| clipped at 600: range reduction and a Taylor polynomial."""
    x = np.clip(x, -600.0, 600.0)
    power = np.rint(x * _LOG2_E)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    value = np.full_like(rest, _EXP_COEFFICIENTS[0])
    for coefficient in (*_EXP_COEFFICIENTS[1:], 1.0, 1.0):
        value *= rest
        value += coefficient
    return np.ldexp(value, power.astype(np.int32))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + exp(-x))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over the last axis of a * b (broadcast), added from first to last."""
    total = a[..., 0] * b[..., 0]
    for d in range(1, a.shape[-1]):
        total += a[..., d] * b[..., d]
    return total


def choose(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """int64 [n]: one index a row of weights [n, k] (not negative, unnormalised, not all zero), by uniform [n]."""
    cumulative = np.cumsum(weights, axis=-1)
    chosen = (cumulative <= (uniform * cumulative[..., -1])[..., None]).sum(axis=-1)
    # Rounding may carry uniform * total up to the total: fall back on the last index that has weight.
    last = weights.shape[-1] - 1 - np.argmax(weights[..., ::-1] > 0, axis=-1)
    return np.minimum(chosen, last)
