"""Yambda: both formats and multi_event give the same events, the join keeps its rule, faults are located."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_model.data.readers import yambda_files
from python_model.data.readers.yambda import nearest_listen, read_yambda, uncancelled
from python_model.data.readers.yambda_files import EVENT_TYPES
from python_model.data.schema import DataError, Dataset, load_dataset, validate

TYPES = {
    "uid": pa.uint32(), "item_id": pa.uint32(), "timestamp": pa.uint32(), "is_organic": pa.uint8(),
    "played_ratio_pct": pa.uint16(), "track_length_seconds": pa.uint32(), "event_type": pa.string(),
}  # fmt: skip
LISTENS = ("uid", "timestamp", "item_id", "is_organic", "played_ratio_pct", "track_length_seconds")
EXPLICIT = ("uid", "timestamp", "item_id", "is_organic")
KINDS = {"likes": "like", "dislikes": "dislike", "unlikes": "unlike", "undislikes": "undislike"}
Table = dict[str, list[Any]]


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Table:
    return {name: [row[index] for row in rows] for index, name in enumerate(columns)}


# User 30 likes item 8 between two listens of it; 30 likes 7, then takes it back; 30's dislike of 7 comes before any
# listen of it; 41 likes an item never listened to; user 99 has likes and no listens.
FILES: dict[str, Table] = {
    "listens": table(LISTENS, [
        (30, 100, 7, 1, 100, 200), (30, 105, 8, 0, 10, 180), (30, 900, 8, 0, 85, 180), (30, 3600, 9, 0, 79, 60),
        (41, 5, 9, 1, 0, 60), (41, 5, 7, 0, 140, 200),
    ]),
    "likes": table(EXPLICIT, [(30, 110, 7, 1), (30, 110, 8, 0), (41, 10, 7, 0), (41, 10, 500, 0), (99, 1, 7, 0)]),
    "unlikes": table(EXPLICIT, [(30, 300, 7, 1)]),
    "dislikes": table(EXPLICIT, [(30, 90, 7, 1), (30, 3605, 9, 0)]),
    "undislikes": table(EXPLICIT, [(30, 3600, 9, 0), (99, 2, 7, 0)]),
}  # fmt: skip


def write_flat(file: Path, columns: Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values, TYPES[name]) for name, values in columns.items()}), file)


def write_sequential(file: Path, columns: Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    users = sorted(set(columns["uid"]))
    rows: dict[str, pa.Array] = {"uid": pa.array(users, pa.uint32())}
    for name, values in columns.items():
        if name != "uid":
            lists = [[v for v, u in zip(values, columns["uid"], strict=True) if u == user] for user in users]
            rows[name] = pa.array(lists, pa.list_(TYPES[name]))
    pq.write_table(pa.table(rows), file)


def multi_event() -> Table:
    rows = []
    for name, columns in FILES.items():
        for row in zip(*columns.values(), strict=True):
            values = dict(zip(columns, row, strict=True))
            rows.append({**values, "event_type": KINDS.get(name, "listen")})
    rows.sort(key=lambda row: (row["uid"], row["timestamp"]))
    return {name: [row.get(name) for row in rows] for name in (*LISTENS, "event_type")}


def columns_of(dataset: Dataset) -> dict[str, list[Any]]:
    names = ["user", "item", "time", "organic", "grade", *(f"context_{n}" for n in dataset.info.context)]
    names += [f"feedback_{n}" for n in dataset.info.feedback]
    return {name: dataset.column(name).tolist() for name in names}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The published layout; separate files in both 50m, multi_event.parquet in flat/500m and sequential/5b."""
    top = tmp_path / "yambda"
    for name, columns in FILES.items():
        write_flat(top / "flat" / "50m" / f"{name}.parquet", columns)
        write_sequential(top / "sequential" / "50m" / f"{name}.parquet", columns)
    write_flat(top / "flat" / "500m" / "multi_event.parquet", multi_event())
    write_sequential(top / "sequential" / "5b" / "multi_event.parquet", multi_event())
    pq.write_table(pa.table({"artist_id": [5, 3, 4], "item_id": [9, 9, 7]}), top / "artist_item_mapping.parquet")
    return top


