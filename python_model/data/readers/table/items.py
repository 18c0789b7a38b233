"""A file with one row per item: titles and features of the items of a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from python_model.data.identifiers import is_text
from python_model.data.readers.table import values as read_as
from python_model.data.readers.table.events import binned
from python_model.data.readers.table.mapping import Column, TableMapping
from python_model.data.readers.table.sources import Source
from python_model.io.errors import DataError

if TYPE_CHECKING:
    import polars as pl

_SPLIT = ("|", ";", ",")


@dataclass
class Items:
    """Features int32 [V], -1 missing, with cardinality and labels; titles [V], None where there are none."""

    features: dict[str, np.ndarray] = field(default_factory=dict)
    cardinality: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    titles: np.ndarray | None = None
    known: int = 0
    unused: int = 0

    def add(self, name: str, codes: np.ndarray, labels: list[str]) -> None:
        """Add a feature; without any label it has one category that no item has."""
        self.features[name] = codes.astype(np.int32)
        self.cardinality[name] = max(len(labels), 1)
        self.labels[f"item_{name}"] = labels or [""]


def item_columns(mapping: TableMapping) -> list[str]:
    """The columns of the file that are read, each once."""
    given = [mapping.item_id or mapping.item, *(one.column for one in mapping.feature_columns)]
    return list(dict.fromkeys(given if mapping.title is None else [*given, mapping.title]))


def read_items(source: Source, mapping: TableMapping, item_ids: pa.Array) -> Items:
    """Titles and features of the items `item_ids` from a file, which is read as a whole.

    DataError with column and row for an id that is missing, or occurs twice with different values.
    """
    import polars as pl

    names = item_columns(mapping)
    parts = [part.read(names) for part in source.parts]
    found = {name: pl.concat([part[name] for part in parts], rechunk=True) for name in names}
    key = names[0]
    kind = read_as.TEXT if is_text(item_ids.type) else str(item_ids.type)
    keys = read_as.ids(found[key], read_as.TEXT if source.schema is None else kind, source.file)
    if keys.null_count():
        row = int(keys.is_null().arg_max() or 0) + 1
        raise DataError(source.file, "expected an id, found nothing", column=key, row=row)
    wanted = pl.Series("key", item_ids).cast(keys.dtype)
    rows = _rows(keys, wanted, found, key, source.file)
    items = Items(known=int((rows >= 0).sum()))
    items.unused = keys.n_unique() - items.known
    if items.known == 0:
        message = f"none of its ids is an item of the log, which has {', '.join(map(str, wanted[:3].to_list()))}, …"
        raise DataError(source.file, message, column=key)
    for one in mapping.feature_columns:
        _add_feature(items, one, found[one.column], rows, source.file)
    if mapping.title is not None:
        titles = read_as.categories(found[mapping.title], read_as.TEXT, source.file)
        items.titles = _taken(titles, rows).fill_null("").to_numpy().astype(object)
    return items


def _rows(keys: pl.Series, wanted: pl.Series, found: dict[str, pl.Series], key: str, file: Path) -> np.ndarray:
    """The row of each wanted id, -1 where the file lacks it."""
    import polars as pl

    others = {f"value {name}": _plain(values) for name, values in found.items() if name != key}
    frame = pl.DataFrame({"key": keys.alias("key"), **others}).with_row_index("row")
    frame = frame.unique(subset=["key", *others], keep="first", maintain_order=True)
    again = ~frame["key"].is_first_distinct()
    if again.any():
        at = int(again.arg_max() or 0)
        message = f"expected every id once, found {frame['key'][at]} again with other values"
        raise DataError(file, message, column=key, row=int(frame["row"][at]) + 1)
    joined = pl.DataFrame({"key": wanted}).join(frame.select("key", "row"), on="key", how="left", maintain_order="left")
    return joined["row"].cast(pl.Int64).fill_null(-1).to_numpy()


def _plain(values: pl.Series) -> pl.Series:
    import polars as pl

    return values.cast(pl.List(pl.String)).list.join("|") if values.dtype == pl.List else values


def _taken(values: pl.Series, rows: np.ndarray) -> pl.Series:
    import polars as pl

    return values.gather(pl.Series(rows).set(pl.Series(rows < 0), None))


def _add_feature(items: Items, one: Column, values: pl.Series, rows: np.ndarray, file: Path) -> None:
    if one.kind in ("quantiles", "bins"):
        numbers = np.append(read_as.numbers(values, file), np.nan)[rows]
        edges = _quantiles(numbers, one.count) if one.kind == "quantiles" else one.edges
        column = Column(one.name, one.column, "bins", edges=edges)
        items.add(one.name, binned(numbers, column), labels_of_bins(edges))
    elif one.kind == "several":
        _add_several(items, one, values, rows, file)
    else:
        codes, labels = _coded(_taken(read_as.categories(values, read_as.TEXT, file), rows))
        items.add(one.name, codes, labels)


def _add_several(items: Items, one: Column, values: pl.Series, rows: np.ndarray, file: Path) -> None:
    """The first categories of each item: one feature per position, all over the same labels."""
    import polars as pl

    taken = _taken(values, rows)
    inner = getattr(taken.dtype, "inner", taken.dtype)
    if inner.is_nested() or inner == pl.Binary:
        raise DataError(file, f"expected categories or lists of them, found {taken.dtype}", column=one.column)
    if taken.dtype == pl.List:
        lists = taken.cast(pl.List(pl.String))
    else:
        text = taken.cast(pl.String)
        separator = next((mark for mark in _SPLIT if text.str.contains(mark, literal=True).any()), _SPLIT[0])
        lists = text.str.split(separator)
    # An empty piece, as between two separators, is not a category and takes no position.
    lists = lists.list.eval(pl.element().str.strip_chars(" ")).list.eval(pl.element().filter(pl.element() != ""))
    places = [read_as.categories(lists.list.get(place, null_on_oob=True).alias(one.column), read_as.TEXT, file)
              for place in range(one.count)]  # fmt: skip
    codes, labels = _coded(pl.concat(places))
    for name, part in zip(one.names, codes.reshape(one.count, -1), strict=True):
        items.add(name, part, labels)


def _coded(values: pl.Series) -> tuple[np.ndarray, list[str]]:
    labels = sorted(values.drop_nulls().unique().to_list())
    codes = values.replace_strict(labels, list(range(len(labels))), default=-1) if labels else np.full(len(values), -1)
    return np.asarray(codes), labels


def _quantiles(numbers: np.ndarray, count: int) -> tuple[float, ...]:
    """Edges that cut the numbers into buckets of about equal size, each edge once."""
    present = numbers[~np.isnan(numbers)]
    if len(present) == 0:
        return ()
    inner = np.quantile(present, np.arange(1, count) / count, method="higher")
    return tuple(np.unique(inner[inner > present.min()]).tolist())


def labels_of_bins(edges: tuple[float, ...]) -> list[str]:
    """A label for each bin, in words."""
    if not edges:
        return ["any"]
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in pairwise(shown)]
    return [f"under {shown[0]}", *between, f"{shown[-1]} and more"]
