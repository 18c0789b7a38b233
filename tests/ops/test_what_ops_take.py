"""What torch gives is taken: jagged tensors in both layouts, int64 counts, numpy's numbers, meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from argus_kernels import (
    OPS,
    PagedCache,
    causal_attention,
    decode_attention,
    decode_linear,
    feedback_loss,
    hstu_attention,
    pairwise_loss,
    rowwise_adagrad_,
    sampled_softmax_loss,
    set_device_checks,
    triple_embedding,
)
from argus_kernels.core import Op
from argus_kernels.testing import small_samples
from argus_kernels.testing.harness import public_function

ATTENTION = pytest.mark.parametrize("op", [causal_attention, hstu_attention], ids=lambda op: op.__name__)


def jagged(values: Tensor, offsets: Tensor) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(values, offsets=offsets)


@ATTENTION
@pytest.mark.parametrize("backend", ["cpp", "reference", "eager"])
@pytest.mark.parametrize("heads", [1, 2, 9])
def test_jagged_tensors_in_both_layouts(op: Any, backend: str, heads: int) -> None:
    """[B, j, H, Dh] and its transpose, as scaled_dot_product_attention takes it, with more heads than events too."""
    offsets = torch.tensor([0, 3, 3, 5])
    packed = [torch.randn(5, heads, 4, requires_grad=True) for _ in range(3)]
    above = torch.randn(5, heads, 4)
    expected = op(*packed, offsets, 3, backend=backend)
    plain = torch.autograd.grad(expected, packed, above)
    rows = [jagged(one, offsets) for one in packed]
    turned = [one.transpose(1, 2) for one in rows]
    for given in (rows, turned, [rows[0], turned[1], turned[2]], [turned[0], rows[1], turned[2]]):
        out = op(*given, max_length=3, backend=backend)
        assert out.is_nested and out.shape == given[0].shape
        back = out.transpose(1, 2) if given[0] is turned[0] else out
        assert torch.equal(back.values(), expected)
        found = torch.autograd.grad(back.values(), packed, above, retain_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


@ATTENTION
@pytest.mark.parametrize("transposed", [False, True])
def test_jagged_tensors_compiled(op: Any, transposed: bool) -> None:
    torch._dynamo.reset()
    q = jagged(torch.randn(5, 9, 4), torch.tensor([0, 3, 3, 5]))
    q = q.transpose(1, 2) if transposed else q
    compiled = torch.compile(lambda q: op(q, q, q, max_length=3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q).values(), op(q, q, q, max_length=3).values())


@ATTENTION
@pytest.mark.parametrize("name", ["window", "max_length"])
def test_a_free_number_that_is_refused_is_named(op: Any, name: str) -> None:
    """torch.compile with a number that it leaves free says our sentence, as it does of a constant."""
    q, offsets = torch.randn(4, 2, 8), torch.tensor([0, 4], dtype=torch.int32)
    for value, expected in ((-3, "at least"), (2**63, r"at most 2\^63 - 1"), (2.0, "an integer or None")):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda number: op(q, q, q, offsets, **{name: number}), fullgraph=True, dynamic=True, backend="eager"
        )
        with pytest.raises(
            torch._dynamo.exc.Unsupported, match=rf"{op.__name__}: {name} is {value}, expected {expected}"
        ):
            compiled(value)


def visible_of(offsets: list[int]) -> Tensor:
    return jagged(torch.zeros(5, dtype=torch.int32), torch.tensor(offsets))


@ATTENTION
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q: {"q": q.transpose(2, 3)}, None),
        (lambda q: {"q": q.transpose(1, 3)}, r"q is jagged of shape .*, expected \[B, j, H, Dh\] or its"),
        (lambda q: {"v": q.values()}, "q is jagged and v is packed, expected both alike"),
        (lambda q: {"k": jagged(q.values(), torch.tensor([0, 2, 2, 5]))}, "v does not share k's offsets"),
        (lambda q: {"offsets": torch.tensor([0, 5])}, "offsets is given, expected None where q, k and v are jagged"),
        (lambda q: {"q": torch.nested.nested_tensor([q.values()])}, "q is nested but not jagged, expected layout"),
        (lambda q: {"k": torch.nested.nested_tensor([q.values()])}, "k is nested but not jagged, expected layout"),
        (lambda q: {"visible": visible_of([0, 2, 2, 5])}, "visible does not share q's offsets"),
        (lambda q: {"q": q.values(), "k": q.values(), "v": q.values(), "offsets": torch.tensor([0, 5]),
                    "visible": visible_of([0, 3, 3, 5])}, "visible is a jagged NestedTensor, expected a dense tensor"),
        (lambda q: {"q": torch.nested.nested_tensor_from_jagged(
            q.values(), torch.tensor([0, 3, 3]), torch.tensor([2, 0]))}, "q is jagged with holes, expected contiguous"),
    ],
)  # fmt: skip
def test_other_nested_tensors_are_refused(
    op: Any, change: Callable[[Tensor], dict[str, Any]], sentence: str | None
) -> None:
    q = jagged(torch.randn(5, 2, 4), torch.tensor([0, 3, 3, 5]))
    given = {"q": q, "k": q, "v": q, **change(q)}
    if sentence is None:  # heads and widths in one order everywhere is a tensor of other heads, or said to differ
        sentence = r"k has shape \[5, 2, 4\], expected \[5, any, 2\] like q"
    with pytest.raises(ValueError, match=op.__name__ + ": .*" + sentence):
        op(**given)


@ATTENTION
@pytest.mark.parametrize("backend", ["cpp", "reference", "eager"])
def test_counts_in_int64(op: Any, backend: str) -> None:
    """As torch.cumsum gives them."""
    q, k, v = (torch.randn(5, 2, 4) for _ in range(3))
    offsets, visible = torch.tensor([2, 3]).cumsum(0), torch.tensor([0, 1, 0, 0, 2])
    offsets = torch.cat([offsets.new_zeros(1), offsets])
    expected = op(q, k, v, offsets.int(), 3, visible=visible.int(), backend=backend)
    assert torch.equal(op(q, k, v, offsets, 3, visible=visible, backend=backend), expected)
    beyond = offsets + torch.tensor([0, 0, 2**32])
    with pytest.raises(ValueError, match=r"offsets\[2\] is 2147483647 or more, expected at most the 5 rows given"):
        op(q, k, v, beyond, backend=backend)
    with pytest.raises(ValueError, match=r"visible\[4\] is -2147483648 or less, expected 0 to 3"):
        op(q, k, v, offsets, visible=visible - torch.tensor([0, 0, 0, 0, 2**40]), backend=backend)


def test_counts_in_int64_of_the_other_ops() -> None:
    scores, grades, times = torch.randn(5), torch.tensor([0, 1, 2, 0, 1]), torch.zeros(5, dtype=torch.int64)
    offsets = torch.tensor([0, 2, 5])
    expected = pairwise_loss(scores, grades, offsets.int(), times, 1)
    assert all(
        torch.equal(*pair) for pair in zip(pairwise_loss(scores, grades, offsets, times, 1), expected, strict=True)
    )
    cache = PagedCache.allocate(2, 4, 1, 2)
    q, lengths = torch.randn(2, 1, 2), torch.tensor([1, 2])
    assert torch.equal(decode_attention(q, cache, lengths), decode_attention(q, cache, lengths.int()))


def q() -> Tensor:
    return torch.zeros(3, 1, 2)


def attend(**options: Any) -> Any:
    return causal_attention(q(), q(), q(), torch.tensor([0, 3]), **options)


def weigh(**options: Any) -> Any:
    return hstu_attention(q(), q(), q(), torch.tensor([0, 3]), **options)


def decode(**options: Any) -> Any:
    return decode_attention(torch.zeros(1, 1, 2), PagedCache.allocate(1, 2, 1, 2), torch.tensor([1]), **options)


def rank(window: Any) -> Any:
    zeros = torch.zeros(3, dtype=torch.int64)
    return pairwise_loss(torch.zeros(3), zeros, torch.tensor([0, 3]), zeros, window)


def update(**options: Any) -> Any:
    rows = torch.tensor([0])
    return rowwise_adagrad_(torch.zeros(1, 2), torch.zeros(1), rows, torch.zeros(1, 2), **{"lr": 0.1, **options})


def project(**options: Any) -> Any:
    return decode_linear(torch.zeros(1, 2), torch.zeros(3, 2), **options)


def draw_loss(**options: Any) -> Any:
    rows, ids = torch.zeros(1, 2), torch.tensor([0])
    return sampled_softmax_loss(rows, rows, rows, ids, ids + 1, torch.zeros(1), **options)


def react(classes: Any) -> Any:
    return feedback_loss(torch.zeros(1, 2), torch.zeros(2, 1), torch.zeros(1), torch.tensor([[1]]), classes)


def embed(columns: Any, **options: Any) -> Any:
    return triple_embedding(torch.tensor([[0]]), [torch.zeros(1, 2)], columns, torch.zeros(2, 3), **options)


INTEGERS: list[tuple[str, Callable[..., Any], str]] = [
    ("causal_attention", lambda value: attend(window=value), "window"),
    ("causal_attention", lambda value: attend(max_length=value), "max_length"),
    ("hstu_attention", lambda value: weigh(window=value), "window"),
    ("hstu_attention", lambda value: weigh(max_length=value), "max_length"),
    ("decode_attention", lambda value: decode(window=value), "window"),
    ("pairwise_loss", rank, "window"),
    ("feedback_loss", lambda value: react([value]), r"classes\[0\]"),
    ("triple_embedding", lambda value: embed([value]), r"columns\[0\]"),
]


@pytest.mark.parametrize(("op", "call", "name"), INTEGERS)
def test_integers(op: str, call: Callable[..., Any], name: str) -> None:
    for wrong in (True, 3.0, float("nan"), "3", 1j, b"1", torch.tensor(3), np.float64(3), np.array([3]), [3]):
        with pytest.raises(ValueError, match=rf"{op}: {name} is .*, expected an integer"):
            call(wrong)
    with pytest.raises(ValueError, match=rf"{op}: {name} is 9223372036854775808, expected at most 2\^63 - 1 \(int64\)"):
        call(2**63)
    with pytest.raises(ValueError, match=rf"{op}: {name} is an integer of 16610 bits, expected at most"):
        call(10**5000)
    with pytest.raises(ValueError, match=rf"{op}: {name} is -9223372036854775809, expected at least"):
        call(-(2**63) - 1)
    right = {"columns": 0, "classes": 1}.get(name.split("\\")[0], 3)
    call(np.int16(right)), call(np.uint64(right))
    if name in ("window", "max_length"):
        call(2**63 - 1)


NUMBERS: list[tuple[str, Callable[..., Any], str, float | None]] = [
    ("causal_attention", lambda value: attend(scale=value), "scale", None),
    ("hstu_attention", lambda value: weigh(alpha=value), "alpha", None),
    ("hstu_attention", lambda value: weigh(divisor=value), "divisor", 0.0),
    ("decode_attention", lambda value: decode(scale=value), "scale", None),
    ("decode_linear", lambda value: project(eps=value), "eps", 0.0),
    ("sampled_softmax_loss", lambda value: draw_loss(scale=value), "scale", 0.0),
    ("rowwise_adagrad_", lambda value: update(lr=value), "lr", -1.0),
    ("rowwise_adagrad_", lambda value: update(eps=value), "eps", -1.0),
    ("rowwise_adagrad_", lambda value: update(weight_decay=value), "weight_decay", -1.0),
]


@pytest.mark.parametrize(("op", "call", "name", "refused"), NUMBERS)
def test_numbers(op: str, call: Callable[..., Any], name: str, refused: float | None) -> None:
    for wrong in (
        True,
        float("nan"),
        float("inf"),
        -float("inf"),
        "1",
        1j,
        10**400,
        np.array([1.0]),
        [1.0],
        np.bool_(1),
    ):
        with pytest.raises(ValueError, match=rf"{op}: {name} is .*, expected a finite number"):
            call(wrong)
    if refused is not None:
        with pytest.raises(ValueError, match=rf"{op}: {name} is {refused}, expected a finite number"):
            call(refused)
    for right in (1, 0.5, np.float32(0.5), np.int64(2)):
        call(right)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: attend(return_log_sum_exp="false"),
            "causal_attention: return_log_sum_exp is 'false', expected True or",
        ),
        (
            lambda: attend(scale=torch.tensor(0.5, requires_grad=True)),
            "causal_attention: scale is a tensor that requires a gradient, expected",
        ),
        (lambda: embed([0], sparse=1), "triple_embedding: sparse is 1, expected True or False"),
        (lambda: embed([0], check_ids=None), "triple_embedding: check_ids is None, expected True or False"),
        (lambda: embed(torch.tensor([0])), "triple_embedding: columns is Tensor, expected a list of integers"),
        (lambda: embed(iter([0])), "triple_embedding: columns is list_iterator, expected a list of integers"),
        (lambda: react(torch.tensor([1])), "feedback_loss: classes is Tensor, expected a list of integers"),
        (lambda: draw_loss(form=1), "sampled_softmax_loss: form is 1, expected one of standard, refined"),
        (lambda: project(activation=None), "decode_linear: activation is None, expected one of none, gelu"),
        (lambda: set_device_checks("0"), "set_device_checks: enabled is '0', expected True or False"),  # type: ignore[arg-type]
    ],
)
def test_flags_words_and_lists(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def moved(value: Any) -> Any:
    if isinstance(value, list):
        return [moved(one) for one in value]
    return value.to("meta") if isinstance(value, (Tensor, PagedCache)) else value


@pytest.mark.parametrize("backend", [None, "auto", "cpp", "reference", "eager"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_meta_tensors_give_meta_results(op: Op, backend: str | None) -> None:
    """Shapes and dtypes without values, under autocast too; a single one among others is named."""
    arguments = small_samples(op)[0].draw(torch.float32)
    on_meta = {name: moved(value) for name, value in arguments.items()}
    expected = public_function(op)(**arguments, backend=backend)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = public_function(op)(**on_meta, backend=backend)
        for one, other in zip(_tuple(found), _tuple(expected), strict=True):
            assert other is None or (one.device.type, one.shape, one.dtype) == ("meta", other.shape, other.dtype)
    name = [name for name, value in arguments.items() if isinstance(value, Tensor)][-1]
    with pytest.raises(
        ValueError, match=rf"{op.name}: .*{name} is on meta, expected cpu|{op.name}: .* is on cpu, expected"
    ):
        public_function(op)(**{**arguments, name: on_meta[name]}, backend=backend)


def _tuple(returned: Any) -> tuple[Any, ...]:
    return returned if isinstance(returned, tuple) else (returned,)