PARTS = [("flat", "50m"), ("sequential", "50m"), ("flat", "500m"), ("sequential", "5b")]


@pytest.mark.parametrize(("form", "size"), PARTS)
def test_rows_come_out_as_defined(tree: Path, tmp_path: Path, form: str, size: str) -> None:
    info = read_yambda(tree, tmp_path / "out", format=form, size=size)
    dataset = load_dataset(tmp_path / "out")
    validate(tmp_path / "out")
    assert dataset.user_ids.tolist() == [30, 41]
    assert dataset.item_column("item_id").tolist() == [7, 8, 9]
    assert dataset.item_column("count").tolist() == [2, 2, 2]
    assert dataset.item_column("item_artist").tolist() == [1, -1, 0], "item 9 has artists 5 and 3: the smaller one"
    assert info.item_features == {"artist": 2}
    assert columns_of(dataset) == {
        "user": [0, 0, 0, 0, 1, 1],
        "item": [0, 1, 1, 2, 2, 0],
        "time": [100, 105, 900, 3600, 5, 5],
        "organic": [True, False, False, False, True, False],
        "grade": [-1, 4, 3, 0, -1, 4],
        "context_hour": [0, 0, 0, 1, 0, 0],
        "context_day_of_week": [3] * 6,
        "context_gap": [-1, 1, 4, 4, -1, 0],
        "feedback_like": [0, 1, 0, 0, 0, 1],
        "feedback_dislike": [1, 0, 0, 1, 0, 0],
        "feedback_skip": [0, 1, 0, 0, 1, 0],
        "feedback_share": [5, 0, 5, 4, 0, 5],
    }
    assert info.params["without_listen"] == {"like": 2, "dislike": 0}, "of item 500 and of user 99"


def test_small_reads_change_nothing(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yambda_files, "_FLAT_BATCH", 2)
    monkeypatch.setattr(yambda_files, "_SEQUENTIAL_BATCH", 1)
    seen = []
    for form, size in PARTS:
        read_yambda(tree, tmp_path / form / size, format=form, size=size)
        seen.append(columns_of(load_dataset(tmp_path / form / size)))
    assert all(columns == seen[0] for columns in seen)
    assert seen[0]["feedback_like"] == [0, 1, 0, 0, 0, 1]


def test_kinds_without_a_file_are_not_observed(tree: Path, tmp_path: Path) -> None:
    for name in ("likes", "unlikes", "undislikes"):
        (tree / "flat" / "50m" / f"{name}.parquet").unlink()
    read_yambda(tree / "flat" / "50m", tmp_path / "out", skip_below_pct=80)
    dataset = load_dataset(tmp_path / "out")
    assert dataset.feedback("like").tolist() == [-1] * 6
    assert dataset.feedback("dislike").tolist() == [1, 0, 0, 1, 0, 0]
    assert dataset.feedback("skip").tolist() == [0, 1, 0, 1, 1, 0]


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 6), st.sampled_from(["like", "unlike", "dislike"])),
    max_size=14,
)


def as_rows(events: list[tuple[int, int, int, str]]) -> dict[str, np.ndarray]:
    events = sorted(events, key=lambda event: event[0])
    names = ("uid", "item_id", "timestamp")
    rows = {name: np.array([event[k] for event in events], np.int64) for k, name in enumerate(names)}
    return {**rows, "event_type": np.array([EVENT_TYPES.index(event[3]) for event in events], np.int64)}


@given(listens=EVENTS, explicit=EVENTS)
def test_nearest_listen_is_the_one_at_or_before_else_the_next(
    listens: list[tuple[int, int, int, str]], explicit: list[tuple[int, int, int, str]]
) -> None:
    left, right = as_rows(listens), as_rows(explicit)
    for index, place in enumerate(nearest_listen(left, right)):
        same = [
            (int(left["timestamp"][k]), k)
            for k in range(len(left["uid"]))
            if left["uid"][k] == right["uid"][index] and left["item_id"][k] == right["item_id"][index]
        ]
        time = right["timestamp"][index]
        before = [(t, k) for t, k in same if t <= time]
        expected = max(before)[1] if before else min(same)[1] if same else -1
        assert place == expected


