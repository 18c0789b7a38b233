"""`argus score`: rows of (user_id, item_id, time) from Parquet to Parquet, in bounded memory, each exactly once.

The output is a folder with one part per row group of the input, rows in input order. A part is written under a hidden
name, flushed and renamed; `_job.json` identifies input and scorer, `_finished.json` marks a complete folder. The same
command resumes a stopped or killed job. Jobs are compared by content: another input, model, history or version of this
package is another job. One process at a time writes to the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from argus_kernels import __version__
from python_model.data.batches import prefetch
from python_model.io.disk import replace_text, writing
from python_model.io.errors import DataError
from python_model.io.exclusive import LOCK, owned
from python_model.io.integrity import content_of_files
from python_model.io.json_text import read_object
from python_model.serving import states
from python_model.serving.files import whole_file
from python_model.serving.rows import BATCH, Part, empty_table, files_of, input_parts, located, open_parquet, tables
from python_model.serving.scorers import MISSING, REQUIRED, HistoryScorer, RowScorer

FORMAT = 2
"""Format of the folder; a folder of another format is another job."""
JOB, FINISHED, STATES_FOLDER = "_job.json", "_finished.json", ".states"

Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of a phase with a title."""
Workers = Callable[[Sequence[tuple[Part, Path]]], Iterator[Any]]


@dataclass(frozen=True)
class ScoreReport:
    """The result of a job: rows, how many have a score, how many have none, by reason. scored_now: in this run."""

    rows: int
    scored: int
    missing: Mapping[str, int]
    scored_now: int = 0


@contextmanager
def _silent(title: str) -> Iterator[Progress]:
    yield lambda done, total: None


def score_parquet(
    scorer: RowScorer, rows: Path, out: Path, *, overwrite: bool = False, bar: Bar = _silent,
    workers: Workers | None = None,
) -> ScoreReport:  # fmt: skip
    """Score all rows into the folder `out`, resuming an earlier run of the same job.

    A history scorer without states gets them first, as by `prepare_states`. bar: shows the progress of a titled phase.
    workers: score parts in other processes (`python_model.serving.spread`), with the same scorer; None: in this one.

    Raises ValueError where `out` holds another job (see `overwrite`), is not a folder of scores or is in use; DataError
    for rows that break the contract; no scores of them are left then.
    """
    with _open_job(scorer, rows, out, overwrite) as parts:
        files = {part: out / f"part-{number:06d}.parquet" for number, part in enumerate(parts)}
        todo = [(part, file) for part, file in files.items() if not file.is_file()]
        if todo and isinstance(scorer, HistoryScorer) and scorer.states is None:
            _compute_states(scorer, parts, out, bar)
        total, scored_now = sum(part.rows for part in parts), sum(part.rows for part, _ in todo)
        done, before = total - scored_now, _marks(parts)
        with bar("Rows") as progress:
            here = partial(_score_here, scorer, progress, done, total)
            for (part, _), _ in zip(todo, (workers or here)(todo), strict=True):
                done += part.rows
                progress(done, total)
        report = _report(files, scored_now)
        if todo and _marks(parts) != before:
            raise ValueError(f"{rows} changed while it was scored: score it again with --overwrite")
        replace_text(out / FINISHED, json.dumps(asdict(report), indent=2) + "\n")
        shutil.rmtree(out / STATES_FOLDER, ignore_errors=True)
    return report


def prepare_states(
    scorer: HistoryScorer, rows: Path, out: Path, *, overwrite: bool = False, bar: Bar = _silent
) -> None:
    """Gives the scorer the states that the rows need: one pass over the rows, one over their histories.

    They lie in a hidden folder of `out` until the job is finished; a stopped pass resumes. Raises as `score_parquet`.
    """
    with _open_job(scorer, rows, out, overwrite) as parts:
        if not (out / FINISHED).is_file():
            _compute_states(scorer, parts, out, bar)


def needed_states(scorer: HistoryScorer, parts: Sequence[Part], progress: Progress) -> np.ndarray:
    """Rows of the events whose states the scorer needs, int64, rising: one pass over three columns."""
    needed = np.zeros(scorer.events, bool)
    done, total = 0, sum(part.rows for part in parts)
    for part in parts:
        before = 0
        for table in tables(part, list(REQUIRED)):
            with located(part, before):
                found = scorer.state_rows(table)
            needed[found[found >= 0]] = True
            before += len(table)
            progress(done + before, total)
        done += part.rows
    return np.flatnonzero(needed)


def score_part(scorer: RowScorer, part: Part, file: Path, progress: Callable[[int], None] = lambda rows: None) -> None:
    """Score the rows of a part into `file`, which is written atomically."""
    done = 0
    with whole_file(file) as hidden:
        writer: pq.ParquetWriter | None = None
        try:
            for table in prefetch(tables(part)):
                with located(part, done):
                    scored = scorer(table)
                writer = writer or pq.ParquetWriter(hidden, scored.schema, compression="zstd")
                writer.write_table(scored)
                done += len(table)
                progress(done)
        finally:
            if writer is not None:
                writer.close()
        if done != part.rows:
            raise DataError(part.file, f"row group {part.group}: expected {part.rows} rows, found {done}")


