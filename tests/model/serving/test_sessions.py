"""Event by event a session says what the model says of the whole history, wherever the user was in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_model.data.schema import Dataset
from python_model.evaluation.recommend import append_next_event, recommend
from python_model.serving import session_files, towers
from python_model.serving.answers import Reading
from python_model.serving.bundle import Export
from python_model.serving.events import Event, EventLog, jagged
from python_model.serving.session_files import SavedSession, SessionFiles
from python_model.serving.store import SessionStore
from tests.model.serving.conftest import WINDOW, assert_close, random_model


def events_of(dataset: Dataset, user: int) -> list[Event]:
    """A user's history as it would come to a server."""
    info = dataset.info
    return [
        Event(
            item=dataset.item_column("item_id")[dataset.item[row]].item(),
            time=int(dataset.time[row]),
            organic=bool(dataset.organic[row]),
            context={name: int(dataset.context(name)[row]) for name in info.context},
            feedback={name: int(dataset.feedback(name)[row]) for name in info.feedback},
        )
        for row in range(int(dataset.offsets[user]), int(dataset.offsets[user + 1]))
    ]


def vectors_of_log(store: SessionStore, log: EventLog, kind: str) -> np.ndarray:
    """The vector after a whole history, by one pass of the model and one event more."""
    columns = log.columns()
    batch = jagged(columns, np.array([0, len(log)], np.int32), torch.device("cpu"))
    asked = append_next_event(batch, towers.delay_of(store.model, kind))
    with torch.inference_mode():
        return towers.vectors_of_targets(store.model, asked, kind)[-1].numpy()


def kill(store: SessionStore) -> None:
    """Ends a store as a killed process ends: nothing is saved, the folder is free."""
    assert store.memory.archive is not None
    store.memory.archive.close()


def assert_says_what_one_pass_says(store: SessionStore, user: Any, reading: Reading) -> None:
    log = store.memory.residents[user].log
    assert_close(reading.query, vectors_of_log(store, log, "next_item"))
    assert reading.user_vector is not None
    assert_close(reading.user_vector, vectors_of_log(store, log, "pair"))


@pytest.fixture
def fresh(service: Dataset, exported: Export) -> Callable[..., SessionStore]:
    """Stores over the export's model that know no history."""

    def make(folder: Path | None = None, **options: Any) -> SessionStore:
        settings = {"resident": 4, "max_events": 128, "page_size": 4, **options}
        return SessionStore(exported.model(), exported.item_ids, folder=folder, **settings)

    return make


def test_after_every_event_a_session_is_one_pass_over_the_history(
    service: Dataset, fresh: Callable[..., SessionStore]
) -> None:
    store = fresh()
    session = store.session("somebody new")
    assert session.reading().number == -1 and len(session) == 0
    for number, event in enumerate(events_of(service, 3)[:20]):
        reading = session.add(event)
        assert reading.number == number
        assert_says_what_one_pass_says(store, "somebody new", reading)
        np.testing.assert_array_equal(reading.query, session.vector(score="next_item"))
        np.testing.assert_array_equal(reading.user_vector, session.vector())


@pytest.mark.parametrize(("dtype", "apart"), [(torch.int8, 0.0), (torch.bfloat16, 0.05), (torch.float32, 1e-5)])
def test_sessions_in_int8_go_on_from_their_files(
    service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path, dtype: torch.dtype, apart: float
) -> None:
    """With the same bits; a store of another dtype encodes the events again."""
    events = events_of(service, 3)[:21]
    with fresh(tmp_path, dtype=torch.int8) as store:
        assert [store.session(7).add(event).number for event in events[:20]] == list(range(20))
    with fresh(tmp_path, dtype=dtype) as store, fresh(dtype=dtype) as whole:
        expected = [whole.session(7).add(event) for event in events][-1]
        np.testing.assert_allclose(store.session(7).add(events[20]).query, expected.query, rtol=0, atol=apart)


