"""The journal of a session store: one JSON object per line for each change since the last save.

`{"user": 5, "number": 31, "row": [item, time, organic, [context …], [feedback …]]}` is an event in dense numbers,
`{"user": 5, "amend": 30, "feedback": […]}` feedback that came late. A line reaches the operating system before the call
returns: it survives the process, and with `fsync` a power failure. A line that a crash, a full disk or a damaged disk
left incomplete is skipped and never read as another entry.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_model.data.identifiers import id_of
from python_model.io.disk import replace_text, writing
from python_model.io.json_text import parse
from python_model.serving.arguments import whole_number
from python_model.serving.events import EventLog, EventReader, EventRow

JOURNAL = "journal.jsonl"
MAX_LOST = 100_000
"""Most events of one user that may be lost between two lines: the journal is emptied after so many lines."""
MAX_WARNINGS = 5
"""Warnings of one kind that are shown; further ones are counted."""
_BLOCK = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A change of a user: their event with number `number`, or later feedback for that event.

    row: the event, None for feedback. line: 1-based line of the journal, 0 before it is written.
    """

    user: int | str
    number: int
    row: EventRow | None = None
    feedback: tuple[int, ...] = ()
    line: int = 0

    def to_json(self) -> str:
        """The line, without its end; its last key is the CRC-32 of the line without that key."""
        said: dict[str, Any] = {"user": self.user, "amend": self.number, "feedback": list(self.feedback)}
        if self.row is not None:
            said = {"user": self.user, "number": self.number, "row": self.row.plain()}
        return json.dumps({**said, "crc32": f"{zlib.crc32(json.dumps(said).encode()):08x}"})

    @classmethod
    def of(cls, text: bytes, line: int, reader: EventReader) -> Entry:
        """The entry of a line; ValueError where it does not fit this vocabulary."""
        found = parse(text)
        keys = {"user", "number", "row"}, {"user", "amend", "feedback"}
        if not isinstance(found, dict) or found.keys() - {"crc32"} not in keys:
            raise ValueError("expected an object of user, number, row or of user, amend, feedback")
        user = id_of(found["user"], "user")
        if "row" in found:
            number = whole_number(found["number"], "number", 0, 1 << 53)
            entry = cls(user, number, reader.row_of(found["row"]), line=line)
        else:
            number = whole_number(found["amend"], "amend", 0, 1 << 53)
            entry = cls(user, number, feedback=reader.values_of("feedback", found["feedback"]), line=line)
        if "crc32" in found and entry.to_json().encode() != text:  # earlier versions wrote none
            raise ValueError("expected the line with this crc32, found another")
        return entry


class FirstWarnings:
    """Logs the first few warnings about a file, and in `finish` the number of further ones."""

    def __init__(self, file: Path) -> None:
        self._file, self._count = file, 0

    def __call__(self, text: str, *values: object) -> None:
        """One warning."""
        self._count += 1
        if self._count <= MAX_WARNINGS:
            logger.warning(text, *values)

    def finish(self) -> None:
        """Logs the number of suppressed warnings and resets the count."""
        if self._count > MAX_WARNINGS:
            logger.warning("%s: %d more such warnings", self._file, self._count - MAX_WARNINGS)
        self._count = 0


