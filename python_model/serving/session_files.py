"""Sessions on disk: one safetensors file per user, written atomically.

A file holds the user's newest events and, optionally, the cached keys and values behind the newest state. The events
are authoritative: where the cache is missing or belongs to another model, the events are encoded again.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from python_model.io.disk import flush, refuse_link, replace_text, writing
from python_model.io.errors import DataError
from python_model.io.exclusive import LOCK
from python_model.io.json_text import parse, read_object
from python_model.serving.bundle import HISTORY_COLUMNS
from python_model.serving.events import EventLog, EventReader
from python_model.serving.files import whole_file

FORMAT = "1"
STORE = "store.json"
WRITERS = 16
"""A file waits for the disk twice, 14 ms in all one after the other; of 16 at a time each takes 0.8 ms."""


@dataclass
class SavedSession:
    """The content of a file: the log, and the state [d] and cache of its newest events, computed by `model`."""

    log: EventLog
    model: str
    state: Tensor | None
    cache: list[Tensor] | None


def require_folder_of_sessions(folder: Path) -> None:
    """ValueError where a directory is neither empty nor a folder of sessions, so that no other data is changed."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a directory of sessions")
    if folder.is_dir() and not (folder / STORE).is_file() and any(one.name != LOCK for one in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no sessions: choose another folder")


class SessionFiles:
    """The files of a folder; `vocabulary` identifies the meaning of dense numbers, `reader` checks their values."""

    def __init__(self, folder: Path, vocabulary: str, reader: EventReader) -> None:
        require_folder_of_sessions(folder)
        self.folder, self._reader = folder, reader
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / STORE
        described = {"format": FORMAT, "vocabulary": vocabulary}
        if not marker.is_file():
            replace_text(marker, json.dumps(described, indent=2) + "\n")
        if read_object(marker) != described:
            raise DataError(marker, "these sessions are of another catalogue or vocabulary: choose another folder")

    def path(self, user: int | str) -> Path:
        """The path of a user's file; an integer and a text are different users."""
        name = hashlib.sha256(json.dumps(user).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def has(self, user: int | str) -> bool:
        """Whether a user was saved."""
        return self.path(user).is_file()

    def save(self, user: int | str, saved: SavedSession) -> None:
        """Writes a user's file, replacing an earlier one; WriteError where that fails or the file is a link."""
        file = self.path(user)
        tensors = {f"log.{name}": torch.from_numpy(values.copy()) for name, values in saved.log.columns().items()}
        if saved.state is not None and saved.cache is not None:
            tensors |= {f"cache.{place:04d}": part.contiguous() for place, part in enumerate(saved.cache)}
            tensors["state"] = saved.state.detach().cpu().contiguous()
        metadata = {
            "format": FORMAT, "user": json.dumps(user), "model": saved.model, "first": str(saved.log.first),
            "crc32": _checksum(tensors),
        }  # fmt: skip
        refuse_link(file)
        with writing(file):
            if not file.parent.is_dir():
                file.parent.mkdir(exist_ok=True)
                flush(self.folder)
            with whole_file(file) as partial:
                save_file(tensors, partial, metadata)

    def save_all(self, sessions: Iterable[tuple[int | str, SavedSession]]) -> Iterator[int | str]:
        """Writes the files of several users, WRITERS at a time; yields each user whose file is on the disk.

        WriteError for the first file that fails, after those that were begun.
        """
        with ThreadPoolExecutor(WRITERS) as pool:
            begun: deque[tuple[int | str, Future[None]]] = deque()
            for user, saved in sessions:
                begun.append((user, pool.submit(self.save, user, saved)))
                if len(begun) == WRITERS:
                    yield _written(*begun.popleft())
            while begun:
                yield _written(*begun.popleft())

    def load(self, user: int | str) -> SavedSession:
        """Reads a user's file; DataError naming it where it is damaged or has another vocabulary."""
        file = self.path(user)
        try:
            # Read the whole file: safetensors' access to single tensors leaks 65 bytes each, and maps the file, whose
            # truncation would kill the process.
            content = file.read_bytes()
            tensors = load(content)
            metadata = parse(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
            raise DataError(file, f"a damaged session: {error}") from error
        first = self._first(file, user, metadata, tensors)
        try:
            columns = {name: tensors.pop(f"log.{name}").numpy() for name in HISTORY_COLUMNS}
        except (KeyError, TypeError) as error:
            raise DataError(file, f"a damaged session: a column of its log is missing or no column: {error}") from error
        self._reader.require_log(columns, file)
        state = tensors.pop("state", None)
        names = [f"cache.{place:04d}" for place in range(len(tensors))]
        if sorted(tensors) != names or (state is None) != (not names):
            raise DataError(file, f"a damaged session: unexpected tensors {', '.join(sorted(tensors))[:200]}")
        cache = [tensors[name] for name in names]
        return SavedSession(EventLog(columns, first), metadata["model"], state, cache or None)

    def _first(self, file: Path, user: int | str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
        """The number of the oldest event; DataError where the metadata are not of a session of this user."""
        expected = {"format": FORMAT, "user": json.dumps(user)}
        if "crc32" in metadata:  # not in files of earlier versions
            expected["crc32"] = _checksum(tensors)
        for name, value in expected.items():
            if metadata.get(name) != value:
                raise DataError(file, f"a damaged session: expected {value}, found {metadata.get(name)!r}", column=name)
        if "model" not in metadata:
            raise DataError(file, "a damaged session: expected the model it is of, found nothing", column="model")
        first = metadata.get("first", "")
        if not (first.isascii() and first.isdigit() and len(first) < 17):
            raise DataError(file, f"a damaged session: expected a number, found {first[:40]!r}", column="first")
        return int(first)


def _written(user: int | str, done: Future[None]) -> int | str:
    done.result()
    return user


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of all tensors in the order of their names, as eight hexadecimal digits."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
