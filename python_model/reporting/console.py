"""Output of the commands: tables, progress and errors. Tables go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from python_model.io.disk import replace_text
from python_model.io.errors import counted, printable
from python_model.training.watch import TITLES

if TYPE_CHECKING:
    import numpy as np

    from python_model.evaluation.evaluate import EvaluationResult
    from python_model.evaluation.recommend import UserRecommendations
    from python_model.serving.bundle import Export
    from python_model.training.progress import StepReport


def stdout() -> Console:
    """The console for tables; wide enough for every column when the output is a file or a pipe."""
    console = _plain_console()
    return console if console.is_terminal else _plain_console(width=160)


def stderr() -> Console:
    """The console for progress, hints and errors."""
    return _plain_console(stderr=True, soft_wrap=True)


def _plain_console(**options: Any) -> Console:
    """A console that prints ids and names unchanged: "[red]" is not a colour and ":tea:" is not an emoji."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def say(text: str) -> None:
    """Print a sentence on stderr."""
    stderr().print(text, markup=False)


def write_json(file: str | Path, values: Mapping[str, Any]) -> None:
    """Write JSON, replacing the file atomically; WriteError naming the file where that fails."""
    replace_text(Path(file), json.dumps(values, indent=2) + "\n")


def format_metric(value: float | None) -> str:
    """Four decimals, a dash where the metric is not defined."""
    return "–" if value is None else f"{value:.4f}"


def metrics_table(result: EvaluationResult) -> Table:
    """One line per predictor, one column a metric, as keyed in the JSON."""
    counts = result.counts
    table = Table(
        title=f"{result.dataset}, {result.protocol} split",
        caption=f"{counted(counts['events'], 'event')} of {counted(counts['users'], 'user')}, "
        f"{counted(counts['pairs'], 'pair')}; "
        "normalised entropy (ne): lower is better",
        caption_justify="left",
    )
    table.add_column("")
    names = list(next(iter(result.rows.values())))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row, values in result.rows.items():
        style = "dim" if row == "oracle" else "bold" if row == "finetuned" else ""
        table.add_row(row, *(format_metric(values[name]) for name in names), style=style)
    return table


def details_tables(result: EvaluationResult) -> list[Table]:
    """Discovery and calibration errors, then intervals: one line per predictor."""
    discovery, errors = result.details["discovery"], result.details["calibration"]
    intervals = result.details["intervals"]
    names = list(next(iter(discovery.values())))
    tasks = list(next(iter(errors.values()), {}))
    bounded = list(dict.fromkeys(metric for row in intervals.values() for metric in row))
    found = {
        row: [format_metric(discovery[row][name]) for name in names]
        + [format_metric(errors.get(row, {}).get(task, {}).get("error")) for task in tasks]
        for row in result.rows
    }
    bounds = {row: [_interval(intervals.get(row, {}).get(metric)) for metric in bounded] for row in result.rows}
    note = "new: items that the user has not had before; ECE: error of calibration, lower is better"
    return [
        _table("discovery and calibration", note, [*names, *(f"ECE {task}" for task in tasks)], found),
        _table("intervals", "95 % over bootstrap samples of users", bounded, bounds),
    ]


