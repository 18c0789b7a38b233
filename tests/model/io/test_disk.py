"""Files that are written whole or not at all, and what is said before the work where they could not be."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.io.disk import WriteError, replace_text, require_writable, whole_file, writing

REFUSED = {
    "a directory": (lambda file: file.mkdir(), "it is a directory; name a file"),
    "a pipe": (lambda file: os.mkfifo(file), "it is no regular file; name another file"),
    "a link to nothing": (lambda file: file.symlink_to("nowhere"), "it is a link to nowhere, which is not there"),
    "a loop": (lambda file: file.symlink_to(file.name), "which is not there"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_name_that_is_taken_by_no_file(tmp_path: Path, kind: str) -> None:
    prepare, sentence = REFUSED[kind]
    prepare(tmp_path / "x.json")
    for write in (require_writable, lambda file: replace_text(file, "text"), write_table):
        with pytest.raises(WriteError, match=rf"x\.json: cannot be written, .*{sentence}"):
            write(tmp_path / "x.json")
    assert os.listdir(tmp_path) == ["x.json"]


def write_table(file: Path) -> None:
    with whole_file(file) as partial:
        pq.write_table(pa.table({"a": [1]}), partial)


@pytest.mark.parametrize("write", [require_writable, lambda file: replace_text(file, "x"), write_table])
def test_a_directory_that_is_not_there(tmp_path: Path, write: Callable[[Path], object]) -> None:
    with pytest.raises(WriteError) as caught:
        write(tmp_path / "no" / "x.parquet")
    said = f"{tmp_path}/no/x.parquet: cannot be written, the directory {tmp_path}/no is not there; make it first or"
    assert str(caught.value).startswith(said) and os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="file is no directory; choose another place"):
        write(tmp_path / "file" / "x.parquet")


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a device")
def test_a_device_is_not_replaced() -> None:
    before = os.stat("/dev/null").st_rdev
    with pytest.raises(WriteError, match="/dev/null: cannot be written, it is no regular file"):
        replace_text(Path("/dev/null"), "x")
    assert os.stat("/dev/null").st_rdev == before


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_text("old")
    (tmp_path / "link").symlink_to("far/real")
    replace_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "real").read_text() == "new"
    assert os.listdir(tmp_path / "far") == ["real"]


def test_long_names_and_odd_letters(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127, "two\nlines"):
        replace_text(tmp_path / name, "x")
    assert len(os.listdir(tmp_path)) == 3
    with pytest.raises(WriteError, match="file name too long"):
        replace_text(tmp_path / ("n" * 256), "x")
    with pytest.raises(WriteError, match="not UTF-8"):
        replace_text(tmp_path / "\udcff", "x")


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    file, texts = tmp_path / "x", [str(number) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=replace_text, args=(file, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("number", "then", "sentence"),
    [
        (errno.ENOSPC, "", "no space is left on the device; free some space or choose another directory"),
        (errno.ENOSPC, "resume", "no space is left on the device; it stays: free some space, then resume"),
        (errno.EACCES, "", "permission denied; choose another place"),
        (errno.ENOENT, "resume", "no such file or directory; it stays: once that is mended, resume"),
        (errno.EIO, "", "input/output error; choose another place"),
    ],
)
def test_space_is_asked_for_only_where_it_is_the_reason(number: int, then: str, sentence: str) -> None:
    kept = "it stays" if then else ""
    with pytest.raises(WriteError) as caught, writing(Path("a/b"), then, kept):
        raise OSError(number, os.strerror(number), "a/.b.partial")
    assert str(caught.value) == f"a/b: cannot be written, {sentence}"
