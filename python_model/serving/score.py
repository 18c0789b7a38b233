"""`argus score`: rows of (user_id, item_id, time) from Parquet to Parquet, in bounded memory, each exactly once.

The output is a folder with one part per row group of the input, the rows in their order. A part is written under a
hidden name, flushed and renamed; `_job.json` says what is being scored by what, `_finished.json` that all of it is
there. The same command goes on where it was stopped or killed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.data.batches import prefetch
from python_model.data.errors import DataError
from python_model.disk import replace_text
from python_model.serving import states
from python_model.serving.files import whole_file
from python_model.serving.scorers import MISSING, HistoryScorer, RowScorer

BATCH = 1 << 17
"""Rows in memory at once."""
JOB, FINISHED, STATES_FOLDER = "_job.json", "_finished.json", ".states"

Progress = Callable[[int, int], None]
Workers = Callable[[Sequence[tuple["Part", Path]]], Iterator[Any]]


@dataclass(frozen=True)
class Part:
    """One row group of the input; None for the only part of an input without any."""

    file: Path
    group: int | None
    rows: int


@dataclass(frozen=True)
class ScoreReport:
    """What came of a job: rows, how many have a score, and how many have none, by reason. scored_now: in this run."""

    rows: int
    scored: int
    missing: Mapping[str, int]
    scored_now: int = 0


def input_parts(rows: Path) -> list[Part]:
    """The row groups of a Parquet file, or of all *.parquet in a folder by name; DataError where it is neither."""
    files = sorted(rows.glob("*.parquet")) if rows.is_dir() else [rows]
    if not files:
        raise DataError(rows, "the folder has no .parquet file")
    parts = []
    schema = _open(files[0]).schema_arrow
    for file in files:
        found = _open(file)
        if not found.schema_arrow.equals(schema):
            raise DataError(file, f"its columns differ from those of {files[0].name}")
        groups = found.metadata.num_row_groups
        parts += [Part(file, group, found.metadata.row_group(group).num_rows) for group in range(groups)]
    return parts or [Part(files[0], None, 0)]


def tables(part: Part, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a part in their order, at most BATCH at once."""
    file = _open(part.file)
    if part.rows == 0:
        yield file.schema_arrow.empty_table() if columns is None else file.schema_arrow.empty_table().select(columns)
        return
    try:
        for batch in file.iter_batches(batch_size=BATCH, row_groups=[part.group], columns=columns):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise DataError(part.file, f"cannot be read: {error}") from error


def score_parquet(
    scorer: RowScorer, rows: Path, out: Path, *, overwrite: bool = False,
    progress: Progress = lambda done, total: None, workers: Workers | None = None,
) -> ScoreReport:  # fmt: skip
    """Score all rows into the folder `out`, going on where an earlier run of the same job was stopped.

    workers: what scores parts elsewhere (`python_model.serving.spread`), with the same scorer; None for this process.

    Raises ValueError where `out` holds another job (see `overwrite`) or is no folder of scores; DataError for rows
    that break the contract, which leaves no part of them behind.
    """
    parts = input_parts(rows)
    start_job(out, {"rows": fingerprint_rows(parts), **scorer.identity}, overwrite)
    total = sum(part.rows for part in parts)
    if is_finished(out):
        return _report(out, parts, 0)
    files = {part: out / f"part-{number:06d}.parquet" for number, part in enumerate(parts)}
    todo = [(part, file) for part, file in files.items() if not file.is_file()]
    scored_now = sum(part.rows for part, _ in todo)
    done = total - scored_now
    for (part, _), _ in zip(todo, (workers or partial(_score_here, scorer, progress, done, total))(todo), strict=True):
        done += part.rows
        progress(done, total)
    report = _report(out, parts, scored_now)
    replace_text(out / FINISHED, json.dumps(asdict(report), indent=2) + "\n")
    shutil.rmtree(out / STATES_FOLDER, ignore_errors=True)
    return report


def is_finished(out: Path) -> bool:
    """Whether all rows of a job are scored."""
    return (out / FINISHED).is_file()


@contextmanager
def _silent(title: str) -> Iterator[Progress]:
    yield lambda done, total: None


