"""The meaning of the columns of a user's own log: the settings of `argus prepare table`, also as a TOML file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from python_model.data.time_features import TIME_FEATURES
from python_model.data.times import UNITS
from python_model.io.errors import DataError
from python_model.io.settings import Between, OneOf, checked_settings
from python_model.io.toml_text import read_toml, toml_value

MAPPING = "mapping.toml"
"""The file in a prepared data set that says how it was read."""
AUTO = "auto"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)
_FEEDBACK = ("bool", "classes", "bins")
_FEATURES = ("category", "several", "quantiles", "bins")
_NUMBERS = {"bins": "edges, rising numbers such as bins=0.2,0.8", "several": "how many, 1 to 16, such as several=3",
            "quantiles": "how many buckets, 2 to 1000, such as quantiles=10"}  # fmt: skip
_LIMITS = {"several": (1, 16), "quantiles": (2, 1000)}


@dataclass(frozen=True)
class Column:
    """One column and how to read it: `kind` is the type, `edges` and `count` are its parameters."""

    name: str
    column: str
    kind: str
    edges: tuple[float, ...] = ()
    count: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features made from it."""
        more = range(2, self.count + 1) if self.kind == "several" else ()
        return (self.name, *(f"{self.name}_{place}" for place in more))


@dataclass(frozen=True)
class TableMapping:
    """The columns of a log.

    user, item, time: columns of the log. unit: of times that are numbers; auto finds it.
    feedback: name -> COLUMN[:bool|:classes|:bins=EDGES], what the user did; bool by default.
    negative: names of feedback that counts against an item.
    grade: a column of whole numbers from 0 to 127, or a name of feedback, that orders what a user was shown; made of
    the feedback by default. organic: a column that is true where the user chose the item and no recommender did.
    context: name -> COLUMN, categories known before the item. items: a file with one row per item.
    item_id: its column of ids, that of the log by default. title: its column of titles.
    item_features: name -> COLUMN[:category|:several=N|:quantiles=N|:bins=EDGES]; category by default.
    pair_window: seconds between two events of a user whose grades may be compared.
    missing: what happens to rows without user, item or time. duplicates: what happens to rows that are there twice.
    name: of the data set, that of the log's file by default.
    """

    user: str = "user"
    item: str = "item"
    time: str = "time"
    unit: Annotated[str, OneOf((AUTO, *UNITS))] = AUTO
    feedback: Mapping[str, str] = field(default_factory=dict)
    negative: tuple[str, ...] = ()
    grade: str | None = None
    organic: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    items: str | None = None
    item_id: str | None = None
    title: str | None = None
    item_features: Mapping[str, str] = field(default_factory=dict)
    pair_window: Annotated[int, Between(0, 2**31)] = 10_800
    missing: Annotated[str, OneOf(("refuse", "drop"))] = "refuse"
    duplicates: Annotated[str, OneOf(("keep", "drop"))] = "keep"
    name: str | None = None

    def __post_init__(self) -> None:
        """ValueError naming the setting that does not fit."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in checked_settings(TableMapping, values, "table").items():
            object.__setattr__(self, name, value)
        for what, names in (("context", self.context), ("feedback", self.feedback), ("feature", self.item_features)):
            for name in names:
                _require_name(what, name)
        if unknown := [name for name in self.negative if name not in self.feedback]:
            known = ", ".join(self.feedback) or "none"
            raise ValueError(f"negative: expected names of feedback ({known}), found {unknown[0]!r}")
        ids = (self.user, self.item, self.time)
        if len(set(ids)) < len(ids):
            raise ValueError(f"user, item and time: expected three columns, found {', '.join(ids)}")
        if self.items is None and (self.title is not None or self.item_features or self.item_id is not None):
            raise ValueError("title, item_features and item_id are columns of a file of items: name it with items")
        made = [name for one in self.feature_columns for name in one.names]
        if again := [name for name in made if made.count(name) > 1]:
            raise ValueError(f"feature {again[0]}: expected once, found it twice; several=N makes NAME_2 to NAME_N")
        _ = self.feedback_columns

    @cached_property
    def feedback_columns(self) -> tuple[Column, ...]:
        """The feedback columns and how to read them."""
        return tuple(_column("feedback", name, text, _FEEDBACK) for name, text in self.feedback.items())

    @cached_property
    def feature_columns(self) -> tuple[Column, ...]:
        """The item feature columns and how to read them."""
        return tuple(_column("feature", name, text, _FEATURES) for name, text in self.item_features.items())

    @property
    def log_columns(self) -> tuple[str, ...]:
        """The columns of the log that are read, each once."""
        given = [self.user, self.item, self.time, *self.context.values()]
        given += [one.column for one in self.feedback_columns]
        given += [name for name in (self.organic, self.grade_column) if name is not None]
        return tuple(dict.fromkeys(given))

    @property
    def grade_column(self) -> str | None:
        """The column of grades; None where grades are made from feedback."""
        return None if self.grade in self.feedback else self.grade

    def to_toml(self) -> str:
        """The text of a mapping file."""
        lines, tables = [], []
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Mapping):
                if value:
                    tables += ["", f"[{one.name}]", *(f"{name} = {toml_value(text)}" for name, text in value.items())]
            elif value is not None:
                lines.append(f"{one.name} = {toml_value(value)}")
        return "\n".join([*lines, *tables]) + "\n"

    @classmethod
    def read(cls, file: Path, **changes: Any) -> TableMapping:
        """The mapping of a TOML file with some settings changed; DataError where it is not one.

        A relative `items` path is relative to the directory of the TOML file.
        """
        values = read_toml(file, "a mapping")
        try:
            found = cls(**checked_settings(cls, values, "mapping"))
            if found.items is not None:
                found = replace(found, items=str(file.parent / found.items))
        except ValueError as error:
            raise DataError(file, str(error)) from error
        return replace(found, **changes)


def _require_name(what: str, name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{what}: expected a name of letters, digits and _, found {name!r}")
    if what == "context" and name in TIME_FEATURES:
        raise ValueError(f"context: {name} is made of the time, give another name")
    if what == "feature" and name == "id":
        raise ValueError("feature: expected another name than 'id', as item_id has the original ids")


def _column(what: str, name: str, text: str, kinds: tuple[str, ...]) -> Column:
    """COLUMN[:KIND[=NUMBERS]]; a colon before anything else belongs to the column."""
    column, colon, ending = text.rpartition(":")
    kind, equals, numbers = ending.partition("=")
    if not colon or kind not in (*_FEEDBACK, *_FEATURES):
        column, kind, equals, numbers = text, kinds[0], "", ""
    where = f"{what} {name}={text}"
    if not column:
        raise ValueError(f"{where}: expected a column")
    if kind not in kinds:
        raise ValueError(f"{where}: expected :{', :'.join(kinds)} behind the column, found :{kind}")
    if (kind in _NUMBERS) != bool(equals):
        raise ValueError(f"{where}: expected {_NUMBERS.get(kind, f'no number behind {kind}')}")
    try:
        found = tuple(float(number) for number in numbers.split(",")) if equals else ()
    except ValueError:
        raise ValueError(f"{where}: expected {_NUMBERS[kind]}") from None
    if kind == "bins":
        rising = all(map(math.isfinite, found)) and all(low < high for low, high in pairwise(found))
        if not rising or len(found) > 1000:
            raise ValueError(f"{where}: expected {_NUMBERS[kind]}")
        return Column(name, column, kind, edges=found)
    if kind in _LIMITS:
        low, high = _LIMITS[kind]
        if len(found) != 1 or not found[0].is_integer() or not low <= found[0] <= high:
            raise ValueError(f"{where}: expected {_NUMBERS[kind]}")
        return Column(name, column, kind, count=int(found[0]))
    return Column(name, column, kind)
