"""A client of `argus serve --http`: connections on the loopback, each of which asks again as soon as it is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

TIMEOUT = 120.0
"""Seconds after which an answer that has not come ends the measurement."""

MakeRequest = Callable[[], tuple[str, dict[str, object]]]
"""The next request of a connection: path and body."""


@dataclass
class Load:
    """What came of a measurement: seconds of every answered request, statuses that are not 200."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: dict[int, int] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Requests a second and milliseconds."""
        p50, p99 = np.quantile(self.latencies, [0.5, 0.99]) * 1e3
        return {
            "requests": len(self.latencies), "requests_per_second": len(self.latencies) / self.seconds,
            "p50_ms": float(p50), "p99_ms": float(p99), "refused": sum(self.refused.values()),
        }  # fmt: skip


class _Connection(asyncio.Protocol):
    """One connection; it stops asking at `until` and resolves `done` with the last answer."""

    def __init__(self, next_request: MakeRequest, load: Load, until: float) -> None:
        self._next_request, self._load, self._until = next_request, load, until
        self._received, self._sent = b"", 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        path, request = self._next_request()
        body = json.dumps(request).encode("ascii")
        head = (
            f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._sent = time.perf_counter()
        self._transport.write(head.encode("ascii") + body)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
            return
        now, status = time.perf_counter(), int(head[9:12])
        if status == 200:
            self._load.latencies.append(now - self._sent)
        else:
            self._load.refused[status] = self._load.refused.get(status, 0) + 1
        self._received = b""
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _measure(port: int, requests: Sequence[MakeRequest], seconds: float) -> Load:
    load, loop, began = Load(), asyncio.get_running_loop(), time.perf_counter()
    opened = [
        await loop.create_connection(partial(_Connection, one, load, began + seconds), "127.0.0.1", port)
        for one in requests
    ]
    await asyncio.wait_for(asyncio.gather(*(protocol.done for _, protocol in opened)), seconds + TIMEOUT)
    load.seconds = time.perf_counter() - began
    return load


def measure(port: int, requests: Sequence[MakeRequest], seconds: float) -> Load:
    """Asks for so many seconds over a connection for each element of `requests`."""
    return asyncio.run(_measure(port, requests, seconds))