def test_a_known_users_session_is_what_was_exported(service: Dataset, exported: Export) -> None:
    store = SessionStore.open(exported, resident=3, max_events=WINDOW, page_size=16)
    vectors = exported.user_vectors()
    for user in range(8):
        session = store.session(exported.user_ids.ids[user])
        assert len(session) == min(service.offsets[user + 1] - service.offsets[user], WINDOW)
        assert_close(session.vector(), vectors[user])
    assert len(store.resident) == 3
    expected = recommend(exported.model(), service, np.array([5]), k=6, window=WINDOW, score="pair", exclude_seen=True)[
        0
    ]
    found = store.session(str(exported.user_ids.ids[5])).top_k(6, exclude_seen=True)
    assert [one.item_id for one in found] == [one.item_id for one in expected.items]
    assert_close([one.score for one in found], [one.score for one in expected.items])


@pytest.mark.parametrize("on_full", ["offload", "replay"])
def test_many_users_in_little_memory_come_back_right(
    service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path, on_full: str
) -> None:
    """Twelve users in turn through the memory of three, then again after the store was closed and opened."""
    histories = {user: events_of(service, user)[:9] for user in range(12)}
    store = fresh(tmp_path, resident=3, on_full=on_full)
    for first in (0, 3, 6):
        if first == 6:
            store.close()
            store = fresh(tmp_path, resident=3, on_full=on_full)
        for user, events in histories.items():
            for event in events[first : first + 3]:
                reading = store.session(user).add(event)
            assert_says_what_one_pass_says(store, user, reading)
            assert reading.number == first + 2
        assert len(store.resident) <= 3


def test_several_users_at_once(service: Dataset, fresh: Callable[..., SessionStore]) -> None:
    store = fresh()
    histories = [events_of(service, user) for user in range(4)]
    for step in range(6):
        readings = store.add([(user, histories[user][step]) for user in range(4)])
        for user, reading in enumerate(readings):
            assert_says_what_one_pass_says(store, user, reading)
    with pytest.raises(ValueError, match="user 1 is named more than once"):
        store.add([(1, histories[1][7]), (1, histories[1][8])])
    with pytest.raises(ValueError, match="no room for 5 users at once"):
        store.add([(user, histories[0][7]) for user in range(5)])
    assert [len(store.session(user)) for user in range(4)] == [6] * 4


def test_feedback_that_comes_late(service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path) -> None:
    store = fresh(tmp_path, amendable=8)
    events = events_of(service, 2)[:15]
    session = store.session("late")
    for place, event in enumerate(events):
        session.add(replace(event, feedback={}) if place == 9 else event)
    before = session.reading()
    after = session.amend(9, events[9].feedback)
    assert np.abs(after.query - before.query).max() > 1e-4 and after.number == 14
    assert_says_what_one_pass_says(store, "late", after)
    straight = fresh()
    for event in events:
        expected = straight.session("late").add(event)
    assert_close(after.query, expected.query)
    with pytest.raises(ValueError, match="amend is -1, expected a whole number of at least 0"):
        session.amend(-1, {"skip": 1})
    for number in (6, 15):
        with pytest.raises(ValueError, match=f"event {number} of user 'late', expected one of its last 8: 7 to 14"):
            session.amend(number, {"skip": 1})
    kill(store)
    again = fresh(tmp_path)
    assert_close(again.session("late").reading().query, after.query)


def test_what_if_leaves_the_session_as_it_is(service: Dataset, fresh: Callable[..., SessionStore]) -> None:
    store = fresh()
    events = events_of(service, 1)
    session = store.session("u")
    for event in events[:6]:
        before = session.add(event)
    with session.what_if() as other:
        for event in events[10:13]:
            reading = other.add(event)
        assert_says_what_one_pass_says(store, other.user, reading)
        assert len(other) == 9 and other.top_k(3)
    assert len(session) == 6
    np.testing.assert_array_equal(session.reading().query, before.query)
    assert_says_what_one_pass_says(store, "u", session.add(events[6]))
    with pytest.raises(ValueError, match="this what-if was closed"):
        other.add(events[0])


