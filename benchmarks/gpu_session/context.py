"""The context of every process of a session, and how the process reports its results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu_session import lines

RESUME = 75
"""Exit status of a process that wants to be started again, behind the work that broke its GPU context."""


@dataclass(frozen=True)
class Context:
    """The session's folder, the device type, and when the step ends by the system's monotonic clock, in seconds.

    rehearse: small sizes, and the CPU's backends instead of the GPU's if the device is "cpu".
    """

    out: Path
    device: str
    rehearse: bool
    step: str
    until: float
    start: int = 0
    """The piece of this process's work that it begins with."""
    clock: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Seconds until the step ends."""
        return self.until - self.clock()

    def say(self, kind: str, **values: Any) -> None:
        """Adds a line to the session's results."""
        lines.append(self.out, kind, step=self.step, **values)

    def leave_out(self, what: str, reason: str) -> None:
        """Adds a line on what is not done, and why."""
        self.say("left_out", what=what, reason=reason)

    def found(self) -> lines.Lines:
        """The session's results so far."""
        return lines.read(self.out)


def poisoned(device: str) -> str | None:
    """The error of this process's GPU context after a fault; None if it can continue."""
    if device != "cuda":
        return None
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def resume_at(index: int) -> NoReturn:
    """Ends this process; the conductor restarts it at that piece of its work."""
    print(f"resume {index}", flush=True)
    sys.exit(RESUME)
