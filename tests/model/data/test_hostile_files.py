"""Files of every source, mutated: read as an obvious reader reads them, or one DataError, with nothing left behind."""

from __future__ import annotations

import csv
import io
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.prepare import prepare
from python_model.data.readers import kuairand, movielens
from python_model.data.schema import Dataset, load_dataset
from python_model.io.errors import DataError
from tests.model.data.test_kuairand import T, write_log
from tests.model.data.test_yambda import FILES
from tests.model.data.test_yambda import tree as yambda_tree

__all__ = ["yambda_tree"]
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
Events = list[tuple[int, int, int]]


def events_of(dataset: Dataset) -> Events:
    """(user id, item id, time) of every event, sorted."""
    user, item = dataset.user_ids[dataset.user], dataset.item_column("item_id")[dataset.item]
    return sorted(zip(user.tolist(), item.tolist(), dataset.time.tolist(), strict=True))


def mutated(dice: random.Random, content: bytes, parts: Sequence[bytes]) -> bytes:
    """A few bytes replaced, taken out, doubled or put in; four times in ten digits by digits alone."""
    out = bytearray(content)
    digits = [at for at, byte in enumerate(content) if 48 <= byte < 58]
    if digits and dice.random() < 0.4:
        for at in dice.sample(digits, min(len(digits), 3)):
            out[at] = 49 + dice.randrange(9)
        return bytes(out)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        at = dice.randrange(len(out) + 1)
        out[at : at + dice.choice([0, 1, 1, 3])] = dice.choice(parts)
    return bytes(out)


def ratings(separator: str, header: bool, dice: random.Random) -> bytes:
    rows = [[dice.randrange(1, 4), dice.randrange(1, 6), dice.randrange(1, 6), dice.randrange(10**9, 10**9 + 99)]
            for _ in range(8)]  # fmt: skip
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join([*(["userId,movieId,rating,timestamp"] if header else []), *lines, ""]).encode()


def slow_ratings(content: bytes, separator: str, header: bool) -> Events:
    """What is in a file of ratings, by the csv module; of a file that is none, anything."""
    text = content.decode("utf-8-sig")
    if header:
        rows = list(csv.reader(io.StringIO(text, newline="")))
        names = [name.strip() for name in rows[0]]
        places = [names.index(name) for name in ("userId", "movieId", "timestamp")]
        rows = rows[1:]
    else:
        rows, places = [line.split(separator) for line in text.split("\n")], [0, 1, 3]
    while rows and not "".join(rows[-1]).strip("\r"):
        rows.pop()
    found = [[row[place].strip(" \r") for place in places] for row in rows]
    assert all(str(int(cell)) == cell for row in found for cell in row), "one spelling alone"
    return sorted((int(user), int(item), int(time)) for user, item, time in found)


def outcome(source: str, path: Path, out: Path, **options: Any) -> DataError | Dataset:
    """What came of it; nothing but `out` may have appeared beside it, and not even that on an error."""
    before = sorted(out.parent.iterdir())
    try:
        prepare(source, path, out, overwrite=True, **options)
    except DataError as error:
        assert sorted(out.parent.iterdir()) == before
        assert "\n" not in str(error) and len(str(error)) < 600
        return error
    assert sorted(out.parent.iterdir()) == sorted({*before, out})
    return load_dataset(out)


PARTS = [
    b",", b"::", b"\t", b"|", b'"', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xe9", b"0", b"7", b"-", b"+", b".", b" ",
    b"", b"e", b"999999999999999999999", "٥".encode(), "\u0085".encode(), b"\xef\xbb\xbf", b"nan", b"\n\n",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "separator", "header"), [
    ("ratings.csv", ",", True), ("u.data", "\t", False), ("ratings.dat", "::", False),
])  # fmt: skip
def test_mutated_ratings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, separator: str, header: bool
) -> None:
    dice, outcomes = random.Random(name), {"read": 0, "refused": 0}
    (tmp_path / "in").mkdir()
    for _ in range(60 * SCALE):
        monkeypatch.setattr(movielens, "PIECE_BYTES", dice.choice([10, 40, 1 << 20]))
        content = mutated(dice, ratings(separator, header, dice), PARTS)
        file = tmp_path / "in" / name
        file.write_bytes(content)
        found = outcome("movielens", file, tmp_path / "out")
        if isinstance(found, DataError):
            outcomes["refused"] += 1
            assert found.file in (file, tmp_path / "out" / "events.parquet", tmp_path / "out" / "items.parquet"), (
                content
            )
        else:
            outcomes["read"] += 1
            assert events_of(found) == slow_ratings(content, separator, header), content
    assert min(outcomes.values()) > 5 * SCALE, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["u.item", "movies.dat", "movies.csv"])
