"""`argus serve --http` as a process: ready, owned, stopped, killed, starved and lied to; nothing answered is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.serving.answering import answer
from python_model.serving.bundle import Export
from python_model.serving.store import SessionStore
from tests.model.serving.hostile_lines import LineMaker
from tests.model.serving.http_process import REPOSITORY, Connection, Server, command_of, head_of, serving
from tests.model.serving.test_hostile_lines import content_of

TIME = 1_700_000_000
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
# Each test starts servers of its own; what a request is answered is tested without one in test_http_app.py.
pytestmark = pytest.mark.slow
SMALL = ("--resident", "12", "--max-events", "128")


def event(user: Any, number: int) -> dict[str, Any]:
    return {"user": user, "item": number % 70, "time": TIME + number}


def test_one_server_owns_the_sessions_and_a_signal_loses_nothing(exported: Export, tmp_path: Path) -> None:
    """A second one is refused; SIGTERM in the middle of many requests answers what came, saves, and ends with 0."""
    state = str(tmp_path / "sessions")
    with serving(exported.path, "--state", state, *SMALL) as first, first.connect() as one:
        assert one.post("/events", event("a", 0)) == (200, {"user": "a", "event": 0})
        second = subprocess.run(command_of(exported.path, "--state", state), cwd=REPOSITORY, capture_output=True)
        assert second.returncode == 2 and second.stdout == b""
        assert f"{state} is in use by process {first.process.pid} on " in second.stderr.decode()
        command = command_of(exported.path, "--port", str(first.port))
        taken = subprocess.run(command, cwd=REPOSITORY, capture_output=True)
        assert taken.returncode == 2 and b"cannot listen on 127.0.0.1, port" in taken.stderr
        clients = [first.connect() for _ in range(8)]
        for number, client in enumerate(clients):
            client.send(head_of("/events", 60) + f'{{"user": {number}, "item": 1, "time": {TIME}}}'.encode().ljust(60))
        time.sleep(0.05)
        assert first.stop() == 0
        answered = [client.answer() for client in clients]
    assert [status for status, _ in answered] == [200] * 8
    assert Path(state, "journal.jsonl").read_bytes() == b""
    with SessionStore.open(exported, state, resident=12, max_events=128) as store:
        assert [len(store.session(said["user"])) - 1 for _, said in answered] == [said["event"] for _, said in answered]


def feed(server: Server, users: list[str], answered: dict[str, list[int]], sent: Counter[str]) -> None:
    """Sends events of some users until the server is gone; notes the items whose events were answered."""
    number = 0
    try:
        with server.connect() as connection:
            while True:
                number += 1
                user = users[number % len(users)]
                item = number % 60
                sent[user] += 1
                status, said = connection.post("/events", {"user": user, "item": item, "time": TIME + number})
                assert status == 200, said
                answered[user].append(item)
    except OSError:
        pass


@pytest.mark.parametrize("fsync", [(), ("--fsync",)], ids=["to the system", "to the disk"])
def test_nothing_answered_is_lost_when_the_server_is_killed_under_load(
    exported: Export, tmp_path: Path, fsync: tuple[str, ...]
) -> None:
    state, groups = str(tmp_path / "sessions"), [[f"{group}-{one}" for one in range(3)] for group in range(6)]
    answered: dict[str, list[int]] = {user: [] for group in groups for user in group}
    sent: Counter[str] = Counter()
    with serving(exported.path, "--state", state, *SMALL, *fsync) as server:
        threads = [threading.Thread(target=feed, args=(server, group, answered, sent)) for group in groups]
        for thread in threads:
            thread.start()
        while sum(map(len, answered.values())) < 150:
            time.sleep(0.005)
        server.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
    # A lock left behind does not keep the next server out.
    with serving(exported.path, "--state", state, *SMALL) as server, server.connect() as connection:
        for user, items in answered.items():
            _, said = connection.post("/recommend", {"user": user, "k": 1})
            assert len(items) <= said["event"] + 1 <= sent[user]
        assert server.stop() == 0
    with SessionStore.open(exported, state, resident=20, max_events=128) as store:
        for user, items in answered.items():
            expected = [store.items.number(item) for item in items][-64:]
            log, _ = store.memory.log_of(user)
            kept = log.columns()["items"].tolist()[: len(items) - log.first]
            assert kept[-len(expected) :] == expected, user


def test_slow_clients_hold_up_nobody(exported: Export) -> None:
    head = head_of("/events", 60)
    with serving(exported.path, *SMALL, body=0.5, header=0.5) as server:
        silent = [server.connect() for _ in range(50)]
        halves = [server.connect() for _ in range(100)]
        for number, half in enumerate(halves):
            half.send(head[: 10 + number // 2] if number % 2 else head + b'{"user"')
        began = time.monotonic()
        with server.connect() as one:
            for number in range(20):
                assert one.post("/events", event("quick", number))[0] == 200
        assert time.monotonic() - began < 5
        for connection in (*silent, *halves):
            assert b" 408 " in connection.wait_for_end(30).partition(b"\r\n")[0]
        with server.connect() as one:
            assert one.post("/recommend", {"user": "quick", "k": 1})[1]["event"] == 19
        # The same holds for the headers of a second request, and an earlier answer is not disturbed.
        with server.connect() as one:
            one.send(head_of("/health", 0, "GET") + head[:20])
            assert one.answer()[0] == 200
            assert one.answer() == (408, {"error": "expected the headers of a request within 0.5 s"})
        # A client that sends its body byte by byte and does not read is ended too when the server stops.
        late = server.connect()
        late.send(head)
        assert server.stop(signal.SIGINT) == 0


def test_headers_without_an_end_are_refused_and_take_no_memory(exported: Export) -> None:
    """Whatever is endless: one header, the number of headers, or the path."""
    with serving(exported.path, *SMALL) as server:
        for start in (b"x: ", b"x: y\r\n", b""):
            head = head_of("/health", 0, "GET").partition(b"\r\n\r\n")[0] + b"\r\n" + start if start else b"GET /"
            part = start * 8192 if start.endswith(b"\n") else b"a" * 65_536
            with server.connect() as one:
                assert one.ask("/health", b"", "GET")[0] == 200
                before = server.resident_mb()
                one.send(head)
                with contextlib.suppress(ConnectionError):
                    for _ in range(1000):
                        one.send(part)
                assert server.resident_mb() - before < 20, start
        with server.connect() as other:
            other.send(head_of("/health", 0, "GET")[:-2] + b"x: " + b"a" * 70_000 + b"\r\n\r\n")
            assert other.answer() == (431, {"error": "expected headers of at most 65,536 bytes, found longer ones"})
        with server.connect() as other:
            assert other.ask("/health", b"", "GET")[0] == 200
        assert server.stop() == 0


NOISE = [
    b"\x00" * 40, b"GET\r\n\r\n", b"POST /events HTTP/9.9\r\n\r\n", b"POST /events HTTP/1.1\r\nhost : t\r\n\r\n",
    b"POST /events HTTP/1.1\r\ncontent-length: -5\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
    b"POST /events HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345", b"[" * 3000 + b"\r\n\r\n",
    b"POST /events HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]  # fmt: skip


def hostile(connection: Connection, line: bytes, chance: float) -> tuple[int, Any]:
    """The answer to a line as a body, sent as most clients do, or in another way that is refused."""
    path = "/events" if b"item" in line or b"amend" in line else "/recommend"
    if chance < 0.8:
        return connection.ask(path, line)
    if chance < 0.85:
        return connection.ask(path, line, kind=["text/plain", "application/xml", "", "json"][int(chance * 1e4) % 4])
    if chance < 0.9:
        return connection.ask(["/", "/event", "/events/1", "/health/x"][int(chance * 1e4) % 4], line)
    if chance < 0.95:
        return connection.ask(path, line, method=["PUT", "DELETE", "PATCH", "OPTIONS"][int(chance * 1e4) % 4])
    connection.send(NOISE[int(chance * 1e4) % len(NOISE)])
    connection.socket.shutdown(1)
    try:
        return connection.answer()
    except (ConnectionError, OSError):
        return 400, {"error": "the connection was closed"}
    finally:
        connection.socket.close()


@pytest.mark.timeout(300 * SCALE)
def test_malformed_requests_change_nothing_and_kill_nothing(exported: Export, tmp_path: Path) -> None:
    count, random, accepted, memory = 1000 * SCALE, np.random.default_rng(7), [], []
    options = {"resident": 12, "max_events": 128, "page_size": 64}
    state, statuses = tmp_path / "all", Counter[int]()
    with serving(exported.path, "--state", str(state), *SMALL) as server:
        connection = server.connect()
        for number, line in enumerate(LineMaker(6, exported.model().features).lines(count)):
            if not connection.is_open:
                connection = server.connect()
            status, said = hostile(connection, line, random.random())
            statuses[status] += 1
            if status == 200:
                accepted.append((line, said))
            else:
                assert 400 <= status < 500 and list(said) == ["error"] and "\n" not in said["error"], (line, said)
            if number % (count // 10) == count // 10 - 1:
                memory.append(server.resident_mb())
        connection.socket.close()
        assert server.stop() == 0
    with SessionStore.open(exported, tmp_path / "accepted", **options) as store:
        for line, said in accepted:
            assert answer(store, line) == said
    assert content_of(state) == content_of(tmp_path / "accepted")
    print(f"{count:,} requests: {dict(statuses)}, MB {[round(one, 1) for one in memory]}")
    assert len(accepted) < 0.6 * count and set(statuses) >= {200, 400, 404, 405, 415, 422}
    assert memory[-1] - memory[2] < 8, "megabytes grown over the last seven tenths"


@pytest.mark.timeout(300 * SCALE)
def test_memory_is_flat_over_many_events(exported: Export, tmp_path: Path) -> None:
    """Events of more users than fit in memory, each beyond the longest history."""
    count, users, memory = 1500 * SCALE, 10, []
    with serving(exported.path, "--state", str(tmp_path / "sessions"), *SMALL) as server, server.connect() as one:
        for number in range(count):
            assert one.post("/events", event(f"u{number // 5 % users}", number))[0] == 200
            if number % (count // 10) == count // 10 - 1:
                memory.append(server.resident_mb())
        assert server.stop() == 0
    print(f"{count:,} events, MB {[round(value, 1) for value in memory]}")
    assert memory[-1] - memory[2] < 8, "megabytes grown over the last seven tenths"
