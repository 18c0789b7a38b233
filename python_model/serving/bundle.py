"""What `argus export` made, read back: one directory that is all that serving needs.

export.json                   which score, of which run, how late, and the errors of the small forms
model/                        config.json and model.safetensors, as in a checkpoint
items.parquet users.parquet   original ids and vectors in float32, bfloat16 (its bits, uint16) and int8 with a scale
vectors/*.npy                 the same vectors
scores.parquet                the best items of every user with their scalar scores
history/*.npy seen/*.npy      newest events of every user; all items that a user's history has
index.faiss index.json        where `argus index` was run
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from python_model import checkpoint
from python_model.data.errors import DataError
from python_model.io.publish import recover
from python_model.model import Argus
from python_model.serving.ids import IdTable

FORMAT = 1
INFO, MODEL, ITEMS, USERS, SCORES = "export.json", "model", "items.parquet", "users.parquet", "scores.parquet"
VECTORS, HISTORY, SEEN = "vectors", "history", "seen"
HISTORY_COLUMNS = ("items", "time", "organic", "context", "feedback")


@dataclass(frozen=True)
class ExportInfo:
    """What export.json says.

    score: what a dot product of vectors is, "pair" or "next_item". lag: seconds by which an event is older than the
    moment of a score that may know of it. delay: seconds after a user's newest event that its vector speaks of.
    window: newest events behind a user vector. errors: side → form → how far it is from float32.
    """

    score: str
    lag: int
    delay: int
    width: int
    items: int
    users: int
    window: int
    best: int
    history: int
    dataset: str
    stage: str
    step: int
    model: str
    errors: Mapping[str, Mapping[str, Mapping[str, float]]]
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of export.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


class Export:
    """An export directory; arrays are mapped from disk when first used."""

    def __init__(self, path: Path, info: ExportInfo) -> None:
        self.path, self.info = path, info

    @classmethod
    def open(cls, path: str | Path) -> Export:
        """DataError where the directory is no export, of another format, or damaged."""
        path = Path(path)
        recover(path, INFO)
        file = path / INFO
        if not file.is_file():
            raise DataError(file, "not found: expected a directory that `argus export` made")
        try:
            raw = json.loads(file.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(file, f"expected JSON: {error}") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise DataError(file, f"expected format {FORMAT}, found {found!r}", column="format")
        names = {field.name for field in fields(ExportInfo)}
        for name in sorted(names - raw.keys()):
            raise DataError(file, "this key is missing", column=name)
        return cls(path, ExportInfo(**{name: raw[name] for name in names}))

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether a directory says that it is an export."""
        return (Path(path) / INFO).is_file()

    def model(self, device: str | torch.device = "cpu") -> Argus:
        """The model, in evaluation mode."""
        return checkpoint.load_model(self.path / MODEL, device)

    @cached_property
    def item_ids(self) -> IdTable:
        """Original item ids."""
        return IdTable(self.column(ITEMS, "item_id"), f"the items of {self.path}")

    @cached_property
    def user_ids(self) -> IdTable:
        """Original user ids."""
        return IdTable(self.column(USERS, "user_id"), f"the users of {self.path}")

    @cached_property
    def user_time(self) -> np.ndarray:
        """int64 [users]: seconds of each user's newest event."""
        return self.column(USERS, "time")

    def item_vectors(self) -> np.ndarray:
        """float32 [items, D], mapped."""
        return self._vectors("items", self.info.items)

    def user_vectors(self) -> np.ndarray:
        """float32 [users, D], mapped."""
        return self._vectors("users", self.info.users)

    def seen(self, user: int) -> np.ndarray:
        """int32, rising: all items that a user's whole history has."""
        offsets, items = self._seen
        return items[offsets[user] : offsets[user + 1]]

    def history(self, user: int) -> dict[str, np.ndarray]:
        """The newest events of a user, oldest first: `HISTORY_COLUMNS`, each one row an event."""
        offsets, columns = self._history
        rows = slice(int(offsets[user]), int(offsets[user + 1]))
        return {name: np.array(values[rows]) for name, values in columns.items()}

    def column(self, file: str, name: str) -> np.ndarray:
        """One column of items.parquet or users.parquet."""
        try:
            values = pq.read_table(self.path / file, columns=[name]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(self.path / file, f"cannot be read: {error}", column=name) from error
        return values.to_numpy()

    @cached_property
    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        return self._array(SEEN, "offsets"), self._array(SEEN, "items")

    @cached_property
    def _history(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self._array(HISTORY, "offsets"), {name: self._array(HISTORY, name) for name in HISTORY_COLUMNS}

    def _vectors(self, side: str, rows: int) -> np.ndarray:
        found = self._array(VECTORS, f"{side}.float32")
        if found.shape != (rows, self.info.width):
            expected = [rows, self.info.width]
            raise DataError(self.path / VECTORS / f"{side}.float32.npy", f"expected {expected}, found {found.shape}")
        return found

    def _array(self, folder: str, name: str) -> np.ndarray:
        file = self.path / folder / f"{name}.npy"
        try:
            # Copy on write: torch takes no arrays that it could not write to.
            found: np.ndarray = np.load(file, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise DataError(file, f"cannot be read: {error}") from error
        return found
