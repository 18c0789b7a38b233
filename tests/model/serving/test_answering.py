"""Requests that are answered together get the answers that each would get alone, in the order of their users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.io.json_text import parse
from python_model.model.incremental import IncrementalEncoder
from python_model.serving.answering import DAMAGED, INTERNAL, INVALID, STORAGE, Answer, answer, answer_all
from python_model.serving.bundle import Export
from python_model.serving.requests import Request
from python_model.serving.store import SessionStore
from tests.model.serving.conftest import assert_close
from tests.model.serving.hostile_lines import LineMaker

TIME = 1_700_000_000
SMALL: dict[str, Any] = {"resident": 12, "max_events": 48, "page_size": 8}


def requests_of(lines: list[bytes]) -> list[tuple[bytes, Request]]:
    """The lines that are requests, with them."""
    found = []
    for line in lines:
        try:
            found.append((line, Request.of(parse(line))))
        except ValueError:
            continue
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any], line: bytes) -> None:
    """Equal, scores and vectors up to rounding; items of scores that differ by rounding only may change places."""
    assert list(found) == list(expected), line
    for name, value in expected.items():
        if name in ("items", "scores") and value:
            ours, theirs = ([one["score"] for one in said[name]] for said in (found, expected))
            assert_close(np.array(ours, np.float64), np.array(theirs, np.float64))
            for one, other in zip(found[name], value, strict=True):
                gaps = np.abs(np.subtract(theirs, other["score"])) if other["score"] is not None else [1]
                assert one["item"] == other["item"] or np.sort(gaps)[1] < 1e-4, line
        elif name in ("query", "user_vector") and value is not None:
            assert_close(found[name], value)
        else:
            assert found[name] == value, line


def logs_of(store: SessionStore, users: set[Any]) -> dict[Any, Any]:
    return {
        user: {name: values.tolist() for name, values in store._log(user).columns().items()}
        for user in users
    }  # fmt: skip


@pytest.mark.parametrize("most", [2, 7, 40])
def test_together_is_one_after_the_other(exported: Export, tmp_path: Path, most: int) -> None:
    maker, random = LineMaker(most, exported.model().features), np.random.default_rng(most)
    asked = requests_of(list(maker.lines(300)))
    with (
        SessionStore.open(exported, tmp_path / "together", **SMALL) as together,
        SessionStore.open(exported, tmp_path / "alone", **SMALL) as alone,
    ):
        steps, place, refused = 0, 0, 0
        while place < len(asked):
            batch = asked[place : place + int(random.integers(1, most + 1))]
            place, steps = place + len(batch), steps + 1
            for (line, _), found in zip(batch, answer_all(together, [one for _, one in batch]), strict=True):
                expected = answer(alone, line)
                assert_same(found.said, expected, line)
                assert (found.failure is not None) == ("error" in expected)
                refused += "error" in expected
        assert 10 < refused < len(asked) - 100 and steps < len(asked)
        users = {one for one in together.resident if isinstance(one, (int, str))}
        assert users == {one for one in alone.resident if isinstance(one, (int, str))}
        assert logs_of(together, users) == logs_of(alone, users)


def event(user: Any, number: int, **more: Any) -> Request:
    return Request.of({"user": user, "item": number, "time": TIME + number, **more})


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of users of every decode from now on."""
    sizes: list[int] = []
    append = IncrementalEncoder.append

    def counted(encoder: IncrementalEncoder, users: Any, events: Any) -> Any:
        sizes.append(len(users))
        return append(encoder, users, events)

    monkeypatch.setattr(IncrementalEncoder, "append", counted)
    return sizes


def test_events_of_many_users_are_one_decode_and_one_write(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(exported, tmp_path, **SMALL) as store:
        sizes = count_decodes(monkeypatch)
        writes: list[int] = []
        assert store.memory.archive is not None
        write = store.memory.archive.journal.write

        def counted(entries: Any) -> None:
            writes.append(len(entries))
            write(entries)

        monkeypatch.setattr(store.memory.archive.journal, "write", counted)
        found = answer_all(store, [event(f"u{number}", number, k=2) for number in range(9)])
        assert [one.said["event"] for one in found] == [0] * 9
        assert sizes == [9] and writes == [9]
        # Two events of one user are two steps, in their order, and what is asked between them sees the first only.
        ask = Request.of({"user": "u0", "k": 1})
        found = answer_all(store, [event("u0", 20), ask, event("u0", 21), event("u1", 22), ask])
        assert [one.said["event"] for one in found] == [1, 1, 2, 1, 2] and sizes[1:] == [2, 1]


def test_what_fails_for_one_fails_for_nobody_else(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(exported, tmp_path, **SMALL) as store:
        answer_all(store, [event("damaged", 1)])
        store.save()
        store.memory.drop("damaged")
        assert store.memory.archive is not None
        store.memory.archive.files.path("damaged").write_bytes(b"\x00" * 99)
        late = Request.of({"user": "b", "amend": 7, "feedback": {"like": 1}})
        wrong = event("c", 1, feedback={"like": 9})
        found = answer_all(store, [event("a", 1), event("damaged", 2), late, event("b", 2), wrong, event("d", 3)])
        assert [one.failure for one in found] == [None, DAMAGED, INVALID, None, INVALID, None]
        assert [one.said["event"] for one in found if one.failure is None] == [0, 0, 0]
        assert "a damaged session" in found[1].said["error"]
        with monkeypatch.context() as patch:
            full = OSError(28, "No space left on device")
            patch.setattr(store.memory.archive.journal, "write", lambda entries: (_ for _ in ()).throw(full))
            failed = answer_all(store, [event("a", 5), event("b", 5)])
            assert [one.failure for one in failed] == [STORAGE] * 2
            patch.setattr(IncrementalEncoder, "append", lambda *given: (_ for _ in ()).throw(RuntimeError("broken")))
            assert [one.failure for one in answer_all(store, [event("a", 5), event("b", 5)])] == [INTERNAL] * 2
        assert answer_all(store, [Request.of({"user": "a"})]) == [Answer({"user": "a", "event": 0})]


def test_more_users_than_fit_in_memory_are_answered(exported: Export, tmp_path: Path) -> None:
    with SessionStore.open(exported, tmp_path, **{**SMALL, "resident": 3}) as store:
        for number in range(3):
            found = answer_all(store, [event(f"u{user}", number) for user in range(10)])
            assert [one.said for one in found] == [{"user": f"u{user}", "event": number} for user in range(10)]
