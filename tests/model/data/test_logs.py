"""Logs sorted outside of memory: the same rows in the same order, whatever the sizes of pieces and ranges."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from python_model.data.prepare import prepare
from python_model.data.readers import kuairand, logs, movielens, yambda_files
from python_model.data.readers.delimited import Form, pieces, read_piece
from python_model.data.schema import load_dataset
from python_model.io.errors import DataError
from tests.model.data.test_yambda import tree as yambda_tree

__all__ = ["yambda_tree"]
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_hate,long_view,play_time_ms,duration_ms,tab,"
    "is_rand"
)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets the bytes of a piece and the rows of a range."""

    def set_sizes(piece: int, rows: int) -> None:
        monkeypatch.setattr(movielens, "PIECE_BYTES", piece)
        monkeypatch.setattr(kuairand, "PIECE_BYTES", piece)
        monkeypatch.setattr(logs, "RANGE_ROWS", rows)

    return set_sizes


def write_ratings(folder: Path, rows: int = 700, seed: int = 0) -> np.ndarray:
    """ratings.csv with users and times in any order and many ties; int64 [rows, 4]: user, item, half stars, time."""
    dice = np.random.default_rng(seed)
    users = dice.choice([3, 8, 20, 21, 22, 500, 9_000_000_000], rows, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    table = np.stack([users, dice.integers(1, 40, rows), dice.integers(1, 11, rows), dice.integers(0, 60, rows)], 1)
    folder.mkdir(exist_ok=True)
    lines = [f"{user},{item},{half / 2},{time}" for user, item, half, time in table.tolist()]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines]) + "\n")
    return table


def write_log(folder: Path, name: str, rows: int, seed: int) -> list[str]:
    """A KuaiRand log; its lines without the header."""
    dice = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = []
    for _ in range(rows):
        user, video, time = dice.integers(0, 9), dice.integers(0, 50), 1_648_684_800_000 + dice.integers(0, 4000)
        flags = ",".join(str(flag) for flag in dice.integers(0, 2, 5))
        lines.append(f"{user},{video},20220422,1200,{time},{flags},{dice.integers(0, 9000)},9000,1,0")
    (folder / f"log_{name}.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return lines


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("piece", "rows"), [(1, 60), (40, 1), (40, 60), (333, 60), (333, 10**6), (10**6, 1), (10**6, 10**6)]
)
def test_ratings_come_out_in_order(
    tmp_path: Path, small_pieces: Callable[[int, int], None], piece: int, rows: int
) -> None:
    raw = write_ratings(tmp_path / "in", rows=120)
    small_pieces(piece, rows)
    prepare("movielens", tmp_path / "in", tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    expected = raw[np.lexsort((np.arange(len(raw)), raw[:, 3], raw[:, 0]))]
    found = [
        dataset.user_ids[dataset.user], dataset.item_column("item_id")[dataset.item], dataset.grade, dataset.time
    ]  # fmt: skip
    np.testing.assert_array_equal(np.stack(found, 1), expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("piece", "rows"), [(200, 1), (1000, 50), (10**6, 10**6)])
def test_several_logs_with_ties_give_the_same_bytes(
    tmp_path: Path, small_pieces: Callable[[int, int], None], piece: int, rows: int
) -> None:
    write_log(tmp_path / "in", "standard_4_08", 90, 0)
    write_log(tmp_path / "in", "random_4_22", 40, 1)
    prepare("kuairand", tmp_path / "in", tmp_path / "whole")
    small_pieces(piece, rows)
    prepare("kuairand", tmp_path / "in", tmp_path / "parts")
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("wrong", [0, 37, 89])
def test_a_fault_in_a_later_piece_is_located_in_its_file(
    tmp_path: Path, small_pieces: Callable[[int, int], None], wrong: int
) -> None:
    small_pieces(300, 20)
    write_log(tmp_path / "in", "random_4_22", 40, 1)
    lines = write_log(tmp_path / "in", "standard_4_08", 90, 0)
    file = tmp_path / "in" / "log_standard_4_08.csv"
    lines[wrong] = lines[wrong].replace(",9000,1,0", ",9000,99,0")
    file.write_text("\n".join([HEADER, *lines]) + "\n")
    with pytest.raises(DataError) as caught:
        prepare("kuairand", tmp_path / "in", tmp_path / "out")
    assert (caught.value.file, caught.value.column, caught.value.row) == (file, "tab", wrong + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_line_with_too_many_cells_is_located(tmp_path: Path, small_pieces: Callable[[int, int], None]) -> None:
    small_pieces(100, 20)
    write_ratings(tmp_path / "in", rows=50)
    file = tmp_path / "in" / "ratings.csv"
    lines = file.read_text().splitlines()
    lines[31] += ",7"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="expected 4 cells, found 5") as caught:
        prepare("movielens", tmp_path / "in", tmp_path / "out")
    assert caught.value.row == 31


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_pieces_are_whole_rows_and_leave_nothing_out(tmp_path: Path, ending: str) -> None:
    dice = random.Random(0)
    newline = ending or "\n"
    cells = [
        dice.choice(["", "x" * dice.randrange(30), '"a,b"', '"a\nb"', '"\r\n"', '"a""\n""b"', '""']) for _ in range(40)
    ]
    rows = [f"{n},{cell}" for n, cell in enumerate(cells)]
    file = tmp_path / "table.csv"
    file.write_bytes((newline.join(["a,b", *rows]) + ending * 3).encode())
    plain = [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in cells]
    for size in (1, 5, 17, 60, 500, 5000):
        for form, names in ((Form(), ("a", "b")), (Form(names=("p", "q")), ("p", "q"))):
            found = pieces(file, form, size)
            assert {piece.names for piece in found} == {names}
            read = [read_piece(piece, texts=names) for piece in found]
            first = np.concatenate([part[names[0]] for part in read]).tolist()
            second = np.concatenate([part[names[1]] for part in read]).tolist()
            titles = form.names is not None
            assert first == ["a"] * titles + [str(n) for n in range(40)]
            assert second == ["b"] * titles + [text.strip() for text in plain]


@pytest.mark.parametrize("form", ["flat", "sequential"])
def test_yambda_in_small_parts_gives_the_same_bytes(
    yambda_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    prepare("yambda", yambda_tree, tmp_path / "whole", format=form)
    monkeypatch.setattr(yambda_files, "_FLAT_BATCH", 2)
    monkeypatch.setattr(yambda_files, "_SEQUENTIAL_BATCH", 1)
    prepare("yambda", yambda_tree, tmp_path / "parts", format=form)
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
