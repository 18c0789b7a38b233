"""The best items of many users, block by block, without seen and blocked ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from python_model.serving.bundle import Export
from python_model.serving.exact import best_items
from python_model.serving.export import ScoreWriter
from python_model.serving.files import whole_file
from python_model.serving.index import CandidateIndex

BLOCK = 4096
Progress = Callable[[int, int], None]


class Search(Protocol):
    """Exact search or an index."""

    def __call__(self, queries: np.ndarray, k: int, excluded: list[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """(items int64 [n, k], scores float32 [n, k]) of queries float32 [n, D]."""
        ...


def search_of(export: Export, *, exact: bool = False, breadth: int | None = None) -> Search:
    """Search over the export's index, or over all its item vectors."""
    if breadth is not None and breadth < 1:
        raise ValueError(f"breadth: expected at least 1, found {breadth}")
    if exact:
        vectors = np.ascontiguousarray(export.item_vectors())
        return lambda queries, k, excluded: best_items(queries, vectors, k, excluded)
    index = CandidateIndex.open(export)
    most = None if breadth is None else min(breadth, export.info.items)
    return lambda queries, k, excluded: index.search(queries, k, excluded, breadth=most)


def candidates(
    export: Export, users: np.ndarray, k: int, search: Search, *, exclude_seen: bool = False,
    blocked: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # fmt: skip
    """(users [n], items int64 [n, k], scores float32 [n, k]) for dense user numbers, in their order; k ≤ all items.

    exclude_seen leaves out all items of a user's history, blocked (dense item numbers) leaves out items for all users.
    Rows are padded with −1 where the catalogue has fewer than k items left.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    k = min(k, export.info.items)
    vectors = export.user_vectors()
    for start in range(0, len(users), BLOCK):
        part = users[start : start + BLOCK]
        excluded = None
        if exclude_seen or blocked is not None:
            of_all = np.zeros(0, np.int64) if blocked is None else np.asarray(blocked, np.int64)
            excluded = [np.union1d(of_all, export.seen(user)) if exclude_seen else of_all for user in part.tolist()]
        yield part, *search(np.asarray(vectors[part]), k, excluded)


def write_candidates(
    out: Path, export: Export, users: np.ndarray, k: int, search: Search, *, exclude_seen: bool = False,
    blocked: np.ndarray | None = None, progress: Progress = lambda done, total: None,
) -> int:  # fmt: skip
    """Write rows (user_id, rank, item_id, score, title if any) atomically as one Parquet file; returns their number."""
    done = 0
    with whole_file(out) as partial:
        writer = ScoreWriter(partial, export.user_ids.ids, export.item_ids.ids, k, export.names.titles)
        for part, items, scores in candidates(export, users, k, search, exclude_seen=exclude_seen, blocked=blocked):
            writer.write(part, items, scores)
            done += len(part)
            progress(done, len(users))
        writer.close()
    return int(pq.read_metadata(out).num_rows)
