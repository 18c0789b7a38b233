"""Candidate generation: a FAISS HNSW graph over the item vectors, with items left out, measured against exact search.

The graph is searched by inner product over float16 copies of the vectors, which halves the memory traffic; the found
items are ordered by the float32 vectors. Excluded (seen or blocked) items are filtered during the graph search. Where
the search finds fewer than k items, or most of the catalogue is excluded, exact search answers the query, so that fewer
than k items come back only where the catalogue has no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from python_model.io.disk import replace_text
from python_model.io.errors import DataError
from python_model.io.integrity import sums_of
from python_model.io.json_text import read_object
from python_model.serving.arguments import whole_number
from python_model.serving.bundle import Export
from python_model.serving.exact import best_items
from python_model.serving.files import whole_file

INDEX, SETTINGS = "index.faiss", "index.json"


@dataclass(frozen=True)
class IndexSettings:
    """HNSW settings. links: per node (M). build_breadth, search_breadth: candidate nodes (efConstruction, efSearch)."""

    links: int = 48
    build_breadth: int = 80
    search_breadth: int = 320

    def __post_init__(self) -> None:
        for name, least, most in (("links", 2, 1 << 12), ("build_breadth", 1, 1 << 20), ("search_breadth", 1, 1 << 20)):
            whole_number(getattr(self, name), name, least, most)


def require_faiss() -> Any:
    """The faiss module; ValueError saying what to install where it is missing."""
    try:
        import faiss
    except ImportError:
        raise ValueError("faiss is not installed: pip install faiss-cpu, or argus-kernels[serve]") from None
    return faiss


def _settings(export: Export, remedy: str) -> IndexSettings:
    """The settings in the index.json of an export; DataError where it is invalid or describes another index file."""
    file = export.path / SETTINGS
    found = read_object(file)
    names = [one.name for one in fields(IndexSettings)]
    if missing := sorted({*names, "model", "bytes", "crc32"} - found.keys()):
        raise DataError(file, f"this key is missing: {remedy}", column=missing[0])
    if found["model"] != export.info.model:
        raise DataError(file, f"was made for another model: {remedy}", column="model")
    index = export.path / INDEX
    if sums_of(export.path, [index])[INDEX] != {"bytes": found["bytes"], "crc32": found["crc32"]}:
        raise DataError(index, f"damaged, or not the one that {SETTINGS} was written with: {remedy}")
    try:
        return IndexSettings(**{name: found[name] for name in names})
    except ValueError as error:
        raise DataError(file, f"{error}: {remedy}") from error


class CandidateIndex:
    """An HNSW graph over item vectors float32 [V, D], which exact search also uses."""

    def __init__(self, graph: Any, vectors: np.ndarray, settings: IndexSettings) -> None:
        self._faiss = require_faiss()
        self._graph, self.vectors, self.settings = graph, vectors, settings

    @classmethod
    def build(cls, vectors: np.ndarray, settings: IndexSettings | None = None) -> CandidateIndex:
        """Builds the graph on all of faiss's threads."""
        faiss = require_faiss()
        settings = settings or IndexSettings()
        width, inner_product = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
        graph = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, settings.links, inner_product)
        graph.hnsw.efConstruction = settings.build_breadth
        contiguous = np.ascontiguousarray(vectors, np.float32)
        graph.train(contiguous[:1])
        graph.add(contiguous)
        if (row := _first_not_finite(faiss, graph)) is not None:
            most = np.finfo(np.float16).max
            raise ValueError(
                f"item vector {row} is beyond float16 (±{most:g}), in which an index keeps it: search exactly"
            )
        return cls(graph, vectors, settings)

    def save(self, folder: Path, made_for: str) -> None:
        """Writes the graph and its settings, each file atomically; made_for: identity of the vectors it belongs to.

        index.json has the checksum of index.faiss: FAISS does not check what it reads and may crash the process.
        """
        with whole_file(folder / INDEX) as partial:
            self._faiss.write_index(self._graph, str(partial))
            sums = sums_of(partial.parent, [partial])[partial.name]
        settings = {**asdict(self.settings), "model": made_for, **sums}
        replace_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    @classmethod
    def open(cls, export: Export) -> CandidateIndex:
        """The index of an export; DataError where it is damaged or `argus index` did not make it from these vectors."""
        faiss = require_faiss()
        file, remedy = export.path / INDEX, f"make it with `argus index {export.path}`"
        if not file.is_file() or not (export.path / SETTINGS).is_file():
            raise DataError(file, f"not found: {remedy}")
        settings = _settings(export, remedy)
        try:
            graph = faiss.read_index(str(file))
        except (RuntimeError, MemoryError) as error:
            raise DataError(file, f"cannot be read: {str(error).splitlines()[0]}; {remedy}") from error
        if (graph.ntotal, graph.d) != (export.info.items, export.info.width):
            raise DataError(file, f"holds {graph.ntotal} vectors of {graph.d}, not those of this export: {remedy}")
        if (row := _first_not_finite(faiss, graph)) is not None:
            raise DataError(file, f"expected vectors of finite numbers, found others: {remedy}", row=row + 1)
        return cls(graph, export.item_vectors(), settings)

    def __len__(self) -> int:
        return int(self._graph.ntotal)

    def search(
        self, queries: np.ndarray, k: int, excluded: Sequence[np.ndarray] | None = None, *, breadth: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(items int64 [n, k], scores float32 [n, k]) of queries float32 [n, D], best first.

        excluded: dense item numbers that must not appear, one array per query. breadth: candidate nodes, at least k;
        None: that of the settings. Rows are padded with −1 and −inf where fewer than k items are left.
        """
        whole_number(k, "k", 1)
        queries = np.ascontiguousarray(queries, np.float32)
        breadth = max(breadth or self.settings.search_breadth, k)
        if excluded is None:
            _, items = self._graph.search(queries, min(k, len(self)), params=self._parameters(breadth))
            return self._padded(*self._ordered(queries, items), k, queries, None)
        found = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        for row, left_out in enumerate(excluded):
            one = self._search_without(queries[row : row + 1], k, np.asarray(left_out, np.int64), breadth)
            found[0][row], found[1][row] = one[0][0], one[1][0]
        return found

    def _search_without(
        self, query: np.ndarray, k: int, left_out: np.ndarray, breadth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if 2 * len(left_out) > len(self):
            return best_items(query, self.vectors, k, [left_out])
        allowed = np.full(-(-len(self) // 8), 255, np.uint8)
        np.bitwise_and.at(allowed, left_out >> 3, ~(np.uint8(1) << (left_out & 7).astype(np.uint8)))
        selector = self._faiss.IDSelectorBitmap(allowed)
        # Excluded items tend to score high, so the search passes through them.
        breadth = breadth + min(len(left_out), 4 * breadth)
        _, items = self._graph.search(query, min(k, len(self)), params=self._parameters(breadth, selector))
        return self._padded(*self._ordered(query, items), k, query, left_out)

    def _ordered(self, queries: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items [n, k] (−1: none) by their float32 scores, best first, and these scores."""
        scores = np.einsum("nkd,nd->nk", self.vectors[np.maximum(items, 0)], queries)
        scores = np.where(items >= 0, scores, -np.inf).astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)

    def _padded(
        self, items: np.ndarray, scores: np.ndarray, k: int, queries: np.ndarray, left_out: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same with k columns; rows that came back short are searched exactly."""
        excluded = [] if left_out is None else [left_out]
        there = len(self) - len(np.unique(np.concatenate([np.zeros(0, np.int64), *excluded])))
        short = np.flatnonzero((items >= 0).sum(1) < min(k, there))
        if items.shape[1] < k:
            more = ((0, 0), (0, k - items.shape[1]))
            items = np.pad(items, more, constant_values=-1)
            scores = np.pad(scores, more, constant_values=-np.inf)
        if len(short):
            exact = best_items(queries[short], self.vectors, k, excluded * len(short) if excluded else None)
            items[short], scores[short] = exact
        return items.astype(np.int64), scores

    def _parameters(self, breadth: int, selector: Any = None) -> Any:
        return self._faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)


def _first_not_finite(faiss: Any, graph: Any) -> int | None:
    """The first float16 vector of a graph that is not finite, so that its links are meaningless; None without one."""
    codes = faiss.vector_to_array(faiss.downcast_index(graph.storage).codes).view(np.float16)
    finite = np.isfinite(codes.reshape(graph.ntotal, graph.d)).all(1)
    return None if finite.all() else int(np.argmin(finite))


def sample_users(export: Export, users: int, seed: int = 0) -> np.ndarray:
    """Vectors float32 [n, D] of `users` random users of an export, of all where there are fewer."""
    chosen = np.random.default_rng(seed).permutation(export.info.users)[:users]
    return np.ascontiguousarray(export.user_vectors()[np.sort(chosen)])


@dataclass(frozen=True)
class IndexCheck:
    """An index compared with exact search, over `queries` queries on one thread; times in milliseconds per query."""

    queries: int
    k: int
    recall: float
    p50_ms: float
    p99_ms: float
    exact_ms: float


def check_index(index: CandidateIndex, queries: np.ndarray, k: int, *, breadth: int | None = None) -> IndexCheck:
    """Recall@k against exact search (the share of the exact k best that is found), and times of single queries."""
    faiss = require_faiss()
    began = time.perf_counter()
    exact, _ = best_items(queries, index.vectors, k)
    exact_ms = (time.perf_counter() - began) * 1e3 / len(queries)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.search(queries[:1], k, breadth=breadth)
        times, hits = [], 0
        for row in range(len(queries)):
            began = time.perf_counter()
            items, _ = index.search(queries[row : row + 1], k, breadth=breadth)
            times.append((time.perf_counter() - began) * 1e3)
            hits += len(np.intersect1d(items[0][items[0] >= 0], exact[row]))
    finally:
        faiss.omp_set_num_threads(threads)
    wanted = int((exact >= 0).sum())
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return IndexCheck(len(queries), k, hits / wanted, float(p50), float(p99), exact_ms)
