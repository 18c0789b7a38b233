"""An export that is not as it was written: what is used of it is right, or one sentence names the file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from python_model.io.errors import DataError
from python_model.io.integrity import seal, sums_of
from python_model.serving.bundle import Export
from python_model.serving.candidates import search_of
from python_model.serving.index import CandidateIndex
from python_model.serving.scorers import ExportScorer
from python_model.serving.store import SessionStore
from tests.model.reliability.conftest import flip_bit

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))


def use(path: Path) -> list[Any]:
    """Everything that is done with an export: scores, candidates, a session of a known user."""
    found = Export.open(path)
    user, item = found.user_ids.ids[5].item(), found.item_ids.ids[3].item()
    time = int(found.user_time[5]) + found.info.lag
    rows = pa.table({"user_id": [user], "item_id": [item], "time": [time]})
    score = ExportScorer(found)(rows).column("score").to_pylist()
    with SessionStore.open(found, resident=2, max_events=64, page_size=8) as store:
        session = store.session(user)
        best = session.top_k(5, exclude_seen=True)
        return [score, [(one.item_id, one.score) for one in best], len(session), found.item_vectors()[0].tolist()]


@pytest.fixture
def copy(exported: Export, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.path, tmp_path / "out"))


@pytest.fixture
def indexed(copy: Path) -> Path:
    pytest.importorskip("faiss")
    found = Export.open(copy)
    CandidateIndex.build(found.item_vectors()).save(copy, found.info.model)
    return copy


def test_an_index_of_vectors_that_are_not_finite_is_refused(indexed: Path) -> None:
    faiss = pytest.importorskip("faiss")
    file, settings = indexed / "index.faiss", indexed / "index.json"
    graph = faiss.read_index(str(file))
    storage = faiss.downcast_index(graph.storage)
    codes = faiss.vector_to_array(storage.codes).view(np.float16)
    codes[8 * 4 + 1] = np.nan
    faiss.copy_array_to_vector(codes.view(np.uint8), storage.codes)
    faiss.write_index(graph, str(file))
    settings.write_text(json.dumps(json.loads(settings.read_text()) | sums_of(indexed, [file])[file.name]))
    with pytest.raises(DataError, match=r"index\.faiss, data row 5: expected vectors of finite numbers, found others"):
        use(indexed)
    vectors = Export.open(indexed).item_vectors().copy()
    vectors[6, 0] = 1e6
    with pytest.raises(ValueError, match=r"item vector 6 is beyond float16 \(±65504\)"):
        CandidateIndex.build(vectors)


def test_flipped_bits_and_cut_files_are_found_before_they_are_used(indexed: Path) -> None:
    expected, random = use(indexed), np.random.default_rng(7)
    files = sorted(path for path in indexed.rglob("*") if path.is_file())
    refused = 0
    for file in files * SCALE:
        content = file.read_bytes()
        bits = random.integers(0, 8 * len(content), 2)
        cut = int(random.integers(0, len(content)))
        for damage in range(4):
            if damage == 0:
                for bit in bits.tolist():
                    flip_bit(file, bit)
            elif damage == 1:
                os.truncate(file, cut)
            elif damage == 2:
                os.truncate(file, 0)
            else:
                file.unlink()
            try:
                assert use(indexed) == expected, file
            except DataError as error:
                # index.json answers for index.faiss, checksums.json for all the others.
                assert str(error).startswith(str(indexed)), error
                refused += 1
            file.write_bytes(content)
    # Not read: the small forms of the vectors and scores.parquet.
    assert refused > 2 * len(files) * SCALE
    assert use(indexed) == expected


def resealed(copy: Path) -> None:
    (copy / "index.json").unlink(missing_ok=True)
    (copy / "index.faiss").unlink(missing_ok=True)
    seal(copy)


ARRAYS: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
    (
        "vectors/items.float32",
        lambda one: one.astype(np.float64),
        r"expected float32 \[80, 8\], found float64 \[80, 8\]",
    ),
    ("vectors/items.float32", lambda one: one[:3], r"expected float32 \[80, 8\], found float32 \[3, 8\]"),
    ("vectors/items.float32", lambda one: one.ravel(), r"expected float32 \[80, 8\], found float32 \[640\]"),
    ("vectors/items.float32", np.asfortranarray, r"expected float32 \[80, 8\], found"),
    ("vectors/users.float32", lambda one: one.astype(object), "expected a NumPy array|expected float32"),
    ("history/items", lambda one: one.astype(np.int64), r"expected int32 \[rows\], found int64"),
    ("history/items", lambda one: one + 10**6, r"items.npy, data row \d+: expected a value in"),
    ("history/time", lambda one: one * 1000, r"time.npy, data row \d+: .* give seconds"),
    ("history/time", lambda one: one[::-1].copy(), "expected times that do not fall"),
    ("history/time", lambda one: one[1:], r"expected int64 \[\d+\], found int64"),
    ("history/organic", lambda one: one.astype(np.int8), "expected bool"),
    ("history/context", lambda one: one + 10**6, r"context.npy, data row \d+: expected a value in"),
    ("history/feedback", lambda one: one + 300, r"feedback.npy, data row \d+: expected a value in"),
    ("history/offsets", lambda one: one[::-1].copy(), "expected offsets that rise from 0 to"),
    ("history/offsets", lambda one: one + 1, "expected offsets that rise from 0 to"),
    ("history/offsets", lambda one: one[:0], r"expected int64 \[41\], found int64 \[0\]"),
    ("seen/items", lambda one: one + 10**6, "expected rising items below 80"),
    ("seen/offsets", lambda one: one * 2, "expected offsets that rise from 0 to"),
]


@pytest.mark.parametrize(("name", "change", "sentence"), ARRAYS)
def test_an_array_of_another_kind_is_refused(
    copy: Path, name: str, change: Callable[[np.ndarray], np.ndarray], sentence: str
) -> None:
    file = copy / f"{name}.npy"
    np.save(file, change(np.load(file)), allow_pickle=True)
    resealed(copy)
    with pytest.raises(DataError, match=sentence) as caught:
        use(copy)
    assert caught.value.file == file


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -2e19])
@pytest.mark.parametrize("side", ["items", "users"])
def test_a_vector_without_a_finite_length_is_named(copy: Path, side: str, value: float) -> None:
    """One number of one vector: its item would be missing from the best ones of everybody, with nothing said."""
    file = copy / "vectors" / f"{side}.float32.npy"
    vectors = np.load(file)
    vectors[3, 2] = value
    np.save(file, vectors)
    resealed(copy)
    with pytest.raises(
        DataError, match=rf"{side}\.float32\.npy, data row 4: expected finite numbers of a finite length"
    ):
        search_of(Export.open(copy), exact=True)(Export.open(copy).user_vectors(), 80, None)


def test_vectors_as_long_as_they_may_be_have_finite_scores(copy: Path) -> None:
    for side in ("items", "users"):
        vectors = np.load(copy / "vectors" / f"{side}.float32.npy")
        vectors[3] = (-1) ** np.arange(8) * (1.8e19 / np.sqrt(8))
        np.save(copy / "vectors" / f"{side}.float32.npy", vectors)
    resealed(copy)
    items, scores = search_of(Export.open(copy), exact=True)(Export.open(copy).user_vectors(), 80, None)
    assert np.isfinite(scores).all() and (np.sort(items, axis=1) == np.arange(80)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(copy: Path, value: float) -> None:
    file = copy / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name, one in weights.items() if one.is_floating_point() and one.dim() == 2)
    weights[name][0, 1] = value
    save_file(weights, file)
    seal(copy / "model")
    resealed(copy)
    with pytest.raises(DataError, match=r"model\.safetensors, column .*: expected finite numbers, found ") as caught:
        SessionStore.open(copy, resident=2, max_events=64, page_size=8)
    assert caught.value.column == name


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00" + b"\0" * 100, pickle.dumps([1]),
     b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }" + b" " * 10 + b"\n",
     b"\x93NUMPY\x01\x00\x50\x00{'descr': '<f4', 'fortran_order': False, 'shape': (80, 10**30), }" + b" " * 8 + b"\n"],
)  # fmt: skip
def test_what_is_no_array_is_refused(copy: Path, content: bytes) -> None:
    (copy / "vectors" / "items.float32.npy").write_bytes(content)
    resealed(copy)
    with pytest.raises(DataError, match=r"items\.float32\.npy: expected"):
        use(copy)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_table_that_was_copied_short_is_refused(copy: Path, share: float) -> None:
    os.truncate(copy / "items.parquet", int(share * (copy / "items.parquet").stat().st_size))
    resealed(copy)
    with pytest.raises(DataError, match=r"items\.parquet, column 'item_id': cannot be read"):
        use(copy)


def test_a_file_that_is_cut_short_while_it_is_open_is_no_crash(copy: Path) -> None:
    found = Export.open(copy)
    found.open_histories()
    vectors = found.item_vectors().copy()
    for name in ("vectors/items.float32.npy", "history/items.npy", "seen/items.npy"):
        os.truncate(copy / name, 200)
    np.testing.assert_array_equal(found.item_vectors(), vectors)
    for read in (found.history, found.seen):
        with pytest.raises(DataError, match=r"items\.npy: was cut short while it was read"):
            read(found.info.users - 1)


IDS: list[tuple[str, str, Callable[[Any], Any], str]] = [
    ("items", "item_id", lambda ids: [None, *ids[1:]], "column 'item_id', data row 1: expected an id, found nothing"),
    ("items", "item_id", lambda ids: [ids[0], *ids[:-1]], "data row 2: expected every id once, found"),
    ("items", "item_id", lambda ids: [float(one) for one in ids], "expected integers or text, found double"),
    ("items", "item_id", lambda ids: [f"{one % 79}" for one in ids], "data row 80: expected every id once, found"),
    ("users", "user_id", lambda ids: [True] * len(ids), "expected integers or text, found bool"),
    ("users", "user_id", lambda ids: ids[:-1], "column 'user_id': expected 40 rows as export.json says, found 39"),
    ("users", "time", lambda times: [None, *times[1:]], "column 'time', data row 1: .* found nothing"),
    ("users", "time", lambda times: [str(one) for one in times], "column 'time': .* found string"),
    ("users", "time", lambda times: [1000 * one for one in times], "column 'time', data row 1: .* give seconds"),
]


@pytest.mark.parametrize(("file", "column", "change", "sentence"), IDS)
def test_ids_of_another_kind_are_refused(
    copy: Path, file: str, column: str, change: Callable[[Any], Any], sentence: str
) -> None:
    path = copy / f"{file}.parquet"
    columns = pq.read_table(path, columns=["item_id"] if file == "items" else ["user_id", "time"]).to_pydict()
    columns[column] = change(columns[column])
    pq.write_table(pa.table({name: values[: len(columns[column])] for name, values in columns.items()}), path)
    resealed(copy)
    with pytest.raises(DataError, match=sentence):
        use(copy)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [("items", "80", "expected a whole number of at least 1, found 80"), ("items", True, "found True"),
     ("items", -1, "found -1"), ("items", 2**70, "expected a whole number"), ("lag", 0, "of at least 1, found 0"),
     ("lag", 1.5, "found 1.5"), ("score", "best", "expected one of pair, next_item, found 'best'"),
     ("score", ["pair"], "expected text"), ("errors", [], "expected figures of both sides"),
     ("errors", {"items": {"int8": {"largest": "no"}}}, "expected figures of both sides"),
     ("width", 9, "column 'width': the model has width 8, expected 9"), ("model", "0" * 64, "of another model than"),
     ("format", 2, "expected format 1, found 2"), ("window", None, "column 'window': expected a whole number")],
)  # fmt: skip
def test_an_export_json_of_other_types_is_refused(copy: Path, name: str, value: Any, sentence: str) -> None:
    said = json.loads((copy / "export.json").read_text())
    (copy / "export.json").write_text(json.dumps({**said, name: value}))
    resealed(copy)
    with pytest.raises(DataError, match=sentence):
        SessionStore.open(copy, resident=2, max_events=64, page_size=8)


@pytest.mark.parametrize("name", ["export.json", "checksums.json", "index.json", "model/config.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"[]", b"null", b"\xff", b'{"a": NaN}', b"", b'{"export.json": 3}']
)
def test_json_of_any_kind_is_one_sentence(indexed: Path, name: str, content: bytes) -> None:
    (indexed / name).write_bytes(content)
    if name == "model/config.json":
        seal(indexed / "model")
    if name != "checksums.json":
        seal(indexed)
    # A name that checksums.json says nothing right of is the one that is named.
    expected = "export.json|checksums.json" if name == "checksums.json" else Path(name).name
    with pytest.raises(DataError, match=expected):
        use(indexed)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [("search_breadth", 2**63, r"search_breadth is 9223372036854775808, expected a whole number in \[1, 1048576\]"),
     ("search_breadth", 0, "search_breadth is 0"), ("links", "48", "links is '48', expected a whole number"),
     ("build_breadth", True, "build_breadth is True"), ("crc32", None, "damaged, or not the one"),
     ("model", "another", "was made for another model: make it with `argus index")],
)  # fmt: skip
def test_an_index_json_of_other_values_is_refused(indexed: Path, name: str, value: Any, sentence: str) -> None:
    said = json.loads((indexed / "index.json").read_text())
    (indexed / "index.json").write_text(json.dumps({**said, name: value}))
    with pytest.raises(DataError, match=sentence):
        use(indexed)
    del said[name]
    (indexed / "index.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match=f"column '{name}': this key is missing: make it with `argus index"):
        use(indexed)


def test_a_pickle_in_an_export_is_not_read(copy: Path, tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "ran").touch, ()

    (copy / "model" / ".metadata").write_bytes(pickle.dumps(Command()))
    seal(copy / "model")
    seal(copy)
    with pytest.raises(DataError, match=r"\.metadata: no file of an export, and not read"):
        use(copy)
    assert not (tmp_path / "ran").exists()


def test_an_export_of_an_earlier_version_says_what_to_do(copy: Path) -> None:
    (copy / "checksums.json").unlink()
    with pytest.raises(DataError, match=r"checksums\.json: not found: expected .* of an earlier version again"):
        use(copy)
