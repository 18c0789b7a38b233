"""Shared code of the readers: categories, features joined by id, the order of events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from python_model.io.errors import DataError

Progress = Callable[[int, int], None]


def event_order(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Order by (user, time); ties keep the order of the file."""
    return np.lexsort((time, user))


def codes(values: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, int]:
    """Categories numbered by their sorted values, -1 where missing: (int32 [n], cardinality, at least 1)."""
    numbers, labels = labelled(values, missing)
    return numbers, max(len(labels), 1)


def labelled(values: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Categories numbered by their sorted values, -1 where missing, and the values as text: (int32 [n], labels)."""
    numbers = np.full(len(values), -1, np.int32)
    present = ~missing
    unique, numbers[present] = np.unique(values[present], return_inverse=True)
    return numbers, [str(value) for value in unique.tolist()]


def align(
    keys: np.ndarray, values: Mapping[str, np.ndarray], wanted: np.ndarray, file: Path, column: str
) -> dict[str, np.ndarray]:
    """Rows of a table of int32 columns for the ids `wanted`; -1 where `keys` lacks an id.

    DataError with file, key column and row where an id occurs twice with different values.
    """
    unique, first, place_of = np.unique(keys, return_index=True, return_inverse=True)
    for name, of_row in values.items():
        other = of_row[first][place_of] != of_row
        if other.any():
            row = int(np.argmax(other))
            message = f"expected every id once, found {keys[row]} again with another {name}"
            raise DataError(file, message, column=column, row=row + 1)
    place = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    found = unique[place] == wanted
    return {name: np.where(found, of_row[first[place]], -1).astype(np.int32) for name, of_row in values.items()}
