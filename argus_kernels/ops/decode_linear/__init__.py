"""decode_linear: one linear layer of a few rows, with the LayerNorm before it and what comes after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from argus_kernels.core import Backend, Op, Problems
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.torch_op import autocast_is_on, plain_number
from argus_kernels.ops.decode_linear import native, reference
from argus_kernels.ops.decode_linear.arguments import Arguments
from argus_kernels.ops.decode_linear.direct import DirectLinear
from argus_kernels.ops.decode_linear.samples import drawn, samples, tiles

__all__ = ["ACTIVATIONS", "BACKENDS", "OP", "DirectLinear", "decode_linear"]

ACTIVATIONS = ("none", "gelu")

BACKENDS = (
    Backend("cpp", native.forward, why_not=native.why_not, available=native.available),
    Backend("reference", reference.forward),
)


def _fake(given: Arguments) -> Tensor:
    return given.x.new_empty(given.x.shape[0], given.weight.shape[0])


OP = Op(
    "decode_linear",
    arguments=Arguments,
    returns="Tensor",
    fake=_fake,
    numbers={"eps": ("eps", {"above": 0})},
    backends=BACKENDS,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
)


def decode_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float | Tensor = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """A dense layer of incremental inference for a few rows: residual + act( LayerNorm(x) Wᵀ + b ).

    Args:
        x: [n, I], float32, bfloat16, float16 or float64; arithmetic is float32 (float64 for float64), the result is
            rounded once. Under autocast x and residual are cast to the weight's dtype.
        weight: [O, I], nn.Linear's layout, in x's dtype; neither size 0.
        bias: [O] in x's dtype, or None.
        norm_weight: [I] in x's dtype: a LayerNorm over x's columns comes first; None for none.
        norm_bias: like norm_weight; both or neither.
        eps: added to the LayerNorm's variance; positive. Also a floating-point tensor of no dimension, without a
            gradient, whose value is read at each call.
        activation: "none", or "gelu" in its exact form, x · Φ(x).
        residual: [n, O] in x's dtype, added last, or None.
        backend: a backend's name, "eager" or "auto"; None takes the default.

    Returns:
        out [n, O] in x's dtype. It has no gradients; call it without grad mode, or on detached tensors.

    Raises:
        ValueError: arguments that disagree in shape, dtype, layout or device, an activation there is not, an eps that
            is not positive (all reasons at once).
    """
    given = Arguments(x, weight, bias, norm_weight, norm_bias, residual, plain_number(eps), activation)
    return OP(given, backend=backend, prepare=_prepare)


def _prepare(given: Arguments) -> Arguments:
    problems = Problems(OP.name)
    weight = given.weight
    if isinstance(weight, Tensor):
        given = given._replace(x=_like_weight(given.x, weight), residual=_like_weight(given.residual, weight))
    x = given.x
    if problems.tensor("x", x, shape=(None, None), dtype=FLOATING):
        rows, inputs = x.shape
        if problems.tensor("weight", weight, shape=(None, inputs), dtype=x.dtype, device=x.device, like="x"):
            outputs = weight.shape[0]
            problems.require(
                outputs > 0 and inputs > 0,
                lambda: f"weight has shape {[outputs, inputs]}, expected no size of 0",
            )
            _check_like(problems, given, bias=(outputs,), residual=(rows, outputs))
        _check_like(problems, given, norm_weight=(inputs,), norm_bias=(inputs,))
    problems.require(
        (given.norm_weight is None) == (given.norm_bias is None),
        "one of norm_weight and norm_bias is given, expected both or neither",
    )
    eps = problems.number("eps", given.eps, above=0, or_tensor=True)
    problems.choice("activation", given.activation, ACTIVATIONS)
    problems.raise_if_any()
    return given._replace(eps=eps)


def _like_weight(tensor: Any, weight: Tensor) -> Any:
    """Under autocast the weight decides the dtype: casting it takes longer than the product."""
    if isinstance(tensor, Tensor) and autocast_is_on(weight.device.type):
        return tensor.to(weight.dtype) if tensor.is_floating_point() else tensor
    return tensor


def _check_like(problems: Problems, given: Arguments, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        tensor = getattr(given, name)
        if tensor is not None:
            problems.tensor(name, tensor, shape=shape, dtype=given.x.dtype, device=given.x.device, like="x")
