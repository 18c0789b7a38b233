"""The index against exact search: recall, items left out, and as many items as there are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from python_model.serving import candidates as retrieving
from python_model.serving.bundle import Export
from python_model.serving.exact import best_items
from python_model.serving.id_files import read_ids
from python_model.serving.index import CandidateIndex, IndexSettings, check_index

pytest.importorskip("faiss")


def clustered(rows: int, seed: int, width: int = 16) -> np.ndarray:
    """Unit vectors around forty centres."""
    centres = np.random.default_rng(0).standard_normal((40, width))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 40, rows)] + 0.7 * random.standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def index() -> CandidateIndex:
    return CandidateIndex.build(clustered(4000, 1), IndexSettings(links=16, build_breadth=40, search_breadth=128))


def test_recall_against_exact_search(index: CandidateIndex) -> None:
    found = check_index(index, clustered(60, 2), 50)
    assert found.recall >= 0.97 and found.queries == 60 and 0 < found.p50_ms <= found.p99_ms
    narrow = check_index(index, clustered(60, 2), 50, breadth=1)
    assert narrow.recall < found.recall


def test_items_that_are_left_out_do_not_come_back(index: CandidateIndex) -> None:
    """The best ones are left out, the hardest for a walk through the graph."""
    queries = clustered(12, 3)
    best, _ = best_items(queries, index.vectors, 600)
    hits = 0
    for row, count in enumerate([0, 1, 30, 100, 300, 600] * 2):
        left_out = best[row, :count]
        items, scores = index.search(queries[row : row + 1], 40, [left_out])
        expected, _ = best_items(queries[row : row + 1], index.vectors, 40, [left_out])
        assert (items >= 0).all() and len(set(items[0].tolist())) == 40
        assert not set(items[0].tolist()) & set(left_out.tolist())
        np.testing.assert_allclose(scores[0], index.vectors[items[0]] @ queries[row], rtol=1e-5, atol=1e-6)
        assert (np.diff(scores[0]) <= 0).all()
        hits += len(np.intersect1d(items, expected))
    assert hits / (12 * 40) >= 0.95


def test_as_many_items_as_there_are(index: CandidateIndex) -> None:
    query = clustered(1, 4)
    everything = np.arange(4000)
    kept = np.array([5, 900, 3999])
    items, scores = index.search(query, 10, [np.setdiff1d(everything, kept)])
    assert set(items[0][:3].tolist()) == set(kept.tolist()) and (items[0][3:] == -1).all()
    assert (scores[0][3:] == -np.inf).all()
    items, _ = index.search(query, 4100)
    assert set(items[0].tolist()) == set(range(-1, 4000)) and (items[0][4000:] == -1).all()
    items, _ = best_items(query, index.vectors, 3, [everything])
    assert (items == -1).all()
    with pytest.raises(ValueError, match="k is 0, expected a whole number of at least 1"):
        index.search(query, 0)
    with pytest.raises(ValueError, match=r"links is 1, expected a whole number in \[2, 4096\]"):
        IndexSettings(links=1)


@pytest.fixture
def indexed(exported: Export, tmp_path: Path) -> Export:
    shutil.copytree(exported.path, tmp_path / "out")
    found = Export.open(tmp_path / "out")
    CandidateIndex.build(found.item_vectors()).save(found.path, found.info.model)
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_candidates_of_all_users(indexed: Export, tmp_path: Path, exact: bool) -> None:
    blocked_file = tmp_path / "blocked.txt"
    blocked_file.write_text(f"{indexed.item_ids.ids[4]}\n\n{indexed.item_ids.ids[9]}\n")
    blocked = read_ids(blocked_file, indexed.item_ids, "item_id").numbers
    assert blocked.tolist() == [4, 9]
    users = np.arange(indexed.info.users)
    search = retrieving.search_of(indexed, exact=exact)
    out = tmp_path / "candidates.parquet"
    rows = retrieving.write_candidates(out, indexed, users, 7, search, exclude_seen=True, blocked=blocked)
    table = pq.read_table(out).to_pydict()
    assert rows == len(table["score"])
    for user in users.tolist():
        mine = [row for row, one in enumerate(table["user_id"]) if one == indexed.user_ids.ids[user]]
        left_out = np.union1d(indexed.seen(user), blocked)
        expected, _ = best_items(indexed.user_vectors()[user : user + 1], indexed.item_vectors(), 7, [left_out])
        expected = expected[expected >= 0]
        assert [table["item_id"][row] for row in mine] == indexed.item_ids.original(expected).tolist()
        assert [table["rank"][row] for row in mine] == list(range(1, len(expected) + 1))


def test_an_index_that_does_not_fit_is_one_sentence(indexed: Export) -> None:
    assert len(CandidateIndex.open(indexed)) == indexed.info.items
    text = (indexed.path / "index.json").read_text()
    (indexed.path / "index.json").write_text(text.replace(indexed.info.model, "another"))
    with pytest.raises(ValueError, match="was made for another model: make it with `argus index"):
        CandidateIndex.open(indexed)
    (indexed.path / "index.json").write_text(text)
    (indexed.path / "index.faiss").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"index\.faiss: damaged, or not the one that index\.json was written with"):
        CandidateIndex.open(indexed)
    (indexed.path / "index.faiss").unlink()
    with pytest.raises(ValueError, match="not found: make it with `argus index"):
        CandidateIndex.open(indexed)
