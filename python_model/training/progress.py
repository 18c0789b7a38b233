"""What a training run reports while it runs (a callback per step, metrics.jsonl, TensorBoard), and what stops it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

from python_model.io.disk import replace_text, writing
from python_model.io.errors import DataError
from python_model.io.json_text import parse
from python_model.training.watch import Validation

RESUME = "resume: the steps since the last checkpoint are done again"
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as a cluster sends it before it takes a machine away: treated as Ctrl-C."""


@dataclass(frozen=True)
class StepReport:
    """One finished step: `step` counts from 1; events and seconds since the run began, over resumptions.

    losses: the finite ones; skipped: whether the step changed nothing because one was not. validation: the evaluation
    after it, where one was due; notes: what that says, in words. Step 0 is the evaluation of the new model.
    """

    stage: str
    step: int
    steps: int
    events: int
    seconds: float
    events_per_second: float
    seconds_left: float
    learning_rate: float
    losses: Mapping[str, float]
    skipped: bool = False
    validation: Validation | None = None
    notes: Sequence[str] = ()


Progress = Callable[[StepReport], None]


class Throughput:
    """Events per second and time left over the last steps."""

    def __init__(self, recent: int = 50) -> None:
        self._began = time.perf_counter()
        self._marks: deque[tuple[float, int]] = deque([(time.perf_counter(), 0)], maxlen=recent + 1)

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return time.perf_counter() - self._began

    def step(self, events: int, steps_left: int) -> tuple[float, float]:
        """Call once a step with its events; returns (events per second, seconds left)."""
        self._marks.append((time.perf_counter(), self._marks[-1][1] + events))
        seconds = max(self._marks[-1][0] - self._marks[0][0], 1e-9)
        per_step = seconds / (len(self._marks) - 1)
        return (self._marks[-1][1] - self._marks[0][1]) / seconds, per_step * steps_left


class MetricsLog:
    """Appends one JSON object a step to metrics.jsonl and the same figures to TensorBoard.

    resumed_step: lines after it are dropped, so the file has one line per step whatever was interrupted. Raises
    WriteError where the disk is full.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / METRICS
        with writing(self.path, RESUME):
            _cut_back(self.path, resumed_step)
            self._file = self.path.open("ab", buffering=0)
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error
        with writing(directory / TENSORBOARD, RESUME):
            self._writer: Any = SummaryWriter(str(directory / TENSORBOARD), purge_step=resumed_step + 1)

    def write(self, report: StepReport) -> None:
        """One step."""
        record = {
            "stage": report.stage, "step": report.step, "events": report.events,
            "seconds": round(report.seconds, 3), "learning_rate": report.learning_rate, **report.losses,
        } | ({"skipped": True} if report.skipped else {})  # fmt: skip
        validated = {} if report.validation is None else report.validation.record()
        record |= validated
        with writing(self.path, RESUME):
            self._write_line(json.dumps(record).encode() + b"\n")
        with writing(self.path.parent / TENSORBOARD, RESUME):
            for name, value in {**report.losses, **validated}.items():
                self._writer.add_scalar(f"{report.stage}/{name}", value, report.step)
            for name in ("learning_rate", "events_per_second"):
                self._writer.add_scalar(f"{report.stage}/{name}", getattr(report, name), report.step)

    def _write_line(self, line: bytes) -> None:
        # Unbuffered, so that a line that did not fit is not tried again when the file is closed.
        written = self._file.write(line)
        if written != len(line):
            self._file.write(line[written:])

    def close(self) -> None:
        """Flush and close both; what cannot be written any more is left out, since a run ends by its checkpoint."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._writer.close()
        threading.excepthook = self._excepthook

    def _on_thread_error(self, failure: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread prints a traceback of the error that the next call raises here anyway.
        if not isinstance(failure.exc_value, OSError):
            self._excepthook(failure)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(directory: str | Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that a crash cut short is left out."""
    path = Path(directory) / METRICS
    return _complete_records(path) if path.is_file() else []


def _complete_records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            try:
                record = parse(line)
            except ValueError as error:
                raise DataError(path, f"line {number} is damaged: {error}; remove it or the file") from error
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise DataError(
                    path, f"line {number} is damaged: expected an object with a step; remove it or the file"
                )
            records.append(record)
    return records


def _cut_back(path: Path, step: int) -> None:
    if not path.is_file():
        return
    # A run from the beginning evaluates the new model again.
    kept = [record for record in _complete_records(path) if record["step"] <= step > 0]
    replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))


class InterruptGuard:
    """Within the block Ctrl-C and SIGTERM set `asked` instead of interrupting the step; a second signal interrupts.

    asked: what to raise once the step is done and saved, None so far. launched: the process is one of several under
    torchrun, which passes on to all what it gets itself: none strikes. Outside the main thread, where Python allows no
    signal handlers, it does nothing.
    """

    _RAISES: ClassVar = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}

    def __init__(self, launched: bool = False) -> None:
        self.asked: type[KeyboardInterrupt] | None = None
        self.launched = launched
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self._RAISES}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and not self.launched:
            raise self._RAISES[signal.Signals(number)]
        self.asked = self._RAISES[signal.Signals(number)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
