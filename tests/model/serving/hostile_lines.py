"""Request lines as no client should send them, and right ones among them: seeded, for tests of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from python_model.config import FeatureSpec

START = 1_700_000_000
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 5, 64, 10**8, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**39, 0.0, 1.0, -0.5,
    1e308, "", "5", "٥", "²", "--5", "05", " 5", "5.0", "true", "false", "null", "NaN", "u", "\x00", "\ud800", "😀",
    "a" * 1024, "b" * 1025, [], [1], [[]], {}, {"like": 1}, {"like": True}, {"like": 2}, {"like": -1}, {"no such": 1},
    {"": 0}, START, START * 1000, -START, 4_102_444_801, "pair", "next_item",
]  # fmt: skip
LITERALS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 41, b"-", b"01", b"+1", b"0x1", b"1.", b".5", b"'a'", b"\xff",
    b"[" * 100, b"{" * 100, b'"\\u12"', b'"\\x"', b"", b"tru", b"//", b"1 2",
]  # fmt: skip
KEYS = [
    "user", "item", "time", "organic", "context", "feedback", "amend", "k", "exclude_seen", "vectors", "score", "now",
    "song", "", "User", "user ", "user\u0000",
]  # fmt: skip


class LineMaker:
    """Lines for a model: about half of them right, the others mutated ones or noise."""

    def __init__(self, seed: int, features: FeatureSpec) -> None:
        self._random = np.random.default_rng(seed)
        self._features, self._time = features, START
        self._labels = {name: component.classes for name, component in features.feedback.items()}
        self._users: list[Any] = [0, 1, 2, "3", 4, "u", "v", "weiß", 10**12]

    def lines(self, count: int) -> Iterator[bytes]:
        """So many lines without their ends."""
        for _ in range(count):
            line = self._line()
            yield line.replace(b"\n", b" ")

    def _line(self) -> bytes:
        request = self._request()
        chance = self._random.random()
        if chance < 0.45:
            return json.dumps(request, ensure_ascii=bool(self._random.random() < 0.5)).encode()
        if chance < 0.75:
            return self._with_other_values(request)
        if chance < 0.95:
            return self._with_other_bytes(json.dumps(request).encode())
        return self._noise()

    def _request(self) -> dict[str, Any]:
        random = self._random
        found: dict[str, Any] = {"user": self._pick(self._users)}
        kind = random.random()
        if kind < 0.5:
            self._time += int(random.integers(0, 5000))
            found |= {"item": int(random.integers(0, self._features.items + 3)), "time": self._time}
            found |= {"organic": bool(random.random() < 0.5), "feedback": self._values(self._labels)}
            found["context"] = self._values(self._features.context)
        elif kind < 0.65:
            found |= {"amend": int(random.integers(0, 40)), "feedback": self._values(self._labels)}
        if random.random() < 0.4:
            found |= {"k": int(random.integers(1, 8)), "exclude_seen": bool(random.random() < 0.5)}
            if random.random() < 0.5:
                found |= {"now": self._time + 100, "score": self._pick(["pair", "next_item"])}
        if random.random() < 0.1:
            found["vectors"] = True
        return found

    def _values(self, counts: Mapping[str, int]) -> dict[str, int]:
        kept = [name for name in counts if self._random.random() < 0.7]
        return {name: int(self._random.integers(-1, counts[name])) for name in kept}

    def _with_other_values(self, request: dict[str, Any]) -> bytes:
        for _ in range(int(self._random.integers(1, 3))):
            kind = self._random.random()
            name = self._pick(list(request)) if kind < 0.6 and request else self._pick(KEYS)
            if kind < 0.9:
                request[name] = self._pick(VALUES)
            else:
                request.pop(name, None)
        content = json.dumps(request).encode()
        if self._random.random() < 0.2:
            literal = self._pick(LITERALS)
            name = self._pick(KEYS)
            content = content.rstrip(b"}") + b', "' + name.encode() + b'": ' + literal + b"}"
        return content

    def _with_other_bytes(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(int(self._random.integers(1, 4))):
            place = int(self._random.integers(0, len(changed) + 1))
            kind = self._random.random()
            if kind < 0.4 and place < len(changed):
                changed[place] ^= 1 << int(self._random.integers(0, 8))
            elif kind < 0.6:
                del changed[place : place + int(self._random.integers(1, 9))]
            elif kind < 0.8:
                changed[place:place] = self._random.bytes(int(self._random.integers(1, 9)))
            else:
                changed[place:place] = self._pick(LITERALS)
        return bytes(changed)

    def _noise(self) -> bytes:
        kind = int(self._random.integers(0, 5))
        length = int(self._random.integers(0, 3000))
        nested = [b"[" * length, b'{"user":' * (length // 8), b"[" * length + b"]" * length]
        return [self._random.bytes(length), *nested, b" " * length][kind]

    def _pick(self, values: list[Any]) -> Any:
        return values[int(self._random.integers(0, len(values)))]