@given(explicit=EVENTS)
def test_an_unlike_cancels_the_like_before_it(explicit: list[tuple[int, int, int, str]]) -> None:
    rows = as_rows(explicit)
    kept = uncancelled(rows, EVENT_TYPES.index("like"), EVENT_TYPES.index("unlike"))
    expected = []
    for pair in {(event[0], event[1]) for event in explicit}:
        history = sorted((e[2], e[3] == "unlike") for e in explicit if e[:2] == pair and e[3] != "dislike")
        for (time, cancel), following in zip(history, [*history[1:], (0, False)], strict=False):
            if not cancel and not following[1]:
                expected.append((*pair, time))
    found = zip(kept["uid"].tolist(), kept["item_id"].tolist(), kept["timestamp"].tolist(), strict=True)
    assert sorted(found) == sorted(expected)


def change(columns: Table, name: str, index: int, value: Any) -> Table:
    values = list(columns[name])
    values[index] = value
    return {**columns, name: values}


FAULTS = [
    ("listens", "uid", 3, 29, 4, "users in ascending order"),
    ("listens", "timestamp", 2, 50, 3, "times sorted within a user"),
    ("listens", "item_id", 1, None, 2, "a value, found null"),
    ("listens", "uid", 4, None, 5, "a value, found null"),
    ("listens", "played_ratio_pct", 2, None, 3, "a value, found null"),
    ("likes", "timestamp", 1, 50, 2, "times sorted within a user"),
    ("unlikes", "item_id", 0, None, 1, "a value, found null"),
]


@pytest.mark.parametrize(("name", "column", "index", "value", "row", "says"), FAULTS)
def test_faults_of_flat_files_are_located(  # type: ignore[no-untyped-def]
    tree: Path, tmp_path: Path, refused, name: str, column: str, index: int, value: Any, row: int, says: str
) -> None:
    file = tree / "flat" / "50m" / f"{name}.parquet"
    write_flat(file, change(FILES[name], column, index, value))
    with refused(tmp_path / "out", file, column, row, says):
        read_yambda(tree, tmp_path / "out")


