"""The measurement of `argus prepare`: files in the sources' own forms, every size and engine once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scenarios import preparing
from python_model.data.prepare import prepare
from python_model.data.schema import validate


@pytest.mark.parametrize("source", list(preparing.SOURCES))
def test_the_generated_files_are_what_the_reader_takes(tmp_path: Path, source: str) -> None:
    (tmp_path / "in").mkdir()
    preparing.SOURCES[source](tmp_path / "in", 3000)
    prepare(preparing.reader_of(source), tmp_path / "in", tmp_path / "out")
    info = validate(tmp_path / "out")
    assert info.events == 3000 and 15 <= info.users <= 20


def test_a_run_is_measured_and_tabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "SOURCES", {"movielens": preparing.write_ratings})
    (one,) = preparing.measure([2000], ["local"])
    assert (one.source, one.engine, one.rows) == ("movielens", "local", 2000)
    assert one.seconds > 0 and 20e6 < one.peak < 2e9 and 40_000 < one.source_bytes < 80_000
    assert f"| movielens | 2,000 | 0 | local | {one.seconds:.1f} |" in preparing.table([one])


def test_a_run_that_fails_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 2: argus: "):
        preparing._prepare("movielens", tmp_path, tmp_path / "out", "local")
