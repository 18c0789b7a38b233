"""The forward Triton kernels of both attention ops with tensor descriptors (TMA): the bits of plain loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import causal_attention, hstu_attention
from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core.triton_support import available, gpu_generation, loads_by_tma

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOPPER = available() is None and gpu_generation(torch.device(DEVICE)) == 9
OPS = pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: op.__name__)

# Tiles of 16-bit numbers are 128 queries × 64 keys, with biases 64 × 32: users end inside a tile and on its edge.
CASES = [
    HistoryCase("plain", (130, 0, 64), heads=1, width=16, padding=3),
    HistoryCase("lagged_window", (131,), heads=1, width=24, mask="lagged", window=70),
    HistoryCase("candidates", (140,), heads=1, width=8, mask="candidates", padding=1),
    HistoryCase("grouped", (9, 5), heads=4, key_heads=2, width=8),
    HistoryCase("biased", (70, 3), heads=1, width=8, position_buckets=9, time_buckets=7),
    HistoryCase("ruled", (40,), key_lengths=(70,), key_padding=2, heads=1, width=8, mask="groups", prefix=3, window=20),
    HistoryCase("float32", (35, 3), heads=1, width=8, padding=2),
]


def drawn(case: HistoryCase, dtype: torch.dtype) -> dict[str, Any]:
    arguments = case.make(torch.Generator().manual_seed(3), dtype)
    for name in "qkv":
        # Padding, and so what lies past the last user's end, is NaN.
        rows = arguments["key_offsets" if name != "q" and case.key_lengths else "offsets"][-1]
        arguments[name][rows:] = float("nan")
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in arguments.items()}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., bool]], list[bool]]:
    """Sets what decides whether a launch takes descriptors; the list gets its answers."""

    def set_to(decide: Callable[..., bool]) -> list[bool]:
        from argus_kernels.attention.triton import launch

        answers: list[bool] = []

        def noted(*tensors: Tensor) -> bool:
            answers.append(decide(*tensors))
            return answers[-1]

        monkeypatch.setattr(launch, "loads_by_tma", noted)
        return answers

    return set_to


def forward(op: Any, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    if op is causal_attention:
        return tuple(op(**arguments, return_log_sum_exp=True, backend="triton"))
    return (op(**arguments, backend="triton"),)


@pytest.mark.skipif(not HOPPER, reason="only Hopper's kernels take descriptors")
@OPS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_descriptors_give_the_bits_of_plain_loads(op: Any, case: HistoryCase, loads: Any) -> None:
    dtype = torch.float32 if case.name == "float32" else torch.float16
    arguments = drawn(case, dtype)
    # float32 takes none by itself; it shows that nothing but the loads differs.
    described = loads(loads_by_tma if dtype == torch.float16 else lambda *_: True)
    ours = forward(op, arguments)
    assert set(described) == {True}
    loads(lambda *_: False)
    for found, expected in zip(ours, forward(op, arguments), strict=True):
        assert torch.isfinite(found).all()
        assert torch.equal(found, expected)


@pytest.mark.skipif(not HOPPER or DEVICE != "cpu", reason="looks into the interpreter, of Hopper's kernels")
@OPS
def test_what_lies_past_a_users_end_costs_no_row_its_fast_way(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that ends past the user is zero there: 0 · NaN makes no sum NaN, and no row is computed again."""
    from argus_kernels.attention.triton import forward as kernels

    def refused(*_: Any) -> None:
        raise AssertionError("a row was computed again")

    monkeypatch.setattr(kernels, "attend_row", refused)
    assert torch.isfinite(
        forward(op, drawn(HistoryCase("end", (20,), heads=1, width=8, padding=9), torch.float16))[0]
    ).all()


def test_what_tma_cannot_load_comes_by_plain_loads(loads: Any) -> None:
    """Rows that begin at no multiple of 16 bytes, and a column's stride that is not 1."""
    case = HistoryCase("odd", (20,), heads=1, width=5)
    arguments = drawn(case, torch.float16)
    described = loads(loads_by_tma)
    expected = causal_attention(**arguments, backend="reference")
    torch.testing.assert_close(causal_attention(**arguments, backend="triton"), expected, atol=2e-3, rtol=2e-3)
    assert set(described) == {False}


@pytest.mark.skipif(not HOPPER, reason="only Hopper's kernels take descriptors")
def test_parts_of_a_larger_tensor_come_by_descriptors(loads: Any) -> None:
    """q, k and v as a projection leaves them, [T, 3, H, Dh]."""
    case = HistoryCase("packed", (20, 7), heads=2, width=8)
    arguments = drawn(case, torch.float16)
    packed = torch.stack([arguments[name] for name in "qkv"], 1)
    described = loads(loads_by_tma)
    expected = forward(causal_attention, arguments)[0]
    found = forward(causal_attention, arguments | dict(zip("qkv", packed.unbind(1), strict=True)))[0]
    assert set(described) == {True}
    assert torch.equal(found, expected)
