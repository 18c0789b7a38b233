"""The HTTP interface: the answers of JSON lines, a status for everything that is wrong, and a state as before."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import pytest

from python_model.io.json_text import parse
from python_model.serving.answering import answer
from python_model.serving.bundle import Export
from python_model.serving.events import EventReader
from python_model.serving.http import app as interface
from python_model.serving.http import schema
from python_model.serving.http.app import Limits
from python_model.serving.requests import MAX_BYTES, MAX_ITEMS
from python_model.serving.store import SessionStore
from tests.model.serving.asgi_client import JSON, Client, Reply, asking
from tests.model.serving.conftest import assert_close
from tests.model.serving.hostile_lines import LineMaker
from tests.model.serving.test_lines import REFUSED, TIME, state_of

LONG = (b"content-length", b"9" * 30)
SMALL: dict[str, Any] = {"resident": 3, "max_events": 32, "page_size": 4}


@pytest.fixture
def server(exported: Export, tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(exported, tmp_path, **SMALL) as opened:
        yield opened


def path_of(request: Any) -> str:
    """The path that a request is for."""
    if not isinstance(request, dict) or "item" in request or "amend" in request:
        return "/events"
    return "/score" if "items" in request else "/recommend"


def is_read(body: bytes) -> bool:
    """Whether a body is JSON as the server reads it."""
    try:
        parse(body)
    except ValueError:
        return False
    return True


def assert_same(found: Any, expected: Any) -> None:
    """Equal, numbers up to rounding."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        assert_close(found, expected)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert_close(found, expected)
    else:
        assert found == expected


def test_answers_are_those_of_lines(server: SessionStore, exported: Export, tmp_path: Path) -> None:
    known = exported.item_ids.ids[:3].tolist()
    asked: list[dict[str, Any]] = [
        {"user": 5, "item": known[0], "time": TIME, "feedback": {"like": 1}}, {"user": 5, "k": 3, "exclude_seen": True},
        {"user": "new", "item": "no such item", "time": TIME, "k": 2}, {"user": 5, "amend": 0, "feedback": {"like": 0}},
        {"user": "new", "k": 4, "score": "next_item", "now": TIME + 60, "vectors": True},
        {"user": "new", "items": [known[2], "no such item", str(known[1])]}, {"user": 5, "k": 10**6},
    ]  # fmt: skip

    async def questions(client: Client) -> None:
        for request in asked:
            found = await client.post(path_of(request), request)
            assert found.headers["content-type"] == "application/json"
            expected = answer(twin, json.dumps(request))
            assert found.status == (422 if "error" in expected else 200), (request, found)
            assert_same(found.said, expected)

    with SessionStore.open(exported, tmp_path / "twin", **SMALL) as twin:
        asking(server, questions)


def test_scores_are_those_of_recommendations(server: SessionStore) -> None:
    best = answer(server, '{"user": 5, "k": 4}')["items"]
    asked = [one["item"] for one in best]
    found = answer(server, json.dumps({"user": 5, "items": [*asked, "unknown"]}))["scores"]
    assert [one["item"] for one in found] == [*asked, "unknown"] and found[-1]["score"] is None
    assert_close([one["score"] for one in found[:-1]], [one["score"] for one in best])


def test_what_is_wrong_has_a_status_and_changes_nothing(server: SessionStore) -> None:
    lines = [(line if isinstance(line, bytes) else line.encode(errors="surrogatepass")) for line, _ in REFUSED]
    expected = [answer(server, line)["error"] for line in lines]
    before, resident = state_of(server), server.resident

    async def questions(client: Client) -> None:
        for line, sentence in zip(lines, expected, strict=True):
            path = "/events" if b"item" in line or b"amend" in line else "/recommend"
            found = await client.ask("POST", path, line)
            assert list(found.said) == ["error"] and "\n" not in found.said["error"], line
            if len(line) > MAX_BYTES:
                assert found.status == 413, line
            elif not found.said["error"].startswith(path):
                is_json = is_read(line)
                assert (found.status, found.said["error"]) == (422 if is_json else 400, sentence), line

    asking(server, questions)
    assert server.resident == resident and state_of(server) == before