def test_a_clock_that_jumps_back_stands_still(service: Dataset, fresh: Callable[..., SessionStore]) -> None:
    store, straight = fresh(), fresh()
    events = events_of(service, 4)[:8]
    late = [replace(event, time=event.time - 10**6) if place in (3, 5) else event for place, event in enumerate(events)]
    held = [replace(event, time=events[place - 1].time) if place in (3, 5) else event
            for place, event in enumerate(events)]  # fmt: skip
    for jumping, standing in zip(late, held, strict=True):
        found, expected = store.session(1).add(jumping), straight.session(1).add(standing)
        np.testing.assert_array_equal(found.query, expected.query)
    session = store.session(1)
    np.testing.assert_array_equal(session.vector(now=0), session.vector())
    assert np.abs(session.vector(now=events[-1].time + 10**6) - session.vector()).max() > 1e-5


def test_an_event_from_far_ahead_is_refused(service: Dataset, fresh: Callable[..., SessionStore]) -> None:
    """It would hold the user's clock; a day ahead of this machine's clock, or of the user's newest event, is taken."""
    store = fresh()
    event = events_of(service, 4)[0]
    now = int(time.time())
    with pytest.raises(ValueError, match=r"time is \d+, expected at most \d+, which is 86,400 s after the clock"):
        store.session(1).add(replace(event, time=now + 2 * 86_400))
    assert len(store.session(1)) == 0
    store.session(1).add(replace(event, time=now + 86_000))
    store.session(1).add(replace(event, time=now + 2 * 86_000))
    assert len(store.session(1)) == 2
    assert len(fresh(ahead=0).session(1)) == 0
    with pytest.raises(ValueError, match="which is 0 s after"):
        fresh(ahead=0).session(1).add(replace(event, time=now + 1_000))


