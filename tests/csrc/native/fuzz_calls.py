"""Valid calls of everything native: torch.ops.argus_native.* as the backends make them, and argus_kernels._host."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from argus_kernels import OPS, host_reference
from argus_kernels.core import Op, row_updates
from argus_kernels.ops.triple_embedding import arguments as embedding
from argus_kernels.ops.triple_embedding import native as embedding_native
from argus_kernels.optim import row_steps
from argus_kernels.testing import captured_arguments, small_samples
from argus_kernels.testing.harness import draw

NAMESPACE = "argus_native::"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_ELEMENTS = 20_000
"""Of a call's tensors together: a mutated call takes a millisecond at most."""


@dataclass(frozen=True)
class Call:
    """One call: what it is, the function, its arguments by name in the order of the schema."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    optional: frozenset[str] = frozenset()


class _Recorder(TorchDispatchMode):
    """Keeps the native calls made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        if schema.name.startswith(NAMESPACE) and schema.arguments:
            names = [argument.name for argument in schema.arguments]
            optional = frozenset(a.name for a in schema.arguments if str(a.type).startswith("Optional"))
            # The dispatcher leaves out arguments at the end that equal their defaults.
            left_out = [argument.default_value for argument in schema.arguments[len(args) :]]
            arguments = dict(zip(names, copied([*args, *left_out]), strict=True))
            self.calls.append(Call(schema.name.removeprefix(NAMESPACE), func, arguments, optional))
        return func(*args, **(kwargs or {}))


def copied(value: Any) -> Any:
    """The same with tensors and arrays in memory of their own, as tight as their strides allow."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (list, tuple)):
        return [copied(one) for one in value]
    return value


def native_calls() -> list[Call]:
    """Both passes of every op that has a backend `cpp`, on every small sample in every dtype, and optimisers' steps."""
    recorder = _Recorder()
    for op, dtype in itertools.product(OPS, DTYPES):
        for sample in small_samples(op):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                arguments = draw(sample, dtype, 0)
                # A function may compute the gradients in the forward pass, if there are any.
                for name in sample.grad:
                    if isinstance(arguments[name], Tensor):
                        arguments[name].requires_grad_()
                _run_backend(recorder, op, arguments)
    for dtype in DTYPES:
        _run_row_steps(recorder, dtype)
    return [call for call in recorder.calls if _elements(call.arguments.values()) <= MAX_ELEMENTS]


def _run_backend(recorder: _Recorder, op: Op, arguments: dict[str, Any]) -> None:
    given = captured_arguments(op, arguments)
    backend = op.backend("cpp")
    if backend.reasons(given):
        return
    with torch.no_grad(), recorder:
        returned = backend.forward(given)
        if backend.backward is None:
            return
        outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        gradients = [torch.randn(output.shape).to(output.dtype) for output in outputs]
        backend.backward(gradients, outputs, dict.fromkeys(op.differentiable, True), given)


def _run_row_steps(recorder: _Recorder, dtype: torch.dtype) -> None:
    """The steps of `argus_kernels.optim`, in the backward pass of triple_embedding too."""
    wide = torch.promote_types(dtype, torch.float32)
    table, rows = torch.randn(9, 5).to(dtype), torch.tensor([3, -1, 8, 3])
    gradients, mean, square = torch.randn(4, 5).to(dtype), torch.rand(9, 5).to(wide), torch.rand(9, 5).to(wide)
    tables = [torch.randn(9, 4).to(dtype), torch.randn(300, 8).to(dtype)]
    given = embedding.Arguments(
        torch.randint(-1, 9, (3, 80)), tables, [0, 1, 0], torch.randn(16, 6).to(dtype), None, True, True
    )
    steps = [row_updates.Step(torch.rand(table.shape[0]).to(wide), 0.1, 1e-6, 0.1) for table in tables]
    with torch.no_grad(), recorder:
        row_steps.sgd_(table, rows, gradients, lr=0.1, weight_decay=0.1)
        row_steps.adagrad_(table, square, rows, gradients, lr=0.1, eps=1e-6, weight_decay=0.1)
        row_steps.adam_(table, mean, square, rows, gradients, lr=0.1, betas=(0.9, 0.99), eps=1e-6)
        embedding_native.backward_and_step(torch.randn(80, 6).to(dtype), given, steps, True, True)


def _elements(values: Any) -> int:
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel()
        elif isinstance(value, (list, tuple)):
            total += _elements(value)
    return total


def registered() -> set[str]:
    """The names of all functions of argus_native that have arguments and a kernel for CPU tensors."""
    names = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith(NAMESPACE) and s.arguments}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name.removeprefix(NAMESPACE) for name in names if has_kernel(name, "CPU")}


def host_calls(module: Any) -> Iterator[Call]:
    """Calls of every function of `argus_kernels._host` (or of what stands in its place)."""
    rng = np.random.default_rng(0)
    for count, depth, width in ((40, 3, 50), (1, 1, 1), (0, 2, 7), (200, 32, 5)):
        ids = rng.integers(-1, 30, count)
        sketch = {"table": rng.random((depth, width)), "keys": host_reference.hash_keys(1, depth), "ids": ids}
        yield Call("hash_ids", module.hash_ids, {"ids": ids, "keys": sketch["keys"], "slots": width})
        weights = rng.random(count) if depth > 1 else None
        update = {**sketch, "weights": weights, "total": 1.0}
        yield Call("sketch_update", module.sketch_update, update, frozenset({"weights"}))
        yield Call("sketch_estimate", module.sketch_estimate, sketch)
    for lengths in ([3, 0, 9, 1], [], [20]):
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        options = {"token_budget": 8, "window": 4, "stride": 3, "max_users": 3, "min_events": 0, "last_only": False}
        plan = {"offsets": offsets, "order": np.arange(len(lengths)), **options}
        yield Call("plan_batches", module.plan_batches, plan)
    for shape, dtype in (((20,), np.int64), ((20, 3), np.float16), ((20, 0), np.int8), ((0, 2), np.float64)):
        column = rng.integers(0, 9, shape).astype(dtype)
        ranges = {"starts": np.array([0, 4, 4]), "ends": np.array([3, 9, 4])}
        if len(column) == 0:
            ranges = {name: values * 0 for name, values in ranges.items()}
        yield Call("gather_rows", module.gather_rows, {"column": column, **ranges})