def _table(title: str, caption: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row, cells in rows.items():
        table.add_row(row, *cells)
    return table


def _interval(bounds: Sequence[float] | None) -> str:
    return "–" if bounds is None else f"[{format_metric(bounds[0])}, {format_metric(bounds[1])}]"


def recommendations_table(found: UserRecommendations) -> Table:
    """The items of one user with their explanations."""
    table = Table(title=f"User {found.user_id}, {counted(found.events, 'event')} of history", caption_justify="left")
    table.add_column("", justify="right")
    table.add_column("item", no_wrap=True)
    table.add_column("score", justify="right")
    has_titles = any(item.title is not None for item in found.items)
    if has_titles:
        table.add_column("title")
    for name in found.items[0].features if found.items else {}:
        table.add_column(name, justify="right")
    table.add_column("why")
    for place, item in enumerate(found.items, 1):
        title = [printable(item.title or "–")] if has_titles else []
        features = (item.labels.get(name, str(number)) for name, number in item.features.items())
        table.add_row(str(place), str(item.item_id), f"{item.score:.3f}", *title, *features, item.why)
    return table


class TrainingProgress:
    """A progress bar with throughput, time left and losses; plain lines where stderr is not a terminal.

    A context manager; call it with every `StepReport`.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = stderr()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]}"), TextColumn("[dim]{task.fields[losses]}"), console=self._console,
        )  # fmt: skip
        self._task: Any = None
        self._printed = time.perf_counter()

    def __enter__(self) -> TrainingProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def __call__(self, report: StepReport) -> None:
        if report.validation is not None:
            self._print(f"{self._title}: step {report.step}/{report.steps}, {_validation(report)}")
        for note in report.notes:
            self._print(f"{self._title}: {note}")
        if report.step == 0:
            return
        fields: dict[str, Any] = {
            "speed": f"{report.events_per_second:,.0f} events/s",
            "left": f"{_duration(report.seconds_left)} left",
            "losses": _losses(report.losses),
        }
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task(self._title, total=report.steps, **fields)
            self._bar.update(self._task, completed=report.step, **fields)
            return
        if report.step == report.steps or time.perf_counter() - self._printed > 10.0:
            self._printed = time.perf_counter()
            line = f"{self._title}: step {report.step}/{report.steps}, {fields['speed']}, {fields['left']}, "
            self._print(line + fields["losses"])

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False)


@contextmanager
def counting_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that counts up to a total, called with (done, total); silent where stderr is not a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_recommendations(found: Sequence[UserRecommendations]) -> None:
    """One table per user."""
    console = stdout()
    for user in found:
        console.print(recommendations_table(user))


@contextmanager
def working(title: str) -> Iterator[None]:
    """A spinner for work that cannot be counted; silent where stderr is not a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(title):
        yield


def print_candidates(export: Export, users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
    """One table per user: items int [n, k], −1 where there are no more, and scores [n, k] of users [n]."""
    for user, row, values in zip(users, items, scores, strict=True):
        table = Table(title=f"User {export.user_ids.original(user)}")
        table.add_column("", justify="right")
        table.add_column("item", no_wrap=True)
        table.add_column("score", justify="right")
        names = export.names
        if names.titles is not None:
            table.add_column("title")
        for place, (item, score) in enumerate(zip(row, values, strict=True), 1):
            if item >= 0:
                title = [] if names.titles is None else [printable(names.title(item) or "–")]
                table.add_row(str(place), str(export.item_ids.original(item)), f"{score:.3f}", *title)
        stdout().print(table)


def _validation(report: StepReport) -> str:
    """The metrics of the validation part with popularity's in brackets, and the learning rate."""
    assert report.validation is not None
    baseline = report.validation.baseline
    parts = []
    for name, value in report.validation.metrics.items():
        beside = "" if name.endswith("_ne") or name not in baseline else f" (popularity {baseline[name]:.4f})"
        if name not in ("recall@10", "feedback_auc"):
            parts.append(f"{TITLES[name]} {value:.4f}{beside}")
    return f"validation: {', '.join(parts) or 'scores are NaN'}; learning rate {report.learning_rate:.2g}"


def _losses(losses: Mapping[str, float]) -> str:
    shown = [name for name in ("next_item", "pair", "pairwise_accuracy") if name in losses] or ["loss"]
    feedback = [value for name, value in losses.items() if name.startswith("feedback_")]
    parts = [f"{name.replace('_', ' ')} {losses[name]:.3f}" for name in shown if name in losses]
    if feedback and "pair" not in losses:
        parts.append(f"feedback {sum(feedback):.3f}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
