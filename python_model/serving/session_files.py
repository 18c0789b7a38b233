"""Sessions on disk: one safetensors file a user, written whole or not at all, and a journal of what came since.

A file holds the user's newest events and, where wanted, the cached keys and values behind the newest state. Events are
the truth: where the cache is missing, or of another model, the events are encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from python_model.data.errors import DataError
from python_model.disk import replace_text
from python_model.serving.bundle import HISTORY_COLUMNS
from python_model.serving.events import EventLog
from python_model.serving.files import whole_file

FORMAT = "1"
STORE, JOURNAL = "store.json", "journal.jsonl"


@dataclass
class SavedSession:
    """What a file holds: the log, and the state [d] and cache of its newest events where `model` made them."""

    log: EventLog
    model: str
    state: Tensor | None
    cache: list[Tensor] | None


class SessionFiles:
    """The files of a folder; `vocabulary` says what the dense numbers in them mean."""

    def __init__(self, folder: Path, vocabulary: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / STORE
        described = {"format": FORMAT, "vocabulary": vocabulary}
        if not marker.is_file():
            if any(folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no sessions: choose another folder")
            replace_text(marker, json.dumps(described, indent=2) + "\n")
        try:
            found = json.loads(marker.read_text("utf-8"))
        except ValueError as error:
            raise DataError(marker, f"expected JSON: {error}") from error
        if found != described:
            raise DataError(marker, "these sessions are of another catalogue or vocabulary: choose another folder")

    def path(self, user: Hashable) -> Path:
        """Where a user's file is; ids of different types are different users."""
        name = hashlib.sha256(json.dumps(user).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def has(self, user: Hashable) -> bool:
        """Whether a user was saved."""
        return self.path(user).is_file()

    def save(self, user: Hashable, saved: SavedSession) -> None:
        """Writes a user's file in the place of the one before."""
        file = self.path(user)
        file.parent.mkdir(exist_ok=True)
        tensors = {f"log.{name}": torch.from_numpy(values.copy()) for name, values in saved.log.columns().items()}
        if saved.state is not None and saved.cache is not None:
            tensors |= {f"cache.{place:04d}": part.contiguous() for place, part in enumerate(saved.cache)}
            tensors["state"] = saved.state.detach().cpu().contiguous()
        metadata = {"format": FORMAT, "user": json.dumps(user), "model": saved.model, "first": str(saved.log.first)}
        with whole_file(file) as partial:
            save_file(tensors, partial, metadata)

    def load(self, user: Hashable) -> SavedSession:
        """Reads a user's file; DataError where it is damaged."""
        file = self.path(user)
        try:
            with safe_open(file, "pt") as opened:
                metadata: dict[str, str] = opened.metadata() or {}
                tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            columns = {name: tensors[f"log.{name}"].numpy() for name in HISTORY_COLUMNS}
            log = EventLog(columns, int(metadata["first"]))
            cache = [tensors[name] for name in sorted(tensors) if name.startswith("cache.")]
            return SavedSession(log, metadata["model"], tensors.get("state"), cache or None)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(file, f"a damaged session: {error}") from error

    def forget(self, user: Hashable) -> None:
        """Removes a user's file."""
        self.path(user).unlink(missing_ok=True)


class Journal:
    """One JSON object a line of what happened since the last save; a line that a crash cut short counts as not written.

    A line reaches the operating system before the call returns: it outlives the process, not a loss of power.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._drop_torn_line()
        self._opened: IO[bytes] = open(file, "ab", buffering=0)  # noqa: SIM115
        self.lines = 0

    def write(self, entry: dict[str, Any]) -> None:
        """Adds an entry."""
        self._opened.write(json.dumps(entry).encode() + b"\n")
        self.lines += 1

    def mark(self) -> tuple[int, int]:
        """Where the journal ends now, for `take_back`."""
        return os.fstat(self._opened.fileno()).st_size, self.lines

    def take_back(self, mark: tuple[int, int]) -> None:
        """Forgets what was written since a mark."""
        size, self.lines = mark
        self._opened.truncate(size)

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries; DataError where one is not JSON."""
        with open(self.file, "rb") as opened:
            for number, line in enumerate(opened, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(self.file, f"expected JSON: {error}", row=number) from error

    def clear(self) -> None:
        """Forgets all entries, once what they say is saved."""
        self._opened.truncate(0)
        os.fsync(self._opened.fileno())
        self.lines = 0

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self._opened.close()

    def _drop_torn_line(self) -> None:
        if not self.file.is_file():
            return
        with open(self.file, "r+b") as opened:
            content = opened.read()
            opened.truncate(content.rfind(b"\n") + 1)
