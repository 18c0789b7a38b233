"""Readable names: titles of items, labels of categories and classes, beside the numbers that models use.

Titles are the column `title` of items.parquet; labels.parquet has a row for each label: of which column of events or
items (`item_genre`, `context_device`, `feedback_stars`), of which number. Both may be absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.io.errors import DataError
from python_model.io.files import open_parquet, present, reading_parquet, require_schema, require_values

LABELS, TITLE = "labels.parquet", "title"
_TYPES = {"column": pa.string(), "number": pa.int32(), "label": pa.string()}
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])


@dataclass(frozen=True)
class Names:
    """titles: text [V], "" where an item has none; None without any titles. labels: column -> number -> label."""

    titles: np.ndarray | None = None
    labels: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def title(self, item: int) -> str | None:
        """The title of an item."""
        return None if self.titles is None else str(self.titles[item]) or None

    def number(self, column: str, label: str) -> int | None:
        """The number that a label of a column names; None where there is no such label."""
        return self._numbers.get(column, {}).get(label)

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        return {column: {label: number for number, label in found.items()} for column, found in self.labels.items()}

    def mistakable(self, column: str) -> bool:
        """Whether a label of a column reads as a number that is not its own: 5 stars may be the class of number 4."""
        return column in self._mistakable

    @cached_property
    def _mistakable(self) -> frozenset[str]:
        return frozenset(
            column
            for column, found in self.labels.items()
            if any(_as_number(label) not in (None, number) for number, label in found.items())
        )

    def label(self, column: str, number: int) -> str:
        """The label of a number of a column; the number itself where it has no label, – where it is missing."""
        return "–" if number < 0 else self.labels.get(column, {}).get(number, str(number))


def _as_number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def write_labels(file: Path, labels: Mapping[str, Sequence[str]]) -> None:
    """Write labels.parquet: the labels of each column in the order of its numbers."""
    rows = [(column, number, label) for column, found in labels.items() for number, label in enumerate(found)]
    columns = [pa.array(values, one.type) for values, one in zip(zip(*rows, strict=True), _SCHEMA, strict=False)]
    table = pa.table(columns, schema=_SCHEMA) if rows else _SCHEMA.empty_table()
    pq.write_table(table, file, write_page_checksum=True)


def read_names(items: Path, labels: Path) -> Names:
    """The names in the files of a data set or an export; DataError where a file is damaged."""
    parquet, titles = open_parquet(items), None
    if TITLE in parquet.schema_arrow.names:
        with reading_parquet(items, TITLE):
            column = parquet.read(columns=[TITLE]).column(0)
        if not pa.types.is_string(column.type):
            raise DataError(items, f"expected type string, found {column.type}", column=TITLE)
        require_values(items, TITLE, column)
        titles = column.to_numpy(zero_copy_only=False)
    found: dict[str, dict[int, str]] = {}
    if present(labels):
        require_schema(labels, _SCHEMA)
        with reading_parquet(labels):
            table = open_parquet(labels).read(columns=_SCHEMA.names)
        for name in _SCHEMA.names:
            require_values(labels, name, table.column(name))
        for column, number, label in zip(*(table.column(name).to_pylist() for name in _SCHEMA.names), strict=True):
            found.setdefault(column, {})[number] = label
    return Names(titles, found)
