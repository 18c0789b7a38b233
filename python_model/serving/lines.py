"""One JSON object in, one out: what `argus serve` does with a line."""

from __future__ import annotations

import json
from typing import Any

from python_model.serving.events import Event
from python_model.serving.session import Reading, Session
from python_model.serving.store import SessionStore

OF_EVENT = ("item", "time", "organic", "context", "feedback")
OF_REQUEST = ("user", "amend", "k", "exclude_seen", "vectors", "score", "now")


def answer(store: SessionStore, line: str) -> dict[str, Any]:
    """The answer to a line; for one that is wrong an object with `error`, a sentence, and nothing has changed."""
    try:
        asked = json.loads(line)
        if not isinstance(asked, dict) or "user" not in asked:
            raise ValueError("expected a JSON object that names a user")
        unknown = sorted(asked.keys() - set(OF_EVENT + OF_REQUEST))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}, expected some of {', '.join(OF_REQUEST + OF_EVENT)}")
        k = asked.get("k", 0)
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"k: expected a whole number of at least 0, found {k!r}")
        session = store.session(asked["user"])
        reading = _absorb(session, asked)
        out: dict[str, Any] = {"user": session.user, "event": reading.number}
        if k:
            best = session.top_k(
                k, score=asked.get("score"), now=asked.get("now"), exclude_seen=bool(asked.get("exclude_seen"))
            )
            out["items"] = [{"item": one.item_id, "score": one.score} for one in best]
        if asked.get("vectors"):
            out["query"] = reading.query.tolist()
            out["user_vector"] = None if reading.user_vector is None else reading.user_vector.tolist()
        return out
    except ValueError as error:
        return {"error": str(error)}


def _absorb(session: Session, asked: dict[str, Any]) -> Reading:
    if "amend" in asked:
        if not isinstance(asked["amend"], int) or "item" in asked:
            raise ValueError(f"amend: expected the number of an event, and no item, found {asked['amend']!r}")
        return session.amend(asked["amend"], asked.get("feedback", {}))
    if "item" not in asked:
        return session.reading()
    if "time" not in asked:
        raise ValueError("an event without a time: expected whole seconds since 1970")
    return session.add(Event(**{name: asked[name] for name in OF_EVENT if name in asked}))
