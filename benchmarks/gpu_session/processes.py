"""Processes that never outlive the program that started them, and leave no child processes behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 8192
_GUARD = Path(__file__).with_name("guard.py")


class Guard:
    """The process that kills the registered groups when this process ends (guard.py)."""

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-E", str(_GUARD)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)

    def tell(self, line: str) -> None:
        """Sends a line; does nothing if the guard was killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


class Child:
    """A program in a process group of its own, killed when this process ends; the end of its output is kept."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], guard: Guard) -> None:
        self._guard = guard
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        guard.tell(f"+{self._process.pid}")
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._tail = b""

    @property
    def output(self) -> str:
        """The end of its standard output and error output."""
        return self._tail.decode(errors="replace")

    def ended(self) -> int | None:
        """Its exit status once it has ended (negative: a signal), after killing its group; None before."""
        self._read()
        # Not reaped yet, so that no other group can have its number.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return None
        return self.kill()

    def kill(self) -> int:
        """Kills the group and returns the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._read()
        self._output.close()
        self._guard.tell(f"-{self._process.pid}")
        return status

    def _read(self) -> None:
        while True:
            try:
                content = os.read(self._output.fileno(), 65536)
            except BlockingIOError:
                return
            if not content:
                return
            self._tail = (self._tail + content)[-_TAIL_BYTES:]


def _dies_with(parent: int) -> Callable[[], None]:
    # Looked up before the fork: the child should do as little as possible.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange
