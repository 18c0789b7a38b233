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
    """The answers to requests in their order, in as few steps as their order and the store's memory allow.

    Requests of one user take effect in their order.
    """
    found: list[Answer | None] = [None] * len(requests)
    todo: list[_Checked] = []
    for place, request in enumerate(requests):
        try:
            todo.append(_Checked.of(store, request, place))
        except Exception as error:
            found[place] = refused(error)
    for step in _steps(todo, store.most_resident):
        for one, answered in zip(step, _answered(store, step), strict=True):
            found[one.place] = answered
    return [one for one in found if one is not None]


@dataclass(frozen=True)
class _Checked:
    """A request whose values are valid; row: of its event; place: among the requests that came together."""

    request: Request
    user: User
    row: EventRow | None
    place: int

    @classmethod
    def of(cls, store: SessionStore, request: Request, place: int) -> _Checked:
        """ValueError naming what is wrong with the request."""
        session = store.session(request.user)
        store.require_asked(**request.asked)
        row = None if request.event is None else store.reader.row(request.event)
        return cls(request, session.user, row, place)


def _steps(requests: Sequence[_Checked], most_users: int) -> list[list[_Checked]]:
    """The requests in steps of at most `most_users` users, in each of which a user is changed at most once, first."""
    steps: list[list[_Checked]] = []
    users: list[set[User]] = []
    newest: dict[User, int] = {}
    for one in requests:
        at = newest.get(one.user, -1) + 1 if one.request.changes else max(newest.get(one.user, 0), 0)
        while at < len(steps) and len(users[at] | {one.user}) > most_users:
            at += 1
        if at == len(steps):
            steps.append([])
            users.append(set())
        steps[at].append(one)
        users[at].add(one.user)
        newest[one.user] = at
    return steps


def _answered(store: SessionStore, step: list[_Checked]) -> list[Answer]:
    """The answers of a step: of all together, or of each alone where that fails."""
    late = [one for one in step if one.request.amend is not None]
    if len(step) > 1 and late:
        # Late feedback encodes events again, one user at a time.
        alone = {one.place: _answered(store, [one])[0] for one in late}
        rest = [one for one in step if one.place not in alone]
        alone |= {one.place: answered for one, answered in zip(rest, _answered(store, rest), strict=True)}
        return [alone[one.place] for one in step]
    try:
        with store.atomically():
            return [Answer(said) for said in _together(store, step)]
    except Exception as error:
        if len(step) == 1:
            return [refused(error)]
    return [_answered(store, [one])[0] for one in step]


def _together(store: SessionStore, step: Sequence[_Checked]) -> list[dict[str, Any]]:
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


def _questions(store: SessionStore, one: _Checked) -> list[tuple[User, dict[str, Any]]]:
    """The vectors that a request needs: the one it searches and scores with, then those it asks for."""
    request = one.request
    asked = [request.asked] if request.k is not None or request.items else []
    if request.vectors:
        kinds = ("next_item", "pair") if store.is_finetuned else ("next_item",)
        asked += [{**request.asked, "score": kind} for kind in kinds]
    return [(one.user, arguments) for arguments in asked]


def _add_items(
    store: SessionStore, step: Sequence[_Checked], said: list[dict[str, Any]], found: list[list[np.ndarray]]
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