def test_mutated_films(tmp_path: Path, name: str) -> None:
    """Damaged titles and genres never touch the events."""
    dice, refused = random.Random(name), 0
    (tmp_path / "u.data").write_text("".join(f"{u}\t{i}\t3\t{u + i}\n" for u in (1, 2) for i in (1, 2, 3)))
    flags = "|".join("0" * 18 + "1")
    good = {
        "u.item": "".join(f"{i}|Film {i} (199{i})|01-Jan-1995||http|{flags}\n" for i in (1, 2, 3)),
        "movies.dat": "".join(f"{i}::Film {i} (199{i})::Comedy|War\n" for i in (1, 2, 3)),
        "movies.csv": "movieId,title,genres\n" + "".join(f'{i},"Film, {i} (199{i})",Comedy|War\n' for i in (1, 2, 3)),
    }[name].encode()
    for _ in range(40 * SCALE):
        (tmp_path / name).write_bytes(mutated(dice, good, PARTS))
        found = outcome("movielens", tmp_path, tmp_path / "out")
        if isinstance(found, DataError):
            refused += 1
            assert found.file == tmp_path / name
        else:
            assert events_of(found) == [(u, i, u + i) for u in (1, 2) for i in (1, 2, 3)]
    assert 5 * SCALE < refused < 40 * SCALE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log_standard.csv", "user_features_pure.csv", "video_features_basic_pure.csv"])
