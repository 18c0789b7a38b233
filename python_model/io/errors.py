"""The one error that every reader, writer and check of a data set raises for bad data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that breaks a format's contract, located as far as it can be.

    Attributes: `file`, `column` (None where the whole file is meant), `row` (1-based data row, a CSV header not
    counted; None where no single row is at fault) and `message` (what was expected and what came).
    """

    def __init__(self, file: str | Path, message: str, *, column: str | None = None, row: int | None = None) -> None:
        self.file = Path(file)
        self.column = column
        self.row = row
        self.message = printable(message)
        place = printable(str(file))
        if column is not None:
            place += f", column {column!r}"
        if row is not None:
            place += f", data row {row}"
        super().__init__(f"{place}: {self.message}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled from its parts, so that it comes back whole from another process."""
        return partial(DataError, column=self.column, row=self.row), (self.file, self.message)


def printable(text: str) -> str:
    """A text on one line that any UTF-8 terminal prints; unprintable characters are escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def one_line(error: Exception) -> str:
    """The message of a library's error without line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200]


def counted(number: int, noun: str) -> str:
    """A count with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
