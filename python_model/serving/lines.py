"""`argus serve` on standard input: one JSON object per line in, one out. docs/serving.md lists the keys.

Every line is answered, whatever it holds; a line answered with `error` has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from python_model.io.disk import writing
from python_model.serving.answering import answer, refused
from python_model.serving.requests import MAX_BYTES
from python_model.serving.store import SessionStore

MAX_LINE = MAX_BYTES
"""Longest line in bytes; a longer one is refused and not kept in memory."""


def serve(store: SessionStore, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers every line until there are no more: UTF-8 in, ASCII out, whatever the locale says.

    BrokenPipeError where nobody reads the answers, WriteError where they cannot be written.
    """
    for line in lines_of(requests):
        if line is None:
            said = refused(ValueError(f"expected a line of at most {MAX_LINE:,} bytes, found a longer one")).said
        else:
            said = answer(store, line)
        content = json.dumps(said, allow_nan=False).encode("ascii") + b"\n"
        try:
            answers.write(content)
            answers.flush()
        except BrokenPipeError:
            raise
        except OSError:
            with writing(Path("standard output")):
                raise


def lines_of(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a stream without their ends; None for a line longer than MAX_LINE, which is not kept in memory."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE or line.endswith(b"\n"):
            yield line.removesuffix(b"\n")
            continue
        while len(line) == MAX_LINE + 1 and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 1)
        yield None
