"""The results of a session: a file of lines that any process appends to and that stays readable after a kill.

A line is one JSON object with a `kind`, written by one call of write(2) on a file opened for appending, with a newline
before and after it: a line that a kill cut short does not damage the next one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "results.jsonl"

Line = dict[str, Any]
_NUMBER, _OPTIONAL_NUMBER = (int, float), (int, float, type(None))
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "session": {"seconds": _NUMBER, "device": str, "rehearse": bool},
    "libraries": {"reasons": dict},
    "machine": {
        "machine": dict, "versions": dict, "commit": str, "copy_bytes_per_second": _NUMBER, "flops_per_second": dict,
    },
    "step_started": {"step": str, "budget": _NUMBER},
    "step": {"step": str, "outcome": str, "seconds": _NUMBER, "budget": _NUMBER, "tasks": dict},
    "task": {"step": str, "task": str, "outcome": str},
    "left_out": {"step": str, "what": str, "reason": str},
    "verdict": {"op": str, "backend": str, "case": str, "dtype": str, "outcome": str},
    "fault": {"op": str, "backend": str, "case": str, "dtype": str, "reason": str},
    "record": {"record": dict},
    "trial": {
        "kernel": str, "case": str, "index": int, "config": dict, "keys": list, "ms": _OPTIONAL_NUMBER,
        "dropped": (str, type(None)),
    },
    "record_of_kernels": {"kernels": str, "record": dict},
    "golden": {"instruction": str, "draw": str, "settings": dict, "operands": dict, "result": dict},
    "sanitizer": {"op": str, "check": str, "exit_status": int, "summary": (str, type(None)), "errors": list},
    "profiled": {"op": str, "backend": str, "case": str, "kernel": str, "metrics": dict},
    "training": {"preset": str, "backend": str, "precision": str, "ms": (dict, type(None))},
}  # fmt: skip
"""What readers take from the lines of a kind, and its JSON type; a line without it counts as damaged."""


def append(folder: Path, kind: str, **values: Any) -> None:
    """Adds a line; numbers that are not finite become their names.

    Raises:
        OSError: the line was not written as a whole (for example, the disk is full).
    """
    text = json.dumps(_finite({"kind": kind, "at": round(time.time(), 3), **values}), allow_nan=False)
    content = f"\n{text}\n".encode()
    descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, content)
    finally:
        os.close(descriptor)
    if written != len(content):
        raise OSError(f"{folder / FILE}: {written} of {len(content)} bytes of a line were written")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


@dataclass
class Lines:
    """The contents of a file of results: its whole lines in order, and the number of cut lines."""

    whole: list[Line] = field(default_factory=list)
    damaged: int = 0

    def of(self, kind: str) -> Iterator[Line]:
        """The whole lines of a kind."""
        return (line for line in self.whole if line["kind"] == kind)


def read(folder: Path) -> Lines:
    """The lines of a session's folder; lines that were cut short are counted.

    Raises:
        ValueError: the folder holds no results.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no results of a session, expected {FILE} in it")
    found = Lines()
    for content in path.read_bytes().split(b"\n"):
        if not content.strip():
            continue
        try:
            line = json.loads(content)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and isinstance(line.get("kind"), str) and _has_fields(line):
            found.whole.append(line)
        else:
            found.damaged += 1
    return found


def _has_fields(line: Line) -> bool:
    wanted = FIELDS.get(line["kind"], {})
    return all(name in line and isinstance(line[name], kind) for name, kind in wanted.items())
