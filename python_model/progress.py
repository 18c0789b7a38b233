"""What a training run reports while it runs: a callback per step, metrics.jsonl, TensorBoard; and Ctrl-C in between."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


@dataclass(frozen=True)
class StepReport:
    """One finished step: `step` counts from 1; events and seconds since the run began, over resumptions."""

    stage: str
    step: int
    steps: int
    events: int
    seconds: float
    events_per_second: float
    seconds_left: float
    learning_rate: float
    losses: Mapping[str, float]


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

    resumed_step: lines after it are dropped, so the file has one line a step whatever was interrupted.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / METRICS
        _cut_back(self.path, resumed_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._writer: Any = SummaryWriter(str(directory / TENSORBOARD), purge_step=resumed_step + 1)

    def write(self, report: StepReport) -> None:
        """One step."""
        record = {
            "stage": report.stage, "step": report.step, "events": report.events,
            "seconds": round(report.seconds, 3), "learning_rate": report.learning_rate, **report.losses,
        }  # fmt: skip
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in report.losses.items():
            self._writer.add_scalar(f"{report.stage}/{name}", value, report.step)
        self._writer.add_scalar(f"{report.stage}/events_per_second", report.events_per_second, report.step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._writer.close()

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
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(json.loads(line))
    return records


def _cut_back(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [record for record in _complete_records(path) if record["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(partial, path)


class InterruptGuard:
    """Within the block Ctrl-C sets `asked` instead of striking in the middle of a step; a second one strikes.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
