"""Original ids to dense numbers, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from python_model.data.errors import DataError


class IdTable:
    """Original ids, each at its dense number; integers are found by search, texts in a dictionary."""

    def __init__(self, ids: np.ndarray, what: str) -> None:
        self.ids, self.what = ids, what
        self.are_integers = ids.dtype.kind in "iu"

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, values: pa.Array | pa.ChunkedArray, column: str) -> np.ndarray:
        """Dense numbers int64 of a column of ids, −1 where null or unknown; DataError where the types differ."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        fits = pa.types.is_integer(kind) if self.are_integers else _is_text(kind)
        if not fits and not pa.types.is_null(kind):
            expected = "integers" if self.are_integers else "text"
            raise DataError(self.what, f"its ids are {expected}, found {values.type}", column=column)
        if pa.types.is_null(kind) or len(values) == 0:
            return np.full(len(values), -1, np.int64)
        return self._integers(values) if self.are_integers else self._texts(values)

    def number(self, value: Any) -> int:
        """Dense number of one id, −1 where unknown; an integer may come as text."""
        if self.are_integers:
            if isinstance(value, str):
                if not value.lstrip("-").isdigit():
                    return -1
                value = int(value)
            if not isinstance(value, (int, np.integer)):
                return -1
            return int(self._search(np.array([value]))[0])
        return self._numbers.get(str(value), -1)

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
        if len(self.ids) == 0:
            return np.full(len(values), -1, np.int64)
        if self._is_dense:
            inside = (values >= 0) & (values < len(self.ids))
            return np.where(inside, values, -1).astype(np.int64)
        keys, order = self._sorted
        place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
        return np.where(keys[place] == values, order[place], -1)

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
        return self.ids[order].astype(np.int64), order

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {str(value): number for number, value in enumerate(self.ids.tolist())}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
