"""`argus serve --http` as a process, and connections to it over which anything can be sent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
READY_SECONDS = 120.0
PRELUDE = """
import sys
from python_model.serving.http import app, server
app.BODY_SECONDS, server.HEADER_SECONDS = {body}, {header}
from python_model.cli import main
main()
"""


@dataclass
class Server:
    """A server that is ready; port: of 127.0.0.1."""

    process: subprocess.Popen[bytes]
    port: int

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(socket.create_connection(("127.0.0.1", self.port), timeout=60))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(120)

    def resident_mb(self) -> float:
        """What the process has in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def command_of(export: Path, *options: str, body: float = 10.0, header: float = 10.0) -> list[str]:
    """The command of a server on any free port; body, header: seconds within which they must come."""
    code = PRELUDE.format(body=body, header=header)
    return [sys.executable, "-c", code, "serve", str(export), "--http", "--port", "0", "--threads", "1", *options]


@contextlib.contextmanager
def serving(export: Path, *options: str, **seconds: float) -> Iterator[Server]:
    """A server, from its ready line on; it is killed at the end of the block if it still runs."""
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = command_of(export, *options, **seconds)
    with subprocess.Popen(command, env=settings, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], READY_SECONDS)[0], "no ready line"
            line = process.stdout.readline().decode()
            assert line.startswith("Ready on http://127.0.0.1:"), line
            yield Server(process, int(line.rsplit(":", 1)[1]))
        finally:
            process.kill()


@dataclass
class Connection:
    """A connection that stays open from request to request."""

    socket: socket.socket
    received: bytes = field(default=b"")

    def post(self, path: str, request: Any) -> tuple[int, Any]:
        """Status and JSON of the answer to a JSON value."""
        return self.ask(path, json.dumps(request).encode())

    def ask(self, path: str, body: bytes, method: str = "POST", kind: str = "application/json") -> tuple[int, Any]:
        """Status and JSON of the answer to a body."""
        self.send(head_of(path, len(body), method, kind) + body)
        return self.answer()

    def send(self, content: bytes) -> None:
        """Sends bytes as they are."""
        self.socket.sendall(content)

    def answer(self) -> tuple[int, Any]:
        """Status and JSON of the next answer; ConnectionError where the connection ends before it."""
        while b"\r\n\r\n" not in self.received:
            self._receive()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(headers["content-length"])
        while len(self.received) < length:
            self._receive()
        body, self.received = self.received[:length], self.received[length:]
        found = json.loads(body) if headers["content-type"] == "application/json" else body
        if headers.get("connection") == "close":
            self.socket.close()
        return int(lines[0].split()[1]), found

    @property
    def is_open(self) -> bool:
        """Whether the server has not said that it closes the connection."""
        return self.socket.fileno() >= 0

    def _receive(self) -> None:
        found = self.socket.recv(1 << 16)
        if not found:
            raise ConnectionError("the server closed the connection")
        self.received += found

    def wait_for_end(self, seconds: float) -> bytes:
        """What comes until the server closes the connection; TimeoutError where it does not in time."""
        self.socket.settimeout(seconds)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.socket.recv(1 << 16)
            if not found:
                return self.received
            self.received += found
        raise TimeoutError

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *raised: object) -> None:
        self.socket.close()


def head_of(path: str, length: int, method: str = "POST", kind: str = "application/json") -> bytes:
    """The head of a request."""
    return f"{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()
