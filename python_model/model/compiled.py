"""torch.compile of an encoder around its attention op: `TrainConfig.compile`.

Each half of a block, before and after attention, is one graph: norms, activations, biases, dropout and residuals are
fused between the products. Attention is called from Python as ever, so that its checks, its schedules and its mask rule
are those of an encoder that is not compiled. The blocks of a model share their graphs, and the number of events is a
symbol in them: a batch of another length compiles nothing. Parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from python_model.model.layers import Encoder, Halves

Precision = Callable[[], AbstractContextManager[Any]]
"""Opens the autocast of a training, or nothing."""
COMPILER: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}
"""Dropout draws from torch's generator, so that it hides what it hides without compilation."""


def compile_encoder(
    encoder: Encoder, device: torch.device, precision: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Compiles the halves of the encoder's blocks and runs them once, as a training step does.

    precision: opens the autocast of the training. ValueError, in one sentence, where torch cannot compile here.
    """
    from torch._dynamo.exc import TorchDynamoException

    # Graphs are kept by function, a few each: those of another model in this process would use them up.
    torch.compiler.reset()
    first: Any = encoder.blocks[0]
    halves = Halves(_compiled(first.halves.before), _compiled(first.halves.after))
    try:
        _run_once(first, halves, device, precision)
    except TorchDynamoException as error:
        raise ValueError(
            f"compile is true, expected false where torch.compile does not work on {device.type}: {_reason(error)}"
        ) from error
    for block in encoder.blocks:
        block.halves = halves  # type: ignore[assignment]


def _compiled(half: Callable[..., Any]) -> Callable[..., Any]:
    graph = torch.compile(half, fullgraph=True, **COMPILER)

    def run(block: torch.nn.Module, *inputs: Tensor | None) -> Any:
        given = [one for one in inputs if one is not None]
        # A graph is specialised to sizes of 0 and 1, and so few rows are not worth one.
        if any(len(one) < 2 for one in given):
            return half(block, *inputs)
        for one in given:
            # By itself torch takes sizes that are equal at first for the same, the events and the heads of one batch.
            torch._dynamo.maybe_mark_dynamic(one, 0)
        return graph(block, *inputs)

    return run


def _run_once(block: Any, halves: Halves, device: torch.device, precision: Precision) -> None:
    """Forward and backward over two events; gradients are not kept."""
    x = torch.zeros(2, block.output.in_features, device=device, requires_grad=True)
    with torch.enable_grad():
        with precision():
            *gate, query, _, _ = halves.before(block, x, None)
            out = halves.after(block, x, None, query.contiguous(), *gate)
        torch.autograd.grad(out.sum(), x)


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
