"""Hidden names beside a path, for what is not whole yet."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

MAX_NAME = 255
"""Bytes of a name in a directory, as every common file system has it."""


def hidden(path: Path, ending: str) -> Path:
    """`.NAME<ending>` beside `path`; of a name too long for that the beginning and a checksum."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > MAX_NAME:
        raw = os.fsencode(path.name)
        kept = raw[: MAX_NAME - len(ending) - 10].decode("utf-8", errors="ignore")
        name = f".{kept}.{zlib.crc32(raw):08x}{ending}"
    return path.with_name(name)


MARKERS = {
    "dataset.json": "a data set",
    "export.json": "an export",
    "store.json": "the sessions of a server",
    "_job.json": "scores",
}
"""Files by which a directory that a command made is known, and what it holds then."""


def require_unmarked(directory: Path) -> None:
    """FileExistsError where a directory holds what another command made."""
    for name, held in MARKERS.items():
        if (directory / name).exists():
            raise FileExistsError(f"{directory} holds {held} ({name}): choose another directory")