def test_mutated_kuairand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    dice, outcomes = random.Random(name), {"read": 0, "refused": 0}
    folder = tmp_path / "in"
    rows: list[Mapping[str, object]] = [
        {"user_id": row % 3, "video_id": row % 4, "time_ms": T + row * 1000} for row in range(6)
    ]
    write_log(folder, rows, "log_standard.csv")
    header = "user_id,user_active_degree,follow_user_num_range,register_days_range\n"
    (folder / "user_features_pure.csv").write_text(header + '0,full,"(1,5]",730+\n1,UNKNOWN,,8\n2,a,b,c\n')
    header = "video_id,author_id,video_type,video_duration,music_id,tag\n"
    (folder / "video_features_basic_pure.csv").write_text(
        header + '0,7,AD,8000.0,5,"2,3"\n1,8,NORMAL,,6.0,9\n2,9,AD,1,,\n'
    )
    good = (folder / name).read_bytes()
    for _ in range(40 * SCALE):
        monkeypatch.setattr(kuairand, "PIECE_BYTES", dice.choice([10, 300, 1 << 20]))
        content = mutated(dice, good, PARTS)
        (folder / name).write_bytes(content)
        found = outcome("kuairand", folder, tmp_path / "out")
        if isinstance(found, DataError):
            outcomes["refused"] += 1
            assert found.file in (folder / name, tmp_path / "out" / "events.parquet")
            continue
        outcomes["read"] += 1
        text = (folder / "log_standard.csv").read_text("utf-8-sig").strip("\r\n")
        table = list(csv.DictReader(io.StringIO(text, newline="")))
        assert events_of(found) == sorted(
            (int(row["user_id"]), int(row["video_id"]), int(row["time_ms"]) // 1000) for row in table
        ), content
    assert min(outcomes.values()) > 5 * SCALE, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("form", ["flat", "sequential"])
def test_mutated_yambda_files(yambda_tree: Path, tmp_path: Path, form: str) -> None:
    """Bytes of the Parquet files changed: refused by name, or the rows are those that pyarrow reads from the file."""
    dice, outcomes = random.Random(form), {"read": 0, "refused": 0}
    names = [f"{form}/50m/listens.parquet", f"{form}/50m/likes.parquet", "artist_item_mapping.parquet"]
    for name in names:
        file = yambda_tree / name
        table = pq.read_table(file)
        pq.write_table(table, file, write_page_checksum=True)
        good = file.read_bytes()
        for _ in range(40 * SCALE):
            file.write_bytes(mutated(dice, good, [bytes([dice.randrange(256)]), b"", b"\0" * 4, b"\xff" * 4]))
            found = outcome("yambda", yambda_tree, tmp_path / "out", format=form)
            if isinstance(found, DataError):
                outcomes["refused"] += 1
                assert found.file in (file, tmp_path / "out" / "events.parquet"), str(found)
            else:
                outcomes["read"] += 1
                listens = pq.read_table(yambda_tree / names[0])
                if form == "sequential":
                    lengths = [len(one) for one in listens.column("item_id").to_pylist()]
                    uids = np.repeat(listens.column("uid").to_pylist(), lengths).tolist()
                    items, times = (
                        listens.column(n).combine_chunks().flatten().to_pylist() for n in ("item_id", "timestamp")
                    )
                else:
                    uids, items, times = (listens.column(n).to_pylist() for n in ("uid", "item_id", "timestamp"))
                assert events_of(found) == sorted(zip(uids, items, times, strict=True))
        file.write_bytes(good)
    assert min(outcomes.values()) > 5 * SCALE, outcomes


IDS: list[tuple[str, pa.Array, int | None, str]] = [
    ("uid", pa.array(["007", "007", "7", "7", "7", "8"]), None, "expected integers, found string"),
    ("uid", pa.array(["a"] * 6), None, "expected integers, found string"),
    ("uid", pa.array([1.2, 1.7, 2, 2, 2.9, 3]), None, "expected integers, found double"),
    ("uid", pa.array([1, 1, 2, 2, 2, 3], pa.timestamp("us")), None, "expected integers, found timestamp[us]"),
    ("uid", pa.array([True] * 6), None, "expected integers, found bool"),
    ("uid", pa.array([[1]] * 6), None, "expected integers, found list<"),
    ("uid", pa.array([b"1"] * 6), None, "expected integers, found binary"),
    ("uid", pa.array([1] * 6, pa.decimal128(5)), None, "expected integers, found decimal128"),
    ("uid", pa.array([1, 1, 2, 2, None, 3]), 5, "expected a value, found null"),
    ("uid", pa.array([-1, 1, 2, 2, 2, 3]), 1, "expected a value that is not negative, found -1"),
    ("uid", pa.array([1, 1, 2, 2**63, 2**64 - 1, 2**64 - 1], pa.uint64()), 4, "below 2⁶³, found 9223372036854775808"),
    ("item_id", pa.array(["007", "7", "8", "9", "a", "b"]), None, "expected integers, found string"),
    ("item_id", pa.array([1.5] * 6), None, "expected integers, found double"),
    ("item_id", pa.array([True] * 6), None, "expected integers, found bool"),
    ("item_id", pa.array([1, 2, 3, 4, 5, 2**63], pa.uint64()), 6, "below 2⁶³, found 9223372036854775808"),
    ("timestamp", pa.array([1, 2, 3, 4, 5, 6], pa.timestamp("ms")), None, "expected integers, found timestamp[ms]"),
    ("timestamp", pa.array([1, 2, 3, 4, 5, 1_600_000_000_000]), 6, "in milliseconds it would be 2020-09-13"),
    ("is_organic", pa.array([0, 1, 7, 1, 1, 0]), 3, "expected 0 or 1, found 7"),
    ("is_organic", pa.array(["no"] * 6), None, "expected integers, found string"),
]  # fmt: skip


@pytest.mark.parametrize("form", ["flat", "sequential"])
@pytest.mark.parametrize(("column", "values", "row", "says"), IDS)
def test_yambda_takes_integers_alone(
    tmp_path: Path, form: str, column: str, values: pa.Array, row: int | None, says: str
) -> None:
    columns: dict[str, pa.Array] = {name: pa.array(one) for name, one in FILES["listens"].items()}
    columns[column] = values
    file = tmp_path / "in" / "listens.parquet"
    file.parent.mkdir()
    if form == "sequential" and column != "uid":
        lists = {n: pa.ListArray.from_arrays([0, 4, 6], one) for n, one in columns.items() if n != "uid"}
        columns, row = {"uid": pa.array([30, 41]), **lists}, row and (1 if row <= 4 else 2)
    elif form == "sequential":
        columns = {n: one if n == "uid" else pa.ListArray.from_arrays(range(7), one) for n, one in columns.items()}
    pq.write_table(pa.table(columns), file)
    result = CliRunner().invoke(app, ["prepare", "yambda", str(tmp_path / "in"), str(tmp_path / "out")])
    located = f", data row {row}" if row else ""
    assert result.exit_code == 2 and result.output.startswith(f"argus: {file}, column '{column}'{located}: ")
    assert says in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("column", "values", "row", "says"),
    [("item_id", pa.array(["7"]), None, "expected integers, found string"),
     ("artist_id", pa.array([1.5]), None, "expected integers, found double"),
     ("artist_id", pa.array([-1]), 1, "not negative, found -1"),
     ("item_id", pa.array([None], pa.int64()), 1, "found null"),
     ("artist_id", pa.array([2**63], pa.uint64()), 1, "below 2⁶³")],
)  # fmt: skip
def test_the_mappings_of_yambda_too(
    yambda_tree: Path, tmp_path: Path, column: str, values: pa.Array, row: int | None, says: str
) -> None:
    file = yambda_tree / "artist_item_mapping.parquet"
    pq.write_table(pa.table({"item_id": pa.array([7]), "artist_id": pa.array([1]), column: values}), file)
    found = outcome("yambda", yambda_tree, tmp_path / "out")
    assert isinstance(found, DataError) and (found.file, found.column, found.row) == (file, column, row)
    assert says in found.message


