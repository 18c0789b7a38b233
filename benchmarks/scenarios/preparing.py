"""Rows a second and peak memory of `argus prepare` on generated files of several sizes, by source and engine.

Each measurement is a separate process; its peak is the kernel's count of its highest resident memory, imports included.
Ray's workers and object store are other processes, which the figure does not include.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

if TYPE_CHECKING:
    import polars as pl

EVENTS_OF_A_USER, ITEMS = 150, 50_000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One run: rows, seconds of wall clock and of processor time (imports included), peak bytes."""

    source: str
    engine: str
    rows: int
    source_bytes: int
    seconds: float
    processor: float
    peak: int


def measure(sizes: Sequence[int], engines: Sequence[str]) -> Iterator[Measured]:
    """Every source, size and engine; files are made and removed one after another."""
    for source, write in SOURCES.items():
        for rows in sizes:
            with tempfile.TemporaryDirectory() as directory:
                data = Path(directory) / "source"
                data.mkdir()
                write(data, rows)
                size = sum(file.stat().st_size for file in data.iterdir())
                for engine in engines:
                    seconds, processor, peak = _prepare(source, data, Path(directory) / engine, engine)
                    yield Measured(source, engine, rows, size, seconds, processor, peak)


def table(found: Sequence[Measured]) -> str:
    """Markdown, one line per run."""
    lines = [
        "| source | rows | file, MB | engine | seconds | rows a second | rows a second and core | "
        "peak of the process, MB |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for one in found:
        lines.append(
            f"| {one.source} | {one.rows:,} | {one.source_bytes / 1e6:,.0f} | {one.engine} | {one.seconds:.1f} | "
            f"{one.rows / one.seconds:,.0f} | {one.rows / one.processor:,.0f} | {one.peak / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def write_ratings(directory: Path, rows: int) -> None:
    """ratings.csv in MovieLens' format, in random order of users and times."""
    import polars as pl

    with (directory / "ratings.csv").open("wb") as file:
        for start in range(0, rows, _CHUNK):
            count = min(_CHUNK, rows - start)
            dice = np.random.default_rng([0, start])
            frame = pl.DataFrame(
                {
                    "userId": dice.integers(1, max(rows // EVENTS_OF_A_USER, 1) + 1, count),
                    "movieId": _items(dice, count),
                    "rating": dice.integers(1, 11, count) / 2,
                    "timestamp": dice.integers(10**9, 1_700_000_000, count),
                }
            )
            frame.write_csv(file, include_header=start == 0)


def write_listens(directory: Path, rows: int) -> None:
    """listens.parquet and likes.parquet in flat Yambda's format, sorted by user and time."""
    types = {"uid": pa.uint32(), "item_id": pa.uint32(), "timestamp": pa.uint32(), "is_organic": pa.uint8()}
    listen = pa.schema([*types.items(), ("played_ratio_pct", pa.uint16()), ("track_length_seconds", pa.uint32())])
    with (
        pq.ParquetWriter(directory / "listens.parquet", listen) as listens,
        pq.ParquetWriter(directory / "likes.parquet", pa.schema(list(types.items()))) as likes,
    ):
        for start in range(0, rows, _CHUNK):
            row = np.arange(start, min(start + _CHUNK, rows))
            dice = np.random.default_rng([1, start])
            columns = {
                "uid": row // EVENTS_OF_A_USER,
                "item_id": _items(dice, len(row)),
                "timestamp": row % EVENTS_OF_A_USER * 600,
                "is_organic": dice.integers(0, 2, len(row)),
                "played_ratio_pct": dice.integers(0, 101, len(row)),
                "track_length_seconds": dice.integers(60, 300, len(row)),
            }
            listens.write_table(pa.table(columns).cast(listen))
            liked = dice.random(len(row)) < 0.03
            likes.write_table(pa.table({name: columns[name][liked] for name in types}).cast(likes.schema))


def write_csv(directory: Path, rows: int) -> None:
    """A user's own log with text ids, in order of time."""
    with (directory / "log.csv").open("wb") as file:
        for start in range(0, rows, _CHUNK):
            _log(start, rows, "user-", "item-").write_csv(file, include_header=start == 0)


def write_parquet(directory: Path, rows: int) -> None:
    """The same with integer ids, as Parquet."""
    for start in range(0, rows, _CHUNK):
        _log(start, rows).write_parquet(directory / f"log-{start:012d}.parquet", row_group_size=1 << 19)


SOURCES: dict[str, Callable[[Path, int], None]] = {
    "movielens": write_ratings, "yambda": write_listens, "table (CSV)": write_csv, "table (Parquet)": write_parquet
}  # fmt: skip
_OPTIONS = {"table": ["--feedback", "liked", "--feedback", "stars:classes", "--context", "device"]}


def reader_of(source: str) -> str:
    """The name of a source in `argus prepare`."""
    return source.partition(" ")[0]


def _log(start: int, rows: int, user: str = "", item: str = "") -> pl.DataFrame:
    """The next rows of a log in order of time; user, item: the prefix of the ids' numbers."""
    import polars as pl

    count = min(_CHUNK, rows - start)
    dice = np.random.default_rng([2, start])
    users = pl.Series(dice.integers(0, max(rows // EVENTS_OF_A_USER, 1), count))
    items = pl.Series(_items(dice, count))
    return pl.DataFrame(
        {
            "user": user + users.cast(pl.String) if user else users,
            "item": item + items.cast(pl.String) if item else items,
            "time": 1_600_000_000_000 + 3_000 * np.arange(start, start + count),
            "liked": dice.integers(0, 2, count),
            "stars": dice.integers(1, 6, count),
            "device": pl.Series(["phone", "tablet", "tv", "web"]).gather(dice.integers(0, 4, count)),
        }
    )


def _items(dice: np.random.Generator, count: int) -> np.ndarray:
    """Popularity falling like 1 / rank."""
    return np.minimum((ITEMS ** dice.random(count)).astype(np.int64), ITEMS - 1)


_PREPARE = """
import runpy
try:
    runpy.run_module("python_model", run_name="__main__", alter_sys=True)
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), end="", flush=True)
"""
"""`argus` with its peak memory as last line. The `ru_maxrss` of a process begins with what its parent held."""


def _prepare(source: str, data: Path, out: Path, engine: str) -> tuple[float, float, int]:
    """Seconds of wall clock, of processor time, and peak bytes of one `argus prepare`."""
    reader = reader_of(source)
    command = [sys.executable, "-c", _PREPARE, "prepare", reader, str(data), str(out), "--engine", engine]
    command += _OPTIONS.get(reader, [])
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(command[3:])}: exit code {child.returncode}: {said}")
    peak = 1024 * int(said.splitlines()[-1].split()[1])
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak


def main(
    rows: Annotated[list[int], typer.Option(help="Rows of the generated file; may be repeated.")] = [1 << 20, 1 << 22],  # noqa: B006
    engine: Annotated[list[str], typer.Option(help="local or ray; may be repeated.")] = ["local"],  # noqa: B006
) -> None:
    """Rows a second and peak memory of `argus prepare` on generated files."""
    found: list[Measured] = []
    for one in measure(rows, engine):
        found.append(one)
        typer.echo(table(found).splitlines()[-1], err=True)
    typer.echo(table(found))


def register(app: typer.Typer) -> None:
    """Adds `prepare` to the commands of `python -m benchmarks`."""
    app.command("prepare")(main)
