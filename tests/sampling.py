"""Which ops and backends a test has cases of, and which of them `make test` leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from argus_kernels import OPS
from argus_kernels.core import Op

COLLECTED: pytest.StashKey[list[pytest.Item]] = pytest.StashKey()
"""Everything that a session has collected, before -m."""
LEFT_OUT = ("slow", "sanitizer")
"""The marks of what `make test` leaves out."""
NAMES = {name: op.name for op in OPS for name in (op.name, op.name.rstrip("_"))}
BACKENDS = {backend.name for op in OPS for backend in op.backends} | {"cuda_on_host", "eager"}

Contract = tuple[str, str, str]
"""A test's file and function, an op, and a backend or "" where the case names none."""


def contracts(item: pytest.Item) -> set[Contract]:
    """What a case of a test proves of which op and backend; nothing where its parameters name no op."""
    parameters = getattr(item, "callspec", None)
    flat = list(_flat(parameters.params.values())) if parameters is not None else []
    ops = {name for value in flat if (name := _op_of(value)) is not None}
    backends = {value for value in flat if isinstance(value, str) and value in BACKENDS}
    test = item.nodeid.partition("[")[0]
    return {(test, op, backend) for op in ops for backend in backends or {""}}


def left_out(items: Iterable[pytest.Item]) -> set[Contract]:
    """Contracts of tests of which `make test` runs some cases, and none of this op and backend."""
    every: dict[str, set[Contract]] = {}
    kept: dict[str, set[Contract]] = {}
    for item in items:
        test, found = item.nodeid.partition("[")[0], contracts(item)
        every.setdefault(test, set()).update(found)
        if not any(item.get_closest_marker(name) for name in LEFT_OUT):
            kept.setdefault(test, set()).update(found)
    return {one for test, found in kept.items() for one in every[test] - found}


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def _op_of(value: Any) -> str | None:
    if isinstance(value, Op):
        return value.name
    return NAMES.get(value if isinstance(value, str) else getattr(value, "__name__", ""))
