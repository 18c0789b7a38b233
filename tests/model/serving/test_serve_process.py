"""`argus serve` as a process: every line answered, one owner, and nothing answered is lost, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from python_model.serving.bundle import Export
from python_model.serving.store import SessionStore
from tests.model.serving.hostile_lines import LineMaker

REPOSITORY = Path(__file__).resolve().parents[3]
TIME = 1_700_000_000
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
LINES = 300 * SCALE
# Servers are started six times; the same lines are answered in this process by test_lines.py and test_hostile_lines.py.
pytestmark = pytest.mark.slow
STRICT = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@contextlib.contextmanager
def serving(export: Path, state: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "python_model", "serve", str(export), "--state", str(state), "--threads", "1"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=settings, cwd=REPOSITORY, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[bytes], line: bytes) -> Any:
    """The answer to one line."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def event(user: Any, number: int) -> bytes:
    return json.dumps({"user": user, "item": number % 70, "time": TIME + number}).encode()


def events_in(exported: Export, state: Path, user: Any) -> int:
    with SessionStore.open(exported, state, resident=2, max_events=64, page_size=8) as store:
        return len(store.session(user))


@pytest.mark.timeout(300 * SCALE)
def test_every_line_is_answered_whatever_the_locale(exported: Export, tmp_path: Path) -> None:
    state = tmp_path / "sessions"
    features = exported.model().features
    lines = [
        b"\xff\xfe", b"[" * 200_000, b"", b"not json", '{"user": "weiß"}'.encode(), b"u" * (1 << 20), b"x" * (3 << 20),
        b'{"user": 5, "k": 100000000}', *LineMaker(9, features).lines(LINES), b'{"user": "last"}',
    ]  # fmt: skip
    with serving(exported.path, state, **STRICT) as process:
        out, said = process.communicate(b"\n".join(lines))
        assert process.returncode == 0 and said == b""
    answers = [json.loads(line) for line in out.decode("ascii").splitlines()]
    assert len(answers) == len(lines)
    assert all(("error" in one) == (place in (0, 1, 2, 3, 5, 6)) for place, one in enumerate(answers[:8]))
    assert answers[4] == {"user": "weiß", "event": -1} and len(answers[7]["items"]) == exported.info.items
    assert answers[-1] == {"user": "last", "event": -1}
    assert (state / "journal.jsonl").read_bytes() == b""


def test_one_server_owns_the_sessions_and_nothing_answered_is_lost(exported: Export, tmp_path: Path) -> None:
    """A second one is refused, the first is killed in the middle of a line, the next is told to stop."""
    state, users = tmp_path / "sessions", ("a", "b", "c", "d")
    with serving(exported.path, state) as first:
        for number in range(7):
            for user in users:
                assert ask(first, event(user, number))["event"] == number
        with serving(exported.path, state) as second:
            out, said = second.communicate(event("a", 7))
        assert second.returncode == 2 and out == b""
        [sentence] = said.decode().splitlines()
        assert f"{state} is in use by process {first.pid} on " in sentence and "wait until it ends" in sentence
        assert ask(first, event("a", 7))["event"] == 7
        assert first.stdin is not None
        first.stdin.write(event("a", 8) + b"\n" + event("b", 7)[:20])
        first.stdin.flush()
        first.send_signal(signal.SIGKILL)
        first.wait()
    with serving(exported.path, state) as third:
        # The event whose answer nobody has seen may be there.
        assert ask(third, event("a", 9))["event"] in (8, 9)
        assert [ask(third, json.dumps({"user": user}).encode())["event"] for user in users[1:]] == [6, 6, 6]
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 143
    assert (state / "journal.jsonl").read_bytes() == b"" and events_in(exported, state, "a") in (9, 10)


def test_a_server_whose_answers_nobody_reads_saves_and_ends(exported: Export, tmp_path: Path) -> None:
    state = tmp_path / "sessions"
    with serving(exported.path, state) as process:
        assert ask(process, event("a", 0))["event"] == 0
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.write(event("a", 1) + b"\n" + event("a", 2) + b"\n")
        process.stdin.flush()
        assert process.wait(60) == 0 and process.stderr.read() == b""
    assert (state / "journal.jsonl").read_bytes() == b"" and events_in(exported, state, "a") >= 1
