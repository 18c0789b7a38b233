"""Files and directories that appear under their name when they are complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from python_model.disk import as_write_error, flush


@contextmanager
def whole_directory(out: Path, marker: str, *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden directory beside `out`: flushed and renamed to it where the block ends well, removed otherwise.

    marker: the file that says what kind of directory this is. FileExistsError where `out` is there and not empty,
    unless `overwrite` is set and it has the marker.
    """
    _refuse_existing(out, marker, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob("*"):
            flush(path)
        flush(partial)
        aside = out.with_name(f".{out.name}.{os.getpid()}.old")
        if out.exists():
            os.rename(out, aside)
        os.rename(partial, out)
        flush(out.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException as error:
        explained = as_write_error(error, out, out.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if explained is not None:
            raise explained from error
        raise


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A hidden file beside `file`: flushed and renamed to it where the block ends well, removed otherwise."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        flush(partial)
        os.replace(partial, file)
        flush(file.parent)
    except BaseException as error:
        explained = as_write_error(error, file, file.parent)
        partial.unlink(missing_ok=True)
        if explained is not None:
            raise explained from error
        raise


def _refuse_existing(out: Path, marker: str, overwrite: bool) -> None:
    if out.is_file():
        raise FileExistsError(f"{out} is a file, expected a directory")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists and is not empty: choose another directory or pass --overwrite")
    if not (out / marker).is_file():
        raise FileExistsError(f"{out} has no {marker}: it was not made by this command and is not overwritten")
