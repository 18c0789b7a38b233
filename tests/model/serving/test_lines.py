"""A line of `argus serve`: the right answer, or one sentence and a state as before."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.serving import lines
from python_model.serving.answering import answer
from python_model.serving.bundle import Export
from python_model.serving.exact import best_items
from python_model.serving.store import SessionStore

TIME = 1_700_000_000


@pytest.fixture
def server(exported: Export, tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(exported, tmp_path, resident=3, max_events=32, page_size=4) as opened:
        yield opened


def state_of(server: SessionStore) -> dict[Any, Any]:
    """Everything a request could change: the journal, and every user's events and best items."""
    assert server.memory.archive is not None
    found: dict[Any, Any] = {"journal": server.memory.archive.journal.file.read_bytes()}
    for user in (3, 5, "u", "new"):
        log = server._log(user)
        columns = {name: values.tolist() for name, values in log.columns().items()}
        best = server.session(user).top_k(4, exclude_seen=True)
        found[user] = log.first, columns, [(one.item_id, one.score) for one in best]
    return found


EVENT = '"user": 5, "item": 7, "time": 1700000000'
REFUSED: list[tuple[str | bytes, str]] = [
    # what a line is
    ("not json", "expected JSON, found 'not json' at column 1"),
    ("", "expected JSON, found the end of the text"),
    ("[" * 200_000, "expected JSON nested at most 64 deep"),
    ('{"user": ' * 200_000, "expected JSON nested at most 64 deep"),
    (b'{"user": "\xff"}', "expected UTF-8, found the byte 0xff at 10"),
    ('{"user": 5, "user": 6}', "expected every key once, found 'user' twice"),
    ('{"user": 5, "k": NaN}', "expected JSON, found NaN"),
    ('{"user": 5, "k": 1e999}', "expected a number that float64 holds"),
    ('{"user": 5, "k": ' + "9" * 5000 + "}", "expected a number of at most 40 digits"),
    ("5", "expected a JSON object that names a user, found a number"),
    ("[5]", "expected a JSON object that names a user, found an array"),
    ("{}", "user is missing"),
    ('{"user": 5, "song": 3}', "unknown key 'song', expected some of user"),
    # users
    ('{"user": null}', "user is null: expected a value"),
    ('{"user": true}', "user is True, expected an integer or text"),
    ('{"user": 5.0}', "user is 5.0, expected an integer or text"),
    ('{"user": [5]}', "user is [5], expected an integer or text"),
    ('{"user": ["what if", 1]}', "user is ['what if', 1], expected an integer or text"),
    ('{"user": ""}', "user is a text of 0 bytes, expected 1 to 1024"),
    ('{"user": "' + "u" * 100_000 + '"}', "user is a text of 100,000 bytes"),
    ('{"user": 36893488147419103232}', "user is 36893488147419103232, expected an integer of 64 bits"),
    ('{"user": "\\ud800"}', "expected text that UTF-8 can hold"),
    # events
    ('{"user": 5, "item": true, "time": 1700000000}', "item is True, expected an integer or text"),
    ('{"user": 5, "item": [1], "time": 1700000000}', "item is [1], expected an integer or text"),
    ('{"user": 5, "item": null, "time": 1700000000}', "item is null"),
    ('{"user": 5, "item": {}, "time": 1700000000}', "item is {}, expected an integer or text"),
    ('{"user": 5, "item": [], "time": 1700000000}', "item is [], expected an integer or text"),
    ('{"user": 5, "item": 7.0, "time": 1700000000}', "item is 7.0, expected an integer or text"),
    ('{"user": 5, "item": 7}', "item without time: expected both"),
    ('{"user": 5, "item": 7, "time": 1700000000000}', "in milliseconds it would be 2023-11-14: give seconds"),
    ('{"user": 5, "item": 7, "time": -1}', "time: expected a whole number of seconds since 1970"),
    ('{"user": 5, "item": 7, "time": 1.5}', "time is 1.5, expected a whole number of seconds"),
    ('{"user": 5, "item": 7, "time": "2023"}', "time is '2023', expected a whole number of seconds"),
    (f'{{{EVENT}, "organic": 1}}', "organic is 1, expected true or false"),
    (f'{{{EVENT}, "organic": "true"}}', "organic is 'true', expected true or false"),
    (f'{{{EVENT}, "feedback": [1]}}', "feedback is [1], expected a mapping"),
    (f'{{{EVENT}, "feedback": null}}', "feedback is null"),
    (f'{{{EVENT}, "feedback": {{"like": 2}}}}', "feedback 'like' is 2, expected a whole number in [-1, 1]"),
    (f'{{{EVENT}, "feedback": {{"like": true}}}}', "feedback 'like' is True, expected a whole number in [-1, 1]"),
    (f'{{{EVENT}, "feedback": {{"like": "1"}}}}', "feedback 'like' is '1', expected a whole number"),
    (f'{{{EVENT}, "context": {{"nowhere": 1}}}}', "context has 'nowhere', expected names of"),
    # an event that is right in a request that is not
    (f'{{{EVENT}, "k": 2, "score": "best"}}', "score: expected one of pair, next_item, found 'best'"),
    (f'{{{EVENT}, "k": 2, "score": 7}}', "score: expected one of pair, next_item, found 7"),
    (f'{{{EVENT}, "k": 2, "now": 1700000000000}}', "now: expected a whole number of seconds"),
    (f'{{{EVENT}, "k": 2, "now": true}}', "now is True, expected a whole number of seconds"),
    (f'{{{EVENT}, "k": 0}}', "k is 0, expected a whole number of at least 1"),
    (f'{{{EVENT}, "k": -1}}', "k is -1, expected"),
    (f'{{{EVENT}, "k": true}}', "k is True, expected"),
    (f'{{{EVENT}, "k": 2.0}}', "k is 2.0, expected"),
    (f'{{{EVENT}, "k": 2, "exclude_seen": "false"}}', "exclude_seen is 'false', expected true or false"),
    (f'{{{EVENT}, "k": 2, "exclude_seen": 0}}', "exclude_seen is 0, expected true or false"),
    (f'{{{EVENT}, "vectors": 1}}', "vectors is 1, expected true or false"),
    (f'{{{EVENT}, "amend": 0, "feedback": {{"like": 1}}}}', "item and amend in one line"),
    # keys without an effect
    ('{"user": 5, "time": 1700000000}', "time has no effect here: expected it with item"),
    ('{"user": 5, "feedback": {"like": 1}}', "feedback has no effect here: expected it with item or amend"),
    ('{"user": 5, "organic": true}', "organic has no effect here: expected it with item or k or vectors"),
    ('{"user": 5, "context": {}}', "context has no effect here: expected it with item or k or vectors"),
    ('{"user": 5, "score": "pair"}', "score has no effect here: expected it with k"),
    ('{"user": 5, "vectors": true, "score": "pair"}', "score has no effect here: expected it with k"),
    ('{"user": 5, "now": 1700000000}', "now has no effect here: expected it with k or vectors"),
    ('{"user": 5, "vectors": false, "now": 1700000000}', "now has no effect here"),
    ('{"user": 5, "exclude_seen": true}', "exclude_seen has no effect here: expected it with k"),
    ('{"user": 5, "k": 2, "context": {"nowhere": 1}}', "context has 'nowhere', expected names of"),
    # feedback that comes late
    ('{"user": 5, "amend": 0}', "amend without feedback: expected both"),
    ('{"user": 5, "amend": 0, "feedback": {}}', "feedback has no names"),
    ('{"user": 5, "amend": true, "feedback": {"like": 1}}', "amend is True, expected a whole number"),
    ('{"user": 5, "amend": -1, "feedback": {"like": 1}}', "amend is -1, expected a whole number of at least 0"),
    ('{"user": 5, "amend": 10000000000000000000000, "feedback": {"like": 1}}', "expected one of its last 64"),
    ('{"user": "u", "amend": 0, "feedback": {"like": 1}}', "expected a user with events"),
]  # fmt: skip