def prepare_states(
    scorer: HistoryScorer, rows: Path, out: Path, *, overwrite: bool = False,
    bar: Callable[[str], AbstractContextManager[Progress]] = _silent,
) -> None:  # fmt: skip
    """Gives the scorer the states that the rows ask for: one pass over the rows, one over the histories behind them.

    They lie in a hidden folder of `out` until the job is finished; a stopped pass goes on. bar: progress of a titled
    phase. Raises as `score_parquet`.
    """
    start_job(out, {"rows": fingerprint_rows(input_parts(rows)), **scorer.identity}, overwrite)
    if is_finished(out):
        return
    folder = out / STATES_FOLDER
    if (folder / states.DONE).is_file():
        needed = np.load(folder / states.ROWS)
    else:
        with bar("Finding states") as progress:
            needed = needed_states(scorer, rows, progress)
    with bar("States") as progress:
        scorer.compute_states(needed, folder, progress)


def needed_states(scorer: HistoryScorer, rows: Path, progress: Progress = lambda done, total: None) -> np.ndarray:
    """Rows of the events whose states the scorer will ask for, int64, rising: one pass over three columns."""
    parts = input_parts(rows)
    needed = np.zeros(scorer.events, bool)
    done, total = 0, sum(part.rows for part in parts)
    for part in parts:
        for table in tables(part, ["user_id", "item_id", "time"]):
            found = scorer.state_rows(table)
            needed[found[found >= 0]] = True
            done += len(table)
            progress(done, total)
    return np.flatnonzero(needed)


def start_job(out: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Makes the folder of a job, or checks that it is the one of this job; see `score_parquet`."""
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if overwrite and (out / JOB).is_file():
        shutil.rmtree(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / JOB).is_file()):
        raise ValueError(f"{out} is there and is no folder of scores: choose another")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / JOB).is_file():
        replace_text(out / JOB, text)
        return
    before = json.loads((out / JOB).read_text("utf-8"))
    now = json.loads(text)
    if before != now:
        differs = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        raise ValueError(
            f"{out} holds the scores of another job ({', '.join(differs)} differ): choose another folder or pass "
            "--overwrite"
        )


def fingerprint_rows(parts: list[Part]) -> str:
    """SHA-256 of the footers of the input's files: sizes, statistics and places of all row groups."""
    digest = hashlib.sha256()
    for file in dict.fromkeys(part.file for part in parts):
        digest.update(file.name.encode())
        with open(file, "rb") as opened:
            opened.seek(-8, 2)
            length = int.from_bytes(opened.read(4), "little")
            opened.seek(-8 - length, 2)
            digest.update(opened.read(length))
    return digest.hexdigest()


def _score_here(
    scorer: RowScorer, progress: Progress, done: int, total: int, todo: Sequence[tuple[Part, Path]]
) -> Iterator[None]:
    for part, file in todo:
        score_part(scorer, part, file, partial(_advance, progress, done, total))
        done += part.rows
        yield


def _advance(progress: Progress, before: int, total: int, rows: int) -> None:
    progress(before + rows, total)


def score_part(scorer: RowScorer, part: Part, file: Path, progress: Callable[[int], None] = lambda rows: None) -> None:
    """Score the rows of a part into `file`, which is there when all of them are in it, or not at all."""
    done = 0
    with whole_file(file) as hidden:
        writer: pq.ParquetWriter | None = None
        try:
            for table in prefetch(tables(part)):
                try:
                    scored = scorer(table)
                except DataError as error:
                    row = None if error.row is None else error.row + done
                    place = f"{error.message} (row group {part.group})"
                    raise DataError(part.file, place, column=error.column, row=row) from error
                writer = writer or pq.ParquetWriter(hidden, scored.schema, compression="zstd")
                writer.write_table(scored)
                done += len(table)
                progress(done)
        finally:
            if writer is not None:
                writer.close()
        if done != part.rows:
            raise DataError(part.file, f"row group {part.group}: expected {part.rows} rows, found {done}")


def _report(out: Path, parts: list[Part], scored_now: int) -> ScoreReport:
    """Counts what the parts hold; ValueError where one has not the rows of its row group."""
    rows = 0
    missing: dict[str, int] = {}
    for number, part in enumerate(parts):
        file = _open(out / f"part-{number:06d}.parquet")
        if file.metadata.num_rows != part.rows:
            raise DataError(out / f"part-{number:06d}.parquet", f"expected {part.rows} rows, found another number")
        rows += part.rows
        for batch in file.iter_batches(batch_size=BATCH, columns=[MISSING]):
            for value in batch.column(0).value_counts():
                if (reason := value["values"].as_py()) is not None:
                    missing[reason] = missing.get(reason, 0) + value["counts"].as_py()
    return ScoreReport(rows, rows - sum(missing.values()), missing, scored_now)


def _open(file: Path) -> pq.ParquetFile:
    if not file.is_file():
        raise DataError(file, "not found")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(file, f"not a readable Parquet file: {error}") from error
