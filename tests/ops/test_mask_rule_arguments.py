"""Arguments of the mask rule that cannot be had are named in one sentence, and what can be had is had in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import Offsets, causal_attention, hstu_attention

OFFSETS = torch.tensor([0, 6, 9])
FEW = torch.tensor([0, 2, 3])
SEED = torch.tensor([1, 2])
ALL_OPS = pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: str(op.__name__))


def rows(value: int) -> Tensor:
    return torch.full((9,), value)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prefix": -1}, "prefix is -1, expected at least 0 or None"),
    ({"prefix": 1.5}, "prefix is 1.5, expected an integer or None"),
    ({"prefix": torch.tensor([1])}, r"prefix has shape \[1\], expected \[2\] like the users"),
    ({"prefix": torch.tensor([1, -2])}, r"prefix\[1\] is -2, expected at least 0"),
    ({"own_begin": rows(0)}, "one of own_begin and own_end is given, expected both or neither"),
    ({"own_begin": rows(2), "own_end": rows(1)}, r"own_begin\[0\] is 2, expected 0 to 1, its own_end"),
    ({"own_begin": rows(0), "own_end": rows(7)}, r"own_end\[0\] is 7, expected 0 to 6, the number of its user's keys"),
    ({"visible": rows(4)}, r"visible\[6\] is 4, expected 0 to 3, the number of its user's keys"),
    ({"position": rows(2**31)}, r"position\[0\] is 2147483647 or more, expected -1073741824 to 1073741824"),
    ({"position": torch.zeros(9)}, "position is torch.float32, expected torch.int32 or torch.int64"),
    ({"position": rows(0)[:4]}, r"position has shape \[4\], expected \[9\] like q's rows"),
    ({"key_offsets": torch.tensor([0, 9])}, r"key_offsets has shape \[2\], expected \[3\] like offsets"),
    ({"key_offsets": torch.tensor([0, 9, 3])}, r"key_offsets\[2\] is 3, expected at least key_offsets\[1\] = 9"),
    ({"key_offsets": torch.tensor([0, 9, 13])}, r"key_offsets\[2\] is 13, expected at most the 9 rows given"),
    ({"key_offsets": Offsets(torch.tensor([0, 4, 8]))}, "key_offsets is a handle of 2 users in 8 rows"),
    ({"key_max_length": 3}, "key_max_length is given without key_offsets"),
    ({"key_offsets": OFFSETS, "key_max_length": 3}, "user 0 has 6 keys, expected at most key_max_length = 3"),
    ({"dropout": 1.0, "dropout_seed": SEED}, "dropout is 1.0, expected a finite number of at least 0 and below 1"),
    ({"dropout": 0.1}, r"dropout_seed is not given, expected int64 \[B\] with dropout"),
    ({"dropout": 0.1, "dropout_seed": SEED.int()}, "dropout_seed is torch.int32, expected torch.int64"),
    ({"dropout": 0.1, "dropout_seed": SEED[:1]}, r"dropout_seed has shape \[1\], expected \[2\] like the users"),
]


@ALL_OPS
@pytest.mark.parametrize("backend", ["auto", "reference", "eager"])
@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_what_is_refused(op: Callable[..., Tensor], backend: str, given: dict[str, Any], sentence: str) -> None:
    q, k, v = torch.randn(3, 9, 4, 8)
    with pytest.raises(ValueError, match=f"{op.__name__}: .*{sentence}"):
        op(q, k, v, OFFSETS, backend=backend, **given)


@ALL_OPS
@pytest.mark.parametrize(
    ("keys", "values", "sentence"),
    [
        ((9, 3, 8), (9, 3, 8), r"k has 3 heads, expected a divisor of q's 4 \(grouped queries\)"),
        ((9, 0, 8), (9, 0, 8), "k has 0 heads, expected a divisor of q's 4"),
        ((9, 2, 8), (9, 4, 8), r"v has shape \[9, 4, 8\], expected \[9, 2, 8\] like k"),
        ((8, 4, 8), (8, 4, 8), r"k has shape \[8, 4, 8\], expected \[9, any, 8\] like q"),
    ],
)
def test_keys_that_do_not_fit(op: Callable[..., Tensor], keys: Any, values: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        op(torch.randn(9, 4, 8), torch.randn(*keys), torch.randn(*values), OFFSETS)


def rectangular(op: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
    return op(
        q, k, v, FEW, 2, key_offsets=OFFSETS, key_max_length=6, position=at, visible=at, dropout=0.2, dropout_seed=SEED,
        **({} if op is causal_attention else {"divisor": 6.0}),
    )  # fmt: skip


@ALL_OPS
def test_compiled_exported_and_jagged_calls_are_eager_ones(op: Callable[..., Tensor]) -> None:
    q, k, v, at = torch.randn(3, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8), torch.tensor([1, 2, 0])
    expected = rectangular(op, q, k, v, at)
    compiled = torch.compile(lambda *given: rectangular(op, *given), fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v, at), expected)

    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
            return rectangular(op, q, k, v, at)

    exported = torch.export.export(Module(), (q, k, v, at)).module()
    torch.testing.assert_close(exported(q, k, v, at), expected)
    keys: Any = torch.nested.nested_tensor_from_jagged(k, offsets=OFFSETS)
    values = torch.nested.nested_tensor_from_jagged(v, offsets=keys.offsets())
    queries = torch.nested.nested_tensor_from_jagged(q, offsets=FEW)
    options: dict[str, Any] = {} if op is causal_attention else {"divisor": 6.0}
    found: Any = op(queries, keys, values, position=at, visible=at, dropout=0.2, dropout_seed=SEED, **options)
    assert torch.equal(found.values(), expected) and torch.equal(found.offsets(), FEW)


@ALL_OPS
def test_a_prefix_of_every_size(op: Callable[..., Tensor]) -> None:
    q, k, v = torch.randn(3, 9, 4, 8)
    options: dict[str, Any] = {} if op is causal_attention else {"divisor": 6.0}
    whole = op(q, k, v, OFFSETS, **options)
    for prefix in (10**12, 9, torch.tensor([6, 3])):
        torch.testing.assert_close(op(q, k, v, OFFSETS, window=1, prefix=prefix, **options), whole)
    assert torch.equal(op(q, k, v, OFFSETS, window=2, prefix=0, **options), op(q, k, v, OFFSETS, window=2, **options))
