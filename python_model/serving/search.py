"""The best items for user vectors, and the scores of given items, with original ids and titles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from python_model.data.names import Names
from python_model.model.argus import Argus
from python_model.serving import towers
from python_model.serving.answers import Scored
from python_model.serving.exact import best_items
from python_model.serving.ids import IdTable
from python_model.serving.index import CandidateIndex


class Query(NamedTuple):
    """A user vector float32 [D], how many items it asks for, and the dense numbers of items it must not get."""

    vector: np.ndarray
    k: int
    left_out: np.ndarray


class ItemSearch:
    """Searches the items of a model, in an index where there is one, else exactly."""

    def __init__(self, model: Argus, items: IdTable, names: Names, index: CandidateIndex | None) -> None:
        self._model, self._items, self._names, self._index = model, items, names, index

    @cached_property
    def _vectors(self) -> np.ndarray:
        with torch.inference_mode():
            return towers.require_finite(self._model.item_matrix().cpu().numpy(), "item vectors")

    def best(self, queries: Sequence[Query]) -> list[list[Scored]]:
        """The best items of each query, best first; fewer than k where the catalogue has no more.

        Queries for as many items are searched together: exact search then reads the catalogue once.
        """
        found: list[list[Scored]] = [[] for _ in queries]
        alike: dict[tuple[int, bool], list[int]] = {}
        for place, query in enumerate(queries):
            alike.setdefault((query.k, len(query.left_out) > 0), []).append(place)
        for (k, leaves_out), places in alike.items():
            vectors = np.stack([queries[place].vector for place in places])
            excluded = [queries[place].left_out for place in places] if leaves_out else None
            if self._index is not None:
                items, scores = self._index.search(vectors, k, excluded)
            else:
                items, scores = best_items(vectors, self._vectors, k, excluded)
            for row, place in enumerate(places):
                found[place] = self._named(items[row], scores[row])
        return found

    def _named(self, items: np.ndarray, scores: np.ndarray) -> list[Scored]:
        items = items[items >= 0]
        ids, titles = self._items.original(items).tolist(), [self._names.title(item) for item in items]
        return [Scored(one, float(score), title) for one, score, title in zip(ids, scores, titles, strict=False)]

    def scores(self, vector: np.ndarray, ids: Sequence[Any]) -> list[Scored | None]:
        """The scores of given items, in their order; None where the catalogue has no such item."""
        numbers = np.array([self._items.number(one) for one in ids], np.int64)
        known = numbers[numbers >= 0]
        vectors = self._vectors if self._index is None else self._index.vectors
        scored = iter(self._named(known, (vectors[known] * vector).sum(1, dtype=np.float32)))
        return [None if number < 0 else next(scored) for number in numbers]