def test_what_is_wrong_is_one_sentence_and_changes_nothing(server: SessionStore) -> None:
    answer(server, f'{{"user": "new", "item": 3, "time": {TIME}}}')
    before, resident = state_of(server), server.resident
    for line, sentence in REFUSED:
        said = answer(server, line)
        assert list(said) == ["error"] and sentence in said["error"], f"{line[:80]!r}: {said}"
        assert len(said["error"]) < 1100 and "\n" not in said["error"]
        assert server.resident == resident, f"{line[:80]!r} let somebody go"
    assert state_of(server) == before


@pytest.mark.parametrize(
    ("user", "meant"),
    [(5, 5), ("5", 5), ("0", 0), ("٥", "٥"), ("²", "²"), ("--5", "--5"), ("05", "05"), ("+5", "+5"), (" 5", " 5"),
     ("-0", "-0"), ("5.0", "5.0"), ("1_0", "1_0"), ("123456", 123456), (2**64 - 1, 2**64 - 1), (-(2**63), -(2**63)),
     ("99999999999999999999", "99999999999999999999")],
)  # fmt: skip
def test_a_text_is_an_integer_in_one_spelling_only(server: SessionStore, user: Any, meant: Any) -> None:
    assert answer(server, json.dumps({"user": user}))["user"] == meant


