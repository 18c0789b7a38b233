"""Checks and converts the rows of a log part by part, then makes event columns from them range by range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from python_model.data.feedback import FeedbackComponent
from python_model.data.readers.logs import Found, Rows
from python_model.data.readers.table import values as read_as
from python_model.data.readers.table.mapping import AUTO, Column, TableMapping
from python_model.data.readers.table.sources import TablePart
from python_model.data.time_features import gap_bucket, hour_and_day
from python_model.io.errors import DataError

if TYPE_CHECKING:
    import polars as pl

MAX_GRADE = 127
_ORGANIC = "organic"
_FIRST = 1000


class Note(NamedTuple):
    """What was found in a part.

    rows: how many are kept. times: how times are written. dropped: rows left out, by column. present: columns with any
    value.
    """

    rows: int
    times: str
    dropped: dict[str, int]
    present: frozenset[str]


@dataclass(frozen=True)
class EventPlan:
    """How rows become events: each component of feedback, the new order of its classes, and the grade."""

    mapping: TableMapping
    feedback: Mapping[str, FeedbackComponent]
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)


class Events(NamedTuple):
    """Columns of events.parquet of whole users, and the number of duplicate rows."""

    columns: Rows
    duplicates: int


def read_part(mapping: TableMapping, kinds: Mapping[str, str], part: TablePart) -> Found:
    """The rows of a part in the order of the file: ids and categories, order (microseconds), feedback, grade.

    kinds: how ids and categories are read, by column. DataError at the first row that contradicts the mapping.
    """
    import polars as pl

    found = part.read(mapping.log_columns)
    file, read = part.file, len(found[mapping.user])
    columns = {name: read_as.ids(found[name], kinds[name], file) for name in (mapping.user, mapping.item)}
    missing = {name: values.is_null() for name, values in columns.items()}
    missing[mapping.time] = _is_missing(found[mapping.time])
    if mapping.missing == "refuse":
        for name, absent in missing.items():
            if absent.any():
                what = "a time" if name == mapping.time else "an id"
                message = f"expected {what}, found nothing; --missing drop leaves such rows out"
                raise DataError(file, message, column=name, row=int(absent.arg_max() or 0) + 1)
    kept = ~(missing[mapping.user] | missing[mapping.item] | missing[mapping.time])
    rows = None
    if not kept.all():
        rows = kept.arg_true().to_numpy() + 1
        found = {name: values.filter(kept) for name, values in found.items()}
        columns = {name: values.filter(kept) for name, values in columns.items()}
    with _rows_of_file(rows):
        unit = None if mapping.unit == AUTO else mapping.unit
        order, said = read_as.times(found[mapping.time], unit, file)
        typed = _typed(mapping, kinds, found, file)
    level = pl.CompatLevel.oldest()
    ids = {"user": columns[mapping.user].to_arrow(compat_level=level),
           "item": columns[mapping.item].to_arrow(compat_level=level)}  # fmt: skip
    present = frozenset(name for name, values in found.items() if _has_any(values))
    dropped = {name: int(absent.sum()) for name, absent in missing.items() if absent.any()}
    return Found({**ids, "order": order, **typed}, read, Note(len(order), said, dropped, present))


def _typed(mapping: TableMapping, kinds: Mapping[str, str], found: Mapping[str, pl.Series], file: Path) -> Rows:
    import polars as pl

    level = pl.CompatLevel.oldest()
    rows: Rows = {}
    for one in mapping.feedback_columns:
        values = found[one.column]
        if one.kind == "bool":
            rows[f"feedback_{one.name}"] = read_as.yes_no(values, file)
        elif one.kind == "bins":
            rows[f"feedback_{one.name}"] = binned(read_as.numbers(values, file), one)
        else:
            classes = read_as.categories(values, kinds[one.column], file)
            rows[f"feedback_{one.name}"] = classes.to_arrow(compat_level=level)
    for name, column in mapping.context.items():
        values = read_as.categories(found[column], kinds[column], file)
        rows[f"context_{name}"] = values.to_arrow(compat_level=level)
    if mapping.organic is not None:
        organic = read_as.yes_no(found[mapping.organic], file)
        if (organic < 0).any():
            row = int(np.argmax(organic < 0)) + 1
            raise DataError(file, "expected yes or no, found nothing", column=mapping.organic, row=row)
        rows[_ORGANIC] = organic == 1
    if mapping.grade_column is not None:
        grade = read_as.whole_numbers(found[mapping.grade_column], MAX_GRADE, file)
        rows["grade"] = grade.astype(np.int8)
    return rows


def binned(numbers: np.ndarray, column: Column) -> np.ndarray:
    """int16 bin of each number, the count of edges at or below it; -1 for nan."""
    found = np.searchsorted(np.array(column.edges), numbers, side="right").astype(np.int16)
    found[np.isnan(numbers)] = -1
    return found


def event_columns(plan: EventPlan, rows: Rows) -> Events:
    """All columns of events.parquet, from whole users in order of time."""
    mapping = plan.mapping
    again = _duplicates(rows)
    duplicates = int(again.sum())
    if duplicates and mapping.duplicates == "drop":
        rows = {name: values[~again] for name, values in rows.items()}
    user, time = rows["user"], rows["order"] // read_as.MICRO
    hour, day = hour_and_day(time)
    feedback = {}
    for name in plan.feedback:
        found = rows.get(f"feedback_{name}")
        if found is None:
            found = np.ones(len(user), np.int16)
        elif name in plan.orders:
            found = plan.orders[name][found]
        feedback[name] = found.astype(np.int16)
    organic = rows.get(_ORGANIC, np.zeros(len(user), bool))
    return Events({
        "user": user, "item": rows["item"], "time": time, "organic": organic,
        "grade": np.where(organic, np.int8(-1), _grade(plan, rows, feedback)),
        "context_hour": hour, "context_day_of_week": day, "context_gap": gap_bucket(user, time),
        **{f"context_{name}": rows[f"context_{name}"] for name in mapping.context},
        **{f"feedback_{name}": values for name, values in feedback.items()},
    }, duplicates)  # fmt: skip


def grades_in_words(mapping: TableMapping) -> str:
    """How the grade is defined."""
    if mapping.grade is not None:
        return f"impressions only: the {'class of ' if mapping.grade in mapping.feedback else ''}{mapping.grade}"
    if not mapping.feedback:
        return "1 throughout"
    return "impressions only: 0 any negative feedback, 2 any other feedback (the upper half of its classes), 1 neither"


def _grade(plan: EventPlan, rows: Rows, feedback: Mapping[str, np.ndarray]) -> np.ndarray:
    mapping = plan.mapping
    if mapping.grade_column is not None:
        return rows["grade"]
    if mapping.grade is not None:
        return feedback[mapping.grade].astype(np.int8)
    grade = np.ones(len(rows["user"]), np.int8)
    if not mapping.feedback:
        return grade
    for negative in (False, True):
        for name, values in feedback.items():
            if (name in mapping.negative) == negative:
                grade[values * 2 >= plan.feedback[name].classes] = 0 if negative else 2
    return grade


def _duplicates(rows: Rows) -> np.ndarray:
    """Whether a row equals an earlier row in every column; rows are in order of user and time."""
    user, time = rows["user"], rows["order"]
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    again = np.zeros(len(user), bool)
    if not same.any():
        return again
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    values = [column[tied] for column in rows.values()]
    order = np.lexsort(values)
    equal = np.ones(len(tied) - 1, bool)
    for column in values:
        equal &= column[order][1:] == column[order][:-1]
    again[tied[order[1:][equal]]] = True
    return again


def _has_any(values: pl.Series) -> bool:
    # Most columns have one in their first rows.
    return not _is_missing(values.head(_FIRST)).all() or not _is_missing(values).all()


def _is_missing(values: pl.Series) -> pl.Series:
    import polars as pl

    if values.dtype == pl.String:
        return values.is_null() | (values == "").fill_null(True)
    if values.dtype.is_float():
        return values.is_null() | values.is_nan().fill_null(True)
    return values.is_null()


@contextmanager
def _rows_of_file(rows: np.ndarray | None) -> Iterator[None]:
    """Errors name the row of the file, even where rows were left out before."""
    try:
        yield
    except DataError as error:
        if rows is None or error.row is None:
            raise
        raise DataError(error.file, error.message, column=error.column, row=int(rows[error.row - 1])) from error
