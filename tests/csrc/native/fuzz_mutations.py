"""Changes to one argument of a call, drawn from a seeded generator: what a careless or hostile caller might pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.csrc.native.fuzz_calls import Call, copied

INTEGERS = (0, 1, -1, 2, 7, -5, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (0.0, -1.0, 1e-45, 1e300, -1e300, float("nan"), float("inf"), -float("inf"))
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.bool,
    torch.complex64,
)  # fmt: skip
HUGE = 2**40
"""A size whose copy no memory holds; sizes that some memory might hold would only make the machine swap."""


def mutated(call: Call, rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy of the call's arguments with one to three of them changed, and in words what was changed."""
    arguments = {name: copied(value) for name, value in call.arguments.items()}
    changes = []
    for name in rng.sample(list(arguments), min(len(arguments), rng.choice((1, 1, 1, 2, 3)))):
        others = [value for other, value in call.arguments.items() if other != name]
        arguments[name], change = _changed(arguments[name], rng, others, name in call.optional)
        changes.append(f"{name}: {change}")
    return arguments, "; ".join(changes)


def _changed(value: Any, rng: random.Random, others: list[Any], optional: bool) -> tuple[Any, str]:
    if optional and value is not None and rng.random() < 0.2:
        return None, "none"
    if isinstance(value, Tensor):
        return _apply(TENSOR_CHANGES, value, rng, others)
    if isinstance(value, np.ndarray):
        return _apply(ARRAY_CHANGES, value, rng, others)
    if isinstance(value, bool):
        return not value, "flipped"
    if isinstance(value, list):
        return _apply(LIST_CHANGES, value, rng, others)
    if isinstance(value, float):
        number = rng.choice(NUMBERS)
        return number, f"= {number}"
    if value is None and rng.random() < 0.5:
        return copied(rng.choice(others)), "another argument"
    integer = rng.choice(INTEGERS)
    return integer, f"= {integer}"


Change = Callable[[Any, random.Random, list[Any]], Any]


def _apply(changes: tuple[Change, ...], value: Any, rng: random.Random, others: list[Any]) -> tuple[Any, str]:
    change = rng.choice(changes)
    return change(value, rng, others), change.__name__


