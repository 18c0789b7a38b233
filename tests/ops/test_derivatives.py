"""Derivatives that an op does not have are refused in a sentence; none ever comes out as 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from argus_kernels import OPS, causal_attention
from argus_kernels.core import Op
from argus_kernels.testing import small_samples
from argus_kernels.testing.harness import draw, public_function

BACKENDS = ("auto", "cpp", "reference")
SENTENCE = "{}: forward-mode derivatives and torch.func's transforms of gradients"


def first_leaf(op: Op) -> tuple[Callable[..., Tensor], Tensor]:
    """The op as a function of its first floating argument, summed, and that argument in float64."""
    sample = small_samples(op)[0]
    arguments = draw(sample, torch.float64, 0)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor) and value.is_floating_point()]
    name = next(name for name in names if name not in op.mutates)

    def call(value: Tensor, backend: str = "auto") -> Tensor:
        given: dict[str, Any] = {**arguments, name: value}
        returned = public_function(op)(**given, backend=backend)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        return sum((one.double().sum() for one in outputs if one is not None), torch.zeros(()).double())

    return call, arguments[name]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_tangents_are_refused(op: Op, backend: str) -> None:
    call, leaf = first_leaf(op)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=SENTENCE.format(op.name)):
        call(forward_ad.make_dual(leaf, torch.ones_like(leaf)), backend)
    with pytest.raises(RuntimeError, match=SENTENCE.format(op.name)):
        torch.func.jvp(lambda value: call(value, backend), (leaf,), (torch.ones_like(leaf),))
    with forward_ad.dual_level():
        call(leaf, backend)  # nothing here has a tangent


DIFFERENTIABLE = [op for op in OPS if op.differentiable]


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_transforms_and_second_derivatives_are_refused(op: Op) -> None:
    call, leaf = first_leaf(op)
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=SENTENCE.format(op.name)):
            transform(call)(leaf)
    leaf = leaf.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op.name}: its gradients have no gradients of their own"):
        torch.autograd.grad(gradient.sum(), leaf)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_a_tangent_in_the_backward_pass_is_refused(op: Op) -> None:
    call, leaf = first_leaf(op)
    leaf = leaf.clone().requires_grad_()
    out = call(leaf)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=SENTENCE.format(op.name)):
        one = torch.ones_like(out)
        torch.autograd.grad(out, leaf, forward_ad.make_dual(one, one))


@pytest.mark.parametrize("name", ["decode_linear", "decode_attention"])
def test_ops_without_gradients_say_so_in_the_backward_pass(name: str) -> None:
    call, leaf = first_leaf(next(op for op in OPS if op.name == name))
    with pytest.raises(RuntimeError, match=name):
        call(leaf.clone().requires_grad_()).backward()


def test_eager_has_them() -> None:
    """The directional derivative is that of finite differences; autograd goes on through the gradient."""
    q = torch.randn(5, 1, 3, dtype=torch.float64)
    offsets = torch.tensor([0, 2, 5])

    def call(value: Tensor) -> Tensor:
        found: Tensor = causal_attention(value, value, value, offsets, backend="eager")
        return found.square().sum()

    tangent = torch.func.jvp(call, (q,), (torch.ones_like(q),))[1]
    step = 1e-6
    torch.testing.assert_close(tangent, (call(q + step) - call(q - step)) / (2 * step), rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(call, (q.clone().requires_grad_(),))


def test_a_compiled_tangent_is_refused() -> None:
    q = torch.randn(5, 1, 3)

    def call(value: Tensor) -> Tensor:
        found: Tensor = causal_attention(value, value, value, torch.tensor([0, 2, 5]))
        return found

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda value: torch.func.jvp(call, (value,), (value,)), backend="aot_eager", fullgraph=True
    )
    with pytest.raises(Exception, match="forward-mode derivatives"):
        compiled(q)


def test_vmap_goes_through() -> None:
    q = torch.randn(3, 5, 1, 2)
    offsets = torch.tensor([0, 2, 5])
    found = torch.func.vmap(lambda one: causal_attention(one, one, one, offsets))(q)
    torch.testing.assert_close(found, torch.stack([causal_attention(one, one, one, offsets) for one in q]))


@pytest.mark.parametrize("name", ["triple_embedding", "decode_attention", "rowwise_adagrad_"])
def test_vmap_is_refused_where_torch_has_no_loop(name: str) -> None:
    call, leaf = first_leaf(next(op for op in OPS if op.name == name))
    with pytest.raises(RuntimeError, match=f"{name}: vmap does not reach through it"):
        torch.func.vmap(call)(torch.stack([leaf, leaf]))
