"""The journal: what was answered is in it, whatever happened to a line of it, and nothing that was refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.io.disk import WriteError
from python_model.serving import towers
from python_model.serving.answering import answer
from python_model.serving.archive import SessionArchive
from python_model.serving.bundle import Export
from python_model.serving.events import Event, EventLog, EventReader
from python_model.serving.journal import Entry, Journal
from python_model.serving.store import SessionStore
from tests.model.reliability.conftest import Disk, disk

__all__ = ["disk"]
TIME = 1_700_000_000
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))


class Folder:
    """A folder of sessions: opened as a store, or as its archive alone."""

    def __init__(self, exported: Export, path: Path) -> None:
        self.model, self.items, self.path = exported.model(), exported.item_ids, path
        self.reader = EventReader(self.model.features, self.items)
        self.vocabulary = towers.vocabulary_fingerprint(self.model)
        self.journal = path / "journal.jsonl"

    def store(self, **options: Any) -> SessionStore:
        settings = {"folder": self.path, "resident": 3, "max_events": 64, "page_size": 8, **options}
        return SessionStore(self.model, self.items, **settings)

    def archive(self, histories: Callable[[Any], EventLog | None] = lambda user: None) -> SessionArchive:
        return SessionArchive(self.path, self.vocabulary, self.reader, histories)

    def items_of(self, user: int | str) -> list[int]:
        archive = self.archive()
        try:
            found: list[int] = archive.log_of(user)[0].columns()["items"].tolist()
            return found
        finally:
            archive.close()


@pytest.fixture
def folder(exported: Export, tmp_path: Path) -> Folder:
    return Folder(exported, tmp_path / "sessions")


def kill(store: SessionStore) -> None:
    """Ends a store as a killed process ends."""
    assert store.memory.archive is not None
    store.memory.archive.close()


def event(number: int) -> Event:
    return Event(number % 70, TIME + number, feedback={"like": number % 2})


@pytest.fixture
def killed(folder: Folder) -> Iterator[list[dict[str, Any]]]:
    """The lines that a killed store left: events of two users by turns, and feedback that came late."""
    store = folder.store()
    for number in range(4):
        store.session("one").add(event(number))
        store.session(2).add(event(number + 30))
    store.session("one").amend(1, {"skip": 1})
    kill(store)
    yield [json.loads(line) for line in folder.journal.read_bytes().splitlines()]


def test_a_journal_cut_at_any_byte_keeps_every_whole_line(folder: Folder, killed: list[dict[str, Any]]) -> None:
    content = folder.journal.read_bytes()
    last = content[:-1].rfind(b"\n")
    for size in [*range(0, last, 1 if SCALE > 1 else 7), *range(last, len(content) + 1)]:
        folder.journal.write_bytes(content[:size])
        whole = killed[: content[:size].count(b"\n")]
        for user in ("one", 2):
            expected = [line["row"][0] for line in whole if line["user"] == user and "row" in line]
            assert folder.items_of(user) == expected, size
        # The next line does not go on from the torn one.
        archive = folder.archive()
        number = len(archive.log_of(2)[0])
        archive.journal.write([Entry(2, number, folder.reader.row(event(50)))])
        archive.close()
        assert folder.items_of(2)[-1] == 50 and len(folder.items_of(2)) == number + 1


def test_a_flipped_bit_costs_its_line_alone(
    folder: Folder, killed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    content = folder.journal.read_bytes()
    random = np.random.default_rng(3)
    users: dict[int | str, list[int]] = {"one": [0, 1, 2, 3], 2: [30, 31, 32, 33]}
    assert all(folder.items_of(user) == items for user, items in users.items())
    for bit in random.integers(0, 8 * len(content), 60 * SCALE).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        folder.journal.write_bytes(damaged)
        archive = folder.archive()
        for user, items in users.items():
            log = archive.log_of(user)[0]
            found = dict(enumerate(log.columns()["items"].tolist(), log.first))
            # One event is unknown, or gone where it is the first or the last; the others have their numbers.
            wrong = [number for number, item in enumerate(items) if found.get(number, -1) != item]
            assert len(wrong) <= 1 and log.total >= 3 and all(found.get(number, -1) == -1 for number in wrong), bit
        archive.close()


HOSTILE = [
    b"", b"{}", b"[]", b"null", b"5", b"[" * 100_000, b"\xff\xfe", b'{"user": "one"}', b'{"user": "one", "number": 4}',
    b'{"user": [1], "number": 4, "row": [1, 1700000009, true, [-1], [-1]]}',
    b'{"user": true, "number": 4, "row": [1, 1700000009, true, [-1], [-1]]}',
    b'{"user": "one", "number": "4", "row": [1, 1700000009, true, [-1], [-1]]}',
    b'{"user": "one", "number": -4, "row": [1, 1700000009, true, [-1], [-1]]}',
    b'{"user": "one", "number": 4, "row": "row"}', b'{"user": "one", "number": 4, "row": [1, 2]}',
    b'{"user": "one", "number": 4, "row": [80, 1700000009, true, CONTEXT, FEEDBACK]}',
    b'{"user": "one", "number": 4, "row": [1.0, 1700000009, true, CONTEXT, FEEDBACK]}',
    b'{"user": "one", "number": 4, "row": [1, -5, true, CONTEXT, FEEDBACK]}',
    b'{"user": "one", "number": 4, "row": [1, 1700000009000, true, CONTEXT, FEEDBACK]}',
    b'{"user": "one", "number": 4, "row": [1, 1700000009, 1, CONTEXT, FEEDBACK]}',
    b'{"user": "one", "number": 4, "row": [1, 1700000009, true, [999], FEEDBACK]}',
    b'{"user": "one", "number": 4, "row": [1, 1700000009, true, CONTEXT, [1]]}',
    b'{"user": "one", "amend": 1, "feedback": {"like": 1}}', b'{"user": "one", "amend": 1, "feedback": [9]}',
    b'{"user": "one", "amend": true, "feedback": FEEDBACK}',
    b'{"user": "one", "amend": 1, "feedback": FEEDBACK, "more": 1}',
    b'{"user": "one", "amend": 1, "feedback": FEEDBACK, "crc32": "00000000"}',
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_line_of_another_kind_is_named_and_left_out(
    folder: Folder, killed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    features = folder.model.features
    line = line.replace(b"CONTEXT", json.dumps([-1] * len(features.context)).encode())
    line = line.replace(b"FEEDBACK", json.dumps([-1] * len(features.feedback)).encode())
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    folder.journal.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    assert folder.items_of("one") == [0, 1, 2, 3] and folder.items_of(2) == [30, 31, 32, 33]
    assert f"{folder.journal}, line 4: damaged and left out, the others are kept: " in caplog.text
    with folder.store() as store:
        assert len(store.session("one")) == 4
    assert folder.journal.read_bytes() == b"" and folder.items_of("one") == [0, 1, 2, 3]


def test_numbers_that_were_answered_stay_when_a_line_is_damaged(
    folder: Folder, killed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * len(lines[2])  # event 1 of user "one", which was amended after event 3
    lines[2] += b"\n"
    folder.journal.write_bytes(b"".join(lines))
    for _ in range(2):  # killed again before it is saved
        store = folder.store()
        assert len(store.session("one")) == 4
        log = store._log("one").columns()
        assert log["items"].tolist() == [0, -1, 2, 3]
        skip = list(folder.model.features.feedback).index("skip")
        assert log["feedback"][1][skip] == 1
        kill(store)
    assert "event 2 of user 'one' comes after event 0: what is missing counts as unknown items" in caplog.text
    store = folder.store()
    assert store.session("one").add(event(9)).number == 4
    kill(store)
    assert folder.items_of("one") == [0, -1, 2, 3, 9]


@pytest.mark.parametrize("line", range(8))
def test_a_line_that_is_removed_is_a_line_that_is_damaged(
    folder: Folder, killed: list[dict[str, Any]], line: int
) -> None:
    """Both cost the event of that line alone: the others are there under the numbers that were answered."""
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    found = []
    for left in (lines[:line] + lines[line + 1 :], [*lines[:line], b"damaged\n", *lines[line + 1 :]]):
        folder.journal.write_bytes(b"".join(left))
        archive = folder.archive()
        logs = [archive.log_of(user)[0] for user in ("one", 2)]
        found.append([dict(enumerate(log.columns()["items"].tolist(), log.first)) for log in logs])
        archive.close()
    assert found[0] == found[1]
    expected: list[dict[int, int]] = [{}, {}]
    for number in range(8):
        expected[number % 2][number // 2] = -1 if number == line else number // 2 + 30 * (number % 2)
    for one in (0, 1):
        # A first event that is gone is not known of, a last one neither.
        gone = {line // 2} if one == line % 2 and line // 2 in (0, 3) else set()
        # Late feedback for the last event of "one" tells nothing of it: it was for event 1.
        assert found[0][one] == {number: item for number, item in expected[one].items() if number not in gone}


def test_many_events_that_are_gone_keep_the_numbers(folder: Folder, killed: list[dict[str, Any]]) -> None:
    with open(folder.journal, "a") as opened:
        opened.write(Entry("one", 504, folder.reader.row(event(9))).to_json() + "\n")
    assert folder.items_of("one") == [0, 1, 2, 3, *[-1] * 500, 9]
    with folder.store() as store:
        assert store.session("one").add(event(10)).number == 505


def test_warnings_are_the_first_few_and_a_count(
    folder: Folder, killed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with open(folder.journal, "ab") as opened:
        opened.write(b"damaged\n" * 200)
        row = folder.reader.row(event(8))
        opened.write("".join(Entry("one", 2, row).to_json() + "\n" for _ in range(300)).encode())
    assert folder.items_of("one") == [0, 1, 2, 3]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 12
    assert said[0].startswith(f"{folder.journal}, line 10: damaged and left out")
    assert said[5] == f"{folder.journal}: 195 more such warnings"
    assert said[6].startswith(f"{folder.journal}, line 210: event 2 of user 'one' is another event")
    assert said[11] == f"{folder.journal}: 295 more such warnings"


@pytest.mark.parametrize("number", [100_005, 2**53, 10**6])
def test_an_event_of_another_numbering_is_named(
    folder: Folder, killed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, number: int
) -> None:
    entry = Entry("one", number, folder.reader.row(event(9)))
    with open(folder.journal, "a") as opened:
        opened.write(entry.to_json() + "\n" + Entry("one", 2, folder.reader.row(event(8))).to_json() + "\n")
    assert folder.items_of("one") == [0, 1, 2, 3]
    assert (
        f"line 10: event {number} of user 'one' comes after event 3, expected at most 100000 more: it is left out"
        in caplog.text
    )
    assert "line 11: event 2 of user 'one' is another event than the one that is there, and is left out" in caplog.text


@pytest.mark.parametrize("history", [0, 2, 3, 4, 9])
def test_events_stay_when_the_history_of_an_export_is_another(folder: Folder, history: int) -> None:
    """A journal of events after a history of 3; the newest ones of what the export has now stand before them."""

    def past(events: int) -> Callable[[Any], EventLog | None]:
        def log_of(user: Any) -> EventLog:
            log = EventLog.empty(folder.model.features)
            for number in range(9 - events, 9):
                log.append(folder.reader.row(event(number)))
            return log

        return log_of

    store = folder.store(histories=past(3))
    for number in (20, 21):
        assert store.session("one").add(event(number)).number == number - 17
    kill(store)
    archive = folder.archive(past(history))
    log, _ = archive.log_of("one")
    assert log.total == 5 and log.columns()["items"].tolist() == [*range(9 - min(history, 3), 9), 20, 21]
    archive.close()


def test_events_of_a_user_whose_file_is_damaged_wait(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    store = folder.store()
    store.session("one").add(event(0))
    store.save()
    store.session("one").add(event(1))
    store.session(2).add(event(30))
    kill(store)
    assert store.memory.archive is not None
    file = store.memory.archive.files.path("one")
    content = file.read_bytes()
    file.write_bytes(content[:100])
    for number in range(2):
        with folder.store() as store:
            assert answer(store, '{"user": "one"}')["error"].startswith(str(file))
            assert store.session(2).add(event(31 + number)).number == 1 + number
    assert f"{file}: a damaged session" in caplog.text and "1 lines of the journal wait for it" in caplog.text
    file.write_bytes(content)
    assert folder.items_of("one") == [0, 1] and folder.items_of(2) == [30, 31, 32]
    folder.store().close()
    assert folder.journal.read_bytes() == b""


def test_a_short_write_is_gone_on_with(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write, sizes = folder.store(), os.pwrite, []

    def some(descriptor: int, content: bytes, place: int) -> int:
        sizes.append(len(content))
        return write(descriptor, content[: max(len(content) // 3, 1)], place)

    monkeypatch.setattr("python_model.serving.journal.os.pwrite", some)
    store.add([("one", event(0)), (2, event(1))])
    kill(store)
    assert len(sizes) > 5 and folder.items_of("one") == [0] and folder.items_of(2) == [1]


def test_a_full_disk_refuses_an_event_and_keeps_the_others(exported: Export, disk: Disk, tmp_path: Path) -> None:
    """Answered events are there after a restart, refused ones are not, and the server lives on."""
    folder = Folder(exported, disk.path / "sessions")
    store = folder.store()
    assert answer(store, f'{{"user": "one", "item": 0, "time": {TIME}}}')["event"] == 0
    disk.fill(0 if disk.mounted else folder.journal.stat().st_size + 700)
    answered, refused, line = 1, 0, ""
    for number in range(1, 400):
        line = json.dumps({"user": "one", "item": number % 70, "time": TIME + number})
        said = answer(store, line)
        if "error" in said:
            assert said["error"].startswith(f"{folder.journal}: cannot be written, "), said
            refused += 1
        else:
            assert said["event"] == answered
            answered += 1
        if refused == 3:
            break
    assert refused == 3 and len(store.session("one")) == answered
    with pytest.raises(WriteError, match="cannot be written"):
        store.save()
    kill(store)
    store = folder.store()
    assert len(store.session("one")) == answered and "error" in answer(store, line)
    disk.free()
    assert answer(store, line)["event"] == answered
    store.close()
    assert folder.journal.read_bytes() == b"" and len(folder.items_of("one")) == answered + 1


def test_saving_by_itself_on_a_full_disk_costs_no_event(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = folder.store(save_every=3)

    def full(*given: Any) -> None:
        raise WriteError("somewhere", "no space is left on the device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("python_model.serving.session_files.SessionFiles.save", full)
        for number in range(8):
            assert store.session("one").add(event(number)).number == number
    assert caplog.text.count("sessions are not saved, the journal has their events: somewhere") == 2
    store.session("one").add(event(8))
    assert folder.journal.read_bytes() == b""
    kill(store)
    assert folder.items_of("one") == list(range(9))


def test_an_event_cannot_be_half_written(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events of one call, and the disk fills up between them: none is there, now and after a restart."""
    journal, write = Journal(tmp_path / "journal.jsonl"), os.pwrite
    row = folder.reader.row(event(0))
    journal.write([Entry("one", 0, row)])
    before = journal.file.read_bytes()

    def full(descriptor: int, content: bytes, place: int) -> int:
        if place > len(before):
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: content.index(b"\n") + 10], place)

    with monkeypatch.context() as patch:
        patch.setattr("python_model.serving.journal.os.pwrite", full)
        with pytest.raises(WriteError, match=r"journal\.jsonl: cannot be written, no space is left on the device"):
            journal.write([Entry("one", 1, row), Entry(2, 0, row)])
        assert journal.file.read_bytes() == before and journal.lines == 1
        # Even where the torn line cannot be removed, the next one does not go on from it.
        patch.setattr("python_model.serving.journal.os.ftruncate", lambda descriptor, size: full(0, b"", 1 << 30))
        with pytest.raises(WriteError):
            journal.write([Entry("one", 1, row), Entry(2, 0, row)])
    assert journal.file.read_bytes() != before
    journal.write([Entry(7, 0, row)])
    assert [one.user for one in journal.entries(folder.reader)] == ["one", 7]
    journal.close()
