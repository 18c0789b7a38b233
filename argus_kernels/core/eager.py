"""The short way to a backend in plain eager mode: one `torch.autograd.Function`, and no dispatcher.

The registered op serves everything that has to see an op: torch.compile, export, fake tensors, functorch's transforms,
modes, subclasses, autocast and the profiler, which shows its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from argus_kernels.core.records import Given

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing but autograd looks at these tensors: no tracing, transform, mode, subclass or lazy view."""
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
    """An op's two passes as one node of the graph. All its tensors are given once more, one by one, for autograd."""

    @staticmethod
    def forward(ctx: Any, op: Any, given: Given, wanted: str, *tensors: Tensor) -> Any:
        """The outputs of `op` on its record by the backend `wanted`."""
        outputs = op.compute(given, wanted)
        ctx.set_materialize_grads(False)
        ctx.argus_op = op
        save(ctx, (*given, wanted), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """One gradient per tensor. With create_graph the registered op runs, which refuses second derivatives."""
        values, outputs = restore(ctx)
        needs = ctx.needs_input_grad[3:]
        needed = [_needed(entry, needs) for entry in ctx.argus_layout]
        found = ctx.argus_op.gradients(gradients, values, outputs, needed, direct=not torch.is_grad_enabled())
        flat: list[Tensor | None] = [None] * len(needs)
        for entry, gradient in zip(ctx.argus_layout, found, strict=True):
            if entry[0] == "tensor":
                flat[entry[1]] = gradient
            elif entry[0] == "tensors" and gradient is not None:
                flat[entry[1] : entry[1] + entry[2]] = gradient
        return (None, None, None, *flat)


def _needed(entry: tuple[Any, ...], needs: Sequence[bool]) -> bool:
    if entry[0] == "tensor":
        return needs[entry[1]]
    return entry[0] == "tensors" and any(needs[entry[1] : entry[1] + entry[2]])


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
