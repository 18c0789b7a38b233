"""Seeded wrong arguments for every op: each call computes, or raises in a sentence that names op and argument.

ARGUS_FUZZ_SCALE multiplies how many are tried.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from argus_kernels import OPS, PagedCache
from argus_kernels.core import Op
from argus_kernels.core.problems import said as printed
from argus_kernels.testing import small_samples
from argus_kernels.testing.harness import draw, public_function

CALLS = 400 * int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
BACKENDS = (None, "auto", "cpp", "reference", "eager")
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip

NUMBERS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**5000, 0.0, -0.0, 0.5, 3.0,
    -2.5, 1e300, 5e-324, float("nan"), float("inf"), float("-inf"), 1j, "1", "", b"1", np.int32(3), np.int64(2**40),
    np.uint64(2**64 - 1), np.float32(0.25), np.float64("nan"), np.bool_(True), np.array(3), np.array([1.0, 2.0]),
    torch.tensor(2), torch.tensor(0.5), torch.tensor(float("nan")), torch.tensor([1, 2]), torch.ones((), device="meta"),
    [], [1], (), {}, set(), object(), int, print, ...,
)  # fmt: skip

TENSORS: tuple[tuple[str, Callable[[Tensor], Any]], ...] = (
    *((str(dtype), lambda t, dtype=dtype: t.to(dtype)) for dtype in DTYPES),
    ("numpy", lambda t: t.numpy() if t.dtype != torch.bfloat16 else t.float().numpy()),
    ("list", lambda t: t.tolist()),
    ("none", lambda t: None),
    ("number", lambda t: 3),
    ("text", lambda t: "tensor"),
    ("meta", lambda t: t.to("meta")),
    ("coo", lambda t: t.to_sparse()),
    ("csr", lambda t: t.reshape(-1, 1).to_sparse_csr()),
    ("nested", lambda t: torch.nested.nested_tensor([t, t])),
    ("jagged", lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged)),
    ("jagged transposed", lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged).transpose(1, -1)),
    ("more dimensions", lambda t: t[None]),
    ("fewer dimensions", lambda t: t.flatten() if t.dim() != 1 else t.sum()),
    ("shorter", lambda t: t[:-1]),
    ("empty", lambda t: t[:0]),
    ("twice", lambda t: torch.cat([t, t])),
    ("narrower", lambda t: t[..., :-1]),
    ("no width", lambda t: t[..., :0]),
    ("transposed", lambda t: t.transpose(0, -1)),
    ("one row expanded", lambda t: t[:1].expand(t.shape)),
    ("reversed strides", lambda t: t.flip(0).as_strided(t.shape, t.stride())),
    ("negative view", lambda t: t._neg_view()),
    ("with a gradient", lambda t: t.detach().clone().requires_grad_() if t.is_floating_point() else t),
    ("parameter", lambda t: torch.nn.Parameter(t, requires_grad=t.is_floating_point())),
    ("largest", lambda t: torch.full_like(t, torch.iinfo(t.dtype).max if not t.is_floating_point() else 3e38)),
    ("lowest", lambda t: torch.full_like(t, torch.iinfo(t.dtype).min if not t.is_floating_point() else -3e38)),
    ("shifted", lambda t: t + 1),
    ("nan", lambda t: t * float("nan")),
    ("infinite", lambda t: t + float("inf")),
)

SEQUENCES: tuple[tuple[str, Callable[[list[Any]], Any]], ...] = (
    ("none", lambda v: None),
    ("number", lambda v: 3),
    ("text", lambda v: "12"),
    (
        "a tensor",
        lambda v: (
            torch.stack(v)
            if v and isinstance(v[0], Tensor) and len({x.shape for x in v}) == 1
            else torch.tensor([1, 2])
        ),
    ),
    ("an array", lambda v: np.array([1, 2])),
    ("tuple", tuple),
    ("generator", iter),
    ("dictionary", lambda v: dict(enumerate(v))),
    ("empty", lambda v: []),
    ("longer", lambda v: [*v, *v]),
    ("shorter", lambda v: v[:-1]),
    ("reversed", lambda v: v[::-1]),
    ("nested", lambda v: [v]),
)


def hostile(value: Any, draw_from: random.Random) -> tuple[str, Any]:
    """A wrong value in the place of one that is right, and what is wrong with it."""
    if isinstance(value, Tensor):
        what, alter = draw_from.choice(TENSORS)
        return what, alter(value)
    if isinstance(value, PagedCache):
        name = draw_from.choice(["key_pages", "value_pages", "time_pages", "block_table", ""])
        if not name:
            return "cache", draw_from.choice(NUMBERS)
        kind, changed = hostile(getattr(value, name), draw_from)
        return f"{name}: {kind}", dataclasses.replace(value, **{name: changed}, pool=None)
    if isinstance(value, list) and value and draw_from.random() < 0.5:
        place = draw_from.randrange(len(value))
        kind, changed = hostile(value[place], draw_from)
        return f"[{place}] {kind}", [*value[:place], changed, *value[place + 1 :]]
    if isinstance(value, list):
        kind, change = draw_from.choice(SEQUENCES)
        return kind, change(value)
    if value is None and draw_from.random() < 0.5:
        return "a tensor", torch.randn(3, 2)
    number = draw_from.choice(NUMBERS)
    return f"{type(number).__name__}", number


def names_of(op: Op) -> list[str]:
    return list(inspect.signature(public_function(op)).parameters)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_wrong_argument_is_named_or_taken(op: Op) -> None:
    drawn = random.Random(op.name)
    samples, names = small_samples(op), names_of(op)
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(public_function(op)).parameters.items()
    }
    for trial in range(CALLS):
        sample = drawn.choice(samples)
        arguments = {**defaults, **draw(sample, torch.float32, trial % 7)}
        arguments["backend"] = drawn.choice(BACKENDS)
        said = []
        for _ in range(drawn.choice((1, 1, 1, 2))):
            name = drawn.choice(names)
            try:
                kind, arguments[name] = hostile(arguments[name], drawn)
            except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
                continue  # torch has no such tensor
            said.append(f"{name}: {kind}")
        call_or_refuse(op, arguments, f"{op.name} {sample.name} {said} backend={printed(arguments['backend'])}")


def call_or_refuse(op: Op, arguments: dict[str, Any], about: str) -> None:
    """Runs the call; anything but a result or a sentence of ours is a failure, as is a change by a refused call."""
    before = [tensor.clone() for tensor in written(op, arguments)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            public_function(op)(**arguments)
    except (ValueError, TypeError) as error:
        text = str(error)
        named = any(re.search(rf"\b{name}\b", text) for name in names_of(op))
        assert text.startswith(op.name) and named, f"{about}: {error!r}"
        for old, new in zip(before, written(op, arguments), strict=True):
            assert torch.equal(old.nan_to_num(), new.nan_to_num()), f"{about}: changed by a refused call"
    except Exception as error:
        raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error


def written(op: Op, arguments: dict[str, Any]) -> list[Tensor]:
    """What the op would write to, as far as it is a dense tensor on the CPU."""
    cache = arguments.get("cache")
    found = [arguments.get(name, getattr(cache, name, None)) for name in op.mutates]
    return [
        one for one in found
        if isinstance(one, Tensor) and one.layout is torch.strided and not one.is_nested and one.device.type == "cpu"
        and one.dtype in (torch.float32, torch.float64, torch.int64)
    ]  # fmt: skip
