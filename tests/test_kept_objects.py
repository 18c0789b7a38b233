"""Kept results of compilations: made once, by one process, and only so many of them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests import kept_objects


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ARGUS_TEST_CACHE", str(tmp_path / "cache"))
    return kept_objects.folder("things")


def write(fresh: Path) -> None:
    fresh.write_text("made")


def test_a_thing_is_made_once_and_found_by_its_digest(place: Path) -> None:
    assert place.parent.name == "cache"
    target = place / f"thing-{kept_objects.digest('-O2', b'source')}.o"
    assert kept_objects.make(target, write)
    assert kept_objects.make(target, lambda fresh: pytest.fail("made again"))
    assert target.read_text() == "made"
    assert kept_objects.digest("-O2", b"sourc", b"e") != kept_objects.digest("-O2", b"source")


def test_what_fails_leaves_nothing(place: Path) -> None:
    def refuse(fresh: Path) -> None:
        fresh.write_text("half")
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        kept_objects.make(place / "thing-1.o", refuse)
    assert not (place / "thing-1.o").exists()


def test_the_versions_used_longest_ago_go_with_what_lies_beside_them(place: Path) -> None:
    (place / "thing-0.txt").write_text("beside")
    (place / "thing-of-another-0.o").write_text("stays")
    for number in range(kept_objects.NEWEST + 1):
        kept_objects.make(place / f"thing-{number}.o", write)
        os.utime(place / f"thing-{number}.o", (number, number))
    kept_objects.make(place / "thing-1.o", lambda fresh: pytest.fail("made again"))
    kept_objects.make(place / "thing-new.o", write)
    kept = {path.name for path in place.glob("thing-*")}
    assert {"thing-0.o", "thing-0.txt", "thing-2.o"} & kept == set()
    assert {"thing-1.o", "thing-new.o", "thing-of-another-0.o"} <= kept


def test_nobody_waits_who_does_not_want_to(place: Path) -> None:
    with open(place / ".thing.o.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not kept_objects.make(place / "thing-1.o", lambda fresh: pytest.fail("made"), wait=False)


def test_headers_of_headers_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "one.cpp").write_text('#include "a/two.h"\n#include <vector>\n#include "none.h"\n')
    (tmp_path / "a/two.h").write_text('#include "a/three.h"\n#include "one.cpp"\n')
    (tmp_path / "a/three.h").write_text("")
    found = kept_objects.read_by(tmp_path / "one.cpp", [tmp_path])
    assert [path.name for path in found] == ["three.h", "two.h", "one.cpp"]
