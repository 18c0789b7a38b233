"""The handle of a batch's offsets: the bits of the tensor, validated once, for every op that takes offsets."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from argus_kernels import OPS, Offsets, causal_attention, hstu_attention, pairwise_loss
from argus_kernels.attention.triton import schedule
from argus_kernels.core import Op, varlen
from argus_kernels.testing import captured_arguments, run_op, small_samples
from argus_kernels.testing.harness import draw, public_function

TAKING = [op for op in OPS if "offsets" in inspect.signature(public_function(op)).parameters]
CASES = [
    pytest.param(op, sample, backend, id=f"{op.name}-{sample.name}-{backend}")
    for op in TAKING
    for sample in small_samples(op)
    for backend in ("cpp", "reference", "eager")
]
USERS = torch.tensor([0, 2, 2, 5], dtype=torch.int32)


def rows_of(arguments: dict[str, Any]) -> int:
    first: Tensor = next(iter(arguments.values()))
    return first.shape[0]


def test_the_ops_that_take_offsets() -> None:
    assert {op.name for op in TAKING} == {"causal_attention", "decode_attention", "hstu_attention", "pairwise_loss"}


@pytest.mark.parametrize(("op", "sample", "backend"), CASES)
def test_a_handle_gives_the_bits_of_its_tensor(op: Op, sample: Any, backend: str) -> None:
    arguments = draw(sample, torch.float32, 0)
    if arguments.get("offsets") is None:
        pytest.skip("a jagged tensor carries its offsets, and one event a user needs none")
    if backend != "eager" and (reasons := op.backend(backend).reasons(captured_arguments(op, arguments))):
        pytest.skip("; ".join(reasons))
    # The divisor of hstu_attention without one is max_length.
    given = rows_of(arguments) if arguments.get("max_length") is None else arguments["max_length"]
    handle = Offsets(arguments["offsets"], rows=rows_of(arguments), max_length=given)
    function = public_function(op)

    def with_handle(**inputs: Any) -> Any:
        inputs = {name: value for name, value in inputs.items() if name != "max_length"}
        return function(**{**inputs, "offsets": handle})

    expected = run_op(op, sample, arguments, backend)
    for _ in range(3):
        found = run_op(op, sample, arguments, backend, call=with_handle)
        assert found.results.keys() == expected.results.keys()
        for name, value in found.results.items():
            assert torch.equal(value.nan_to_num(), expected.results[name].nan_to_num()), name


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_what_it_reads_and_what_it_holds(dtype: torch.dtype) -> None:
    given = USERS.clone().to(dtype)
    handle = Offsets(given)
    given[1] = 1
    assert handle.tensor.tolist() == [0, 2, 2, 5] and handle.tensor.dtype == torch.int32
    assert (handle.users, handle.rows, handle.max_length) == (3, 5, 3)
    assert repr(handle) == "Offsets(users=3, rows=5, max_length=3, device=cpu)"
    empty = Offsets(torch.zeros(1, dtype=dtype))
    assert (empty.users, empty.rows, empty.max_length) == (0, 0, 0)
    with pytest.raises(AttributeError):
        handle.rows = 6  # type: ignore[misc]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_handles(again: Any) -> None:
    found = again(Offsets(USERS, rows=7, max_length=4))
    assert torch.equal(found.tensor, USERS) and (found.rows, found.max_length) == (7, 4)
    assert varlen.validated(found.tensor) is not None


def test_to_a_device() -> None:
    handle = Offsets(USERS)
    assert handle.to("cpu") is handle and handle.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offsets": [0, 2]}, "Offsets: offsets is list, expected a tensor"),
        ({"offsets": USERS.float()}, "Offsets: offsets is torch.float32, expected torch.int32 or torch.int64"),
        ({"offsets": USERS[None]}, r"Offsets: offsets has shape \[1, 4\]"),
        ({"offsets": USERS[:0]}, r"Offsets: offsets is empty, expected \[B \+ 1\] values"),
        ({"offsets": USERS + 1}, r"Offsets: offsets\[0\] is 1, expected 0"),
        ({"offsets": torch.tensor([0, 3, 2])}, r"Offsets: offsets\[2\] is 2, expected at least offsets\[1\] = 3"),
        ({"offsets": torch.tensor([0, 2**40])}, r"Offsets: offsets\[1\] is 2147483647 or more"),
        ({"offsets": USERS, "rows": 4}, r"Offsets: offsets\[3\] is 5, expected at most the 4 rows given"),
        ({"offsets": USERS, "rows": -1}, "Offsets: rows is -1, expected at least 0 or None"),
        ({"offsets": USERS, "max_length": 2}, "Offsets: user 2 has 3 events, expected at most max_length = 2"),
        ({"offsets": USERS, "max_length": True}, "Offsets: max_length is True, expected an integer or None"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Offsets(**arguments)


def test_a_handle_of_another_batch_is_refused() -> None:
    q, handle = torch.ones(6, 1, 4), Offsets(USERS)
    said = "offsets is a handle of 3 users in 5 rows, expected one of the 6 rows given"
    for call in (
        lambda: causal_attention(q, q, q, handle),
        lambda: hstu_attention(q, q, q, handle),
        lambda: pairwise_loss(q[:, 0, 0], torch.arange(6), handle, torch.arange(6), 1),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(ValueError, match="user 2 has 3 events, expected at most max_length = 2"):
        causal_attention(q[:5], q[:5], q[:5], handle, 2)


def test_values_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, q = Offsets(USERS), torch.ones(5, 1, 4)
    read: list[Tensor] = []

    def noted(tensor: Tensor) -> Any:
        read.append(tensor)
        return []

    monkeypatch.setattr(Tensor, "tolist", noted)
    for _ in range(3):
        causal_attention(q, q.clone(), q.clone(), handle, backend="cpp")
    assert not read


def test_a_handle_that_was_written_is_read_anew() -> None:
    handle, q = Offsets(USERS), torch.ones(5, 1, 4)
    handle.tensor[1] = 9
    for backend in ("cpp", "reference"):
        with pytest.raises(ValueError, match=r"offsets\[2\] is 2, expected at least offsets\[1\] = 9"):
            causal_attention(q, q, q, handle, backend=backend)


@pytest.mark.parametrize("with_handle", [True, False])
def test_four_layers_share_one_launch_for_their_schedules(with_handle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = schedule._made

    def noted(offsets: Tensor, total: int, wanted: Any) -> list[Tensor]:
        made.append(len(wanted))
        return plain(offsets, total, wanted)

    monkeypatch.setattr(schedule, "_made", noted)
    handle = Offsets(USERS)
    leaf = torch.randn(5, 1, 16, requires_grad=True)
    x, bias = leaf, torch.zeros(1, 4, requires_grad=True)
    for _ in range(4):
        offsets = handle if with_handle else USERS
        x = causal_attention(x, x * 2, x * 3, offsets, 3, position_bias=bias, backend="triton")
    x.sum().backward()
    assert len(made) == (1 if with_handle else 8)


def test_where_values_cannot_be_read() -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(USERS)
        assert varlen.validated(Offsets(fake, rows=5, max_length=3).tensor) is None
        with pytest.raises(ValueError, match="Offsets: rows is not given, expected it where values cannot be read"):
            Offsets(fake, max_length=3)


def test_a_handle_made_under_torch_compile() -> None:
    torch._dynamo.reset()

    def attend(q: Tensor, users: Tensor) -> Tensor:
        out: Tensor = causal_attention(q, q * 2, q, Offsets(users, rows=5, max_length=5))
        return out

    q = torch.randn(5, 1, 4)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, USERS), attend(q, USERS))
    with pytest.raises(ValueError, match=r"offsets\[2\] is 2"):
        compiled(q, torch.tensor([0, 3, 2, 5], dtype=torch.int32))


def test_under_torch_compile() -> None:
    torch._dynamo.reset()

    def loss(q: Tensor, offsets: Offsets) -> Tensor:
        out: Tensor = causal_attention(q, q * 2, q, offsets)
        return out.square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for users in ([0, 2, 5], [0, 4, 5], [0, 1, 1, 5]):
        handle = Offsets(torch.tensor(users))
        leaves = [torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
        found, expected = compiled(leaves[0], handle), loss(leaves[1], handle)
        found.backward()
        expected.backward()
        assert torch.equal(found, expected) and torch.equal(leaves[0].grad, leaves[1].grad)  # type: ignore[arg-type]