@contextmanager
def _open_job(scorer: RowScorer, rows: Path, out: Path, overwrite: bool) -> Iterator[list[Part]]:
    """The parts of a job whose folder this process owns for the length of the block; see `score_parquet`."""
    parts = input_parts(rows)
    _require_apart(rows, out)
    # Errors in the columns are raised before anything is created, errors in the rows before old scores are removed.
    with located(parts[0]):
        scorer(empty_table(parts[0]))
    _require_scores(out)
    if overwrite and (out / JOB).is_file():
        _check_rows(scorer, parts)
    identity = {
        "format": FORMAT, "version": __version__, "rows": content_of_files(files_of(parts)),
        **scorer.identity,
    }  # fmt: skip
    created = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with owned(out):
        _require_scores(out)
        begins = _start(out, identity, overwrite)
        try:
            yield parts
        except DataError:
            # Corrected rows are another job, so the leftovers of this one must not block it.
            if begins and not any(out.glob("part-*.parquet")):
                _empty(out)
                if created:
                    (out / LOCK).unlink(missing_ok=True)
                    with suppress(OSError):
                        out.rmdir()
            raise


def _check_rows(scorer: RowScorer, parts: Sequence[Part]) -> None:
    """One pass over the columns that scoring reads; DataError for the first row that is wrong."""
    names = empty_table(parts[0]).column_names
    read = [name for name in names if name in REQUIRED or name == "organic" or name.startswith("context_")]
    for part in parts:
        before = 0
        for table in tables(part, read):
            with located(part, before):
                scorer.check(table)
            before += len(table)


def _require_apart(rows: Path, out: Path) -> None:
    """ValueError where one lies in the other: `--overwrite` empties OUT, and the next run would read OUT as rows."""
    one, other = rows.resolve(), out.resolve()
    if one == other or other in one.parents or (one.is_dir() and one in other.parents):
        raise ValueError(f"ROWS {rows} and OUT {out} lie in each other: choose a folder elsewhere for OUT")


def _require_scores(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder of scores: choose another")
    if out.is_dir() and not (out / JOB).is_file() and any(entry.name != LOCK for entry in out.iterdir()):
        raise ValueError(f"{out} is there and is no folder of scores: choose another")


def _start(out: Path, identity: Mapping[str, Any], overwrite: bool) -> bool:
    """Marks the folder as this job's, or checks that it is; returns whether the job begins here."""
    if overwrite:
        _empty(out)
    if not (out / JOB).is_file():
        replace_text(out / JOB, json.dumps(identity, indent=2, sort_keys=True) + "\n")
        return True
    before = read_object(out / JOB)
    differs = sorted(name for name in before.keys() | identity.keys() if before.get(name) != identity.get(name))
    if differs:
        verb = "differs" if len(differs) == 1 else "differ"
        raise ValueError(
            f"{out} holds the scores of another job ({', '.join(differs)} {verb}): choose another folder or pass "
            "--overwrite"
        )
    return False


def _empty(out: Path) -> None:
    """Removes the files of a job, its marker last: after a kill in between it is still a folder of scores."""
    (out / FINISHED).unlink(missing_ok=True)
    shutil.rmtree(out / STATES_FOLDER, ignore_errors=True)
    for file in [*out.glob("part-*.parquet"), *out.glob(".part-*.partial")]:
        file.unlink()
    (out / JOB).unlink(missing_ok=True)


def _marks(parts: list[Part]) -> list[tuple[int, int]]:
    """Size and time of the last change of the input's files."""
    found = [file.stat() for file in files_of(parts)]
    return [(one.st_size, one.st_mtime_ns) for one in found]


def _compute_states(scorer: HistoryScorer, parts: list[Part], out: Path, bar: Bar) -> None:
    folder = out / STATES_FOLDER
    needed = states.begun(folder)
    if needed is None:
        with bar("Finding states") as progress:
            needed = needed_states(scorer, parts, progress)
    with bar("States") as progress:
        scorer.compute_states(needed, folder, progress)


def _score_here(
    scorer: RowScorer, progress: Progress, done: int, total: int, todo: Sequence[tuple[Part, Path]]
) -> Iterator[None]:
    for part, file in todo:
        score_part(scorer, part, file, partial(_advance, progress, done, total))
        done += part.rows
        yield


def _advance(progress: Progress, before: int, total: int, rows: int) -> None:
    progress(before + rows, total)


def _report(files: Mapping[Part, Path], scored_now: int) -> ScoreReport:
    """Counts the rows of the parts; DataError where a part is damaged or lacks rows of its row group."""
    rows = 0
    missing: dict[str, int] = {}
    for part, path in files.items():
        try:
            file = open_parquet(path)
        except DataError as error:
            raise DataError(path, f"{error.message}; remove it, and the same command makes it again") from error
        if file.metadata.num_rows != part.rows:
            found = file.metadata.num_rows
            raise DataError(
                path, f"expected {part.rows} rows, found {found}; remove it, and the same command makes it again"
            )
        rows += part.rows
        for batch in file.iter_batches(batch_size=BATCH, columns=[MISSING]):
            for value in batch.column(0).value_counts():
                if (reason := value["values"].as_py()) is not None:
                    missing[reason] = missing.get(reason, 0) + value["counts"].as_py()
    return ScoreReport(rows, rows - sum(missing.values()), missing, scored_now)
