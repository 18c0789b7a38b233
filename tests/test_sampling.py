"""`make test` leaves no op and no backend out of a test whose other cases it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from argus_kernels import OPS, causal_attention
from tests.sampling import COLLECTED, contracts, left_out

COMPILE_GATES = "tests/build_support/"
"""Of the compile gates `make test` takes a few ops."""


def test_make_test_takes_every_op_and_backend_of_a_contract(request: pytest.FixtureRequest) -> None:
    """Of the tests that were collected with this one: all of them, in `make test`."""
    found = request.config.stash[COLLECTED]
    if len({item.path for item in found if contracts(item)}) < 2:
        pytest.skip("it looks at the tests that are collected with it, and they name no op")
    missing = sorted(one for one in left_out(found) if not one[0].startswith(COMPILE_GATES))
    assert not missing, "\n".join(f"{test}: no case of {op} {backend}" for test, op, backend in missing)


def collected(nodeid: str, *marks: str, **parameters: Any) -> Any:
    """What pytest knows of a case."""
    return SimpleNamespace(
        nodeid=nodeid, callspec=SimpleNamespace(params=parameters), get_closest_marker=lambda name: name in marks
    )


def test_what_is_left_out_is_found() -> None:
    op = next(one for one in OPS if one.name == "causal_attention")
    items = [
        collected("a.py::test_one[0]", case=(op, "cpp", 1), dtype="float32"),
        collected("a.py::test_one[1]", "slow", case=(op, "triton", 1), dtype="float32"),
        collected("a.py::test_one[2]", "slow", case=(op, "cpp", 2), dtype="float32"),
        collected("a.py::test_two[0]", op=causal_attention, backend="cpp"),
        collected("a.py::test_two[1]", "sanitizer", op="hstu_attention", backend="cpp"),
        collected("a.py::test_of_test_all_alone", "slow", op=op),
        collected("a.py::test_without_an_op[0]", "slow", width=2),
        collected("a.py::test_without_an_op[1]", width=1),
    ]
    assert left_out(items) == {
        ("a.py::test_one", "causal_attention", "triton"),
        ("a.py::test_two", "hstu_attention", "cpp"),
    }
