"""The HTTP interface of a session store: paths, status codes and OpenAPI.

Every answer is JSON but that of /metrics. One that is not the wanted answer is `{"error": "one sentence"}`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from python_model.io.json_text import parse
from python_model.serving import answering
from python_model.serving.answering import Answer, refused
from python_model.serving.arguments import whole_number
from python_model.serving.http import page, schema
from python_model.serving.http.metrics import CONTENT_TYPE, Metrics
from python_model.serving.http.worker import Full, Late, Stopping, Worker
from python_model.serving.requests import MAX_BYTES
from python_model.serving.requests import Request as Asked
from python_model.serving.store import SessionStore

STATUS = {answering.INVALID: 422, answering.DAMAGED: 500, answering.STORAGE: 503, answering.INTERNAL: 500}
RETRY_SECONDS = 1
BODY_SECONDS = 10.0
"""Within which the body of a request must have come."""
NEEDED = {"/events": ("item", "amend"), "/recommend": ("k",), "/score": ("items",)}
"""Path → the keys of which its requests have one."""
FOREIGN = {"/events": ("items",), "/recommend": ("item", "amend", "items"), "/score": ("item", "amend", "k")}
"""Path → keys that belong to another one."""
ERRORS = {
    400: "The body is not JSON, or the connection ended before it.",
    408: f"The body did not come within {BODY_SECONDS:g} s.",
    413: f"The body has more than {MAX_BYTES:,} bytes.",
    415: "The body is not application/json.",
    422: "The request is invalid.",
    503: "Too many requests wait, the server stops, or the disk is full: try again later.",
    504: "The request could not be begun in time.",
}


@dataclass(frozen=True)
class Limits:
    """queue: requests that may wait. batch: requests of one batch. timeout: seconds until a request must be begun."""

    queue: int = 1024
    batch: int = 64
    timeout: float = 30.0

    def __post_init__(self) -> None:
        whole_number(self.queue, "queue", 1)
        whole_number(self.batch, "batch", 1)
        # Also not a number, which no comparison refuses.
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout}, expected a positive number of seconds")


class Refused(Exception):
    """A request is refused: status, sentence, further headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


