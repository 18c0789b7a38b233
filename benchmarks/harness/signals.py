"""SIGTERM as an exit, so that a block removes what it made."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """In this block, of the main thread, SIGTERM raises SystemExit: `finally` and `with` run. It exits with 143."""
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
