"""Maps original ids to dense numbers, many at a time; `python_model.data.identifiers` defines ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from python_model.data.identifiers import integer_of, is_text, narrowed
from python_model.io.errors import DataError


class IdTable:
    """Original ids, indexed by dense number; integers are found by binary search, texts in a dictionary.

    Integers are compared as integers of 64 bits, signed or not, texts character by character; neither equals the other.
    """

    def __init__(self, ids: np.ndarray, what: str) -> None:
        self.what = what
        self.are_integers = ids.dtype.kind in "iu"
        self.ids = narrowed(ids) if self.are_integers else ids

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, values: pa.Array | pa.ChunkedArray, column: str) -> np.ndarray:
        """Dense numbers int64 of a column of ids, −1 where null or unknown; DataError where the types differ."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        fits = pa.types.is_integer(kind) if self.are_integers else is_text(kind)
        if not fits and not pa.types.is_null(kind):
            expected = "integers" if self.are_integers else "text"
            raise DataError(self.what, f"its ids are {expected}, found {values.type}", column=column)
        if pa.types.is_null(kind) or len(values) == 0:
            return np.full(len(values), -1, np.int64)
        return self._integers(values) if self.are_integers else self._texts(values)

    def number(self, value: Any) -> int:
        """Dense number of one id, −1 where unknown; an integer may come as text, in its canonical spelling."""
        if isinstance(value, (bool, np.bool_)):
            return -1
        if not self.are_integers:
            return self._numbers.get(value, -1) if isinstance(value, str) else -1
        if isinstance(value, str):
            value = integer_of(value)
        if not isinstance(value, (int, np.integer)):
            return -1
        # A server asks for one id at a time: 2 us, where arrays of one element would take 30.
        value = int(value)
        if self._is_dense:
            return value if 0 <= value < len(self.ids) else -1
        keys, order = self._sorted
        bounds = np.iinfo(keys.dtype)
        if len(keys) == 0 or not bounds.min <= value <= bounds.max:
            return -1
        place = min(int(np.searchsorted(keys, keys.dtype.type(value))), len(keys) - 1)
        return int(order[place]) if int(keys[place]) == value else -1

    def require(self, values: Sequence[Any]) -> np.ndarray:
        """Dense numbers int64 of ids that must all be known; ValueError naming the first that is not."""
        found = np.array([self.number(value) for value in values], np.int64)
        if (found < 0).any():
            examples = ", ".join(str(one) for one in self.ids[:3])
            unknown = values[int(np.argmax(found < 0))]
            raise ValueError(f"{unknown!r} is not among {self.what}, which has {examples}, … ({len(self):,})")
        return found

    def original(self, numbers: np.ndarray) -> np.ndarray:
        """Original ids of dense numbers, none of them negative."""
        return self.ids[numbers]

    def _integers(self, values: pa.Array) -> np.ndarray:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        known = ~np.asarray(values.is_null())
        found = np.full(len(values), -1, np.int64)
        found[known] = self._search(values.drop_null().to_numpy(zero_copy_only=False))
        return found

    def _search(self, values: np.ndarray) -> np.ndarray:
        if len(self.ids) == 0 or len(values) == 0:
            return np.full(len(values), -1, np.int64)
        keys, order = self._sorted
        # numpy compares int64 with uint64 as float64; a value that the table's type cannot hold is unknown.
        bounds = np.iinfo(keys.dtype)
        fits = (values >= np.array(0, values.dtype)) if bounds.min == 0 else np.ones(len(values), bool)
        if values.dtype == np.uint64 and keys.dtype == np.int64:
            fits = values <= np.uint64(bounds.max)
        values = np.where(fits, values, np.array(0, values.dtype)).astype(keys.dtype)
        if self._is_dense:
            inside = fits & (values >= 0) & (values < len(self.ids))
            return np.where(inside, values, -1).astype(np.int64)
        place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
        return np.where(fits & (keys[place] == values), order[place], -1)

    def _texts(self, values: pa.Array) -> np.ndarray:
        if not pa.types.is_dictionary(values.type):
            values = values.dictionary_encode()
        numbers = self._numbers
        words = [numbers.get(word, -1) if word is not None else -1 for word in values.dictionary.to_pylist()]
        place = values.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
        return np.array([*words, -1], np.int64)[place]

    @cached_property
    def _is_dense(self) -> bool:
        return bool((self.ids == np.arange(len(self.ids))).all())

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.ids, kind="stable")
        return self.ids[order], order

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {value: number for number, value in enumerate(self.ids.tolist())}
