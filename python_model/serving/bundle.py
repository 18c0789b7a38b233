"""Reads the directory that `argus export` writes, which contains all that serving needs.

export.json                   the kind of score, the run, the lag and delay, and the errors of the small forms
model/                        config.json and model.safetensors, as in a checkpoint
items.parquet users.parquet   original ids and vectors in float32, bfloat16 (its bits, uint16) and int8 with a scale
vectors/*.npy                 the same vectors
labels.parquet                labels of category numbers, where the data set has them
scores.parquet                the best items of every user with their scalar scores
history/*.npy seen/*.npy      newest events of every user; all items that a user's history has
index.faiss index.json        where `argus index` was run
checksums.json                sizes and CRC-32 of all files but the index, whose checksum is in index.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from python_model.data.identifiers import ids_of
from python_model.data.names import LABELS, Names, read_names
from python_model.data.time_features import DAY, TimeFeatures, require_time_features
from python_model.data.times import seconds_of
from python_model.io.arrays import ArrayFile, require_offsets
from python_model.io.errors import DataError
from python_model.io.files import present
from python_model.io.integrity import CHECKSUMS, require_whole
from python_model.io.json_text import read_object
from python_model.io.publish import recover
from python_model.model.argus import Argus
from python_model.serving.ids import IdTable
from python_model.serving.towers import KINDS, first_without_length
from python_model.training import checkpoint
from python_model.training.checkpoint.parts import PARTS, PICKLE

FORMAT = 1
INFO, MODEL, ITEMS, USERS, SCORES = "export.json", "model", "items.parquet", "users.parquet", "scores.parquet"
VECTORS, HISTORY, SEEN = "vectors", "history", "seen"
LEAST = {"lag": 1, "width": 1, "items": 1, "window": 2, "utc_offset": -DAY}
"""Smallest valid values of whole numbers in export.json; 0 for all others."""
OPTIONAL = ("derived", "utc_offset")
"""Keys that export.json of earlier versions does not have."""
KINDS_OF_VALUES = {"int": "a whole number", "str": "text", "tuple[str, ...]": "a list of texts"}
HISTORY_COLUMNS = ("items", "time", "organic", "context", "feedback")


@dataclass(frozen=True)
class ExportInfo:
    """The content of export.json.

    score: the kind of score of a dot product of vectors, "pair" or "next_item". lag: a score may use events at least so
    many seconds older than its time. delay: seconds from a user's newest event to the time of their vector. window:
    newest events behind a user vector. derived, utc_offset: the context that follows from times, see `DatasetInfo`; in
    exports of earlier versions none does. errors: side → form → its error relative to float32.
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
    derived: tuple[str, ...] = ()
    utc_offset: int = 0
    format: int = FORMAT

    @property
    def time_features(self) -> TimeFeatures:
        """The context that follows from times."""
        return TimeFeatures(self.derived, self.utc_offset)

    def to_json(self) -> str:
        """The text of export.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


class Export:
    """An export directory; each file is checked against its checksum on first use, and read, never mapped."""

    def __init__(self, path: Path, info: ExportInfo) -> None:
        self.path, self.info = path, info
        self._whole: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> Export:
        """DataError where the directory is not an export, has another format, or is damaged."""
        path = Path(path)
        recover(path, INFO)
        file = path / INFO
        raw = read_object(file, "a directory that `argus export` made")
        if raw.get("format") != FORMAT:
            raise DataError(file, f"expected format {FORMAT}, found {raw.get('format')!r}", column="format")
        found = cls(path, _info(file, raw))
        read_object(path / CHECKSUMS, "the sums of a whole export; make one of an earlier version again")
        found.require_whole(INFO)
        return found

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether a directory is marked as an export."""
        return (Path(path) / INFO).is_file()

    def require_whole(self, name: str) -> Path:
        """The path of one of its files, checked once against its checksum; DataError where it was changed."""
        if name not in self._whole:
            require_whole(self.path, [name])
            self._whole.add(name)
        return self.path / name

    def model(self, device: str | torch.device = "cpu") -> Argus:
        """The model, in evaluation mode; DataError where model/ is damaged or is not the model of the vectors."""
        folder = self.path / MODEL
        # Refuse the format of several ranks, whose pickle could run a command: no export contains it.
        for name in (PICKLE, PARTS):
            if os.path.lexists(folder / name):
                raise DataError(folder / name, "no file of an export, and not read: make the export again")
        for name in (checkpoint.CONFIG, checkpoint.MODEL):
            self.require_whole(f"{MODEL}/{name}")
        model = checkpoint.load_model(folder, device)
        for name, found in (("items", model.features.items), ("width", model.config.vector_width)):
            if found != getattr(self.info, name):
                message = f"the model has {name} {found}, expected {getattr(self.info, name)} as {INFO} says"
                raise DataError(folder / checkpoint.CONFIG, message, column=name)
        if self.info.score == "pair" and model.stage != "finetune":
            raise DataError(folder / checkpoint.CONFIG, "the score pair needs a fine-tuned model", column="stage")
        return model

    @cached_property
    def item_ids(self) -> IdTable:
        """Original item ids."""
        return self._ids(ITEMS, "item_id", self.info.items, "items")

    @cached_property
    def user_ids(self) -> IdTable:
        """Original user ids."""
        return self._ids(USERS, "user_id", self.info.users, "users")

    @cached_property
    def names(self) -> Names:
        """Titles of items and labels of categories, as far as the data set had any."""
        labels = self.path / LABELS
        return read_names(self.require_whole(ITEMS), self.require_whole(LABELS) if present(labels) else labels)

    @cached_property
    def user_time(self) -> np.ndarray:
        """int64 [users]: seconds of each user's newest event."""
        return seconds_of(self.column(USERS, "time"), self.path / USERS, "time")

    def item_vectors(self) -> np.ndarray:
        """float32 [items, D]."""
        return self._item_vectors

    def user_vectors(self) -> np.ndarray:
        """float32 [users, D]."""
        return self._user_vectors

    def seen(self, user: int) -> np.ndarray:
        """int32, rising: all items that a user's whole history has."""
        offsets, items = self._seen
        found = items.rows(int(offsets[user]), int(offsets[user + 1]))
        if len(found) and not (found[0] >= 0 and found[-1] < self.info.items and (np.diff(found) > 0).all()):
            raise DataError(items.file, f"expected rising items below {self.info.items}, found others (user {user})")
        return found

    def history(self, user: int) -> dict[str, np.ndarray]:
        """The newest events of a user, oldest first: `HISTORY_COLUMNS`, one row per event."""
        offsets, columns = self._history
        rows = int(offsets[user]), int(offsets[user + 1])
        return {name: values.rows(*rows) for name, values in columns.items()}

    def of_history(self, user: int, error: DataError) -> DataError:
        """An error in a row of a user's history, restated for the file and the row in the file."""
        row = None if error.row is None else int(self._history[0][user]) + error.row
        return DataError(self.path / HISTORY / f"{error.column}.npy", error.message, row=row)

    def open_histories(self) -> None:
        """Checks and opens history/ and seen/ now; otherwise the first request that needs them waits for it."""
        _ = self._history, self._seen

    def column(self, file: str, name: str) -> pa.ChunkedArray:
        """One column of items.parquet or users.parquet; DataError where it is missing or has another length."""
        path, rows = self.require_whole(file), self.info.items if file == ITEMS else self.info.users
        try:
            found = pq.read_table(path, columns=[name], memory_map=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(path, f"cannot be read: {error}", column=name) from error
        if found.column_names != [name]:
            raise DataError(path, "this column is missing", column=name)
        if len(found) != rows:
            raise DataError(path, f"expected {rows} rows as {INFO} says, found {len(found)}", column=name)
        return found.column(0)

    def _ids(self, file: str, name: str, rows: int, what: str) -> IdTable:
        ids = ids_of(self.column(file, name), self.path / file, name)
        distinct = len(np.unique(ids)) if ids.dtype != object else len(set(ids.tolist()))
        if distinct < rows:
            _, first = np.unique(ids, return_index=True)
            row = int(np.setdiff1d(np.arange(rows), first)[0])
            raise DataError(
                self.path / file, f"expected every id once, found {ids[row]} again", column=name, row=row + 1
            )
        return IdTable(ids, f"the {what} of {self.path}")

    @cached_property
    def _item_vectors(self) -> np.ndarray:
        return self._read_vectors("items", self.info.items)

    @cached_property
    def _user_vectors(self) -> np.ndarray:
        return self._read_vectors("users", self.info.users)

    def _read_vectors(self, side: str, rows: int) -> np.ndarray:
        file = self._array(f"{VECTORS}/{side}.float32.npy", np.float32, rows, self.info.width)
        found = file.read()
        row = first_without_length(found)
        if row is not None:
            raise DataError(file.file, "expected finite numbers of a finite length, found others", row=row + 1)
        return found

    @cached_property
    def _seen(self) -> tuple[np.ndarray, ArrayFile]:
        items = self._array(f"{SEEN}/items.npy", np.int32, None)
        return self._offsets(SEEN, len(items)), items

    @cached_property
    def _history(self) -> tuple[np.ndarray, dict[str, ArrayFile]]:
        config = checkpoint.read_description(self.require_whole(f"{MODEL}/{checkpoint.CONFIG}").parent).features
        events = self._array(f"{HISTORY}/items.npy", np.int32, None)
        found = {
            "items": events,
            "time": self._array(f"{HISTORY}/time.npy", np.int64, len(events)),
            "organic": self._array(f"{HISTORY}/organic.npy", np.bool_, len(events)),
            "context": self._array(f"{HISTORY}/context.npy", np.int32, len(events), len(config.context)),
            "feedback": self._array(f"{HISTORY}/feedback.npy", np.int16, len(events), len(config.feedback)),
        }
        return self._offsets(HISTORY, len(events)), found

    def _offsets(self, folder: str, rows: int) -> np.ndarray:
        found = self._array(f"{folder}/offsets.npy", np.int64, self.info.users + 1)
        return require_offsets(found.read(), rows, found.file)

    def _array(self, name: str, dtype: type, *shape: int | None) -> ArrayFile:
        return ArrayFile(self.require_whole(name), dtype, shape)


def _info(file: Path, raw: Mapping[str, Any]) -> ExportInfo:
    """The content of export.json; DataError naming the first key that is missing or has an invalid value."""
    found: dict[str, Any] = {}
    for one in fields(ExportInfo):
        if one.name not in raw and one.name in OPTIONAL:
            continue
        if one.name not in raw:
            raise DataError(file, "this key is missing", column=one.name)
        found[one.name] = value = raw[one.name]
        kind = KINDS_OF_VALUES.get(str(one.type), "figures of both sides")
        least = LEAST.get(one.name, 0)
        fits = {
            "a whole number": isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 62,
            "text": isinstance(value, str),
            "a list of texts": isinstance(value, list) and all(isinstance(name, str) for name in value),
            "figures of both sides": _are_figures(value),
        }[kind]
        if not fits:
            expected = f"{kind} of at least {least}" if kind == "a whole number" else kind
            raise DataError(file, f"expected {expected}, found {str(value)[:100]}", column=one.name)
    if found["score"] not in KINDS:
        expected = ", ".join(KINDS)
        raise DataError(file, f"expected one of {expected}, found {found['score'][:100]!r}", column="score")
    found["derived"] = tuple(found.get("derived", ()))
    try:
        require_time_features(found["derived"], found["derived"])
    except ValueError as error:
        raise DataError(file, str(error)) from error
    return ExportInfo(**found)


def _are_figures(value: Any, depth: int = 3) -> bool:
    """Whether a value is side → form → figure → number."""
    if depth == 0:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, dict) and all(_are_figures(one, depth - 1) for one in value.values())
