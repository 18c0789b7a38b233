"""A small synthetic data set, made once, and a way to say that nothing was left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from python_model.data.schema import Dataset, load_dataset
from python_model.data.synthetic import generate, preset
from python_model.io.errors import DataError

Refusal = Callable[..., object]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The synthetic preset "small": 200 users, 200 items, about 16,000 events."""
    out = tmp_path_factory.mktemp("synthetic") / "small"
    generate(out, preset("small"))
    return load_dataset(out)


@pytest.fixture
def refused(tmp_path: Path) -> Refusal:
    """Context manager: the block raises DataError at the named place and leaves no trace of `out`."""

    @contextmanager
    def check(out: Path, file: Path, column: str | None, row: int | None, says: str) -> Iterator[None]:
        before = sorted(out.parent.iterdir())
        with pytest.raises(DataError) as caught:
            yield
        error = caught.value
        assert (error.file, error.column, error.row) == (file, column, row), str(error)
        assert says in error.message
        assert str(file) in str(error)
        assert sorted(out.parent.iterdir()) == before

    return check