def fewer(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    if value.dim() == 0 or 0 in value.shape:
        return value.reshape(-1)
    dim = rng.randrange(value.dim())
    return value.narrow(dim, 0, rng.randrange(value.shape[dim])).clone()


def more(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    dim = rng.randrange(max(value.dim(), 1))
    return torch.cat([value, value], dim) if value.dim() else value.expand(2).clone()


def of_another_dtype(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    return value.to(rng.choice(DTYPES))


def of_another_rank(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    shaped = [value.unsqueeze(0), value.unsqueeze(-1), value.reshape(-1)]
    if value.numel() > 0:
        shaped.append(value.reshape(-1)[0])
    return rng.choice(shaped).clone()


def transposed(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    if value.dim() < 2:
        return value.flip(0) if value.dim() else value
    first, second = rng.sample(range(value.dim()), 2)
    turned = value.transpose(first, second)
    return turned if rng.random() < 0.5 else turned.contiguous().transpose(first, second)


def with_gaps(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    if value.dim() == 0:
        return value
    dim = rng.randrange(value.dim())
    index = [slice(None)] * value.dim()
    index[dim] = slice(None, None, 2)
    return value.repeat_interleave(2, dim)[tuple(index)]


def expanded(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    if value.dim() == 0 or 0 in value.shape:
        return value
    dim = rng.randrange(value.dim())
    sizes = list(value.shape)
    sizes[dim] = rng.choice((sizes[dim], sizes[dim], sizes[dim] + 1, HUGE))
    return value.narrow(dim, 0, 1).expand(sizes)


def overlapping(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    return value.reshape(-1).as_strided(value.shape, [1] * value.dim()) if value.numel() else value


def of_size_zero(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    sizes = [0 if rng.random() < 0.5 else size for size in value.shape]
    if 0 in sizes and rng.random() < 0.2:
        sizes = [2**61 if size and rng.random() < 0.5 else size for size in sizes]
    try:
        return value.new_empty(sizes)
    except RuntimeError:  # strides beyond int64
        return value.new_empty(0)


def with_an_extreme(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    if value.numel() == 0:
        return value
    flat = value.reshape(-1).clone()
    for _ in range(rng.choice((1, 1, 3, flat.numel()))):
        if value.is_floating_point():
            flat[rng.randrange(flat.numel())] = torch.tensor(rng.choice(NUMBERS), dtype=torch.float64)
        else:
            flat[rng.randrange(flat.numel())] = _fitting(rng.choice(INTEGERS), value.dtype)
    return flat.view(value.shape)


def _fitting(integer: int, dtype: torch.dtype) -> int:
    limits = torch.iinfo(dtype if dtype != torch.bool else torch.int8)
    return min(max(integer, limits.min), limits.max)


def shuffled(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    flat = value.reshape(-1)
    order = rng.sample(range(flat.numel()), flat.numel())
    return flat[torch.tensor(order, dtype=torch.int64)].reshape(value.shape)


def falling(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    return value.flip(0) if value.dim() else value


def shifted(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    return value if value.dtype == torch.bool else value + rng.choice((1, -1, 3))


def without_memory(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(rng.choice((0, value.untyped_storage().nbytes() // 2)))
    return value


def on_no_device(value: Tensor, rng: random.Random, others: list[Any]) -> Tensor:
    return value.to("meta")


def another_argument(value: Any, rng: random.Random, others: list[Any]) -> Any:
    return copied(rng.choice(others)) if others else value


TENSOR_CHANGES: tuple[Change, ...] = (
    fewer, fewer, more, of_another_dtype, of_another_rank, transposed, with_gaps, expanded, overlapping, of_size_zero,
    of_size_zero, with_an_extreme, with_an_extreme, shuffled, falling, shifted, without_memory, on_no_device,
    another_argument,
)  # fmt: skip


def shorter(value: list[Any], rng: random.Random, others: list[Any]) -> list[Any]:
    return value[: rng.randrange(len(value))] if value else value


def longer(value: list[Any], rng: random.Random, others: list[Any]) -> list[Any]:
    return [*value, *value]


def one_changed(value: list[Any], rng: random.Random, others: list[Any]) -> list[Any]:
    if not value:
        return [rng.choice(INTEGERS)]
    place = rng.randrange(len(value))
    return [*value[:place], _changed(value[place], rng, others, False)[0], *value[place + 1 :]]


LIST_CHANGES: tuple[Change, ...] = (shorter, longer, one_changed, one_changed, one_changed)


def through_torch(value: np.ndarray, rng: random.Random, others: list[Any]) -> np.ndarray:
    """A tensor's change to an array."""
    if value.dtype == np.uint64:
        return np.roll(value, 1)[: rng.randrange(len(value) + 1)]
    change = rng.choice((fewer, more, of_another_rank, transposed, with_gaps, shuffled, falling, shifted))
    return change(torch.from_numpy(value), rng, []).numpy()


def with_extremes(value: np.ndarray, rng: random.Random, others: list[Any]) -> np.ndarray:
    if value.size and value.dtype != np.uint64:
        return with_an_extreme(torch.from_numpy(value), rng, []).numpy()
    return value


def of_another_kind(value: np.ndarray, rng: random.Random, others: list[Any]) -> np.ndarray:
    return value.astype(rng.choice((np.float32, np.int32, np.uint64, np.complex64, object, "S3")))


def of_no_size(value: np.ndarray, rng: random.Random, others: list[Any]) -> np.ndarray:
    return np.empty([0 if rng.random() < 0.5 else size for size in value.shape], value.dtype)


def read_only(value: np.ndarray, rng: random.Random, others: list[Any]) -> np.ndarray:
    value.flags.writeable = False
    return value


ARRAY_CHANGES: tuple[Change, ...] = (
    through_torch, through_torch, through_torch, with_extremes, with_extremes, of_another_kind, of_no_size,
    read_only, another_argument,
)  # fmt: skip