def test_an_unknown_item_is_said_to_be_unknown(server: SessionStore, exported: Export) -> None:
    known = exported.item_ids.ids[3].item()
    for item, is_known in (
        (known, True),
        (str(known), True),
        (f"0{known}", False),
        ("٣", False),
        (2**63 + known, False),
    ):
        said = answer(server, json.dumps({"user": "u", "item": item, "time": TIME}))
        assert said.get("unknown_item", False) is not is_known, item


def test_a_request_is_of_the_moment_it_describes(server: SessionStore) -> None:
    session = server.session(5)
    [name, *_] = server.model.features.context
    context, now = {name: 0}, TIME + 10**7
    said = answer(
        server, json.dumps({"user": 5, "k": 3, "vectors": True, "now": now, "organic": False, "context": context})
    )
    asked: dict[str, Any] = {"now": now, "organic": False, "context": context}
    assert [one["item"] for one in said["items"]] == [one.item_id for one in session.top_k(3, **asked)]
    np.testing.assert_array_equal(np.float32(said["query"]), session.vector(score="next_item", **asked))
    np.testing.assert_array_equal(np.float32(said["user_vector"]), session.vector(score="pair", **asked))
    plain = answer(server, '{"user": 5, "vectors": true}')
    assert np.abs(np.subtract(plain["query"], said["query"])).max() > 1e-5