def test_files_are_written_side_by_side(
    service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the disk, and all must be there before the journal is emptied."""
    together = threading.Barrier(session_files.WRITERS, timeout=60)
    save = SessionFiles.save

    def waiting(self: SessionFiles, user: int | str, saved: SavedSession) -> None:
        together.wait()
        save(self, user, saved)

    event, users = events_of(service, 4)[0], range(2 * session_files.WRITERS)
    store = fresh(tmp_path, resident=len(users))
    for user in users:
        store.session(user).add(event)
    kill(store)
    monkeypatch.setattr(SessionFiles, "save", waiting)
    again = fresh(tmp_path, resident=len(users))
    for user in users[: session_files.WRITERS]:
        again.session(user).add(event)
    again.close()
    assert (tmp_path / "journal.jsonl").read_bytes() == b""
    found = fresh(tmp_path)
    assert [len(found.session(user)) for user in users] == [2] * session_files.WRITERS + [1] * session_files.WRITERS


def test_a_full_history_slides(service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path) -> None:
    """The newest events stay, exactly those of the cache; its user comes back with them."""
    store = fresh(tmp_path, max_events=8)
    session = store.session("long")
    for event in events_of(service, 0)[:21]:
        reading = session.add(event)
    assert reading.number == 20 and len(session) == 21 and np.isfinite(reading.query).all()
    assert (
        len(store.memory.residents["long"].log)
        == store.memory.encoder.caches[0].lengths[store.memory.residents["long"].slot]
        == 5
    )
    store.close()
    np.testing.assert_array_equal(fresh(tmp_path, max_events=8).session("long").reading().query, reading.query)


def test_half_precision_of_the_cache_stays_close(service: Dataset, fresh: Callable[..., SessionStore]) -> None:
    exact, half = fresh(), fresh(dtype=torch.bfloat16)
    for event in events_of(service, 6)[:30]:
        one, other = exact.session(1).add(event), half.session(1).add(event)
        scale = np.abs(one.query).max()
        assert np.abs(one.query - other.query).max() < 0.03 * scale
    assert not np.array_equal(one.query, other.query)


def test_an_int8_cache_is_saved_read_back_and_encoded_again_for_another_type(
    service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path
) -> None:
    exact, store = fresh(), fresh(tmp_path, dtype=torch.int8)
    for event in events_of(service, 6)[:30]:
        one, other = exact.session("a").add(event), store.session("a").add(event)
        assert np.abs(one.query - other.query).max() < 0.05 * np.abs(one.query).max()
    store.close()
    with fresh(tmp_path, dtype=torch.int8) as again:
        np.testing.assert_array_equal(again.session("a").reading().query, other.query)
        kept = again.memory.encoder.copy_out(again.memory.residents["a"].slot)
        assert [one.dtype for one in kept] == [torch.int8] * 4 + [torch.float32] * 4 + [torch.int64]
    with fresh(tmp_path) as wide:
        assert_close(wide.session("a").reading().query, one.query)


KILLED = """
import sys
from pathlib import Path
from python_model.serving.bundle import Export
from python_model.serving.store import SessionStore
from tests.model.serving.test_sessions import events_of
from python_model.data.schema import load_dataset

data, out, folder = sys.argv[1:]
export = Export.open(out)
store = SessionStore(export.model(), export.item_ids, folder=folder, resident=2, max_events=128, page_size=4)
dataset = load_dataset(data)
for place in range(10_000):
    user = place % 3
    reading = store.session(user).add(events_of(dataset, user)[place // 3])
    if place == 20:
        store.save()
    print(user, place // 3, flush=True)
"""


@pytest.mark.slow
def test_a_killed_server_loses_no_event_it_answered(
    service: Dataset, exported: Export, fresh: Callable[..., SessionStore], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(service.path), str(exported.path), str(tmp_path / "sessions")]
    repository = Path(__file__).resolve().parents[3]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    answered = [process.stdout.readline().split() for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    answered += [line.split() for line in process.stdout.read().splitlines() if line.endswith(("0", "1", "2"))]
    process.wait()
    process.stdout.close()
    journal = tmp_path / "sessions" / "journal.jsonl"
    with open(journal, "ab") as opened:
        opened.write(b'{"user": 1, "num')  # what a crash in the middle of a line leaves
    store = fresh(tmp_path / "sessions", resident=2)
    for user in range(3):
        session = store.session(user)
        number = max(int(event) for one, event in answered[:40] if int(one) == user)
        assert len(session) >= number + 1
        straight = fresh()
        for event in events_of(service, user)[: len(session)]:
            expected = straight.session(user).add(event)
        assert_close(session.reading().query, expected.query)
    store.close()
    assert journal.read_bytes() == b""


def test_events_of_users_nobody_asked_for_are_saved_with_the_others(
    service: Dataset, fresh: Callable[..., SessionStore], tmp_path: Path
) -> None:
    events = events_of(service, 0)
    store = fresh(tmp_path)
    for event in events[:5]:
        expected = store.session("absent").add(event)
    kill(store)
    again = fresh(tmp_path)
    again.session("other").add(events[0])
    again.save()
    assert (tmp_path / "journal.jsonl").read_bytes() == b""
    kill(again)
    found = fresh(tmp_path).session("absent")
    assert len(found) == 5
    assert_close(found.reading().query, expected.query)


def test_another_model_of_the_same_catalogue_encodes_the_events_again(
    service: Dataset, exported: Export, fresh: Callable[..., SessionStore], tmp_path: Path
) -> None:
    store = fresh(tmp_path)
    for event in events_of(service, 0)[:7]:
        store.session("u").add(event)
    store.close()
    newer = random_model(service, "finetune", lag=60)
    store = SessionStore(newer, exported.item_ids, folder=tmp_path, resident=2, max_events=128, page_size=4)
    assert_says_what_one_pass_says(store, "u", store.session("u").reading())


def test_garbage_is_one_sentence(
    service: Dataset, exported: Export, fresh: Callable[..., SessionStore], tmp_path: Path
) -> None:
    store = fresh(tmp_path)
    session = store.session("u")
    good = events_of(service, 0)[0]
    wrong = {
        "time: expected a whole number of seconds .* in milliseconds it would be 2023-11-14: give seconds": replace(
            good, time=1_700_000_000_000
        ),
        "time: expected a whole number of seconds .*found -1": replace(good, time=-1),
        "time is 1.5, expected a whole number of seconds": replace(good, time=1.5),  # type: ignore[arg-type]
        "organic is 'yes', expected true or false": replace(good, organic="yes"),  # type: ignore[arg-type]
        "feedback has 'love', expected names of": replace(good, feedback={"love": 1}),
        "feedback 'like' is 2, expected a whole number in": replace(good, feedback={"like": 2}),
        "feedback 'like' is True, expected a whole number in": replace(good, feedback={"like": True}),
        "item is True, expected an integer or text": replace(good, item=True),
        "item is None, expected an integer or text": replace(good, item=None),
        "context is 3, expected a mapping": replace(good, context=3),  # type: ignore[arg-type]
    }
    for sentence, event in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            session.add(event)
    assert len(session) == 0
    session.add(replace(good, item="no such item"))
    assert store.memory.residents["u"].log.columns()["items"].tolist() == [-1]
    for user in ("", None, 1.5, True, (), "u" * 1025):
        with pytest.raises(ValueError, match=r"^user is .*, expected (an integer or text|1 to 1024)"):
            store.session(user)
    store.close()
    with pytest.raises(ValueError, match="on_full is 'drop', expected one of offload, replay"):
        fresh(on_full="drop")
    with pytest.raises(ValueError, match="without a folder"):
        fresh().save()
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="a damaged session"):
        fresh(tmp_path).session("u").reading()
    marker = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**marker, "vocabulary": "another"}))
    with pytest.raises(ValueError, match="of another catalogue or vocabulary"):
        fresh(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no sessions"):
        fresh(tmp_path / "elsewhere")


def test_calls_are_as_strict_as_lines(service: Dataset, fresh: Callable[..., SessionStore]) -> None:
    store = fresh()
    session = store.session(np.int64(7))
    assert session.user == 7 and type(session.user) is int
    given: dict[str, Any] = {"item": np.int32(3), "time": np.int64(1_700_000_000), "organic": np.True_}
    session.add(replace(events_of(service, 0)[0], **given))
    items = [one.item_id for one in session.top_k(np.int64(5))]
    assert len(items) == 5
    left = session.top_k(5, exclude_seen=np.False_, blocked=np.array(items[:2]), now=np.int64(1_700_000_000))  # type: ignore[arg-type]
    assert [one.item_id for one in left][:3] == items[2:]
    assert session.top_k(3, blocked=["no such item"])[0].item_id == items[0]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("k is True, expected a whole number of at least 1", {"k": True}),
        ("k is 2.0, expected a whole number", {"k": 2.0}),
        ("k is 0, expected a whole number", {"k": 0}),
        ("blocked is 'abc', expected several item ids", {"k": 2, "blocked": "abc"}),
        ("blocked is True, expected an integer or text", {"k": 2, "blocked": [True]}),
        ("blocked is 1.5, expected an integer or text", {"k": 2, "blocked": [1.5]}),
        ("exclude_seen is 1, expected true or false", {"k": 2, "exclude_seen": 1}),
        ("score: expected one of pair, next_item, found ''", {"k": 2, "score": ""}),
        ("now: expected a whole number of seconds", {"k": 2, "now": -1}),
        ("now is 1.0, expected a whole number of seconds", {"k": 2, "now": 1.0}),
        ("organic is 1, expected true or false", {"k": 2, "organic": 1}),
        ("context has 'nowhere', expected names of", {"k": 2, "context": {"nowhere": 0}}),
    ]
    for sentence, options in wrong:
        with pytest.raises(ValueError, match=f"^{sentence}"):
            session.top_k(**options)
    with pytest.raises(ValueError, match="amend is True, expected a whole number"):
        session.amend(True, {"like": 1})
    with pytest.raises(ValueError, match="user 7 was changed before in the same block"), store.atomically():
        session.add(events_of(service, 0)[1])
        session.add(events_of(service, 0)[2])
    assert len(session) == 1


def test_users_in_memory_stay_where_there_is_no_room_for_others(fresh: Callable[..., SessionStore]) -> None:
    """Without a folder whoever goes is forgotten: nobody goes for a call that is refused."""
    store = fresh(resident=2)
    store.add([(user, Event(1, 1_700_000_000)) for user in (1, 2)])
    with pytest.raises(ValueError, match="no room for 3 users at once, 2 are in use"):
        store.add([(user, Event(1, 1_700_000_001)) for user in (3, 4, 5)])
    other = store.session(1).what_if()
    assert store.resident[0] == 1
    with pytest.raises(ValueError, match="no room for 2 users at once"):
        store.add([(user, Event(1, 1_700_000_001)) for user in (1, 2)])
    other.close()
    assert len(store.session(1)) == 1
