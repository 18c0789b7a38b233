"""Runs the steps of a session, one after the other, each in its share of the remaining time."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu_session import lines
from benchmarks.gpu_session.context import RESUME, Context
from benchmarks.gpu_session.processes import Child, Guard
from benchmarks.harness.signals import unwound_by_sigterm

POLL_SECONDS = 0.02
GRACE_SECONDS = 1.5
"""A step's processes are told to end this long before they are killed."""
UNPLANNED_PART = 0.4
"""Of the time that is left, what a step without a share may take."""
KILLED = "killed at the end of the step"
LOG = "session.log"
"""The ends of what processes wrote that did not end well."""
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Task:
    """One process of a step: the arguments of the step's `run`, or a whole `command`; variables of its environment."""

    name: str
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    start: int = 0
    """The piece of its work that it begins with."""


@dataclass(frozen=True)
class Step:
    """A step, its share of the seconds on a GPU and in a rehearsal, and the number of its processes that run at once.

    `tasks` makes its processes from the session's results so far, and notes what cannot be done here. A step without a
    share is not part of the plan: if it has processes, it takes a part of the remaining time (UNPLANNED_PART).
    """

    name: str
    seconds: float
    rehearsal_seconds: float
    tasks: Callable[[Context], Sequence[Task]]
    jobs: int = 1
    rehearsal_jobs: int = 1

    def share(self, rehearse: bool) -> float:
        """Seconds of a session that goes as planned."""
        return self.rehearsal_seconds if rehearse else self.seconds


@dataclass(frozen=True)
class _Running:
    task: Task
    child: Child
    started: float


class Conductor:
    """Runs steps into a folder until the time is over; no process that it started outlives it."""

    def __init__(self, out: Path, device: str, rehearse: bool, seconds: float) -> None:
        self._out, self._device, self._rehearse = out, device, rehearse
        self._end = time.monotonic() + seconds
        self._guard = Guard()
        self._running: list[_Running] = []

    def run(self, steps: Sequence[Step]) -> None:
        """Runs the steps in order: each gets its share of the remaining time, so unused time goes to later ones."""
        with unwound_by_sigterm():
            try:
                planned = [step.share(self._rehearse) for step in steps]
                for index, step in enumerate(steps):
                    left = max(self._end - time.monotonic(), 0.0)
                    part = planned[index] / sum(planned[index:]) if planned[index] else UNPLANNED_PART
                    self._run_step(step, left * part)
            finally:
                for running in self._running:
                    running.child.kill()
                self._guard.close()

    def _run_step(self, step: Step, seconds: float) -> None:
        started, used = time.monotonic(), _processor_seconds()
        ends = started + seconds
        context = Context(self._out, self._device, self._rehearse, step.name, ends - GRACE_SECONDS)
        context.say("step_started", budget=round(seconds, 3))
        waiting = deque(step.tasks(context))
        outcomes: Counter[str] = Counter()
        jobs = step.rehearsal_jobs if self._rehearse else step.jobs
        while (waiting or self._running) and time.monotonic() < ends:
            while waiting and len(self._running) < jobs:
                self._start(context, waiting.popleft())
            for running in list(self._running):
                status = running.child.ended()
                if status is not None:
                    self._end_of(context, running, status, waiting, outcomes)
            time.sleep(POLL_SECONDS)
        for running in list(self._running):
            running.child.kill()
            outcomes[self._note(context, running, KILLED)] += 1
        for task in waiting:
            context.leave_out(task.name, "the step's time was over")
        outcome = "cut off" if waiting or outcomes[KILLED] else "done"
        took = round(time.monotonic() - started, 3)
        processor = round(_processor_seconds() - used, 3)
        context.say(
            "step", outcome=outcome, seconds=took, budget=round(seconds, 3), processor_seconds=processor,
            tasks=dict(outcomes),
        )  # fmt: skip

    def _end_of(
        self, context: Context, running: _Running, status: int, waiting: deque[Task], outcomes: Counter[str]
    ) -> None:
        """Notes how a process ended; a process broken by a fault is restarted after the faulty case."""
        resume = re.search(r"^resume (\d+)\s*\Z", running.child.output, re.MULTILINE) if status == RESUME else None
        outcomes[self._note(context, running, "resumed" if resume else _outcome(status))] += 1
        if resume:
            waiting.appendleft(replace(running.task, start=int(resume[1])))

    def _start(self, context: Context, task: Task) -> None:
        command = task.command or (
            sys.executable, "-m", "benchmarks.gpu_session", "step", context.step, *task.arguments,
            "--start", str(task.start), "--out", str(context.out),
            "--device", context.device, "--until", repr(context.until),
            *(["--rehearse"] if context.rehearse else []),
        )  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            **dict(task.environment),
        }
        self._running.append(_Running(task, Child(command, environment, self._guard), time.monotonic()))

    def _note(self, context: Context, running: _Running, outcome: str) -> str:
        """Removes a task that ended from the list and returns how it ended."""
        self._running.remove(running)
        name, output = running.task.name, running.child.output
        values = {} if outcome == "done" else {"reason": _last_line(output)}
        context.say("task", task=name, outcome=outcome, seconds=round(time.monotonic() - running.started, 3), **values)
        if outcome != "done":
            with open(self._out / LOG, "a", encoding="utf-8") as log:
                log.write(f"=== {context.step}: {name}: {outcome}\n{output[-4000:]}\n")
        return outcome


def _processor_seconds() -> float:
    """The processor seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _outcome(status: int) -> str:
    if status == 0:
        return "done"
    return f"failed with exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"


def _last_line(output: str) -> str:
    written = [line.strip() for line in output.splitlines() if line.strip()]
    return written[-1][:300] if written else ""


def require_new(out: Path) -> None:
    """Makes the folder of a session, which belongs to it from then on.

    Raises:
        ValueError: it is not a folder, or holds the results of another session.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out is {out}, expected a folder, found something else there")
    out.mkdir(parents=True, exist_ok=True)
    try:
        (out / lines.FILE).touch(exist_ok=False)
    except FileExistsError:
        raise ValueError(f"out is {out}, which holds the results of another session; name a new folder") from None
