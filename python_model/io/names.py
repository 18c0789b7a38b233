"""Hidden names beside a path, for incomplete files and directories."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

MAX_NAME = 255
"""Longest file name in bytes on all common file systems."""


def hidden(path: Path, ending: str) -> Path:
    """`.NAME<ending>` beside `path`; a NAME that is too long is replaced by its beginning and a checksum."""
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
    "study.sqlite3": "a search of settings",
}
"""Marker files that identify a directory made by a command, and the kind of content."""


def require_unmarked(directory: Path) -> None:
    """FileExistsError where a directory holds what another command made."""
    for name, held in MARKERS.items():
        if (directory / name).exists():
            raise FileExistsError(f"{directory} holds {held} ({name}): choose another directory")


def require_kin(directory: Path, names: Iterable[str], what: str) -> None:
    """FileExistsError where a directory is not empty and holds none of `names`, the files and directories of `what`.

    Hidden entries do not count.
    """
    if not directory.is_dir():
        return
    found = {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}
    if found and found.isdisjoint(names):
        raise FileExistsError(f"{directory} is not empty and holds no {what}: choose another directory")