def test_large_artists_are_exact(yambda_tree: Path, tmp_path: Path) -> None:
    file = yambda_tree / "artist_item_mapping.parquet"
    artists = pa.array([2**63 - 1, 2**53 + 1, 2**53], pa.int64())
    pq.write_table(pa.table({"item_id": [7, 8, 9], "artist_id": artists}), file)
    found = outcome("yambda", yambda_tree, tmp_path / "out")
    assert isinstance(found, Dataset) and found.item_column("item_artist").tolist() == [2, 1, 0]


def test_event_types_are_text(yambda_tree: Path, tmp_path: Path) -> None:
    file = yambda_tree / "flat" / "500m" / "multi_event.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("event_type")
    for values in (pa.array([0] * table.num_rows), table.column(place).cast(pa.binary())):
        pq.write_table(table.set_column(place, "event_type", values), file)
        found = outcome("yambda", yambda_tree, tmp_path / "out", size="500m")
        assert isinstance(found, DataError) and (found.column, found.row) == ("event_type", None)
        assert found.message.startswith("expected text, found ")
    pq.write_table(table.set_column(place, "event_type", table.column(place).dictionary_encode()), file)
    assert isinstance(outcome("yambda", yambda_tree, tmp_path / "out", size="500m"), Dataset)


def negative_shares(file: Path, listen: int) -> None:
    table = pq.read_table(file)
    values = table.column("played_ratio_pct").to_pylist()
    values[listen] = -3
    place = table.schema.get_field_index("played_ratio_pct")
    pq.write_table(table.set_column(place, "played_ratio_pct", pa.array(values, pa.int32())), file)


def test_a_negative_share_is_found_in_one_file_of_all_kinds(yambda_tree: Path, tmp_path: Path) -> None:
    file = yambda_tree / "flat" / "500m" / "multi_event.parquet"
    listen = pq.read_table(file).column("event_type").to_pylist().index("listen")
    negative_shares(file, listen)
    found = outcome("yambda", yambda_tree, tmp_path / "out", size="500m")
    assert isinstance(found, DataError) and (found.column, found.row) == ("played_ratio_pct", listen + 1)


Make = Callable[[Path], None]


def archive(folder: Path) -> None:
    """KuaiRand as its archive unpacks."""
    (folder / "data").mkdir()
    write_log(folder / "data", [{"video_id": 1}, {"video_id": 2}], "log_standard_4_22_to_5_08_pure.csv")
    (folder / "load_data_pure.py").write_text("")


def test_kuairand_as_its_archive_unpacks(tmp_path: Path) -> None:
    (tmp_path / "KuaiRand-Pure").mkdir()
    archive(tmp_path / "KuaiRand-Pure")
    for place in ("KuaiRand-Pure", "KuaiRand-Pure/data"):
        found = outcome("kuairand", tmp_path / place, tmp_path / "out")
        assert isinstance(found, Dataset) and found.info.events == 2


