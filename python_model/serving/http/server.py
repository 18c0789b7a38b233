"""The server process of `argus serve --http`: its socket, its signals, its ready line and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import uvicorn

from python_model.serving.http.app import BODY_SECONDS, Limits, make_app
from python_model.serving.store import SessionStore

HEADER_SECONDS = 10.0
"""Within which a new connection must have sent the headers of a request, and every request its own."""
MAX_HEAD_BYTES = 1 << 16
"""Longest request line and headers together; the parser itself has no limit."""
IDLE_SECONDS = 60
"""After which a connection without a request is closed."""
MAX_CONNECTIONS = 4096
RESERVED_FILES = 128
"""Open files for the journal, sessions that are loaded, logs and libraries."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening; ValueError where the address cannot be had. port 0: any free one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host is {host!r}: no address of this machine ({error})") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ValueError(f"cannot listen on {host}, port {port}: {(error.strerror or str(error)).lower()}") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Says when it is ready, and stops on SIGTERM and SIGINT without raising them again when it is done."""

    def __init__(self, config: uvicorn.Config, when_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._when_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal stops the server; what is queued is finished however many follow."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True


_TOO_LONG = f"expected headers of at most {MAX_HEAD_BYTES:,} bytes, found longer ones"


class _Bounded(asyncio.Protocol):
    """A protocol of uvicorn with at most `most` connections and bounded headers; its own errors are JSON."""

    most: int
    transport: Any
    connections: Any
    cycle: Any
    loop: Any
    url: bytes
    headers: list[tuple[bytes, bytes]]
    _refusal = (400, "expected a request of HTTP/1.1, found something else")
    _head_bytes: int | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._end(503, f"{self.most:,} connections are open already: try again in a moment")
        else:
            self.loop.call_later(HEADER_SECONDS, self._end_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        timed = self._timer
        super().data_received(data)
        if self._head_bytes is None or self.transport.is_closing():
            return
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._end_if_late)
        elif self._timer is timed:
            # Without the end of its line, a header is kept by the parser and not reported.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end(431, _TOO_LONG)

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._refusal = (431, _TOO_LONG)
            # The parser stops, and the protocol sends what it sends for a request that is no HTTP.
            raise ValueError(_TOO_LONG)
        super().on_headers_complete()  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        self._end(*self._refusal)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _end_if_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # The answer to the request before is written first.
            self._timer = self.loop.call_later(HEADER_SECONDS, self._end_if_late)
        else:
            self._end(408, f"expected the headers of a request within {HEADER_SECONDS:g} s")

    def _end_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self._end(408, f"expected the headers of a request within {HEADER_SECONDS:g} s")

    def _end(self, status: int, sentence: str) -> None:
        body = json.dumps({"error": sentence}).encode("ascii")
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def _bounded(protocol: type[Any], most: int) -> type[Any]:
    """The protocol with at most so many connections."""
    return type("Bounded", (_Bounded, protocol), {"most": most})


def _most_connections() -> int:
    """MAX_CONNECTIONS, or as many as the limit of open files leaves after a reserve for the sessions' files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - RESERVED_FILES))


def serve(store: SessionStore, bound: socket.socket, limits: Limits, when_ready: Callable[[str], None]) -> None:
    """Answers requests on a bound socket until SIGTERM or SIGINT, finishes what is queued, and returns.

    when_ready: called with the server's URL once it answers.
    """
    # uvicorn warns of every request that is no HTTP: whoever sends such could fill the log.
    config = uvicorn.Config(
        make_app(store, limits), log_level="error", access_log=False, server_header=False, lifespan="on",
        timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=int(BODY_SECONDS + limits.timeout) + 1,
        ws="none",
    )  # fmt: skip
    config.load()
    config.http_protocol_class = _bounded(config.http_protocol_class, _most_connections())
    url = address_of(bound)

    def ready() -> None:
        # Requests make garbage in cycles, and a full collection walks through everything that was imported and loaded:
        # the event loop took 1.3 s of processor time for 2,600 requests, and takes 0.9 s without it.
        gc.collect()
        gc.freeze()
        when_ready(url)

    server = _Server(config, ready)
    before = signal.getsignal(signal.SIGTERM)
    server.run(sockets=[bound])
    # The event loop leaves the signal that kills at once; the sessions are still to be saved.
    signal.signal(signal.SIGTERM, before)
