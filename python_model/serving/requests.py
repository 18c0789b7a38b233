"""Requests to a server: the keys of the JSON object that a line of `argus serve` or the body of an HTTP request is.

docs/serving.md lists the keys. Every way of serving reads its requests with `Request.of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from python_model.data.identifiers import id_of
from python_model.io.json_text import kind_of
from python_model.serving.arguments import flag, whole_number
from python_model.serving.events import Event

OF_EVENT = ("item", "time", "organic", "context", "feedback")
OF_REQUEST = ("user", "amend", "k", "exclude_seen", "vectors", "score", "now", "items")
NEEDED = {
    "time": ("item",), "feedback": ("item", "amend"), "score": ("k", "items"), "exclude_seen": ("k",),
    "now": ("k", "vectors", "items"), "organic": ("item", "k", "vectors", "items"),
    "context": ("item", "k", "vectors", "items"),
}  # fmt: skip
"""Key → other keys; without one of those, the key has no effect in a request."""
REQUIRED = {"item": "time", "amend": "feedback"}
MAX_BYTES = 1 << 20
"""Longest request in bytes; a longer one is refused and not kept in memory."""
MAX_ITEMS = 1000
"""Most items whose scores one request asks for."""


@dataclass(frozen=True)
class Request:
    """A valid request: the keys fit together and have the right types.

    event: the new event; amend: number of the event that `feedback` is for; both None for a pure query. asked: the
    given ones of score, now, organic and context of `Session.vector`. k: None where no items are requested. items: ids
    whose scores are requested.
    """

    user: Any
    event: Event | None
    amend: int | None
    feedback: Any
    asked: dict[str, Any]
    k: int | None
    exclude_seen: bool
    vectors: bool
    items: tuple[int | str, ...]

    @property
    def changes(self) -> bool:
        """Whether it changes the user: an event, or late feedback."""
        return self.event is not None or self.amend is not None

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
            items=_ids(found["items"]) if "items" in found else (),
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


def _ids(items: Any) -> tuple[int | str, ...]:
    """The ids of the key `items`; ValueError where it is no list of 1 to MAX_ITEMS ids."""
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
        found = f"a list of {len(items):,}" if isinstance(items, list) else kind_of(items)
        raise ValueError(f"items is {found}, expected a list of 1 to {MAX_ITEMS:,} item ids")
    return tuple(id_of(one, "items") for one in items)
