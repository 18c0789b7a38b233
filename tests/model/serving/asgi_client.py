"""Asks the HTTP application of a session store without a network: one request, one answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from python_model.serving.http.app import Limits, make_app
from python_model.serving.store import SessionStore

JSON = ((b"content-type", b"application/json"),)
Parts = Iterable[bytes]


@dataclass(frozen=True)
class Reply:
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        """The JSON of the body."""
        return json.loads(self.body)


class Client:
    """Sends requests to an application."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = JSON,
        parts: Parts | None = None, pause: float = 0.0,
    ) -> Reply:  # fmt: skip
        """The answer to a request whose body comes in parts, with a pause before each."""
        left = list(parts) if parts is not None else [body]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause)
            part = left.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": list(headers),
            "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        }  # fmt: skip
        await self.app(scope, receive, send)
        found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(one.get("body", b"") for one in sent[1:]))

    async def post(self, path: str, request: Any) -> Reply:
        """The answer to a JSON value."""
        return await self.ask("POST", path, json.dumps(request).encode())


@asynccontextmanager
async def opened(store: SessionStore, limits: Limits | None = None) -> Any:
    """A client of a store's application, which runs until the block ends."""
    app = make_app(store, limits or Limits())
    async with app.router.lifespan_context(app):
        yield Client(app)


def asking(
    store: SessionStore, questions: Callable[[Client], Awaitable[None]], limits: Limits | None = None
) -> None:  # fmt: skip
    """Runs a coroutine with a client of a store's application."""

    async def run() -> None:
        async with opened(store, limits) as client:
            await questions(client)

    asyncio.run(run())