def test_negative_times_are_located(tree: Path, tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    file = tree / "flat" / "50m" / "listens.parquet"
    signed = pq.read_table(file).set_column(1, "timestamp", pa.array([-5, 105, 900, 3600, 5, 5], pa.int64()))
    pq.write_table(signed, file)
    with refused(tmp_path / "out", file, "timestamp", 1, "not negative, found -5"):
        read_yambda(tree, tmp_path / "out")


def test_unknown_event_types_are_located(tree: Path, tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    events = multi_event()
    file = tree / "flat" / "500m" / "multi_event.parquet"
    write_flat(file, change(events, "event_type", 3, "share"))
    with refused(tmp_path / "out", file, "event_type", 4, "listen, like, dislike, unlike, undislike, found 'share'"):
        read_yambda(tree, tmp_path / "out", size="500m")
    write_flat(file, change(events, "event_type", 2, None))
    with refused(tmp_path / "out", file, "event_type", 3, "found null"):
        read_yambda(tree, tmp_path / "out", size="500m")
    listen = events["event_type"].index("listen")
    write_flat(file, change(events, "played_ratio_pct", listen, None))
    with refused(tmp_path / "out", file, "played_ratio_pct", listen + 1, "a value, found null"):
        read_yambda(tree, tmp_path / "out", size="500m")


def test_faults_of_sequential_files_are_located(  # type: ignore[no-untyped-def]
    tree: Path, tmp_path: Path, refused
) -> None:
    file = tree / "sequential" / "50m" / "listens.parquet"
    good = pq.read_table(file)
    ratios = good.column("played_ratio_pct").to_pylist()

    def replace(column: str, lists: list[list[int | None] | None]) -> None:
        place = good.schema.get_field_index(column)
        pq.write_table(good.set_column(place, column, pa.array(lists, good.schema.field(column).type)), file)

    replace("played_ratio_pct", [ratios[0], ratios[1][:1]])
    with refused(tmp_path / "out", file, "played_ratio_pct", 2, "a list of 2 events as in item_id, found 1"):
        read_yambda(tree, tmp_path / "out", format="sequential")
    replace("timestamp", [[100, 105, 90, 3600], [5, 5]])
    with refused(
        tmp_path / "out",
        file,
        "timestamp",
        1,
        "puts them in order), found 90",
    ):
        read_yambda(tree, tmp_path / "out", format="sequential")
    replace("played_ratio_pct", [ratios[0], [1, None]])
    with refused(tmp_path / "out", file, "played_ratio_pct", 2, "a value, found null"):
        read_yambda(tree, tmp_path / "out", format="sequential")
    replace("item_id", [[7, 8, 8, 9], None])
    with refused(tmp_path / "out", file, "item_id", 2, "a value, found null"):
        read_yambda(tree, tmp_path / "out", format="sequential")


@pytest.mark.parametrize("column", LISTENS)
def test_a_missing_column_is_named(tree: Path, tmp_path: Path, refused, column: str) -> None:  # type: ignore[no-untyped-def]
    file = tree / "flat" / "50m" / "listens.parquet"
    write_flat(file, {name: values for name, values in FILES["listens"].items() if name != column})
    with refused(tmp_path / "out", file, column, None, "this column is missing"):
        read_yambda(tree, tmp_path / "out")


def test_wrong_types_are_named(tree: Path, tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    file = tree / "flat" / "50m" / "listens.parquet"
    pq.write_table(pq.read_table(file).set_column(1, "timestamp", pa.array(list("abcdef"))), file)
    with refused(tmp_path / "out", file, "timestamp", None, "expected integers, found string"):
        read_yambda(tree, tmp_path / "out")


def test_corrupt_files_are_named(tree: Path, tmp_path: Path) -> None:
    for name in ("listens", "likes"):
        file = tree / "flat" / "50m" / f"{name}.parquet"
        good = file.read_bytes()
        file.write_bytes(good[:-20])
        with pytest.raises(DataError, match=rf"{name}.parquet: not a readable Parquet file"):
            read_yambda(tree, tmp_path / "out")
        file.write_bytes(good[:40] + b"\x00" * 200 + good[240:])
        with pytest.raises(DataError, match=rf"{name}.parquet"):
            read_yambda(tree, tmp_path / "out")
        file.write_bytes(good)
        assert not (tmp_path / "out").exists()
    artists = tree / "artist_item_mapping.parquet"
    artists.write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"artist_item_mapping.parquet: not a readable"):
        read_yambda(tree, tmp_path / "out")


def test_empty_data_is_refused(tree: Path, tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    file = tree / "flat" / "50m" / "listens.parquet"
    write_flat(file, {name: [] for name in LISTENS})
    with refused(tmp_path / "out", file, None, None, "no listen"):
        read_yambda(tree, tmp_path / "out")
    likes_only = {name: [v for v, k in zip(values, multi_event()["event_type"], strict=True) if k == "like"]
                  for name, values in multi_event().items()}  # fmt: skip
    file = tree / "flat" / "500m" / "multi_event.parquet"
    write_flat(file, likes_only)
    with refused(tmp_path / "out", file, None, None, "no listen"):
        read_yambda(tree, tmp_path / "out", size="500m")


def test_places_and_options(tree: Path, tmp_path: Path) -> None:
    single = tree / "flat" / "500m" / "multi_event.parquet"
    assert read_yambda(single, tmp_path / "single").events == 6
    with pytest.raises(DataError, match="no Yambda data here"):
        read_yambda(tree / "flat", tmp_path / "out")
    with pytest.raises(DataError, match=r"expected listens.parquet or multi_event.parquet"):
        read_yambda(tree / "artist_item_mapping.parquet", tmp_path / "out")
    with pytest.raises(ValueError, match=r"format is .wide., expected one of flat, sequential"):
        read_yambda(tree, tmp_path / "out", format="wide")
    with pytest.raises(ValueError, match="skip_below_pct"):
        read_yambda(tree, tmp_path / "out", skip_below_pct=0)
    assert not (tmp_path / "out").exists()
