"""Engines for work other than training: this process, one task at a time, or a Ray cluster of any size.

Both engines map a function over tasks and hand the results out in the order of the tasks, a few at a time, so that they
give the same output row for row. Functions and tasks travel by pickle; files that tasks name must lie where every
worker can read them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
ENGINES = ("local", "ray")


class Engine(Protocol):
    """Maps a function over tasks."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results in the order of the tasks; an exception of the function is raised in place of its result."""
        ...


class LocalEngine:
    """Runs one task at a time, when its result is requested."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results in the order of the tasks."""
        return map(function, tasks)


class RayEngine:
    """Tasks as the rows of a Ray data set, one block each, streamed back in order; needs `ray.init()` before."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results in the order of the tasks."""
        import ray.data

        if not tasks:
            return
        rows = [{"task": pickle.dumps(task)} for task in tasks]
        work = _Worker(function, Path.cwd())
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work)
        for row in results.iter_rows():
            outcome = pickle.loads(row["result"])
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


class _Worker:
    """Runs the function on one row, with the working directory of this process.

    Exceptions are returned as values, since Ray would wrap them in its own errors.
    """

    def __init__(self, function: Callable[[Any], Any], directory: Path) -> None:
        self.function, self.directory = function, directory

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        outcome: Any
        try:
            os.chdir(self.directory)
            outcome = self.function(pickle.loads(row["task"]))
        except (ValueError, OSError) as error:
            outcome = error
        return {"result": pickle.dumps(outcome)}


LOCAL = LocalEngine()


@contextlib.contextmanager
def open_engine(name: str) -> Iterator[Engine]:
    """The engine of a name, for the length of a block; ValueError for an unknown one, or where Ray is not installed.

    Ray: the cluster that this process is connected to, else the one that RAY_ADDRESS names, else a local one on this
    machine's cores, which is shut down at the end of the block.
    """
    if name == "local":
        yield LOCAL
        return
    if name != "ray":
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, found {name!r}")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError("engine: 'ray' needs Ray Data: pip install 'argus-kernels[ray]'") from error
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    before = (context.execution_options.preserve_order, context.enable_progress_bars)
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield RayEngine()
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if own:
            ray.shutdown()
