"""What the functions of torch.ops.argus_native refuse when they are called past the public functions, case by case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels.core import native

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
ROWS, HEADS, WIDTH, POSITIONS, TIMES = 6, 2, 4, 9, 32


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


def packed() -> Tensor:
    return torch.randn(ROWS, HEADS, WIDTH)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def history() -> dict[str, Any]:
    return {
        **{name: packed() for name in ("q", "k", "v")},
        "offsets": int32(0, 4, 6),
        "visible": int32(0, 1, 2, 3, 0, 1),
        "position_bias": torch.randn(HEADS, POSITIONS),
        "time_bias": torch.randn(HEADS, TIMES),
        "query_time": torch.arange(ROWS),
        "key_time": torch.arange(ROWS),
    }


def backward_arguments(op: str) -> dict[str, Any]:
    given: dict[str, Any] = {"d_out": packed()}
    if op == "causal_attention":
        statistics = {name: torch.randn(HEADS, ROWS) for name in ("d_log_sum_exp", "log_sum_exp")}
        given |= {"d_log_sum_exp": statistics["d_log_sum_exp"], "out": packed(), **statistics}
    given |= {**history(), **({"alpha": 0.5, "divisor": 2.0} if op == "hstu_attention" else {"scale": 0.5})}
    return given | {"window": 0, "dropout": 0.0, "need_position_bias": True, "need_time_bias": True}


@pytest.mark.parametrize("op", ["causal_attention", "hstu_attention"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"position_bias": None}, "the gradient of position_bias is wanted without it"),
        ({"time_bias": None}, "the gradient of time_bias is wanted without it"),
        ({"position_bias": torch.randn(3, 12)}, r"position_bias has shape \[3, 12\], expected .* = \[2, any\]"),
        ({"query_time": None}, "query_time is not given, expected it beside time_bias"),
        ({"time_bias": torch.randn(2)}, r"time_bias has shape \[2\], expected \[H, any\]"),
        ({"window": SMALLEST}, "window is -9223372036854775808, expected at least 1, or 0 for no limit"),
        ({"window": -5}, "window is -5"),
        ({"offsets": int32(0, 7, 6)}, r"offsets\[1\] is 7, expected 0 to 6"),
        ({"offsets": None}, "offsets is None, expected a tensor"),
        ({"visible": int32(0, 9, 0, 0, 0, 0)}, r"visible\[1\] is 9, expected 0 to 4"),
        ({"key_offsets": int32(0, 4, 7)}, r"key_offsets\[2\] is 7, expected 4 to 6"),
        ({"key_offsets": int32(0, 6)}, "key_offsets has 2 values, expected offsets' 3"),
        ({"position": int32(0, 1, 2, 3, 2**31 - 1, 5)}, r"position\[4\] is 2147483647, expected -1073741824 to"),
        ({"own_begin": int32(0, 1, 2, 3, 0, 1)}, "one of own_begin and own_end is given, expected both or neither"),
        (
            {"own_begin": int32(0, 1, 2, 9, 0, 1), "own_end": int32(0, 1, 2, 3, 0, 1)},
            r"own_begin\[3\] is 9, expected 0 to",
        ),
        (
            {"own_begin": int32(0, 1, 2, 3, 0, 1), "own_end": int32(0, 1, 2, 9, 0, 1)},
            r"own_end\[3\] is 9, expected 0 to 4",
        ),
        ({"prefix": int32(-1, 1)}, r"prefix\[0\] is -1, expected at least 0"),
        ({"prefix": int32(1)}, r"prefix has shape \[1\], expected \[B\] = \[2\]"),
        ({"visible": int32(0, 1)}, r"visible has shape \[2\], expected \[T\] = \[6\]"),
        ({"key_time": torch.arange(5)}, r"key_time has shape \[5\], expected \[Tk\] = \[6\]"),
        ({"dropout": 0.5}, "dropout_seed is not given, expected it with dropout"),
        ({"dropout": 1.5, "dropout_seed": torch.tensor([1, 2])}, "dropout is 1.5, expected at least 0 and below 1"),
        (
            {"dropout": 0.5, "dropout_seed": torch.tensor([1, 2, 3])},
            r"dropout_seed has shape \[3\], expected \[B\] = \[2\]",
        ),
        ({"k": packed()[:-1]}, r"k has shape \[5, 2, 4\]"),
        ({"d_out": packed()[:-1]}, r"d_out has shape \[5, 2, 4\]"),
        ({"q": torch.zeros(ROWS, HEADS, 0)}, "q has head width 0, expected at least 1"),
    ],
)
def test_attention(op: str, changed: dict[str, Any], message: str) -> None:
    function = getattr(torch.ops.argus_native, f"{op}_backward")
    # What is left out is optional.
    arguments = backward_arguments(op)
    given = {argument.name: arguments.get(argument.name) for argument in function.default._schema.arguments}
    function(*given.values())
    with pytest.raises(ValueError, match=f"^argus_native::{op}: .*" + message):
        function(*{**given, **changed}.values())


@pytest.mark.parametrize("classes", [[1, 2, LARGEST], [LARGEST, LARGEST, 5], [1, 0, 2], [1, SMALLEST, 2]])
def test_classes_beyond_int64(classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^argus_native::feedback_loss: (the sum of classes|classes)"):
        torch.ops.argus_native.feedback_loss(
            torch.randn(4, 3),
            torch.randn(3, 3),
            torch.randn(3),
            torch.zeros(4, 3, dtype=torch.int64),
            classes,
            None,
            None,
        )


@pytest.mark.parametrize("window", [-5, 0, SMALLEST])
def test_a_window_that_hides_the_event_itself(window: int) -> None:
    pages = torch.zeros(1, 2, HEADS, WIDTH)
    integers = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"^argus_native::decode_attention: window is {window}, expected at least 1"):
        torch.ops.argus_native.decode_attention(
            torch.zeros(1, HEADS, WIDTH), pages, pages, torch.zeros(1, 2, dtype=torch.int64), integers,
            torch.ones(1, dtype=torch.int32), None, None, None, None, None, None, 1.0, window,
        )  # fmt: skip


@pytest.mark.parametrize("table", [torch.ones(1, 4).expand(5, 4), torch.ones(20).as_strided((5, 4), (2, 1))])
def test_a_table_that_holds_its_memory_twice(table: Tensor) -> None:
    before = table.clone()
    with pytest.raises(ValueError, match=r"^argus_native::rowwise_adagrad_: table has overlapping elements"):
        torch.ops.argus_native.rowwise_adagrad_(
            table, torch.zeros(5), torch.arange(5), torch.ones(5, 4), 0.1, 1e-8, 0.0
        )
    assert torch.equal(table, before)


def test_pages_that_hold_their_memory_twice() -> None:
    pages, rows = torch.zeros(1, 2, HEADS, WIDTH).expand(3, 2, HEADS, WIDTH), torch.zeros(1, HEADS, WIDTH)
    with pytest.raises(ValueError, match=r"^argus_native::decode_attention: key_pages has overlapping elements"):
        torch.ops.argus_native.decode_attention(
            rows, pages, pages, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int32),
            torch.ones(1, dtype=torch.int32), rows, rows, None, None, None, None, 1.0, None,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_that_memory_does_not_hold(dtype: torch.dtype) -> None:
    """In the dtype that the kernels compute in, and in one that is converted first."""
    pages, bias = torch.zeros(1, 2, HEADS, WIDTH, dtype=dtype), torch.zeros(HEADS, 1, dtype=dtype).expand(HEADS, 2**43)
    with pytest.raises(ValueError, match=r"^argus_native::decode_attention: position_bias has shape .* memory holds"):
        torch.ops.argus_native.decode_attention(
            torch.zeros(1, HEADS, WIDTH, dtype=dtype), pages, pages, torch.zeros(1, 2, dtype=torch.int64),
            torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32), None, None, bias, None, None, None,
            1.0, None,
        )  # fmt: skip


def test_what_memory_does_not_hold() -> None:
    embed = torch.ops.argus_native.triple_embedding
    ids = torch.zeros(0, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^argus_native::triple_embedding: a result has 3 rows of the weight's width"):
        embed(ids, [], [], torch.zeros(0, 2**61), None)
    with pytest.raises(ValueError, match=r"^argus_native::triple_embedding: the sum of the columns' widths"):
        embed(torch.zeros(2, 0, dtype=torch.int64), [torch.zeros(0, 2**62)], [0, 0], torch.zeros(0, 4), None)
    huge = torch.zeros(1, dtype=torch.int32).expand(2**40)
    with pytest.raises(ValueError, match=r"^argus_native::pairwise_loss: offsets has shape \[1099511627776\]"):
        torch.ops.argus_native.pairwise_loss(torch.randn(3), torch.arange(3), huge, torch.arange(3), 1)
    freed = torch.randn(4, 3)
    freed.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match=r"^argus_native::decode_linear: weight has a storage of 8 bytes"):
        torch.ops.argus_native.decode_linear(torch.randn(2, 3), freed, None, None, None, None, 1e-5, False)


@pytest.mark.parametrize("op", ["causal_attention", "hstu_attention"])
def test_keys_that_no_head_of_queries_reads_have_gradients_of_zero(op: str) -> None:
    """What the public functions refuse; once a division by zero, which ended the process."""
    given = backward_arguments(op) | {"position_bias": None, "time_bias": None}
    given |= {"need_position_bias": False, "need_time_bias": False}
    for name in ("q", "d_out", *(("out",) if op == "causal_attention" else ())):
        given[name] = torch.empty(ROWS, 0, WIDTH)
    if op == "causal_attention":
        given |= {name: torch.empty(0, ROWS) for name in ("log_sum_exp", "d_log_sum_exp")}
    function = getattr(torch.ops.argus_native, f"{op}_backward")
    d_q, d_k, d_v = function(*(given.get(one.name) for one in function.default._schema.arguments))[:3]
    assert d_q.shape == (ROWS, 0, WIDTH) and not d_k.count_nonzero() and not d_v.count_nonzero()
