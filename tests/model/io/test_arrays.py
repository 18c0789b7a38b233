"""Arrays on disk are read and written, never mapped: a file that shrinks or a disk that is full is an error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from python_model.io.arrays import ArrayFile, ArrayWriter
from python_model.io.errors import DataError


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int64])
@pytest.mark.parametrize("shape", [(0,), (7,), (5, 3), (0, 4), (4, 0)])
def test_what_is_written_in_blocks_is_what_numpy_writes(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values: np.ndarray = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    writer = ArrayWriter(tmp_path / "blocks.npy", dtype, shape)
    assert not np.load(tmp_path / "blocks.npy").any()
    for start in range(0, shape[0], 2):
        writer.write(start, values[start : start + 2])
    writer.close()
    np.save(tmp_path / "whole.npy", values)
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    again = ArrayWriter(tmp_path / "blocks.npy", dtype, shape, again=True)
    again.write(0, values[:1] * 0)
    again.close()
    assert np.array_equal(np.load(tmp_path / "blocks.npy")[1:], values[1:])


@pytest.mark.parametrize("near", [1, 40, 1 << 16])
def test_rows_are_taken_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    monkeypatch.setattr("python_model.io.arrays._NEAR_BYTES", near)
    values = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    found = ArrayFile(tmp_path / "a.npy", np.float32, (None, 3))
    for places in ([], [0], [199], [0, 1, 2, 50, 51, 199], range(200), [7, 7, 90]):
        assert np.array_equal(found.take(np.array(places, np.int64)), values[list(places)])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((5000, 4), np.float32))
    found = ArrayFile(tmp_path / "a.npy", np.float32, (None, 4))
    os.truncate(tmp_path / "a.npy", 4096)
    assert (found.take(np.array([0, 100])) == 1).all()
    with pytest.raises(DataError, match=r"a\.npy: was cut short while it was read"):
        found.take(np.array([0, 4000]))
