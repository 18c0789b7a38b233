"""The protocol of `argus serve`: one JSON object per line in, one out. docs/serving.md lists the keys.

Every line is answered, whatever it holds; a line answered with `error` has changed nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from python_model.io.disk import writing
from python_model.io.json_text import kind_of, parse
from python_model.serving.answers import Reading
from python_model.serving.arguments import flag, whole_number
from python_model.serving.events import Event
from python_model.serving.store import Session, SessionStore

OF_EVENT = ("item", "time", "organic", "context", "feedback")
OF_REQUEST = ("user", "amend", "k", "exclude_seen", "vectors", "score", "now")
NEEDED = {
    "time": ("item",), "feedback": ("item", "amend"), "score": ("k",), "exclude_seen": ("k",), "now": ("k", "vectors"),
    "organic": ("item", "k", "vectors"), "context": ("item", "k", "vectors"),
}  # fmt: skip
"""Key → other keys; without one of those, the key has no effect in a request."""
REQUIRED = {"item": "time", "amend": "feedback"}
MAX_LINE = 1 << 20
"""Longest line in bytes; a longer one is refused and not kept in memory."""
MAX_SENTENCE = 1000
"""Most characters of an answer's `error`, which may quote the request."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A valid request: the keys fit together and have the right types.

    event: the new event; amend: number of the event that `feedback` is for; both None for a pure query. asked: the
    given ones of score, now, organic and context of `Session.vector`. k: None where no items are requested.
    """

    user: Any
    event: Event | None
    amend: int | None
    feedback: Any
    asked: dict[str, Any]
    k: int | None
    exclude_seen: bool
    vectors: bool

    @classmethod
    def of(cls, found: Any) -> Request:
        """The request of a JSON value; ValueError where it is invalid."""
        if not isinstance(found, dict):
            raise ValueError(f"expected a JSON object that names a user, found {kind_of(found)}")
        unknown = sorted(found.keys() - set(OF_EVENT + OF_REQUEST))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}, expected some of {', '.join(OF_REQUEST + OF_EVENT)}")
        if nothing := sorted(name for name, value in found.items() if value is None):
            raise ValueError(f"{nothing[0]} is null: expected a value, or no such key")
        if "user" not in found:
            raise ValueError("user is missing: expected a JSON object that names a user")
        vectors = flag(found.get("vectors", False), "vectors")
        _require_fit(found.keys() - (set() if vectors else {"vectors"}))
        is_event = "item" in found
        names = ("score", "now") if is_event else ("score", "now", "organic", "context")
        return cls(
            user=found["user"],
            event=Event(**{name: found[name] for name in OF_EVENT if name in found}) if is_event else None,
            amend=whole_number(found["amend"], "amend", 0) if "amend" in found else None,
            feedback=found.get("feedback"),
            asked={name: found[name] for name in names if name in found},
            k=whole_number(found["k"], "k", 1) if "k" in found else None,
            exclude_seen=flag(found.get("exclude_seen", False), "exclude_seen"),
            vectors=vectors,
        )


def _require_fit(keys: set[str]) -> None:
    """ValueError for keys that contradict each other, lack another one, or have no effect."""
    if {"item", "amend"} <= keys:
        raise ValueError("item and amend in one line: expected an event, or feedback for one that came before")
    for name, other in REQUIRED.items():
        if name in keys and other not in keys:
            raise ValueError(f"{name} without {other}: expected both")
    for name, others in NEEDED.items():
        if name in keys and not keys & set(others):
            raise ValueError(f"{name} has no effect here: expected it with {' or '.join(others)}")


def answer(store: SessionStore, line: str | bytes) -> dict[str, Any]:
    """The answer to a line; on failure an object with a sentence under `error`, and nothing has changed."""
    try:
        request = Request.of(parse(line))
        session = store.session(request.user)
        store.require_asked(**request.asked)
        with store.atomically():
            return _answered(store, session, request)
    except (ValueError, OSError) as error:
        sentence = str(error)
    except Exception as error:
        # The server must survive any exception: the state is unchanged, and the log has the traceback.
        logger.exception("a request failed within")
        sentence = f"internal error, nothing has changed: {type(error).__name__}: {error}"
    return _refusal(sentence)


def _refusal(sentence: str) -> dict[str, Any]:
    lines = sentence.splitlines() or [""]
    return {"error": lines[0] if len(lines[0]) <= MAX_SENTENCE else lines[0][:MAX_SENTENCE] + "…"}


def _answered(store: SessionStore, session: Session, request: Request) -> dict[str, Any]:
    if request.event is not None:
        reading = session.add(request.event)
    elif request.amend is not None:
        reading = session.amend(request.amend, request.feedback)
    else:
        reading = session.reading()
    out: dict[str, Any] = {"user": session.user, "event": reading.number}
    if request.event is not None and store.items.number(request.event.item) < 0:
        out["unknown_item"] = True
    if request.k is not None:
        best = session.top_k(request.k, exclude_seen=request.exclude_seen, **request.asked)
        titles = [{} if one.title is None else {"title": one.title} for one in best]
        out["items"] = [{"item": one.item_id, **title, "score": one.score}
                        for one, title in zip(best, titles, strict=True)]  # fmt: skip
    if request.vectors:
        out |= _vectors(store, session, reading, request)
    return out


def _vectors(store: SessionStore, session: Session, reading: Reading, request: Request) -> dict[str, Any]:
    asked = {name: value for name, value in request.asked.items() if name != "score"}
    query, user_vector = reading.query, reading.user_vector
    if asked:
        query = session.vector(score="next_item", **asked)
        user_vector = session.vector(score="pair", **asked) if user_vector is not None else None
    return {"query": query.tolist(), "user_vector": None if user_vector is None else user_vector.tolist()}


def serve(store: SessionStore, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers every line until there are no more: UTF-8 in, ASCII out, whatever the locale says.

    BrokenPipeError where nobody reads the answers, WriteError where they cannot be written.
    """
    for line in lines_of(requests):
        if line is None:
            said = _refusal(f"expected a line of at most {MAX_LINE:,} bytes, found a longer one")
        else:
            said = answer(store, line)
        content = json.dumps(said, allow_nan=False).encode("ascii") + b"\n"
        try:
            answers.write(content)
            answers.flush()
        except BrokenPipeError:
            raise
        except OSError:
            with writing(Path("standard output")):
                raise


def lines_of(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a stream without their ends; None for a line longer than MAX_LINE, which is not kept in memory."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE or line.endswith(b"\n"):
            yield line.removesuffix(b"\n")
            continue
        while len(line) == MAX_LINE + 1 and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 1)
        yield None