def make_app(store: SessionStore, limits: Limits) -> FastAPI:
    """The application; its worker owns the store from the application's start to its end."""
    metrics = Metrics({
        "queue_requests": ("Requests that wait.", lambda: worker.waiting),
        "resident_users": ("Users in memory.", lambda: len(store.memory.residents)),
        "unsaved_changes": ("Lines of the journal: changes since the last save.", lambda: store.unsaved),
    })  # fmt: skip
    worker = Worker(
        store, capacity=limits.queue, most=limits.batch, timeout=limits.timeout, observe=metrics.batch
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await worker.stop()

    app = FastAPI(
        title="argus serve", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        description="Sessions of users: events in, recommendations and scores out. Requests are checked strictly: "
        "types are exact, a key that is unknown, twice there or without effect is refused, and a refused request has "
        "changed nothing.",
    )  # fmt: skip
    _add_sessions(app, store, worker, metrics, limits)
    _add_status(app, worker, metrics)
    _add_page(app)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        known = ", ".join([*NEEDED, "/health", "/metrics", "/openapi.json", "/docs"])
        path = request.url.path[:100]
        sentence = f"{path} is no path of this server: expected one of {known}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            sentence = f"{path} does not take {request.method[:20]}: expected {allowed}"
        return _error(error.status_code, sentence, error.headers)

    return app


def _add_sessions(app: FastAPI, store: SessionStore, worker: Worker, metrics: Metrics, limits: Limits) -> None:
    """The paths that take requests of sessions."""
    schemas, user = schema.requests(store.reader), store.example_user
    examples = schema.examples(store.reader, user)

    def endpoint(path: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            try:
                asked = _asked(path, await _body(request))
                response = _response(await worker.answer(asked))
            except Refused as error:
                response = _error(error.status, str(error), error.headers)
            except Full:
                sentence = f"{limits.queue:,} requests wait already: try again in a moment"
                response = _error(503, sentence, {"retry-after": str(RETRY_SECONDS)})
            except Stopping:
                response = _error(503, "the server stops", {"retry-after": str(RETRY_SECONDS), "connection": "close"})
            except Late:
                response = _error(504, f"the request waited for {limits.timeout:g} s and was not begun")
            metrics.answered(path, response.status_code, time.perf_counter() - began)
            return response

        return answer

    errors = {str(code): _described(why, schema.ERROR) for code, why in ERRORS.items()}
    for path, summary in schema.PATHS.items():
        content = {"application/json": {"schema": schemas[path], "example": examples[path]}}
        described = {
            "requestBody": {"required": True, "content": content},
            "responses": {"200": _described("The answer.", schema.ANSWER), **errors},
        }
        app.post(path, summary=summary, openapi_extra=described, operation_id=path[1:])(endpoint(path))


def _add_status(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    # HEAD is what load balancers and `curl -I` ask with; FastAPI, unlike Starlette, does not answer it by itself.
    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the server lives, and is ready for requests; 503 where it is not.")
    async def health() -> Response:
        return _json(200 if worker.is_alive else 503, {"live": True, "ready": worker.is_alive})

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="Counts and times in the text format of Prometheus.")
    async def of_prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    """/docs: the paths, with an example of each, without a script or a file from elsewhere."""

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page.page(app.openapi()), media_type="text/html; charset=utf-8")


def _described(what: str, found: schema.Schema) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": found}}}


async def _body(request: Request) -> bytes:
    """The body of a request of type application/json; Refused for another type, one too long, or too slow."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, f"expected the header content-type: application/json, found {kind[:100]!r}")
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Refused(415, f"expected a body without content-encoding, found {coding[:100]!r}")
    parts: list[bytes] = []
    try:
        await asyncio.wait_for(_collect(request, parts), BODY_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        sentence = f"expected the whole body within {BODY_SECONDS:g} s, found {sum(map(len, parts)):,} bytes of it"
        raise Refused(408, sentence, {"connection": "close"}) from None
    return b"".join(parts)


async def _collect(request: Request, parts: list[bytes]) -> None:
    length = request.headers.get("content-length", "0")
    size = int(length) if length.isdigit() else 0
    while size <= MAX_BYTES:
        message = await request.receive()
        if message["type"] != "http.request":
            raise Refused(400, "the connection ended before the body")
        parts.append(message.get("body", b""))
        size = max(size, sum(map(len, parts)))
        if not message.get("more_body", False) and size <= MAX_BYTES:
            return
    # What is left of the body is not read.
    raise Refused(413, f"expected a body of at most {MAX_BYTES:,} bytes, found a longer one", {"connection": "close"})


def _asked(path: str, body: bytes) -> Asked:
    try:
        found = parse(body)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    try:
        request = Asked.of(found)
    except ValueError as error:
        raise Refused(422, refused(error).said["error"]) from None
    if not any(name in found for name in NEEDED[path]):
        raise Refused(422, f"{path}: expected {' or '.join(NEEDED[path])}, found {', '.join(sorted(found))}")
    if foreign := [name for name in FOREIGN[path] if name in found]:
        other = next(one for one, names in NEEDED.items() if foreign[0] in names)
        raise Refused(422, f"{path} does not take {foreign[0]}: it is for {other}")
    return request


def _response(found: Answer) -> Response:
    if found.failure is None:
        return _json(200, found.said)
    headers = {"retry-after": str(RETRY_SECONDS)} if found.failure == answering.STORAGE else None
    return _json(STATUS[found.failure], found.said, headers)


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(status, {"error": sentence}, headers)


def _json(status: int, said: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps(said, allow_nan=False).encode("ascii")
    return Response(content, status, headers, media_type="application/json")
