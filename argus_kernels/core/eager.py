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


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether only autograd looks at these tensors: no tracing, transform, mode, subclass or lazy view."""
    if (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_any_autocast_enabled()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not (tensor.is_cpu or tensor.is_cuda):
            return False
        if tensor.is_neg() or tensor.is_conj() or torch._is_functional_tensor(tensor):
            return False
    return True


class Direct(torch.autograd.Function):
    """An op's two passes as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, given: Given, *tensors: Tensor) -> Any:
        """The outputs of an op on its record, whose tensors are passed a second time, one by one, for autograd."""
        outputs = plan.compute(given)
        ctx.set_materialize_grads(False)
        ctx.argus_plan, ctx.argus_values = plan, plan.without_tensors(given)
        ctx.save_for_backward(*tensors, *(outputs if isinstance(outputs, tuple) else (outputs,)))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """One gradient per tensor. With create_graph the registered op runs, which refuses second derivatives."""
        plan, saved = ctx.argus_plan, ctx.saved_tensors
        given, outputs = plan.restore(ctx.argus_values, saved), list(saved[plan.count :])
        return None, None, *plan.op.direct_gradients(plan, given, outputs, gradients, ctx.needs_input_grad[2:])


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
