"""MovieLens: the real 100K, the three file forms, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from python_model.data.feedback import BINARY, categorical
from python_model.data.readers.movielens import read_movielens
from python_model.data.schema import DataError, Dataset, load_dataset, validate

RATINGS = [  # user, item, rating, time; user 7's last two are a tie in time
    (7, 40, 5, 1000), (3, 20, 1, 90_000), (7, 20, 3, 990), (7, 30, 2, 1000), (3, 40, 4, 50),
]  # fmt: skip
TITLES = {20: ("Alien (1979)", "Horror|Sci-Fi"), 30: ("Nikita", "(no genres listed)"), 40: ("Amélie (2001)", "Comedy")}


def u_data(folder: Path, lines: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "u.data"
    file.write_text("\n".join(lines if lines is not None else ["\t".join(map(str, row)) for row in RATINGS]) + "\n")
    return file


@pytest.fixture(scope="module")
def real(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not (test_data / "ml-100k" / "u.data").is_file():
        pytest.skip(f"no MovieLens-100K in {test_data}")
    out = tmp_path_factory.mktemp("movielens") / "out"
    read_movielens(test_data / "ml-100k", out)
    return load_dataset(out)


def test_movielens_100k(real: Dataset, test_data: Path) -> None:
    info = validate(real.path)
    assert (info.users, info.items, info.events) == (943, 1682, 100_000)
    raw = np.loadtxt(test_data / "ml-100k" / "u.data", dtype=np.int64)
    # The same rows, found by their original ids, one line in a hundred.
    found = {
        (int(u), int(i)): (int(r), int(t))
        for u, i, r, t in zip(
            real.user_ids[real.user], real.item_column("item_id")[real.item], real.grade, real.time, strict=True
        )
    }
    assert len(found) == 100_000
    for u, i, r, t in raw[::100]:
        assert found[(u, i)] == (r, t)
    np.testing.assert_array_equal(real.feedback("rating"), real.grade - 1)
    np.testing.assert_array_equal(real.feedback("like"), real.grade >= 4)
    np.testing.assert_array_equal(real.feedback("dislike"), real.grade <= 2)
    assert np.bincount(raw[:, 2]).tolist() == np.bincount(real.grade).tolist()
    assert info.feedback == {"like": BINARY, "dislike": BINARY, "rating": categorical(5)}
    assert not real.organic.any()
    assert info.item_features["genre"] == 18


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    u_data(tmp_path / "in")
    read_movielens(tmp_path / "in", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.user_ids.tolist() == [3, 7]
    assert dataset.item_column("item_id")[dataset.item].tolist() == [40, 20, 20, 40, 30]
    assert dataset.time.tolist() == [50, 90_000, 990, 1000, 1000]
    assert dataset.grade.tolist() == [4, 1, 3, 5, 2]
    assert dataset.context("gap").tolist() == [-1, 6, -1, 2, 0]
    assert dataset.context("hour").tolist() == [0, 1, 0, 0, 0]
    assert dataset.context("day_of_week").tolist() == [3, 4, 3, 3, 3], "1970 began on a Thursday"
    assert dataset.info.item_features == {}


def test_the_three_forms_agree(tmp_path: Path) -> None:
    lines = ["::".join(map(str, row)) for row in RATINGS]
    for form in ("u.data", "ratings.dat", "ratings.csv"):
        (tmp_path / form).mkdir()
    u_data(tmp_path / "u.data")
    (tmp_path / "ratings.dat" / "ratings.dat").write_text("\n".join(lines) + "\n")
    rows = "\n".join(f"{u},{i},{r}.0,{t}" for u, i, r, t in RATINGS)
    (tmp_path / "ratings.csv" / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}\n")
    flags = {"Horror": 11, "Sci-Fi": 15, "Comedy": 5}
    with (tmp_path / "u.data" / "u.item").open("w", encoding="latin-1") as file:
        for item, (title, genres) in TITLES.items():
            marks = ["1" if any(flags.get(g) == k for g in genres.split("|")) else "0" for k in range(19)]
            file.write("|".join([str(item), title, "01-Jan-1995", "", "http://x", *marks]) + "\n")
    with (tmp_path / "ratings.dat" / "movies.dat").open("w", encoding="latin-1") as file:
        file.writelines(f"{item}::{title}::{genres}\n" for item, (title, genres) in TITLES.items())
    with (tmp_path / "ratings.csv" / "movies.csv").open("w", encoding="utf-8") as file:
        file.write("movieId,title,genres\n")
        file.writelines(f'{item},"{title}",{genres}\n' for item, (title, genres) in TITLES.items())
    datasets = []
    for form in ("u.data", "ratings.dat", "ratings.csv"):
        read_movielens(tmp_path / form, tmp_path / f"out-{form}")
        datasets.append(load_dataset(tmp_path / f"out-{form}"))
    for dataset in datasets:
        for name in ("user", "item", "time", "grade", "feedback_rating"):
            np.testing.assert_array_equal(dataset.column(name), datasets[0].column(name))
        assert dataset.item_column("item_genre").tolist() == [1, -1, 0]
        assert dataset.item_column("item_year").tolist() == [0, -1, 1]
        assert dataset.info.item_features == {"genre": 2, "year": 2}


def test_half_stars_make_ten_classes(tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text("userId,movieId,rating,timestamp\n1,1,0.5,1\n1,2,3.5,2\n1,3,4.0,3\n1,4,5,4\n")
    info = read_movielens(file, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert info.feedback["rating"] == categorical(10)
    assert dataset.feedback("rating").tolist() == [0, 6, 7, 9]
    assert dataset.grade.tolist() == [1, 7, 8, 10]
    assert dataset.feedback("like").tolist() == [0, 0, 1, 1]
    assert dataset.feedback("dislike").tolist() == [1, 0, 0, 0]


GOOD = "1\t2\t3\t4"
BROKEN = [
    ([GOOD, "1\tx\t3\t4"], "item", 2, "an integer in plain digits, found 'x'"),
    ([GOOD, "1\t2.5\t3\t4"], "item", 2, "an integer in plain digits, found '2.5'"),
    ([GOOD, GOOD, "\t2\t3\t4"], "user", 3, "found nothing"),
    ([GOOD, "1\t2\t6\t4"], "rating", 2, "found 6.0"),
    ([GOOD, "1\t2\t3.3\t4"], "rating", 2, "found 3.3"),
    ([GOOD, "1\t2\t\t4"], "rating", 2, "found nan"),
    ([GOOD, "1\t2\t3\t-4"], "timestamp", 2, "seconds since 1970 up to 2100 (4102444800), found -4"),
    ([GOOD, "1\t2\t3"], None, 2, "expected 4 cells, found 3"),
    ([GOOD, "1\t2\t3\t891350008000"], "timestamp", 2, "in milliseconds it would be 1998-03-31: give seconds"),
    ([GOOD, "1\t2\t3\t891350008000000"], "timestamp", 2, "in microseconds it would be 1998-03-31: give seconds"),
    ([GOOD, "", GOOD], None, 2, "expected 4 cells, found an empty line"),
    ([GOOD, "1\t2\t3\t4\t5"], None, 2, "expected 4 cells, found 5"),
    (["1\t2\t3"], None, 1, "expected 4 cells, found 3"),
    ([""], None, None, "empty"),
]


@pytest.mark.parametrize(("lines", "column", "row", "says"), BROKEN)
def test_broken_ratings_are_located(  # type: ignore[no-untyped-def]
    tmp_path: Path, refused, lines: list[str], column: str | None, row: int | None, says: str
) -> None:
    file = u_data(tmp_path / "in", lines)
    with refused(tmp_path / "out", file, column, row, says):
        read_movielens(tmp_path / "in", tmp_path / "out")


def test_a_missing_column_of_the_csv_is_named(tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "ratings.csv"
    file.write_text("userId,movieId,timestamp\n1,2,3\n")
    with refused(tmp_path / "out", file, "rating", None, "missing; the file has userId, movieId, timestamp"):
        read_movielens(file, tmp_path / "out")
    file.write_text("userId,movieId,rating,timestamp\n")
    with refused(tmp_path / "out", file, None, None, "at least one data row"):
        read_movielens(file, tmp_path / "out")


def test_other_line_ends_and_a_byte_order_mark_are_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    rows = b"userId,movieId,rating,timestamp\r\n1,2,3.0,4\r\n1,3,5.0,9\r\n\r\n"
    for content in (rows, b"\xef\xbb\xbf" + rows, rows.replace(b"\r", b"")):
        file.write_bytes(content)
        read_movielens(file, tmp_path / "out", overwrite=True)
        assert load_dataset(tmp_path / "out").grade.tolist() == [3, 5]


def test_an_open_quote_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text('userId,movieId,rating,timestamp\n1,"2,3.0,4\n1,3,5.0,9\n')
    with pytest.raises(DataError, match=r"ratings.csv"):
        read_movielens(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_binary_rubbish_is_refused(tmp_path: Path) -> None:
    file = u_data(tmp_path / "in")
    file.write_bytes(b"1\t2\t3\t4\n1\t2\t3\t" + bytes(range(128, 256)))
    with pytest.raises(DataError, match=r"u.data, data row 2: expected text in utf-8, found the byte 0x80"):
        read_movielens(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_ratings_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of u.data, ratings.dat, ratings.csv"):
        read_movielens(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"nowhere: not found"):
        read_movielens(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "other.csv").write_text("x")
    with pytest.raises(DataError, match=r"expected one of u.data"):
        read_movielens(tmp_path / "other.csv", tmp_path / "out")