PLACES: list[tuple[str, Make, str, str]] = [
    ("movielens", lambda folder: None, "", "no MovieLens ratings here"),
    ("movielens", lambda folder: (folder / "u.data").mkdir(), "u.data", "is a directory, expected a file"),
    ("movielens", lambda folder: (folder / "u.data").symlink_to("gone"), "u.data", "not found"),
    ("movielens", lambda folder: os.mkfifo(folder / "u.data"), "u.data", "is no regular file"),
    ("kuairand", lambda folder: None, "", "no KuaiRand log here or in data/"),
    ("kuairand", lambda folder: (folder / "log_a.csv").mkdir(), "log_a.csv", "is a directory, expected a file"),
    ("kuairand", lambda folder: (folder / "log_a.csv").symlink_to("gone"), "log_a.csv", "not found"),
    ("yambda", lambda folder: None, "", "no Yambda data here"),
    ("yambda", lambda folder: (folder / "listens.parquet").mkdir(), "listens.parquet", "is a directory"),
    ("yambda", lambda folder: (folder / "multi_event.parquet").symlink_to("gone"), "multi_event.parquet", "not found"),
]


@pytest.mark.parametrize(("source", "make", "name", "says"), PLACES)
def test_places_that_hold_no_data(tmp_path: Path, source: str, make: Make, name: str, says: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    found = outcome(source, folder, tmp_path / "out")
    assert isinstance(found, DataError) and found.file == folder / name and says in found.message


@pytest.mark.parametrize("source", ["movielens", "kuairand", "yambda"])
def test_a_path_that_is_missing_is_said_to_be(tmp_path: Path, source: str) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "nowhere" / "u.data"):
        result = CliRunner().invoke(app, ["prepare", source, str(path), str(tmp_path / "out")])
        assert (result.exit_code, result.output) == (2, f"argus: {path}: not found\n")
    assert list(tmp_path.iterdir()) == []


def test_likes_behind_a_dead_link_are_not_passed_over(yambda_tree: Path, tmp_path: Path) -> None:
    file = yambda_tree / "flat" / "50m" / "likes.parquet"
    file.unlink()
    file.symlink_to("gone")
    found = outcome("yambda", yambda_tree, tmp_path / "out")
    assert isinstance(found, DataError) and (found.file, found.message) == (file, "not found")


def test_features_of_one_id_twice(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,3,5\n1,2,3,6\n")
    films = "movieId,title,genres\n1,A (1990),War\n2,B (1991),War\n"
    (tmp_path / "movies.csv").write_text(films + "1,A (1990),War\n")
    assert isinstance(outcome("movielens", tmp_path, tmp_path / "out"), Dataset)
    (tmp_path / "movies.csv").write_text(films + "1,A (1992),War\n")
    found = outcome("movielens", tmp_path, tmp_path / "out")
    assert isinstance(found, DataError) and (found.column, found.row) == ("movieId", 3)
    assert found.message == "expected every id once, found 1 again with another year"


def test_a_byte_order_mark_in_a_file_of_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "PIECE_BYTES", 64)
    file = tmp_path / "ratings.csv"
    rows = [f"{row % 5},{row % 7},3.5,{row}" for row in range(200)]
    for header in (
        "userId,movieId,rating,timestamp",
        '"userId","movieId","rating","timestamp"',
        "userId, movieId,rating,timestamp",
    ):
        file.write_text("\ufeff" + "\n".join([header, *rows]))
        found = outcome("movielens", file, tmp_path / "out")
        assert isinstance(found, Dataset) and len(found) == 200
    rows[150] = "1,007,3.5,150"
    file.write_text("\ufeff" + "\n".join([header, *rows]))
    found = outcome("movielens", file, tmp_path / "out")
    assert isinstance(found, DataError) and (found.column, found.row) == ("movieId", 151)


def test_units_of_time_that_are_mixed_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuairand, "PIECE_BYTES", 300)
    rows: list[Mapping[str, object]] = [{"time_ms": T + row, "video_id": row % 2} for row in range(30)]
    for wrong, unit in ((T // 1000, "seconds"), (T * 1000, "microseconds"), (T * 1_000_000, "nanoseconds")):
        file = write_log(tmp_path / "in", [*rows[:20], {"time_ms": wrong}, *rows[20:]])
        found = outcome("kuairand", tmp_path / "in", tmp_path / "out")
        assert isinstance(found, DataError) and (found.file, found.column, found.row) == (file, "time_ms", 21)
        assert f"in {unit} it would be 2022-03-31: give milliseconds" in found.message