def test_a_request_belongs_to_its_path(server: SessionStore) -> None:
    event, best, scores = {"user": 5, "item": 1, "time": TIME}, {"user": 5, "k": 2}, {"user": 5, "items": [1]}
    wrong = {
        ("/recommend", "item"): {**event, "k": 1}, ("/score", "item"): {**event, "items": [1]},
        ("/events", "items"): {**event, "items": [1]}, ("/recommend", "items"): {**best, **scores},
        ("/score", "k"): {**best, **scores},
    }  # fmt: skip

    async def questions(client: Client) -> None:
        for (path, key), request in wrong.items():
            found = await client.post(path, request)
            assert found.status == 422 and f"{path} does not take {key}: it is for /" in found.said["error"]
        for path, request in (("/events", best), ("/recommend", {"user": 5}), ("/score", best)):
            found = await client.post(path, request)
            assert found.status == 422 and found.said["error"].startswith(f"{path}: expected ")

    before = state_of(server)
    asking(server, questions)
    assert state_of(server) == before


def test_bodies_and_paths_that_no_client_should_send(server: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "BODY_SECONDS", 0.05)
    right = b'{"user": 5, "k": 1}'
    padded = right + b" " * (MAX_BYTES - len(right))

    async def questions(client: Client) -> None:
        async def check(status: int, sentence: str, method: str, path: str, *given: Any, **named: Any) -> Reply:
            found = await client.ask(method, path, *given, **named)
            assert found.status == status and sentence in found.said.get("error", ""), found
            return found

        await check(200, "", "POST", "/recommend", padded)
        await check(413, "at most 1,048,576 bytes", "POST", "/recommend", padded + b" ")
        await check(413, "at most 1,048,576 bytes", "POST", "/recommend", right, [*JSON, LONG])
        await check(413, "at most 1,048,576 bytes", "POST", "/recommend", parts=[padded, b" "])
        await check(200, "", "POST", "/recommend", parts=[right[:4], b"", right[4:]])
        await check(408, "within 0.05 s, found 8 bytes", "POST", "/recommend", parts=[right[:4]] * 9, pause=0.02)
        await check(400, "expected JSON, found the end of the text", "POST", "/events")
        for kind in ([], [(b"content-type", b"text/plain")], [(b"content-type", b"application/x-www-form-urlencoded")]):
            await check(415, "content-type: application/json", "POST", "/events", right, kind)
        await check(415, "without content-encoding", "POST", "/events", right, [*JSON, (b"content-encoding", b"gzip")])
        await check(200, "", "POST", "/recommend", right, [(b"content-type", b"Application/JSON; charset=utf-8")])
        for path in ("/", "/event", "/events/", "/recommend/5", "/%00", "/.."):
            await check(404, "expected one of /events, /recommend, /score, /health", "POST", path, right)
        for method, path, allowed in (
            ("GET", "/events", "POST"),
            ("PUT", "/score", "POST"),
            ("POST", "/health", "GET"),
        ):
            found = await check(405, f"does not take {method}: expected {allowed}", method, path)
            assert found.headers["allow"] == allowed

    asking(server, questions)


