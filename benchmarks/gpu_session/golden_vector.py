"""Golden vectors: what an instruction is asked, how its operands are drawn, and the line that keeps the results."""

from __future__ import annotations

import base64
import ctypes
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = ("integers", "normal", "wide", "large sums")
"""Of the operands of products."""
INTEGERS = {"integers": 8, "small integers": 2}
"""The draws whose sums are exact, and their largest number."""
_REPORT_BYTES = 4096


@dataclass(frozen=True)
class Problem:
    """An instruction and its operands, as arrays by name; `settings` are its shape and layout, if it has several."""

    instruction: str
    draw: str
    operands: dict[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def name(self) -> str:
        """The problem in words."""
        settings = [f"{name} {value}" for name, value in self.settings.items()]
        return ", ".join([self.instruction, *settings, self.draw])


@dataclass(frozen=True)
class Vector:
    """A problem and the results of a device."""

    problem: Problem
    result: np.ndarray

    def as_values(self) -> dict[str, Any]:
        """The vector in the form of a line of results."""
        asked = self.problem
        operands = {name: _packed(array) for name, array in asked.operands.items()}
        return {
            "instruction": asked.instruction, "draw": asked.draw, "settings": dict(asked.settings),
            "operands": operands, "result": _packed(self.result),
        }  # fmt: skip

    @classmethod
    def of(cls, line: dict[str, Any]) -> Vector:
        """The vector of a line."""
        operands = {name: _unpacked(packed) for name, packed in line["operands"].items()}
        return cls(Problem(line["instruction"], line["draw"], operands, line["settings"]), _unpacked(line["result"]))


def _packed(array: np.ndarray) -> dict[str, Any]:
    # Integers and boxes that overlap take a third of their bytes.
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "zlib": content}


def _unpacked(packed: dict[str, Any]) -> np.ndarray:
    content = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib"])), dtype=packed["dtype"])
    return content.reshape(packed["shape"])


def numbers(draw: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Factors of products, by the name of their draw."""
    if draw in INTEGERS:
        largest = INTEGERS[draw]
        return random.integers(-largest, largest + 1, shape).astype(np.float64)
    drawn = random.standard_normal(shape)
    # Terms of very different sizes show how much of the small ones partial sums keep.
    return drawn * 2.0 ** random.integers(-7, 7, shape) if draw == "wide" else drawn


def sums(draw: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """What products are added to, in float32."""
    scale = 1e4 if draw == "large sums" else 1.0
    return (scale * numbers(draw, shape, random)).astype(np.float32)


def call(library: Path, function: str, *arguments: Any) -> None:
    """Calls a function of a library of golden vectors.

    Raises:
        RuntimeError: the launch failed, with its report.
    """
    report = ctypes.create_string_buffer(_REPORT_BYTES)
    getattr(_loaded(str(library)), function)(*arguments, report, ctypes.c_size_t(_REPORT_BYTES))
    if report.value:
        raise RuntimeError(report.value.decode())


@cache
def _loaded(library: str) -> ctypes.CDLL:
    return ctypes.CDLL(library)
