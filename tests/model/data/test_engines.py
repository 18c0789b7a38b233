"""Preparing and scoring on Ray's workers: the same files, byte for byte, as in this process."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.engines import LOCAL, Engine, open_engine
from python_model.data.prepare import prepare
from python_model.data.readers import kuairand, logs, movielens, yambda_files
from python_model.data.schema import Dataset
from python_model.io.errors import DataError
from python_model.serving.bundle import Export
from tests.model.data.test_logs import assert_same_files, write_log, write_ratings
from tests.model.data.test_yambda import tree as yambda_tree
from tests.model.serving.conftest import exported, finetuned, service
from tests.model.serving.test_score import hostile_rows, rows_of

__all__ = ["exported", "finetuned", "service", "yambda_tree"]


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Engine]:
    """Two workers of this machine; started once for all tests here, as that takes seconds."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'argus-kernels[ray]'")
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, logging_level="ERROR", log_to_driver=False
    )
    try:
        with open_engine("ray") as engine:
            yield engine
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_results_come_in_the_order_of_the_tasks(ray_engine: Engine) -> None:
    assert list(ray_engine.map(math.isqrt, [])) == []
    found = ray_engine.map(math.isqrt, [81, 1, 16, -1])
    assert [next(found) for _ in range(3)] == [9, 1, 4]
    with pytest.raises(ValueError, match="must be nonnegative"):
        next(found)


Source = Callable[[Path, Path, Engine], None]


def ratings(folder: Path, out: Path, engine: Engine) -> None:
    if not folder.exists():
        write_ratings(folder)
    prepare("movielens", folder, out, engine=engine)


def impressions(folder: Path, out: Path, engine: Engine) -> None:
    if not folder.exists():
        write_log(folder, "standard_4_08", 200, 0)
        write_log(folder, "random_4_22", 80, 1)
    prepare("kuairand", folder, out, engine=engine)


def listens(folder: Path, out: Path, engine: Engine) -> None:
    prepare("yambda", folder.parent / "yambda", out, engine=engine)


def simulated(folder: Path, out: Path, engine: Engine) -> None:
    prepare("synthetic", None, out, engine=engine, preset="small", users=40, chunk_users=16)


def own_log(folder: Path, out: Path, engine: Engine) -> None:
    if not folder.exists():
        folder.mkdir()
        dice = np.random.default_rng(0)
        rows = [f"u{dice.integers(9)},i{dice.integers(20)},{1_700_000_000 + n},{n % 5}" for n in range(200)]
        (folder / "a.csv").write_text("\n".join(["user,item,time,stars", *rows[:120]]))
        (folder / "b.csv").write_text("\n".join(["user,item,time,stars", *rows[120:]]))
    prepare("table", folder, out, engine=engine, feedback={"stars": "stars:classes"}, name="own")


@pytest.mark.slow
@pytest.mark.parametrize("source", [ratings, impressions, own_log, listens, simulated])
def test_ray_gives_the_same_bytes(
    yambda_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_engine: Engine, source: Source
) -> None:
    # Pieces are cut here, so the sizes reach the workers as tasks: several of each, of which two run side by side.
    monkeypatch.setattr(movielens, "PIECE_BYTES", 5000)
    monkeypatch.setattr(kuairand, "PIECE_BYTES", 4000)
    monkeypatch.setattr(logs, "RANGE_ROWS", 300)
    monkeypatch.setattr(yambda_files, "_FLAT_BATCH", 3)
    source(tmp_path / "in", tmp_path / "local", LOCAL)
    source(tmp_path / "in", tmp_path / "ray", ray_engine)
    assert_same_files(tmp_path / "local", tmp_path / "ray")


@pytest.mark.slow
def test_a_fault_on_a_worker_is_the_sentence_it_is_here(tmp_path: Path, ray_engine: Engine) -> None:
    lines = write_log(tmp_path / "in", "standard_4_08", 30, 0)
    file = tmp_path / "in" / "log_standard_4_08.csv"
    file.write_text(file.read_text().replace(lines[20], lines[20].replace(",9000,1,0", ",9000,1,7")))
    said = []
    for engine in (LOCAL, ray_engine):
        with pytest.raises(DataError) as caught:
            prepare("kuairand", tmp_path / "in", tmp_path / "out", engine=engine)
        said.append(str(caught.value))
    assert said[0] == said[1] and "data row 21" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_the_command_takes_an_engine(tmp_path: Path, ray_engine: Engine) -> None:
    write_ratings(tmp_path / "in", rows=40)
    for name in ("local", "ray"):
        arguments = ["prepare", "movielens", str(tmp_path / "in"), str(tmp_path / name), "--engine", name]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    assert_same_files(tmp_path / "local", tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["export", "run"])
def test_scoring_on_ray_gives_the_same_bytes(
    service: Dataset, finetuned: Path, exported: Export, tmp_path: Path, ray_engine: Engine,
    monkeypatch: pytest.MonkeyPatch, source: str,
) -> None:  # fmt: skip
    """Part by part, rows without a score among them; relative paths mean the same on the workers."""
    monkeypatch.chdir(tmp_path)
    order = np.random.default_rng(0).permutation(len(service))[:600]
    good = rows_of(service, order).select(["user_id", "item_id", "time"])
    rows = pa.concat_tables([good, hostile_rows(service).select(good.column_names).cast(good.schema)])
    pq.write_table(rows, "rows.parquet", row_group_size=100)
    of_run = [str(finetuned), "rows.parquet", "--data", str(service.path)]
    given = of_run if source == "run" else [str(exported.path), "rows.parquet"]
    said = []
    for name in ("local", "ray"):
        command = ["score", *given[:2], name, *given[2:], "--engine", name, "--json", f"{name}.json"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        figures = json.loads(Path(f"{name}.json").read_text())
        said.append({key: figures[key] for key in ("rows", "scored", "missing", "scored_now")})
    assert said[0] == said[1] and said[0]["rows"] == 608 > said[0]["scored"]
    assert len(list(Path("ray").glob("part-*.parquet"))) == 7
    assert_same_files(Path("local"), Path("ray"))
    # A job that one engine began the other ends, scoring only what is missing.
    (Path("local") / "part-000003.parquet").unlink()
    (Path("local") / "_finished.json").unlink()
    command = ["score", *given[:2], "local", *given[2:], "--engine", "ray", "--json", "again.json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("again.json").read_text())["scored_now"] == 100
    for part in Path("ray").glob("part-*.parquet"):
        assert (Path("local") / part.name).read_bytes() == part.read_bytes()


def test_without_ray_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["prepare", "synthetic", "small", str(tmp_path / "out"), "--engine", "ray"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == "argus: engine: 'ray' needs Ray Data: pip install 'argus-kernels[ray]'\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine() -> None:
    with pytest.raises(ValueError, match="engine: expected one of local, ray, found 'spark'"), open_engine("spark"):
        pass