class Journal:
    """The file, opened for appending; an incomplete last line counts as not written.

    fsync: whether a write waits until its lines are on the disk. lines: written since it was last emptied. warn:
    reports invalid entries, up to the next `keep` or `close`.
    """

    def __init__(self, file: Path, *, fsync: bool = False) -> None:
        self.file, self.lines, self.warn, self._fsync = file, 0, FirstWarnings(file), fsync
        with writing(file):
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            self._end = self._whole_lines()
            self._is_torn = os.fstat(self._descriptor).st_size > self._end
            self._cut()

    def write(self, entries: Iterable[Entry]) -> None:
        """Appends entries, all or none of them; WriteError where the disk is full."""
        found = [one.to_json() for one in entries]
        if not found:
            return
        content = "".join(line + "\n" for line in found).encode("ascii")
        with writing(self.file):
            self._cut()
            try:
                self._is_torn = True
                done = 0
                # The kernel may write a part only; the next call writes the rest or raises the reason.
                while done < len(content):
                    done += os.pwrite(self._descriptor, content[done:], self._end + done)
                if self._fsync:
                    os.fdatasync(self._descriptor)
                self._is_torn = False
            except BaseException:
                with suppress(OSError):
                    self._cut()
                raise
        self._end += len(content)
        self.lines += len(found)

    def entries(self, reader: EventReader) -> Iterator[Entry]:
        """All entries; an invalid line is skipped with a warning that names it."""
        warn = FirstWarnings(self.file)
        with open(self.file, "rb") as opened:
            for number, line in enumerate(opened, 1):
                try:
                    yield Entry.of(line.removesuffix(b"\n"), number, reader)
                except ValueError as error:
                    text = "%s, line %d: damaged and left out, the others are kept: %s"
                    warn(text, self.file, number, str(error)[:300])
        warn.finish()

    def keep(self, entries: list[Entry]) -> None:
        """Drops all entries except these; the changes of the others must be saved."""
        self.warn.finish()
        if not entries:
            with writing(self.file):
                self._end, self._is_torn, self.lines = 0, True, 0
                self._cut()
                os.fsync(self._descriptor)
            return
        replace_text(self.file, "".join(one.to_json() + "\n" for one in entries))
        os.close(self._descriptor)
        self._descriptor = os.open(self.file, os.O_RDWR)
        self._end, self._is_torn, self.lines = os.fstat(self._descriptor).st_size, False, 0

    def close(self) -> None:
        """Closes the file."""
        self.warn.finish()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut(self) -> None:
        """Removes the rest of a failed write, so that the next line does not continue it."""
        if self._is_torn:
            os.ftruncate(self._descriptor, self._end)
            self._is_torn = False

    def _whole_lines(self) -> int:
        """Bytes up to the end of the last whole line."""
        end = os.fstat(self._descriptor).st_size
        while end > 0:
            start = max(end - _BLOCK, 0)
            place = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
        return 0


def replay(log: EventLog, entries: list[Entry], journal: Journal, *, is_saved: bool) -> bool:
    """Applies the entries of one user to their log; returns whether it changed. Warns of entries that do not fit.

    is_saved: whether the log was saved by a store; its event numbers are then those that were answered. A log of an
    export is numbered from the first entry. An event that is already in the log was saved before the journal was
    emptied. Up to MAX_LOST events whose lines are damaged or missing become events with an unknown item, so that the
    numbers of later events stay.
    """
    events = [one for one in entries if one.row is not None]
    if events and not is_saved:
        log.drop_oldest(log.total - events[0].number)
        log.first = events[0].number - len(log)
    changed = False
    for entry in entries:
        name = f"{journal.file}, line {entry.line}: event {entry.number} of user {entry.user!r}"
        place, missing = entry.number - log.first, entry.number - log.total
        if entry.row is None:
            if 0 <= place < len(log):
                log.set_feedback(place, entry.feedback)
                changed = True
            elif missing >= 0:
                journal.warn("%s is not there: its late feedback is left out", name)
        elif missing < 0:
            if place >= 0 and not _same(log.row(place), entry.row):
                journal.warn("%s is another event than the one that is there, and is left out", name)
        elif missing > MAX_LOST:
            journal.warn(
                "%s comes after event %d, expected at most %d more: it is left out", name, log.total - 1, MAX_LOST
            )
        else:
            if missing:
                journal.warn("%s comes after event %d: what is missing counts as unknown items", name, log.total - 1)
            unknown = EventRow(
                -1, entry.row.time, False, (-1,) * len(entry.row.context), (-1,) * len(entry.row.feedback)
            )
            for row in [unknown] * missing + [entry.row]:
                log.append(row)
            changed = True
    return changed


def _same(one: EventRow, other: EventRow) -> bool:
    """Whether two rows are the same event, up to its feedback, which may have been amended."""
    return (one.item, one.time, one.organic, one.context) == (other.item, other.time, other.organic, other.context)
