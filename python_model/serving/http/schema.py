"""The JSON schemas of requests and answers for OpenAPI, made for the vocabulary of an export.

`Request.of` and `EventReader` are what checks a request; a test holds the schemas to the same verdicts.
"""

from __future__ import annotations

from typing import Any

from python_model.data.identifiers import MAX_BYTES
from python_model.data.times import LATEST
from python_model.serving.events import EventReader
from python_model.serving.requests import MAX_ITEMS
from python_model.serving.towers import KINDS

Schema = dict[str, Any]
PATHS = {
    "/events": "Add an event to a user's history, or late feedback to an earlier event.",
    "/recommend": "The best items for a user.",
    "/score": "The scores of given items for a user.",
}
EXAMPLE_TIME = 1_735_689_600

_INTEGER = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}
_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_BYTES}
_ID: Schema = {"oneOf": [_INTEGER, _TEXT]}
_SECONDS: Schema = {"type": "integer", "minimum": 0, "maximum": LATEST}
_VECTOR: Schema = {"type": "array", "items": {"type": "number"}}
_SCORED: Schema = {
    "type": "object", "required": ["item", "score"],
    "properties": {"item": _ID, "title": {"type": "string"}, "score": {"type": ["number", "null"]}},
}  # fmt: skip
ANSWER: Schema = {
    "type": "object",
    "required": ["user", "event"],
    "properties": {
        "user": _ID,
        "event": {"type": "integer", "minimum": -1, "description": "Number of the newest event, −1 without one."},
        "unknown_item": {"const": True, "description": "The catalogue does not have the event's item."},
        "items": {"type": "array", "items": _SCORED, "description": "The best items, best first."},
        "scores": {"type": "array", "items": _SCORED, "description": "In the order of `items`; null if unknown."},
        "query": _VECTOR,
        "user_vector": {"anyOf": [_VECTOR, {"type": "null"}]},
    },
}
ERROR: Schema = {
    "type": "object", "required": ["error"], "additionalProperties": False,
    "properties": {"error": {"type": "string", "description": "One sentence; nothing has changed."}},
}  # fmt: skip


def _values(reader: EventReader, what: str, description: str, least: int = 0) -> Schema:
    """An object of names and values of `context` or `feedback`, of at least so many names."""
    properties = {}
    for name, count in reader.bounds[what].items():
        number: Schema = {"type": "integer", "minimum": -1, "maximum": count - 1}
        if reader.names.mistakable(f"{what}_{name}"):
            number = {"const": -1}
        labels = [label for at, label in reader.names.labels.get(f"{what}_{name}", {}).items() if at < count]
        properties[name] = {"anyOf": [number, {"enum": labels}]} if labels else number
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "minProperties": least,
    }  # fmt: skip


def keys(reader: EventReader) -> dict[str, Schema]:
    """The keys of requests."""

    def of(schema: Schema, description: str) -> Schema:
        return {**schema, "description": description}

    context = "Of the event, or of what is asked: numbers, −1 where missing, or labels."
    feedback = "What came of the event: classes, −1 where not observed, or labels."
    return {
        "user": of(_ID, "Id of the user, known or not."),
        "item": of(_ID, "Id of the event's item; one that the catalogue does not have counts as unknown."),
        "time": of(_SECONDS, "Whole seconds since 1970. A user's time never runs backwards."),
        "organic": of({"type": "boolean"}, "Whether the user chose the item: of the event, or of what is asked."),
        "context": _values(reader, "context", context),
        "feedback": _values(reader, "feedback", feedback),
        "amend": of({"type": "integer", "minimum": 0}, "Number of the earlier event that the feedback is for."),
        "k": of({"type": "integer", "minimum": 1}, "How many items; no more come than the catalogue has."),
        "items": of({"type": "array", "items": _ID, "minItems": 1, "maxItems": MAX_ITEMS}, "Ids of items to score."),
        "exclude_seen": of({"type": "boolean"}, "Leave out the items of the user's history."),
        "score": of({"enum": list(KINDS)}, "The export's kind of score by default."),
        "now": of(_SECONDS, "The time that is asked about: whole seconds since 1970."),
        "vectors": of({"type": "boolean"}, "Answer with the vectors too."),
    }  # fmt: skip


def requests(reader: EventReader) -> dict[str, Schema]:
    """Path → the schema of its requests."""
    known = keys(reader)

    def request(title: str, required: list[str], *optional: str, **more: Any) -> Schema:
        properties = {name: known[name] for name in ("user", *required, *optional)}
        return {
            "title": title, "type": "object", "properties": properties, "required": ["user", *required],
            "additionalProperties": False, **more,
        }  # fmt: skip

    asked = ("now", "organic", "context", "score", "vectors")
    # An event may ask for items or vectors in the same request; without that, these keys would have no effect.
    asks = [{"required": ["k"]}, {"properties": {"vectors": {"const": True}}, "required": ["vectors"]}]
    with_k = {"dependentRequired": {"exclude_seen": ["k"], "score": ["k"]}}
    event = request(
        "Event", ["item", "time"], "feedback", "k", "exclude_seen", *asked, **with_k, anyOf=[_without("now"), *asks]
    )
    late = request(
        "Late feedback", ["amend", "feedback"], "k", "exclude_seen", *asked, **with_k,
        anyOf=[_without("now", "organic", "context"), *asks],
    )  # fmt: skip
    late["properties"]["feedback"] = {**known["feedback"], "minProperties": 1}
    return {
        "/events": {"oneOf": [event, late]},
        "/recommend": request("Recommend", ["k"], "exclude_seen", *asked),
        "/score": request("Score", ["items"], *asked),
    }


def _without(*names: str) -> Schema:
    return {"not": {"anyOf": [{"required": [name]} for name in names]}}


def examples(reader: EventReader, user: Any) -> dict[str, Schema]:
    """Path → an example of its requests."""
    items = reader.items.ids[:2].tolist()
    event: Schema = {"user": user, "item": items[0], "time": EXAMPLE_TIME}
    if reader.bounds["feedback"]:
        event["feedback"] = {next(iter(reader.bounds["feedback"])): 1}
    return {
        "/events": event,
        "/recommend": {"user": user, "k": 5, "exclude_seen": True},
        "/score": {"user": user, "items": items},
    }
