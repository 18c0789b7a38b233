"""Saved sessions that are not as they were written are an error of their users alone; a folder has one owner."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from python_model.io.disk import WriteError
from python_model.io.errors import DataError
from python_model.io.exclusive import InUseError
from python_model.serving.answering import answer
from python_model.serving.bundle import Export
from python_model.serving.events import Event
from python_model.serving.store import SessionStore

TIME = 1_700_000_000


@pytest.fixture
def fresh(exported: Export, tmp_path: Path) -> Callable[..., SessionStore]:
    """Stores over one folder."""

    def make(folder: Path = tmp_path / "sessions", **options: Any) -> SessionStore:
        settings = {"folder": folder, "resident": 3, "max_events": 64, "page_size": 8, **options}
        return SessionStore(exported.model(), exported.item_ids, **settings)

    return make


def event(number: int) -> Event:
    return Event(number % 70, TIME + number, feedback={"like": number % 2})


def items_of(store: SessionStore, user: Any) -> list[int]:
    found: list[int] = store._log(user).columns()["items"].tolist()
    return found


def filled(store: SessionStore, events: int = 5) -> Path:
    """Puts events of two users into a store and saves them; the file of the first."""
    for number in range(events):
        store.session("one").add(event(number))
        store.session("two").add(event(number + 30))
    store.close()
    assert store.memory.archive is not None
    return store.memory.archive.files.path("one")


Tensors = dict[str, Tensor]
CHANGES: list[tuple[str, Callable[[Tensors, dict[str, str]], object], str]] = [
    ("a column less", lambda t, m: t.pop("log.time"), "column of its log is missing"),
    ("a tensor more", lambda t, m: t.update(other=torch.zeros(3)), "unexpected tensors"),
    ("no state", lambda t, m: t.pop("state"), "unexpected tensors"),
    ("a layer less", lambda t, m: t.pop("cache.0000"), "unexpected tensors"),
    ("other types", lambda t, m: t.update({"log.items": t["log.items"].long()}), "expected int32 [5], found int64 [5]"),
    ("half a column", lambda t, m: t.update({"log.time": t["log.time"].bfloat16()}), "column of its log is missing"),
    ("other lengths", lambda t, m: t.update({"log.time": t["log.time"][1:].clone()}), "expected int64 [5], found"),
    ("two dimensions", lambda t, m: t.update({"log.items": t["log.items"][:, None].clone()}), "found int32 [5, 1]"),
    ("none", lambda t, m: t.update({"log.items": t["log.items"][0].clone()}), "expected int32 [0], found int32 []"),
    ("a narrow context", lambda t, m: t.update({"log.context": t["log.context"][:, 1:].clone()}), "context': expected"),
    ("an item out of the catalogue", lambda t, m: t["log.items"].fill_(80), "data row 1: expected a value in [-1, 79]"),
    ("an item below", lambda t, m: t["log.items"].fill_(-2), "data row 1: expected a value in [-1, 79], found -2"),
    ("feedback out of range", lambda t, m: t["log.feedback"].fill_(30_000), "'feedback', data row 1: expected a value"),
    ("context out of range", lambda t, m: t["log.context"].fill_(30_000), "'context', data row 1: expected a value"),
    ("times that fall", lambda t, m: t["log.time"].copy_(t["log.time"].flip(0)), "data row 2: expected times that do"),
    ("times in ms", lambda t, m: t["log.time"].mul_(1000), "'time', data row 1: expected a whole number of seconds"),
    ("times below 0", lambda t, m: t["log.time"].neg_(), "'time', data row 1: expected a whole number of seconds"),
    ("keys of others", lambda t, m: t.update({"cache.0000": t["cache.0000"][1:].clone()}), "are of other shapes"),
    ("a wider state", lambda t, m: t.update(state=torch.zeros(99)), "are of other shapes"),
    ("a state of integers", lambda t, m: t.update(state=t["state"].int()), "are of other shapes"),
    ("a state of NaN", lambda t, m: t["state"].fill_(torch.nan), "have numbers that are not finite"),
    ("an infinite key", lambda t, m: t["cache.0000"][0].fill_(torch.inf), "have numbers that are not finite"),
    ("keys of other times", lambda t, m: t["cache.0004"].add_(1), "the times of its keys are not those of its events"),
    ("mixed keys", lambda t, m: t.update({"cache.0001": t["cache.0001"].half()}), "are of other shapes"),
    ("no metadata", lambda t, m: m.clear(), "'format': a damaged session: expected 1, found None"),
    ("another format", lambda t, m: m.update(format="2"), "expected 1, found '2'"),
    ("another user", lambda t, m: m.update(user='"two"'), "'user': a damaged session: expected \"one\""),
    ("no model", lambda t, m: m.pop("model"), "'model'"),
    ("no first", lambda t, m: m.pop("first"), "'first': a damaged session: expected a number, found ''"),
    ("a negative first", lambda t, m: m.update(first="-1"), "expected a number, found '-1'"),
    ("first in words", lambda t, m: m.update(first="²"), "expected a number, found '²'"),
    ("a huge first", lambda t, m: m.update(first="9" * 5000), "expected a number, found '999"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), [one[1:] for one in CHANGES], ids=[one[0] for one in CHANGES])
def test_a_session_of_another_kind_is_its_users_error_alone(
    fresh: Callable[..., SessionStore], change: Callable[[Tensors, dict[str, str]], object], sentence: str
) -> None:
    file = filled(fresh())
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    del metadata["crc32"]  # forged: all but the sum is as a store writes it
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    with fresh() as store:
        said = answer(store, '{"user": "one"}')
        assert said["error"].startswith(str(file)) and sentence in said["error"], said
        assert answer(store, '{"user": "two"}')["event"] == 4
        assert "error" in answer(store, f'{{"user": "one", "item": 1, "time": {TIME}}}')
    assert file.is_file()


def test_any_flipped_bit_of_a_session_is_found(fresh: Callable[..., SessionStore]) -> None:
    file = filled(fresh())
    content = bytearray(file.read_bytes())
    with fresh() as store:
        expected = store.session("one").reading().query.tolist()
    scale = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
    archive = fresh().memory.archive
    assert archive is not None
    found = 0
    for bit in range(0, 8 * len(content), max(1, 8 * len(content) // (400 * scale))):
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            archive.files.load("one")
        except DataError as error:
            assert str(error).startswith(str(file))
            found += 1
        content[bit // 8] ^= 1 << bit % 8
    archive.close()
    # What is not found lies in the name of the model, whose events are then encoded again.
    assert found > 350 * scale
    file.write_bytes(content)
    with fresh() as store:
        assert store.session("one").reading().query.tolist() == expected


def test_links_among_sessions_are_not_followed(fresh: Callable[..., SessionStore], tmp_path: Path) -> None:
    """Of the journal, of a folder and of a file: what they lead to is neither written nor cut back."""
    file = filled(fresh())
    (tmp_path / "mine").write_text("mine, without a line's end")
    sessions = tmp_path / "sessions"
    before = file.read_bytes()
    for link, named in ((sessions / "journal.jsonl", "mine"), (file.parent, "kept"), (file, "kept")):
        kept = tmp_path / "kept"
        link.rename(kept)
        link.symlink_to(tmp_path / named)
        with pytest.raises(WriteError, match=rf"{link.name}: cannot be written, it is a symbolic link, which is not f"):
            filled(fresh())
        link.unlink()
        kept.rename(link)
    assert (tmp_path / "mine").read_text() == "mine, without a line's end"
    assert file.read_bytes() == before


def test_integers_and_texts_are_different_users(fresh: Callable[..., SessionStore]) -> None:
    users: list[int | str] = [
        5,
        "5",
        "-5",
        -5,
        "05",
        '"5"',
        "what if",
        '["what if", 1]',
        2**63,
        -(2**63),
        "a/../b",
        "٥",
    ]
    store = fresh()
    for place, user in enumerate(users):
        store.session(user).add(event(place))
        store.session(user).add(event(place + 1))
    store.close()
    with fresh() as store:
        for place, user in enumerate(users):
            assert items_of(store, user) == [place, place + 1]
    with pytest.raises(ValueError, match="user is \\('what if', 1\\), expected an integer or text"):
        fresh().add([(("what if", 1), event(0))])


def test_a_folder_has_one_owner_who_is_named(fresh: Callable[..., SessionStore], tmp_path: Path) -> None:
    store = fresh()
    store.session("one").add(event(0))
    journal = (tmp_path / "sessions" / "journal.jsonl").read_bytes()
    with pytest.raises(InUseError, match=f"sessions is in use by process {os.getpid()} on .*wait until it ends"):
        fresh()
    assert (tmp_path / "sessions" / "journal.jsonl").read_bytes() == journal
    assert answer(store, f'{{"user": "one", "item": 1, "time": {TIME}}}')["event"] == 1
    store.close()
    store.close()
    with pytest.raises(ValueError, match="the store was closed"):
        store.session("one").reading()
    with pytest.raises(ValueError, match="the store was closed"):
        store.save()
    with fresh() as again:
        assert len(again.session("one")) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no sessions"):
        fresh(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["file"]
    with pytest.raises(ValueError, match="is a file, expected a directory"):
        fresh(tmp_path / "mine" / "file")


def test_a_store_that_cannot_be_made_has_no_folder(fresh: Callable[..., SessionStore], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SessionStore: pages is 1, expected a whole number of at least"):
        fresh(pages=1)
    assert not (tmp_path / "sessions").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"resident": True}, "resident is True"), ({"resident": 0}, "resident is 0"),
     ({"amendable": -1}, "amendable is -1"),
     ({"page_size": 2.0}, "page_size is 2.0"), ({"max_events": 8}, "max_events is 8, expected more than a page of 8"),
     ({"max_events": 10**9}, "max_events is 1000000000, expected more than a page of 8, at most 8192, the model's"),
     ({"save_every": "1"}, "save_every is '1'"), ({"pages": 1.5}, "pages is 1.5"),
     ({"resident": 10**12}, "no memory for .* pages of 8 events; give fewer resident or max_events")],
)  # fmt: skip
def test_options_are_of_their_type_and_range(
    fresh: Callable[..., SessionStore], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^SessionStore: {sentence}"):
        fresh(**options)


def resident_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's size from /proc")
def test_a_session_that_is_loaded_leaks_nothing(fresh: Callable[..., SessionStore]) -> None:
    """safetensors' get_tensor and load_file leak 65 bytes a tensor, some 700 a session."""
    store = fresh()
    filled(store)
    archive = fresh().memory.archive
    assert archive is not None
    grown = []
    for _ in range(4):
        before = resident_bytes()
        for _ in range(1000):
            archive.files.load("one")
        grown.append(resident_bytes() - before)
    # Memory that the process needs once comes in some of the rounds, a leak in all of them.
    assert min(grown) < 1000 * 200, grown
    archive.close()
