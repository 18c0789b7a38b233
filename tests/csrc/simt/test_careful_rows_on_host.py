"""NaN and infinities in single events of attention: the CUDA kernels give what float64 gives, and no other bit changes.

A tile multiplies pairs that the mask hides by 0, and 0 · NaN is NaN; csrc/attention/cuda/careful_rows.cuh mends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels.attention.native import available_cuda
from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import Op
from argus_kernels.core.varlen import user_of_row
from argus_kernels.ops.causal_attention import OP as CAUSAL
from argus_kernels.ops.hstu_attention import OP as HSTU
from argus_kernels.testing.harness import public_function
from tests.csrc.simt.backends import on_host
from tests.csrc.simt.host_executor import BACKEND

NAN, INFINITY = float("nan"), float("inf")
OPS = [CAUSAL, HSTU]
BACKENDS = [BACKEND, *(["cuda"] if available_cuda() is None else [])]
ALL = HistoryCase("biases", (9, 70), heads=1, width=8, padding=2, position_buckets=12, time_buckets=40)
CASES = [
    HistoryCase("plain", (9, 70), heads=1, width=8),
    ALL,
    replace(ALL, name="window", window=20),
    replace(ALL, name="lagged", mask="lagged", heads=2),
    replace(ALL, name="candidates", mask="candidates", window=50),
    replace(ALL, name="any", mask="any", window=30, prefix=3, heads=2, key_heads=1, dropout=0.3),
    replace(ALL, name="any_wide", mask="any", window=30, prefix=3, width=136, dropout=0.3),
]
"""Each with a user of several tiles, in which warps see none, some and all pairs of a tile."""
FIRST = 9
"""The row at which the second user begins."""
PLANTED = ("q", "k", "v", "d_out")
EVENTS = (0, 37, 69)
VALUES = (NAN, INFINITY, -INFINITY)


@pytest.fixture(autouse=True)
def _with_backends() -> Iterator[None]:
    with on_host(*OPS):
        yield


def drawn(op: Op, case: HistoryCase, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments, d_out and, for causal_attention, d_log_sum_exp."""
    generator = torch.Generator().manual_seed(5)
    arguments = case.make(generator, dtype)
    arguments["d_out"] = torch.randn(arguments["q"].shape, generator=generator).to(dtype)
    if op is CAUSAL:
        arguments["d_log_sum_exp"] = torch.randn(case.heads, len(arguments["q"]), generator=generator)
        arguments["return_log_sum_exp"] = True
    else:
        arguments["divisor"] = 50.0
    return arguments


def exact(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def results(op: Op, arguments: dict[str, Any], backend: str) -> dict[str, Tensor]:
    """The outputs and all gradients."""
    given = dict(arguments)
    gradients = [given.pop(name) for name in ("d_out", "d_log_sum_exp") if name in given]
    names = [name for name in ("q", "k", "v", "position_bias", "time_bias") if name in given]
    leaves = [given[name].detach().clone().requires_grad_() for name in names]
    given.update(zip(names, leaves, strict=True))
    if backend == "cuda":
        given = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in given.items()}
        gradients = [value.cuda() for value in gradients]
    returned = public_function(op)(**given, backend=backend)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    found = dict(zip(("out", "log_sum_exp"), outputs, strict=False))
    d_inputs = torch.autograd.grad(outputs, leaves, gradients)
    found.update({f"d_{name}": value for name, value in zip(names, d_inputs, strict=True)})
    return {name: value.detach().cpu() for name, value in found.items()}


def hold_to_float64(op: Op, arguments: dict[str, Any], plain: dict[str, Tensor], backend: str, about: str) -> None:
    """Finite where float64 is, and near there; what the values that are not finite do not reach keeps its bits."""
    truth, found = results(op, exact(arguments), "reference"), results(op, arguments, backend)
    of_user = user_of_row(arguments["offsets"], len(arguments["q"]))
    for name, expected in truth.items():
        finite = expected.isfinite()
        assert torch.equal(found[name].isfinite(), finite), f"{about}: {name}"
        largest = max(float(expected[finite].abs().max()), 1.0) if finite.any() else 1.0
        tolerance = (3e-2 if arguments["q"].dtype == torch.bfloat16 else 3e-5) * largest
        torch.testing.assert_close(
            found[name][finite].double(), expected[finite], rtol=0, atol=tolerance, msg=f"{about}: {name}"
        )
        if expected.shape == arguments["q"].shape:
            other = of_user == 0
            assert torch.equal(found[name][other], plain[name][other]), f"{about}: {name} of another user"


def planted(arguments: dict[str, Any], place: int, event: int, value: float) -> dict[str, Any]:
    name = PLANTED[place]
    tensor = arguments[name].clone()
    tensor[FIRST + event, 0, place] = value
    return {**arguments, name: tensor}


DTYPES = [torch.float32, torch.bfloat16]


def seldom(op: Op, case: HistoryCase, dtype: torch.dtype) -> bool:
    """`make test` takes each case of one op in one dtype, in turn; wide heads in bfloat16, of which float32 takes five
    times as long."""
    place = CASES.index(case)
    chosen = torch.bfloat16 if case.width > 128 else DTYPES[place // 2 % 2]
    return op is not OPS[place % 2] or dtype != chosen


SINGLE = [
    pytest.param(
        op, case, dtype, id=f"{op.name}-{case.name}-{dtype}", marks=[pytest.mark.slow] * seldom(op, case, dtype)
    )
    for op in OPS
    for case in CASES
    for dtype in DTYPES
]


@pytest.mark.parametrize(("op", "case", "dtype"), SINGLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value(backend: str, op: Op, case: HistoryCase, dtype: torch.dtype) -> None:
    """A value and an event for each tensor, in turn; test_every_value takes every value in float32."""
    arguments = drawn(op, case, dtype)
    plain = results(op, arguments, backend)
    turn = CASES.index(case)
    for place, name in enumerate(PLANTED):
        event, value = EVENTS[(place + turn) % 3], VALUES[(place + turn // 2) % 3]
        about = f"{name}[{event}] = {value}"
        hold_to_float64(op, planted(arguments, place, event, value), plain, backend, about)


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("op", OPS, ids=lambda op: str(op.name))
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_value(backend: str, op: Op, case: HistoryCase, value: float) -> None:
    """Every value in every tensor, at an event in turn."""
    arguments = drawn(op, case, torch.float32)
    plain = results(op, arguments, backend)
    for place, name in enumerate(PLANTED):
        event = EVENTS[(place + VALUES.index(value) + CASES.index(case)) % 3]
        hold_to_float64(op, planted(arguments, place, event, value), plain, backend, f"{name}[{event}] = {value}")