def test_a_full_queue_and_a_late_request_change_nothing(server: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, free = threading.Event(), threading.Event()
    add = SessionStore.add_rows

    def slow(store: SessionStore, events: Any) -> Any:
        begun.set()
        assert free.wait(20)
        return add(store, events)

    monkeypatch.setattr(SessionStore, "add_rows", slow)

    async def questions(client: Client) -> None:
        def event(number: int) -> Any:
            return client.post("/events", {"user": "u", "item": number, "time": TIME + number})

        first = asyncio.ensure_future(event(0))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        late = [asyncio.ensure_future(event(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        full = await event(3)
        assert full.status == 503 and "2 requests wait already" in full.said["error"]
        assert full.headers["retry-after"] == "1"
        for one in await asyncio.gather(*late):
            assert one.status == 504 and "waited for 0.1 s and was not begun" in one.said["error"]
        free.set()
        # It was begun, so it is answered, however late.
        assert (await first).said == {"user": "u", "event": 0}
        assert (await event(4)).said == {"user": "u", "event": 1}

    asking(server, questions, Limits(queue=2, timeout=0.1))
    assert len(server.session("u")) == 2


def test_failures_of_the_server_are_not_the_clients(server: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"user": "u", "item": 1, "time": TIME}

    async def questions(client: Client) -> None:
        for error, status in ((OSError(28, "No space left on device"), 503), (RuntimeError("broken"), 500)):
            with monkeypatch.context() as patch:
                patch.setattr("python_model.serving.journal.os.pwrite", Mock(side_effect=error))
                found = await client.post("/events", request)
                assert found.status == status and list(found.said) == ["error"], found
        assert (await client.post("/events", request)).said["event"] == 0

    asking(server, questions)


def test_health_and_metrics(server: SessionStore) -> None:
    async def questions(client: Client) -> None:
        assert (await client.ask("GET", "/health")).said == {"live": True, "ready": True}
        for number in range(3):
            await client.post("/events", {"user": "u", "item": number, "time": TIME})
        await client.post("/events", {"user": "u"})
        found = await client.ask("GET", "/metrics")
        assert found.headers["content-type"].startswith("text/plain")
        lines = found.body.decode().splitlines()
        for line in (
            'argus_requests_total{path="/events",status="200"} 3.0', "argus_batch_requests_count 3.0",
            'argus_requests_total{path="/events",status="422"} 1.0', "argus_resident_users 1.0",
            'argus_request_seconds_count{path="/events"} 4.0', "argus_queue_requests 0.0", "argus_unsaved_changes 3.0",
        ):  # fmt: skip
            assert line in lines, line

    asking(server, questions)


def test_head_is_answered_and_the_page_loads_nothing(server: SessionStore) -> None:
    async def questions(client: Client) -> None:
        for path in ("/health", "/metrics", "/docs", "/openapi.json"):
            assert (await client.ask("HEAD", path)).status == 200, path
        page = await client.ask("GET", "/docs")
        text = page.body.decode()
        assert page.headers["content-type"].startswith("text/html")
        assert "<script" not in text and "src=" not in text and "http" not in text.replace("application", "")
        assert all(f"POST {path}" in text for path in schema.PATHS) and "exclude_seen" in text

    asking(server, questions)


def test_openapi_describes_what_is_checked(server: SessionStore) -> None:
    """The examples are answered, and the schemas say of random requests what `Request.of` says."""

    async def questions(client: Client) -> None:
        described = (await client.ask("GET", "/openapi.json")).said
        assert set(described["paths"]) == {*schema.PATHS, "/health", "/metrics"}
        for path in schema.PATHS:
            content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            found = await client.post(path, content["example"])
            assert found.status == 200, found
            jsonschema.validate(content["example"], content["schema"])
            jsonschema.validate(found.said, schema.ANSWER)
            assert set(described["paths"][path]["post"]["responses"]) == {"200", *map(str, interface.ERRORS)}

    asking(server, questions)


def is_valid(path: str, request: Any, store: SessionStore) -> bool:
    """Whether a request is right, apart from what depends on the user's history."""
    try:
        asked = interface._asked(path, json.dumps(request).encode())
        store.session(asked.user)
        store.require_asked(**asked.asked)
        if asked.event is not None:
            store.reader.row(asked.event)
        if asked.amend is not None:
            store.reader.values("feedback", asked.feedback)
    except (ValueError, interface.Refused):
        return False
    return not (asked.amend is not None and not asked.feedback)


def test_schemas_and_checks_say_the_same(server: SessionStore) -> None:
    validators = {
        path: jsonschema.Draft202012Validator(found) for path, found in schema.requests(server.reader).items()
    }
    verdicts: dict[bool, int] = {True: 0, False: 0}
    items: list[Any] = [[1], ["x", 2], [], [True], [1.5], 1, [""], list(range(MAX_ITEMS + 1))]
    for number, line in enumerate(LineMaker(11, server.model.features).lines(1500)):
        try:
            request = parse(line)
        except ValueError:
            continue
        if not isinstance(request, dict) or _differs_from_json_schema(request):
            continue
        if number % 5 == 0:
            request = {**request, "items": items[number // 5 % len(items)]}
        for path, validator in validators.items():
            valid = is_valid(path, request, server)
            assert validator.is_valid(request) == valid, (path, request, list(validator.iter_errors(request)))
            verdicts[valid] += 1
    assert min(verdicts.values()) > 200, verdicts


def _differs_from_json_schema(value: Any) -> bool:
    """Whether a value has what JSON Schema sees otherwise: 1.0 is an integer to it, and bytes of UTF-8 are unknown."""
    if isinstance(value, dict):
        return any(_differs_from_json_schema(one) for one in [*value, *value.values()])
    if isinstance(value, list):
        return any(map(_differs_from_json_schema, value))
    is_surrogate = isinstance(value, str) and any("\ud800" <= one <= "\udfff" for one in value)
    return is_surrogate or (isinstance(value, float) and value.is_integer())


def test_labels_are_in_the_schema(exported: Export) -> None:
    from dataclasses import replace

    with SessionStore.open(exported) as store:
        [name, *_] = store.model.features.context
        names = replace(store.names, labels={f"context_{name}": {0: "phone", 1: "tablet"}})
        found = schema.keys(EventReader(store.model.features, store.items, names))["context"]["properties"][name]
    assert found["anyOf"][1] == {"enum": ["phone", "tablet"]}


def test_an_invalid_request_loads_no_user(server: SessionStore) -> None:
    """Whoever sends only invalid requests makes nobody leave the memory."""
    for user in ("a", "b", "c"):
        answer(server, json.dumps({"user": user, "item": 1, "time": TIME}))
    before = server.resident

    async def questions(client: Client) -> None:
        for number in range(4):
            for wrong in ({"feedback": {"like": 9}}, {"time": TIME * 1000}, {"context": {"nowhere": 1}}):
                request = {"user": f"unknown {number}", "item": 1, "time": TIME, **wrong}
                assert (await client.post("/events", request)).status == 422
            late = {"user": f"unknown {number}", "amend": 0, "feedback": {"like": "x"}}
            assert (await client.post("/events", late)).status == 422
            asked = {"user": f"unknown {number}", "k": 1, "now": -1}
            assert (await client.post("/recommend", asked)).status == 422

    asking(server, questions)
    assert server.resident == before


def test_malformed_requests_change_nothing(server: SessionStore, exported: Export, tmp_path: Path) -> None:
    """What test_http_process.py does over connections, without them: the state is that of the accepted requests."""
    accepted: list[tuple[bytes, Any]] = []
    lines = list(LineMaker(8, server.model.features).lines(300))

    async def questions(client: Client) -> None:
        for line in lines:
            path = "/events" if b"item" in line or b"amend" in line else "/recommend"
            found = await client.ask("POST", path, line)
            if found.status == 200:
                accepted.append((line, found.said))
            else:
                assert found.status in (400, 422) and list(found.said) == ["error"], (line, found)

    asking(server, questions)
    with SessionStore.open(exported, tmp_path / "accepted", **SMALL) as twin:
        for line, said in accepted:
            assert answer(twin, line) == said
        assert 50 < len(accepted) < 200 and state_of(twin) == state_of(server)