def test_k_is_bounded_by_the_catalogue(server: SessionStore, exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def search(queries: np.ndarray, items: np.ndarray, k: int, *given: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(k)
        return best_items(queries, items, k, *given)

    monkeypatch.setattr("python_model.serving.search.best_items", search)
    for k in (10**8, 10**30):
        assert len(answer(server, json.dumps({"user": 5, "k": k}))["items"]) == exported.info.items
    assert asked == [exported.info.items] * 2


FAILURES: list[Callable[..., Any]] = [
    lambda *given, **named: (_ for _ in ()).throw(MemoryError("Unable to allocate 1.1 GiB")),
    lambda *given, **named: (_ for _ in ()).throw(RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    lambda *given, **named: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    lambda *given, **named: (_ for _ in ()).throw(ValueError("PagedCache.grow: 3 pages are wanted and 0 are free")),
]
PLACES = [
    "search.best_items",
    "store.SessionStore._vectors_of",
    "journal.os.pwrite",
    "memory.IncrementalEncoder.append",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_from_within_changes_nothing(
    server: SessionStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str,
    failure: Callable[..., Any],
) -> None:  # fmt: skip
    for number in range(3):
        answer(server, json.dumps({"user": "u", "item": number, "time": TIME + number}))
    before = state_of(server)
    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
        patch.setattr(f"python_model.serving.{place}", failure)
        for line in (
            {"user": "u", "item": 3, "time": TIME + 9, "k": 3}, {"user": 3, "item": 3, "time": TIME + 9, "k": 3},
            {"user": "u", "amend": 1, "feedback": {"like": 1}, "k": 2},
        ):  # fmt: skip
            said = answer(server, json.dumps(line))
            assert list(said) == ["error"] and len(said["error"]) > 10, (line, said)
    assert state_of(server) == before
    assert answer(server, json.dumps({"user": "u", "item": 3, "time": TIME + 9, "k": 3}))["event"] == 3
    assert answer(server, '{"user": "u", "amend": 1, "feedback": {"like": 1}}')["event"] == 3


def test_a_full_history_slides_when_an_event_stays_and_not_before(
    server: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = server.session("u")
    for number in range(32):
        answer(server, json.dumps({"user": "u", "item": number, "time": TIME + number}))
    before = state_of(server)
    with monkeypatch.context() as patch:
        patch.setattr("python_model.serving.search.best_items", FAILURES[0])
        assert "error" in answer(server, f'{{"user": "u", "item": 1, "time": {TIME + 40}, "k": 2}}')
    assert state_of(server) == before and len(server.memory.residents["u"].log) == 32
    assert answer(server, f'{{"user": "u", "item": 1, "time": {TIME + 40}, "k": 2}}')["event"] == 32
    assert len(server.memory.residents["u"].log) == 29 and len(session) == 33


def test_numbers_that_json_does_not_have_are_an_error(server: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(server)
    with monkeypatch.context() as patch:
        undefined = lambda model, readings, *given: readings[:, :8] * float("nan")  # noqa: E731
        patch.setattr("python_model.serving.store.towers.vectors_of", undefined)
        for extra in ({"k": 1}, {"vectors": True}, {}):
            said = answer(server, json.dumps({"user": 5, "item": 1, "time": TIME + 40, **extra}))
            assert "user vectors that are not finite, first in row 0: its training has diverged" in said["error"]
    assert state_of(server) == before


LONG = [
    "{" + ", ".join(f'"{number}": 0' for number in range(90_000)) + "}",
    "{" + ", ".join(f'"{number}": 0' for number in range(90_000)) + ', "89999": 0}',
    '{"user": [' + "[], " * 250_000 + "0]}",
    '{"user": "' + "\\u0000" * 170_000 + '"}',
    '{"user": ' + "9" * 1_000_000 + "}",
    '{"user": 0.' + "9" * 1_000_000 + "}",
    '{"user": 5, "item": "' + "[" * 1_000_000 + '", "time": 1700000000}',
    '{"user": 5, "item": 5, "time": 1700000000, "feedback": {' + '"like": 1, ' * 80_000 + '"like": 1}}',
]


@pytest.mark.parametrize("line", LONG, ids=range(len(LONG)))
def test_a_long_line_takes_no_long_time(server: SessionStore, line: str) -> None:
    began = time.process_time()
    assert "error" in answer(server, line)
    assert time.process_time() - began < 2


def test_every_line_is_answered_also_one_that_is_too_long(
    server: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    exact = b'{"user": 5}' + b" " * 89
    given = [b"", exact, exact + b" ", b"x" * 1000, b"x" * 101, b"x" * 202, b'{"user": 5}\r', b'{"user": 3}']
    answers = io.BytesIO()
    lines.serve(server, io.BytesIO(b"\n".join(given)), answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert ["error" in one for one in said] == [True, False, True, True, True, True, False, False]
    assert {one["error"] for one in said[2:6]} == {"expected a line of at most 100 bytes, found a longer one"}
    assert said[7]["user"] == 3
