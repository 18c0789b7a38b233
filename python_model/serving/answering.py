"""Answers to requests, of one user or of many in one step.

A request that cannot be answered gets one sentence and has changed nothing. Requests of several users that come
together are answered by one decode; each gets the answer that it would get alone, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from python_model.io.errors import DataError
from python_model.io.json_text import parse
from python_model.serving.events import EventRow
from python_model.serving.memory import User
from python_model.serving.requests import Request
from python_model.serving.store import SessionStore

INVALID, DAMAGED, STORAGE, INTERNAL = "invalid", "damaged", "storage", "internal"
MAX_SENTENCE = 1000
"""Most characters of an answer's `error`, which may quote the request."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The object that answers a request; failure: None, or why it has only `error`.

    INVALID: the request is wrong. DAMAGED: a file of the export or of the sessions is. STORAGE: the disk is full or
    fails. INTERNAL: anything else; the log has the traceback.
    """

    said: dict[str, Any]
    failure: str | None = None


def answer(store: SessionStore, line: str | bytes) -> dict[str, Any]:
    """The answer to a line; on failure an object with a sentence under `error`, and nothing has changed."""
    try:
        request = Request.of(parse(line))
    except ValueError as error:
        return refused(error).said
    return answer_all(store, [request])[0].said


def refused(error: Exception) -> Answer:
    """The answer to a request that ended with an exception."""
    if isinstance(error, DataError):
        return Answer(_in_one_line(str(error)), DAMAGED)
    if isinstance(error, ValueError):
        return Answer(_in_one_line(str(error)), INVALID)
    if isinstance(error, OSError):
        return Answer(_in_one_line(str(error)), STORAGE)
    # The server must survive any exception: the state is unchanged, and the log has the traceback.
    logger.error("a request failed within", exc_info=error)
    return Answer(_in_one_line(f"internal error, nothing has changed: {type(error).__name__}: {error}"), INTERNAL)


def _in_one_line(sentence: str) -> dict[str, Any]:
    lines = sentence.splitlines() or [""]
    return {"error": lines[0] if len(lines[0]) <= MAX_SENTENCE else lines[0][:MAX_SENTENCE] + "…"}


def answer_all(store: SessionStore, requests: Sequence[Request]) -> list[Answer]:
    """The answers to requests in their order; see `answer_checked`."""
    found: dict[int, Answer] = {}
    checked: list[Checked] = []
    for place, request in enumerate(requests):
        try:
            checked.append(Checked.of(store, request))
        except Exception as error:
            found[place] = refused(error)
    valid = iter(answer_checked(store, checked))
    return [found[place] if place in found else next(valid) for place in range(len(requests))]


def answer_checked(store: SessionStore, requests: Sequence[Checked]) -> list[Answer]:
    """The answers to requests in their order, in as few steps as their order and the store's memory allow.

    Requests of one user take effect in their order.
    """
    found: dict[int, Answer] = {}
    for places in _steps(requests, store.most_resident):
        answers = _answered(store, [requests[place] for place in places])
        found.update(zip(places, answers, strict=True))
    return [found[place] for place in range(len(requests))]


@dataclass(frozen=True)
class Checked:
    """A request whose values are valid; row: of its event."""

    request: Request
    user: User
    row: EventRow | None

    @classmethod
    def of(cls, store: SessionStore, request: Request) -> Checked:
        """ValueError naming what is wrong with the request. Reads nothing that a request changes: for any thread."""
        session = store.session(request.user)
        store.require_asked(**request.asked)
        if request.amend is not None:
            store.reader.values("feedback", request.feedback)
        return cls(request, session.user, None if request.event is None else store.reader.row(request.event))


def _steps(requests: Sequence[Checked], most_users: int) -> list[list[int]]:
    """Places of the requests in steps of at most `most_users` users, each of whom is changed at most once, first."""
    steps: list[list[int]] = []
    users: list[set[User]] = []
    newest: dict[User, int] = {}
    for place, one in enumerate(requests):
        at = newest.get(one.user, -1) + 1 if one.request.changes else newest.get(one.user, 0)
        while at < len(steps) and len(users[at] | {one.user}) > most_users:
            at += 1
        if at == len(steps):
            steps.append([])
            users.append(set())
        steps[at].append(place)
        users[at].add(one.user)
        newest[one.user] = at
    return steps


def _answered(store: SessionStore, step: Sequence[Checked]) -> list[Answer]:
    """The answers of a step: of all together, or of each alone where that fails."""
    late = [one.request.amend is not None for one in step]
    if len(step) > 1 and any(late):
        # Late feedback encodes events again, one user at a time.
        alone = iter([_answered(store, [one])[0] for one, is_late in zip(step, late, strict=True) if is_late])
        rest = iter(_answered(store, [one for one, is_late in zip(step, late, strict=True) if not is_late]))
        return [next(alone if is_late else rest) for is_late in late]
    try:
        with store.atomically():
            return [Answer(said) for said in _together(store, step)]
    except Exception as error:
        if len(step) == 1:
            return [refused(error)]
    return [_answered(store, [one])[0] for one in step]


def _together(store: SessionStore, step: Sequence[Checked]) -> list[dict[str, Any]]:
    store.add_rows([(one.user, one.row) for one in step if one.row is not None])
    for one in step:
        if one.request.amend is not None:
            store.amend(one.user, one.request.amend, one.request.feedback)
    totals = store.totals([one.user for one in step])
    said: list[dict[str, Any]] = [
        {"user": one.user, "event": total - 1} for one, total in zip(step, totals, strict=True)
    ]
    for out, one in zip(said, step, strict=True):
        if one.row is not None and one.row.item < 0:
            out["unknown_item"] = True
    vectors = iter(store.vectors([question for one in step for question in _questions(store, one)]))
    found = [[next(vectors) for _ in _questions(store, one)] for one in step]
    _add_items(store, step, said, found)
    for out, one, own in zip(said, step, found, strict=True):
        if one.request.items:
            out["scores"] = _scores(store, one.request, own[0])
        if one.request.vectors:
            query, *pair = own[-2:] if store.is_finetuned else own[-1:]
            out |= {"query": query.tolist(), "user_vector": pair[0].tolist() if pair else None}
    return said


def _questions(store: SessionStore, one: Checked) -> list[tuple[User, dict[str, Any]]]:
    """The vectors that a request needs: the one it searches and scores with, then those it asks for."""
    request = one.request
    asked = [request.asked] if request.k is not None or request.items else []
    if request.vectors:
        kinds = ("next_item", "pair") if store.is_finetuned else ("next_item",)
        asked += [{**request.asked, "score": kind} for kind in kinds]
    return [(one.user, arguments) for arguments in asked]


def _add_items(
    store: SessionStore, step: Sequence[Checked], said: list[dict[str, Any]], found: list[list[np.ndarray]]
) -> None:
    """Adds `items` to the answers of the requests that ask for some."""
    searching = [(out, one, own[0]) for out, one, own in zip(said, step, found, strict=True) if one.request.k]
    queries = [
        store.query(one.user, vector, one.request.k or 0, exclude_seen=one.request.exclude_seen)
        for _, one, vector in searching
    ]
    for (out, _, _), best in zip(searching, store.search.best(queries), strict=True):
        out["items"] = [
            {"item": one.item_id, **({} if one.title is None else {"title": one.title}), "score": one.score}
            for one in best
        ]


def _scores(store: SessionStore, request: Request, vector: np.ndarray) -> list[dict[str, Any]]:
    """The answer's `scores`; null for an item that is not in the catalogue."""
    scored = store.search.scores(vector, request.items)
    return [
        {"item": item, "score": None} if one is None
        else {"item": one.item_id, **({} if one.title is None else {"title": one.title}), "score": one.score}
        for item, one in zip(request.items, scored, strict=True)
    ]  # fmt: skip
