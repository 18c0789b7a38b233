"""KuaiRand: the real slice, small files of its format, and every way they can be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from python_model.data.readers.kuairand import read_kuairand
from python_model.data.schema import DataError, Dataset, load_dataset, validate

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
COLUMNS = HEADER.split(",")
LOG = "log_standard_4_22_to_5_08_pure.csv"
T = 1_648_684_800_000  # midnight of a Thursday in UTC, as that of 1970 was
GOOD: Mapping[str, object] = {
    **dict.fromkeys(COLUMNS, 0),
    "date": 20220425,
    "duration_ms": 1000,
    "tab": 1,
    "time_ms": T,
}


def write_log(folder: Path, rows: list[Mapping[str, object]], name: str = LOG, header: str = HEADER) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [",".join(str({**GOOD, **row}[column]) for column in header.split(",")) for row in rows]
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    return folder / name


@pytest.fixture(scope="module")
def real(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not (test_data / "kuairand-pure").is_dir():
        pytest.skip(f"no KuaiRand-Pure in {test_data}")
    out = tmp_path_factory.mktemp("kuairand") / "out"
    read_kuairand(test_data / "kuairand-pure", out)
    return load_dataset(out)


def test_the_real_slice(real: Dataset) -> None:
    info = validate(real.path)
    assert (info.events, info.users, info.items) == (228_329, 25_156, 6_361)
    for name, rate in (("click", 0.442), ("long_view", 0.311), ("like", 0.017)):
        assert (real.feedback(name) == 1).mean() == pytest.approx(rate, abs=0.0005)
    assert (real.feedback("hate") == 1).mean() == pytest.approx(0.0008, abs=0.00005)
    lengths = np.diff(real.offsets)
    assert np.median(lengths) == 7
    assert (lengths >= 20).sum() == 2_541
    assert not real.organic.any()
    assert set(info.item_features) == {"author", "music", "tag", "type", "duration"}
    assert (real.context("user_active_degree") >= 0).mean() > 0.99
    assert (real.item_column("item_author") >= 0).all()


def test_rows_come_out_as_defined(tmp_path: Path) -> None:
    write_log(tmp_path / "in", [
        {"user_id": 9, "video_id": 5, "time_ms": T + 7_500, "is_click": 1, "long_view": 1, "play_time_ms": 900,
         "tab": 3},
        {"user_id": 2, "video_id": 5, "time_ms": T + 3_999, "is_hate": 1, "is_like": 1, "duration_ms": 0},
        {"user_id": 9, "video_id": 1, "time_ms": T + 7_400, "play_time_ms": 399},
        {"user_id": 9, "video_id": 8, "time_ms": T + 57_600_000, "is_follow": 1, "play_time_ms": 2_000, "is_rand": 1},
        {"user_id": 9, "video_id": 8, "time_ms": T + 57_600_000, "is_click": 1, "play_time_ms": 200},
    ])  # fmt: skip
    read_kuairand(tmp_path / "in", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.user_ids.tolist() == [2, 9]
    assert dataset.item_column("item_id")[dataset.item].tolist() == [5, 1, 5, 8, 8]
    assert (dataset.time - T // 1000).tolist() == [3, 7, 7, 57_600, 57_600]
    assert dataset.grade.tolist() == [0, 1, 3, 4, 2]
    assert dataset.feedback("share").tolist() == [-1, 1, 4, 4, 1]
    assert dataset.feedback("like").tolist() == [1, 0, 0, 0, 0]
    assert dataset.context("tab").tolist() == [1, 1, 3, 1, 1]
    assert dataset.context("random").tolist() == [0, 0, 0, 1, 0]
    assert dataset.context("hour").tolist() == [8, 8, 8, 0, 0], "Beijing time"
    assert dataset.context("day_of_week").tolist() == [3, 3, 3, 4, 4]
    assert dataset.info.item_features == {}


def test_all_logs_of_a_directory_are_read(tmp_path: Path) -> None:
    write_log(tmp_path / "in", [{"time_ms": T + 9_000, "video_id": 1}], "log_standard_4_25_to_5_08_pure.csv")
    write_log(tmp_path / "in", [{"time_ms": T + 1_000, "video_id": 2}], "log_standard_4_08_to_4_21_pure.csv")
    shown: list[Mapping[str, object]] = [{"time_ms": T + 5_000, "video_id": video, "is_rand": 1} for video in (3, 4)]
    write_log(tmp_path / "in", shown, "log_random_4_22_to_5_08_pure.csv")
    info = read_kuairand(tmp_path / "in", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.time - T // 1000).tolist() == [1, 5, 5, 9]
    assert dataset.context("random").tolist() == [0, 1, 1, 0]
    assert len(info.params["logs"]) == 3
    one = read_kuairand(tmp_path / "in" / "log_random_4_22_to_5_08_pure.csv", tmp_path / "one")
    assert one.events == 2


def test_features_are_joined(tmp_path: Path) -> None:
    write_log(tmp_path / "in", [{"user_id": 4, "video_id": v, "time_ms": T + v} for v in (1, 2, 3)])
    (tmp_path / "in" / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,video_duration,music_id,tag\n"
        '3,70,AD,8000.0,5,"20,43"\n1,80,NORMAL,,6,9\n99,90,NORMAL,1.0,7,1\n'
    )
    (tmp_path / "in" / "user_features_pure.csv").write_text(
        "user_id,user_active_degree,follow_user_num_range,register_days_range\n4,UNKNOWN,500+,730+\n5,full,0,730+\n"
    )
    info = read_kuairand(tmp_path / "in", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.item_column("item_author").tolist() == [1, -1, 0]
    assert dataset.item_column("item_type").tolist() == [1, -1, 0]
    assert dataset.item_column("item_tag").tolist() == [2, -1, 1]
    assert dataset.item_column("item_duration").tolist() == [-1, -1, 1]
    assert info.item_features["author"] == 3
    assert dataset.context("user_active_degree").tolist() == [-1, -1, -1]
    assert dataset.context("follow_user_num_range").tolist() == [1, 1, 1]


BROKEN = [
    ({"user_id": "x"}, "user_id", "an integer in plain digits, found 'x'"),
    ({"user_id": ""}, "user_id", "found nothing"),
    ({"video_id": ""}, "video_id", "found nothing"),
    ({"time_ms": -1}, "time_ms", "a whole number of milliseconds since 1970, at least 100000000000"),
    ({"time_ms": 1_650_812_741}, "time_ms", "found 1650812741; in seconds it would be 2022-04-24: give milliseconds"),
    ({"time_ms": 1_650_812_741_436_000}, "time_ms", "in microseconds it would be 2022-04-24: give milliseconds"),
    ({"duration_ms": -5}, "duration_ms", "not negative"),
    ({"is_like": 2}, "is_like", "0 or 1, found 2"),
    ({"is_rand": "yes"}, "is_rand", "an integer"),
    ({"tab": 15}, "tab", "[0, 14], found 15"),
    ({"tab": "1,7"}, None, "expected 19 cells, found 20"),
]


@pytest.mark.parametrize(("row", "column", "says"), BROKEN)
def test_broken_rows_are_located(  # type: ignore[no-untyped-def]
    tmp_path: Path, refused, row: dict[str, object], column: str | None, says: str
) -> None:
    file = write_log(tmp_path / "in", [{}, {}, row, {}])
    with refused(tmp_path / "out", file, column, 3, says):
        read_kuairand(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("column", ["user_id", "time_ms", "is_hate", "play_time_ms", "tab"])
def test_a_missing_column_is_named(tmp_path: Path, refused, column: str) -> None:  # type: ignore[no-untyped-def]
    header = ",".join(name for name in COLUMNS if name != column)
    file = write_log(tmp_path / "in", [{}], header=header)
    with refused(tmp_path / "out", file, column, None, "this column is missing"):
        read_kuairand(tmp_path / "in", tmp_path / "out")


def test_empty_and_absent_logs(tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    file = write_log(tmp_path / "in", [])
    with refused(tmp_path / "out", file, None, None, "at least one data row"):
        read_kuairand(tmp_path / "in", tmp_path / "out")
    file.write_text("")
    with refused(tmp_path / "out", file, None, None, "empty"):
        read_kuairand(tmp_path / "in", tmp_path / "out")
    file.write_bytes(b"PAR1" + bytes(range(256)))
    with pytest.raises(DataError, match="expected delimited text in UTF-8, found a Parquet file"):
        read_kuairand(tmp_path / "in", tmp_path / "out")
    file.unlink()
    with refused(tmp_path / "out", tmp_path / "in", None, None, "no KuaiRand log"):
        read_kuairand(tmp_path / "in", tmp_path / "out")


def test_a_broken_feature_file_is_named(tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    write_log(tmp_path / "in", [{}])
    file = tmp_path / "in" / "video_features_basic_pure.csv"
    file.write_text("video_id,author_id,video_type,video_duration,music_id,tag\n0,who,AD,1,5,2\n")
    with refused(tmp_path / "out", file, "author_id", 1, "an integer in plain digits, found 'who'"):
        read_kuairand(tmp_path / "in", tmp_path / "out")
