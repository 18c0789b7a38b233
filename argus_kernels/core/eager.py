"""The direct path to a backend in plain eager mode: one `torch.autograd.Function`, without the dispatcher.

Everything that needs to see an op gets the registered one: torch.compile, export, fake tensors, functorch's transforms,
modes, subclasses, autocast and the profiler, which shows the op's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from argus_kernels.core.plans import Plan
from argus_kernels.core.records import Given

_PLAIN = (Tensor, torch.nn.Parameter)
_C = torch._C
_profiler_enabled = _C._autograd._profiler_enabled


def is_quiet() -> bool:
    """Whether only autograd looks on: no tracing, transform, mode, autocast or profiler; not for torch.compile."""
    return not (
        forward_ad._current_level >= 0
        or _C._are_functorch_transforms_active()
        or _C._len_torch_dispatch_stack()
        or _C._len_torch_function_stack()
        or _C._is_any_autocast_enabled()
        or _C._get_tracing_state() is not None
        or _profiler_enabled()
    )


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether only autograd looks at these tensors: no tracing, transform, mode, subclass or lazy view."""
    if torch.compiler.is_compiling() or not is_quiet():
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not (tensor.is_cpu or tensor.is_cuda):
            return False
        if tensor.is_neg() or tensor.is_conj() or torch._is_functional_tensor(tensor):
            return False
        # Left over from a transform of torch.func that has ended; of torch's ops it is a constant.
        if tensor.requires_grad and _C._functorch.is_functorch_wrapped_tensor(tensor):
            return False
    return True


class Direct(torch.autograd.Function):
    """An op's two passes as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, given: Given, *tensors: Tensor) -> Any:
        """The outputs of an op on its record, whose tensors are passed a second time, one by one, for autograd."""
        outputs = plan.compute(given)
        ctx.set_materialize_grads(False)
        ctx.argus_call = plan, plan.values(given)
        ctx.save_for_backward(*tensors, *(outputs if isinstance(outputs, tuple) else (outputs,)))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """One gradient per tensor. With create_graph the registered op runs, which refuses second derivatives."""
        (plan, values), saved = ctx.argus_call, ctx.saved_tensors
        given, outputs = plan.restore(values, saved), saved[plan.count :]
        return None, None, *plan.op.direct_gradients(plan, given, outputs, gradients, ctx.needs_input_grad[2:])


apply_recorded = super(torch.autograd.Function, Direct).apply
"""Direct.apply for a call that `is_quiet` was asked about: without torch's preparations for functorch, 2.2 µs."""


def save(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    """Keeps the tensors among the arguments, and the outputs, through save_for_backward; the rest on ctx."""
    outputs = list(output) if isinstance(output, (tuple, list)) else [output]
    saved: list[Tensor] = []
    layout: list[Any] = []
    for value in inputs:
        if isinstance(value, Tensor):
            layout.append(("tensor", len(saved)))
            saved.append(value)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            layout.append(("tensors", len(saved), len(value)))
            saved.extend(value)
        else:
            layout.append(("value", value))
    ctx.argus_layout = layout
    ctx.argus_inputs = len(saved)
    ctx.save_for_backward(*saved, *outputs)


def restore(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """What `save` kept: the arguments and the outputs."""
    saved = ctx.saved_tensors
    values: list[Any] = []
    for entry in ctx.argus_layout:
        if entry[0] == "tensor":
            values.append(saved[entry[1]])
        elif entry[0] == "tensors":
            values.append(list(saved[entry[1] : entry[1] + entry[2]]))
        else:
            values.append(entry[1])
    return values, list(saved[ctx.argus_inputs :])
