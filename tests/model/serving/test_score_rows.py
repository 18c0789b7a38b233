"""Rows that `argus score` is given: times of any unit, ids of any type, files that are none, and what changed since."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from python_model.data.schema import Dataset, fingerprint_of_events, load_dataset
from python_model.io.errors import DataError
from python_model.io.exclusive import owned
from python_model.serving.bundle import Export
from python_model.serving.score import prepare_states, score_parquet
from python_model.serving.scorers import ExportScorer, HistoryScorer, VectorScorer
from python_model.training import checkpoint
from tests.model.serving.conftest import WINDOW

LATE = 1_762_061_400
USERS, ITEMS = np.arange(5) * 10, np.array([7, 8, 9])


def scorer(users: np.ndarray = USERS, items: np.ndarray = ITEMS, **options: Any) -> VectorScorer:
    draw = np.random.default_rng(0)
    vectors = [draw.standard_normal((len(ids), 4)).astype(np.float32) for ids in (users, items)]
    return VectorScorer(users, vectors[0], np.full(len(users), 1000), items, vectors[1], lag=1, **options)


def table(rows: int = 3, **columns: Any) -> pa.Table:
    given = {"user_id": USERS[np.arange(rows) % 5], "item_id": ITEMS[np.arange(rows) % 3], "time": np.full(rows, LATE)}
    return pa.table({**given, **columns})


def written(folder: Path, rows: pa.Table, name: str = "rows.parquet", **options: Any) -> Path:
    pq.write_table(rows, folder / name, **options)
    return folder / name


def sentence(folder: Path, rows: pa.Table, **options: Any) -> str:
    """The refusal of a file of these rows, before which OUT is not there and after which no part is."""
    with pytest.raises(ValueError, match=r"\S") as refused:
        score_parquet(scorer(**options), written(folder, rows, row_group_size=2), folder / "out")
    assert not list((folder / "out").glob("*part*"))
    return str(refused.value)


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "+05:30"])
@pytest.mark.parametrize(("unit", "ticks"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_a_timestamp_is_a_moment_whatever_its_unit_and_zone(
    tmp_path: Path, unit: str, ticks: int, zone: str | None
) -> None:
    """LATE is 01:30 in New York on the night on which the clocks went back: its local hour came twice."""
    newest = np.array([LATE - 1, LATE, LATE, LATE, LATE])
    vectors = np.ones((5, 2), np.float32)
    scored = VectorScorer(USERS, vectors, newest, ITEMS, vectors[:3], lag=1)
    stamps = pa.array([LATE * ticks, LATE * ticks, None], pa.timestamp(unit, tz=zone))
    score_parquet(scored, written(tmp_path, table(time=stamps)), tmp_path / "out")
    found = pq.read_table(tmp_path / "out")
    assert found.column("score_missing").to_pylist() == [None, "before the user's vector", "no time"]


WRONG_TIMES = {
    "milliseconds": (pa.array([LATE, LATE, LATE * 1000]), "in milliseconds it would be 2025-11-02: give seconds"),
    "microseconds": (pa.array([LATE, LATE, LATE * 10**6]), "in microseconds it would be 2025-11-02"),
    "unsigned": (pa.array([0, 0, 2**64 - 1], pa.uint64()), "found 18446744073709551615"),
    "negative": (pa.array([0, 0, -1]), "found -1"),
    "before 1970": (pa.array([0, 0, -1], pa.timestamp("us")), "found -1"),
    "after 2100": (pa.array([0, 0, 2**62], pa.timestamp("us")), "found 4611686018427"),
}


@pytest.mark.parametrize("name", WRONG_TIMES)
def test_a_time_that_is_none_names_file_row_and_row_group(tmp_path: Path, name: str) -> None:
    values, expected = WRONG_TIMES[name]
    with pytest.raises(DataError) as refused:
        score_parquet(scorer(), written(tmp_path, table(time=values), row_group_size=2), tmp_path / "out")
    error = refused.value
    assert (error.file, error.column, error.row) == (tmp_path / "rows.parquet", "time", 3)
    assert expected in error.message and error.message.endswith("(row group 1)")


def test_scores_outlive_an_overwrite_by_rows_that_are_refused(
    service: Dataset, finetuned: Path, tmp_path: Path
) -> None:
    score_parquet(scorer(), written(tmp_path, table(6), row_group_size=2), tmp_path / "out")
    before = pq.read_table(tmp_path / "out")
    with pytest.raises(DataError, match=r"column 'time', data row 5: .*\(row group 2\)"):
        late = table(6, time=[LATE] * 4 + [-1] * 2)
        score_parquet(scorer(), written(tmp_path, late, row_group_size=2), tmp_path / "out", overwrite=True)
    assert pq.read_table(tmp_path / "out").equals(before)
    timed = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=WINDOW)
    with pytest.raises(DataError, match=r"column 'organic', data row 6: expected a value in \[-1, 1\], found 2"):
        odd = table(6, organic=[0] * 5 + [2])
        score_parquet(timed, written(tmp_path, odd), tmp_path / "out", overwrite=True)
    assert pq.read_table(tmp_path / "out").equals(before)


def test_mended_rows_are_scored_where_wrong_ones_were_refused(tmp_path: Path) -> None:
    """What has a part stays: its rows were right, and the same file would go on."""
    wrong, right = table(time=[LATE * 1000] * 3), table()
    with pytest.raises(DataError, match="in milliseconds"):
        score_parquet(scorer(), written(tmp_path, wrong), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="in milliseconds"):
        score_parquet(scorer(), written(tmp_path, wrong), tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [".lock"]
    assert score_parquet(scorer(), written(tmp_path, right), tmp_path / "out").scored == 3


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["2025-11-02"] * 3), pa.array([1.0, 2.0, float("nan")]), pa.array([None] * 3), pa.array([True] * 3),
        pa.array([20000] * 3, pa.date32()), pa.array([1] * 3, pa.time32("s")), pa.array([1] * 3, pa.duration("s")),
        pa.array([[1]] * 3), pa.array([1] * 3).cast(pa.decimal128(24, 2)), pa.array([{"s": 1}] * 3),
    ],
    ids=lambda values: str(values.type),
)  # fmt: skip
def test_a_column_of_another_type_is_no_time(tmp_path: Path, values: pa.Array) -> None:
    said = sentence(tmp_path, table(time=values))
    assert "column 'time'" in said and "or a timestamp, found " in said
    assert not (tmp_path / "out").exists()


def test_ids_are_compared_as_what_they_are(tmp_path: Path) -> None:
    big = np.array([2**63 + 5, 2**63 + 6, 3], np.uint64)
    rows = table(user_id=pa.array([2**63 + 6, None, 4], pa.uint64()), item_id=pa.array([7, 8, 9]).dictionary_encode())
    report = score_parquet(scorer(users=big), written(tmp_path, rows), tmp_path / "out")
    assert (report.scored, report.missing) == (1, {"unknown user": 2})
    names = np.array(["007", "7", "seven"], object)
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        out = tmp_path / str(kind)
        users = pa.array(["007", " 7", "Seven"]).cast(kind)
        report = score_parquet(scorer(users=names), written(tmp_path, table(user_id=users)), out)
        assert pq.read_table(out).column("score_missing").to_pylist() == [None, "unknown user", "unknown user"]


@pytest.mark.parametrize(
    ("values", "users", "expected"),
    [
        (["1", "2", "3"], USERS, "expected integers like the ids of the users, found string"),
        ([1, 2, 3], np.array(["1", "2"], object), "expected text like the ids of the users, found int64"),
        ([1.0, 2.0, 3.0], USERS, "expected integers like the ids of the users, found double"),
        ([True, True, False], USERS, "expected integers like the ids of the users, found bool"),
        ([[1], [2], [3]], USERS, "expected integers like the ids of the users, found list"),
        ([b"1", b"2", b"3"], np.array(["1", "2"], object), "expected text like the ids of the users, found binary"),
    ],
)
def test_ids_of_another_type_are_refused(tmp_path: Path, values: list[Any], users: np.ndarray, expected: str) -> None:
    said = sentence(tmp_path, table(user_id=pa.array(values)), users=users)
    assert "rows.parquet, column 'user_id'" in said and expected in said and not (tmp_path / "out").exists()


def test_columns_that_stand_twice_or_not_at_all(tmp_path: Path) -> None:
    one = table()
    twice = pa.Table.from_arrays([*one.columns, one.column(2)], [*one.column_names, "time"])
    assert "column 'time': expected every column once, found it 2 times" in sentence(tmp_path, twice)
    other = pa.Table.from_arrays([*one.columns, one.column(2), one.column(2)], [*one.column_names, "x", "x"])
    assert "column 'x': expected every column once" in sentence(tmp_path, other)
    assert "column 'user_id': this column is missing; they have none" in sentence(tmp_path, pa.table({}))
    for name in ("score", "score_missing", "user_vector", "item_vector"):
        assert f"column {name!r}: this column is what scoring adds" in sentence(tmp_path, table(3, **{name: [1, 2, 3]}))
    nested = pa.table({"row": [{"user_id": 1, "item_id": 1, "time": 1}]})
    assert "this column is missing; they have row" in sentence(tmp_path, nested)


def test_other_columns_pass_through_nested_ones_too(tmp_path: Path) -> None:
    more: dict[str, Any] = {"tags": [["a"], [], None], "point": [{"x": 1, "y": {"z": 2}}, None, {"x": 3, "y": None}]}
    score_parquet(scorer(), written(tmp_path, table(3, **more)), tmp_path / "out")
    assert pq.read_table(tmp_path / "out").select(list(more)).to_pydict() == more


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "not found: expected a Parquet file, or a folder of them"),
        (lambda path: path.write_bytes(b""), "not a readable Parquet file"),
        (lambda path: path.write_text("user_id,item_id,time\n1,2,3\n"), "not a readable Parquet file"),
        (lambda path: path.mkdir(), r"the folder has no \.parquet file"),
    ],
)
def test_what_is_no_parquet(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    make(tmp_path / "rows")
    with pytest.raises(DataError, match=f"rows: {expected}"):
        score_parquet(scorer(), tmp_path / "rows", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, table(1000, note=[str(n) * 20 for n in range(1000)]))
    content = bytearray(file.read_bytes())
    content[4:2000] = os.urandom(1996)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet: row group 0 cannot be read"):
        score_parquet(scorer(), file, tmp_path / "out")


def test_a_folder_holds_rows_alone(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "_temporary").mkdir(parents=True)
    for note in ("_SUCCESS", ".part.crc"):
        (folder / note).write_text("")
    written(folder, table(2), "a.parquet")
    written(folder, table(4), "b.PARQUET")
    assert score_parquet(scorer(), folder, tmp_path / "out").rows == 6
    for name, make in (("c.csv", Path.touch), ("day=1", Path.mkdir)):
        make(folder / name)
        with pytest.raises(DataError, match=rf"{name}: expected \.parquet files alone"):
            score_parquet(scorer(), folder, tmp_path / "other")
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    with pytest.raises(ValueError, match="lie in each other"):
        score_parquet(scorer(), folder, folder / "_out")
    with pytest.raises(ValueError, match="lie in each other"):
        score_parquet(scorer(), folder / "a.parquet", folder, overwrite=True)


def test_a_resumed_job_belongs_to_the_same_content(tmp_path: Path) -> None:
    """Same shape, same statistics, same footer, other rows between the extremes: another job."""
    one = table(5, user_id=[0, 10, 20, 30, 40], note=[0, 10, 20, 30, 40])
    other = table(5, user_id=[0, 20, 10, 30, 40], note=[0, 20, 10, 30, 40])
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    file = written(tmp_path, one, **options)
    before = file.read_bytes()
    score_parquet(scorer(), file, tmp_path / "out")
    assert score_parquet(scorer(), file, tmp_path / "out").scored_now == 0
    renamed = file.rename(tmp_path / "renamed.parquet")
    assert score_parquet(scorer(), renamed, tmp_path / "out").scored_now == 0
    after = written(tmp_path, other, **options).read_bytes()
    footer = -8 - int.from_bytes(after[-8:-4], "little")
    assert after[footer:] == before[footer:] and after != before
    with pytest.raises(ValueError, match=r"another job \(rows differs\): choose another folder or pass --overwrite"):
        score_parquet(scorer(), file, tmp_path / "out")
    score_parquet(scorer(), file, tmp_path / "out", overwrite=True)
    assert pq.read_table(tmp_path / "out").column("note").to_pylist() == [0, 20, 10, 30, 40]


def test_a_resumed_job_belongs_to_the_same_vectors_and_histories(
    service: Dataset, finetuned: Path, exported: Export, tmp_path: Path
) -> None:
    file = written(tmp_path, table())
    score_parquet(scorer(), file, tmp_path / "out")
    changed = scorer()
    changed._user_vectors[0, 0] += 1
    for again, name in ((changed, "content"), (scorer(users=USERS + 1), "content"), (ExportScorer(exported), "kind")):
        with pytest.raises(ValueError, match=rf"another job \([a-z, ]*{name}[a-z, ]* differs?\)"):
            score_parquet(again, file, tmp_path / "out")
    one = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=WINDOW).identity
    model = checkpoint.load_model(finetuned)
    model.start.data += 1
    other = HistoryScorer(model, service, None, window=WINDOW).identity
    assert {name for name in one if one[name] != other[name]} == {"model"}
    shutil.copytree(service.path, tmp_path / "data")
    events = pq.read_table(tmp_path / "data" / "events.parquet")
    organic = pa.array(~service.organic)
    place = events.column_names.index("organic")
    pq.write_table(events.set_column(place, events.schema.field(place), organic), tmp_path / "data" / "events.parquet")
    flipped = load_dataset(tmp_path / "data")
    assert flipped.info == service.info
    with pytest.raises(DataError, match=r"events\.parquet: expected the fingerprint .* other events"):
        _ = HistoryScorer(checkpoint.load_model(finetuned), flipped, None, window=WINDOW).identity
    described = tmp_path / "data" / "dataset.json"
    said = json.loads(described.read_text())
    described.write_text(json.dumps({**said, "fingerprint": fingerprint_of_events(flipped)}))
    flipped = load_dataset(tmp_path / "data")
    other = HistoryScorer(checkpoint.load_model(finetuned), flipped, None, window=WINDOW).identity
    assert {name for name in one if one[name] != other[name]} == {"data"}


def test_a_damaged_part_or_record_is_named(tmp_path: Path) -> None:
    file, out = written(tmp_path, table(4), row_group_size=2), tmp_path / "out"
    score_parquet(scorer(), file, out)
    (out / "part-000001.parquet").unlink()
    assert score_parquet(scorer(), file, out).scored_now == 2
    (out / "part-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-000001\.parquet: .* remove it, and the same command makes it again"):
        score_parquet(scorer(), file, out)
    for text in ("[]", "{", '{"a": 1, "a": 2}', "[" * 100_000):
        (out / "_job.json").write_text(text)
        with pytest.raises(DataError, match=r"_job\.json: expected"):
            score_parquet(scorer(), file, out)


def test_what_a_stopped_pass_left_is_gone_on_with_or_computed_anew(
    service: Dataset, finetuned: Path, tmp_path: Path
) -> None:
    late = int(service.time.max()) + 10**7
    rows = pa.table({"user_id": service.user_ids[:9], "item_id": np.arange(9), "time": np.full(9, late)})
    file = written(tmp_path, rows)
    expected = None
    for damage in (
        None,
        ("done.json", b"[]"),
        ("rows.npy", b"\x93NUMPY"),
        ("states.npy", b""),
        ("done.json", b'{"states": -1}'),
    ):
        scored = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=WINDOW)
        out = tmp_path / f"out{damage}".replace("/", "")
        prepare_states(scored, file, out)
        if damage is not None:
            (out / ".states" / damage[0]).write_bytes(damage[1])
            scored = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=WINDOW)
        score_parquet(scored, file, out)
        found = pq.read_table(out).column("score")
        expected = expected or found
        assert found.equals(expected) and found.null_count == 0


def test_stored_states_that_shrink_are_an_error_of_the_job(service: Dataset, finetuned: Path, tmp_path: Path) -> None:
    """They are read, not mapped: a mapped file that is cut short ends the process with SIGBUS."""
    late = int(service.time.max()) + 10**7
    rows = pa.table({"user_id": service.user_ids[:9], "item_id": np.arange(9), "time": np.full(9, late)})
    scored = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=WINDOW)
    prepare_states(scored, written(tmp_path, rows), tmp_path / "out")
    os.truncate(tmp_path / "out" / ".states" / "states.npy", 128)
    with pytest.raises(DataError, match=r"states\.npy: was cut short while it was read"):
        score_parquet(scored, tmp_path / "rows.parquet", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*part-*"))


@pytest.mark.parametrize("name", [".states", "_job.json", "_finished.json", "part-000000.parquet"])
def test_links_in_a_folder_of_scores_are_not_followed(tmp_path: Path, name: str) -> None:
    file, out, mine = written(tmp_path, table()), tmp_path / "out", tmp_path / "mine"
    score_parquet(scorer(), file, out)
    mine.mkdir() if name == ".states" else mine.write_text("mine")
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(mine)
    for overwrite in (False, True):
        with pytest.raises(OSError, match=rf"out/{name}: cannot be written, it is a symbolic link"):
            score_parquet(scorer(), file, out, overwrite=overwrite)
    assert not list(mine.iterdir()) if mine.is_dir() else mine.read_text() == "mine"


def test_one_process_writes_to_a_folder(tmp_path: Path) -> None:
    file = written(tmp_path, table())
    with owned(tmp_path / "out"), pytest.raises(ValueError, match=f"out is in use by process {os.getpid()} on "):
        score_parquet(scorer(), file, tmp_path / "out")
    assert score_parquet(scorer(), file, tmp_path / "out").rows == 3
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file, expected a folder of scores"):
        score_parquet(scorer(), file, tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_overwrite_removes_what_a_job_made_and_nothing_else(tmp_path: Path) -> None:
    score_parquet(scorer(), written(tmp_path, table(6), row_group_size=2), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    score_parquet(scorer(), written(tmp_path, table(2)), tmp_path / "out", overwrite=True)
    found = sorted(entry.name for entry in (tmp_path / "out").iterdir())
    assert found == [".lock", "_finished.json", "_job.json", "notes.txt", "part-000000.parquet"]


KINDS: list[Callable[[np.random.Generator, int], pa.Array]] = [
    lambda draw, n: pa.array(draw.integers(-2, 50, n), pa.int64()),
    lambda draw, n: pa.array(draw.integers(0, 50, n), pa.uint64()),
    lambda draw, n: pa.array(draw.integers(0, 50, n), pa.int8()),
    lambda draw, n: pa.array(draw.choice(np.array([0, 2**63 + 1, 2**64 - 1], np.uint64), n)),
    lambda draw, n: pa.array(draw.integers(0, 2, n) * LATE, pa.int64()),
    lambda draw, n: pa.array(draw.integers(0, 2, n) * LATE * 1000, pa.int64()),
    lambda draw, n: pa.array(draw.integers(0, 2**61, n), pa.timestamp("ns", tz="Europe/Berlin")),
    lambda draw, n: pa.array(draw.integers(0, 2**40, n), pa.timestamp("s")),
    lambda draw, n: pa.array(draw.standard_normal(n)),
    lambda draw, n: pa.array([str(number) for number in draw.integers(0, 50, n)]),
    lambda draw, n: pa.array([str(number) for number in draw.integers(0, 50, n)]).dictionary_encode(),
    lambda draw, n: pa.array(draw.integers(0, 50, n)).dictionary_encode(),
    lambda draw, n: pa.array(draw.integers(0, 2, n).astype(bool)),
    lambda draw, n: pa.nulls(n),
    lambda draw, n: pa.array([[1]] * n, pa.list_(pa.int64())),
    lambda draw, n: pa.array(draw.integers(0, 9, n), pa.int32()).cast(pa.date32()),
]


def hostile_file(draw: np.random.Generator, folder: Path) -> tuple[Path, int]:
    """A file of random columns, with nulls, and its rows."""
    size = int(draw.choice([0, 1, 2, 7, 33]))
    columns = {}
    for name in ("user_id", "item_id", "time"):
        # Most columns are good ones, so that many files come through.
        good = [KINDS[0]] if name != "time" else [KINDS[4], KINDS[6]]
        kinds = good if draw.random() < 0.6 else KINDS
        made = kinds[draw.integers(len(kinds))]
        values = made(draw, size)
        if size and draw.random() < 0.3 and not pa.types.is_dictionary(values.type):
            values = pc.if_else(pa.array(draw.random(size) < 0.3), None, values)
        columns[name] = values
    if draw.random() < 0.1:
        columns.pop(str(draw.choice(list(columns))))
    return written(folder, pa.table(columns), row_group_size=int(draw.choice([1, 3, 1000]))), size


def test_any_file_is_scored_or_refused_in_one_sentence(tmp_path: Path) -> None:
    draw = np.random.default_rng(13)
    outcomes = {"scored": 0, "refused": 0}
    for number in range(200 * int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))):
        file, size = hostile_file(draw, tmp_path)
        out = tmp_path / f"out{number}"
        try:
            report = score_parquet(scorer(), file, out)
        except DataError as error:
            assert error.file == file and error.column in ("user_id", "item_id", "time") and "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        found = pq.read_table(out)
        assert report.rows == size == len(found) and report.scored == size - found.column("score").null_count
        scores = found.column("score").to_pylist()
        reasons = found.column("score_missing").to_pylist()
        assert all((score is None) == (reason is not None) for score, reason in zip(scores, reasons, strict=True))
        outcomes["scored"] += 1
    assert min(outcomes.values()) > 20, outcomes
