"""The short way of a plain eager call: the bits of the registered op, and its refusals, without the dispatcher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from argus_kernels import OPS, hstu_attention, rowwise_adagrad_
from argus_kernels.core import Op, Sample
from argus_kernels.core.eager import is_plain
from argus_kernels.testing import captured_arguments, run_op, small_samples
from argus_kernels.testing.harness import draw, public_function

CASES = [
    pytest.param(op, sample, backend, id=f"{op.name}-{sample.name}-{backend}")
    for op in OPS
    for sample in small_samples(op)
    for backend in ("cpp", "reference")
]


class Watched(TorchFunctionMode):
    """A mode that changes nothing: under it a call takes the registered op."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def refused(*arguments: Any) -> None:
    raise AssertionError("the registered op was called")


@pytest.mark.parametrize(("op", "sample", "backend"), CASES)
def test_both_ways_give_the_same_bits(op: Op, sample: Sample, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = draw(sample, torch.float32, 3)
    reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    registered: list[str] = []

    def watched(**given: Any) -> Any:
        with Watched():
            return public_function(op)(**given)

    forward, backward = op.torch_op, getattr(op, "backward_op", None)

    def noted(*values: Any) -> Any:
        registered.append("forward")
        return forward(*values)

    monkeypatch.setattr(op, "torch_op", noted)
    long = run_op(op, sample, arguments, backend, call=watched)
    assert registered == ["forward"]
    monkeypatch.setattr(op, "torch_op", refused)
    if backward is not None:
        monkeypatch.setattr(op, "backward_op", refused)
    # A call without a plan, one that finds it by its key, and one that is recognised.
    for _ in range(3):
        short = run_op(op, sample, arguments, backend)
        assert short.results.keys() == long.results.keys()
        for name, value in short.results.items():
            assert torch.equal(value.nan_to_num(), long.results[name].nan_to_num()), name
            assert torch.equal(value.isnan(), long.results[name].isnan()), name


def small_call(leaf: Tensor) -> Tensor:
    return hstu_attention(leaf, leaf * 2, leaf * 3, torch.tensor([0, 2], dtype=torch.int32))


def test_an_argument_written_after_the_call_is_found_in_the_backward_pass() -> None:
    q = torch.ones(2, 1, 4, requires_grad=True) * 1
    out = small_call(q)
    q.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_is_written_in_place_tells_autograd() -> None:
    table, state = torch.ones(3, 2), torch.zeros(3)
    before = table._version, state._version
    rowwise_adagrad_(table, state, torch.tensor([1]), torch.ones(1, 2), lr=0.1, backend="cpp")
    assert (table._version, state._version) == (before[0] + 1, before[1] + 1)


def test_what_only_the_registered_op_serves() -> None:
    plain = torch.ones(2)
    assert is_plain([plain, torch.nn.Parameter(plain)])
    assert not is_plain([plain.to("meta")])
    assert not is_plain([torch.ones(2, dtype=torch.complex64).conj().imag])
    with torch.autocast("cpu"):
        assert not is_plain([plain])
    with torch.profiler.profile():
        assert not is_plain([plain])
    with torch._subclasses.FakeTensorMode():
        assert not is_plain([])
    torch.func.vmap(lambda one: refused() if is_plain([one]) else one)(plain)


def test_what_is_left_over_from_a_transform_is_a_constant() -> None:
    kept: list[Tensor] = []
    leaf = torch.ones(2, 1, 4)

    def keeping(leaf: Tensor) -> Tensor:
        kept.append(leaf * 2)
        return leaf.sum()

    torch.func.grad(keeping)(leaf)
    assert kept[0].requires_grad and not is_plain(kept)
    for _ in range(2):
        out = hstu_attention(kept[0], leaf, leaf, torch.tensor([0, 2], dtype=torch.int32))
        assert not out.requires_grad
        assert torch.equal(out, hstu_attention(leaf * 2, leaf, leaf, torch.tensor([0, 2], dtype=torch.int32)))
