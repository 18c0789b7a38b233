"""What the C++ kernel of decode_attention promises besides its contract: the same bits everywhere, its own checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import PagedCache, decode_attention
from argus_kernels.core import native
from argus_kernels.ops.decode_attention.arguments import Arguments
from argus_kernels.ops.decode_attention.native import forward
from tests.instruction_sets import require_the_same_bits

DIGEST = """
import zlib, torch
from argus_kernels.core import native
from argus_kernels.ops.decode_attention.arguments import Arguments
from argus_kernels.ops.decode_attention.int8_rows import quantize
from argus_kernels.ops.decode_attention.native import forward
native.require("cpu")
print(torch.ops.argus_native.cpu_features().split()[0])
for threads in (1, 4):
    torch.set_num_threads(threads)
    digest = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for heads, width in ((1, 7), (3, 16), (2, 64), (2, 128), (1, 40)):
            draw = torch.Generator().manual_seed(width)
            keys, values = (torch.randn(90, 16, heads, width, generator=draw).to(dtype) for _ in range(2))
            times = torch.randint(0, 10**7, (90, 16), generator=draw)
            table = torch.randperm(90, generator=draw).int().view(2, 45)
            q = torch.randn(2, heads, width, generator=draw).to(dtype)
            bias = torch.randn(heads, 40, generator=draw)
            now = torch.tensor([10**7, 9 * 10**6])
            lengths = torch.tensor([701, 33], dtype=torch.int32)
            for window in (None, 600):
                cache = (keys, values, times, table, lengths)
                out = forward(Arguments(q, *cache, q, q, bias, bias, now, now, 0.2, window))
                events = torch.randn(3, 2 * heads, width, generator=draw).to(dtype)
                wide, offsets = bias.repeat(2, 1), torch.tensor([0, 2, 3], dtype=torch.int32)
                new = (events[:, :heads].contiguous(),) * 2
                times_given = (now[[0, 0, 1]],) * 2
                for divisor in (None, 9.0):
                    numbers = (0.2, window, offsets, divisor)
                    more = forward(Arguments(events, *cache, *new, wide, wide, *times_given, *numbers))
                    digest = zlib.crc32(more.view(torch.uint8).numpy().tobytes(), digest)
                if dtype == torch.float32:
                    (codes, scales), (more_codes, more_scales) = quantize(keys), quantize(values)
                    cache = (codes, more_codes, times, table, lengths)
                    int8 = forward(Arguments(q, *cache, q, q, bias, bias, now, now, 0.2, window, None, None, scales,
                                             more_scales))
                    digest = zlib.crc32(int8.view(torch.uint8).numpy().tobytes(), digest)
                for tensor in (out, keys, values):
                    digest = zlib.crc32(tensor.view(torch.uint8).numpy().tobytes(), digest)
    print(digest)
"""


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.slow
def test_the_same_bits_on_every_instruction_set_and_number_of_threads() -> None:
    require_the_same_bits(DIGEST)


def drawn(lengths: list[int], dtype: torch.dtype, heads: int = 2, width: int = 64) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(len(lengths))
    users = len(lengths)
    cache = PagedCache.allocate(users, max(lengths), heads, width, page_size=64, dtype=dtype)
    for pages in (cache.key_pages, cache.value_pages):
        pages.copy_(torch.randn(pages.shape, generator=draw))
    cache.time_pages.random_(0, 10**7, generator=draw)
    return {
        "q": torch.randn(users, heads, width, generator=draw).to(dtype),
        "cache": cache,
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "position_bias": torch.randn(heads, 50, generator=draw),
        "time_bias": torch.randn(heads, 60, generator=draw),
        "query_time": torch.randint(10**7, 2 * 10**7, (users,), generator=draw),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_users_bits_do_not_depend_on_who_shares_the_call(dtype: torch.dtype) -> None:
    given = drawn([1900, 3, 0, 640, 64], dtype)
    together = decode_attention(**given, backend="cpp")
    for user in range(5):
        alone = {**given, "cache": given["cache"].rows([user])}
        for name in ("q", "lengths", "query_time"):
            alone[name] = given[name][user : user + 1]
        assert torch.equal(decode_attention(**alone, backend="cpp")[0], together[user])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_histories_agree_with_float64(dtype: torch.dtype) -> None:
    """Several chunks, several pages a chunk: what the small samples do not reach."""
    given = drawn([3000, 1025], dtype)
    cache: PagedCache = given["cache"]
    exact = PagedCache(cache.key_pages.double(), cache.value_pages.double(), cache.time_pages, cache.block_table)
    out = decode_attention(**given, backend="cpp")
    truth = decode_attention(**{**given, "q": given["q"].double(), "cache": exact}, backend="reference")
    theirs = decode_attention(**given, backend="reference")
    allowed = 2 * float((theirs.double() - truth).abs().max()) + torch.finfo(dtype).eps * float(truth.abs().max())
    assert float((out.double() - truth).abs().max()) <= allowed


def test_scores_of_ten_thousand_and_of_minus_infinity() -> None:
    given = drawn([900, 5], torch.float32)
    given["q"] *= 1e4
    expected = decode_attention(**given, backend="reference")
    torch.testing.assert_close(decode_attention(**given, backend="cpp"), expected, rtol=1e-4, atol=1e-5)
    # Every event but the newest ones hidden by the bias: whole chunks weigh nothing.
    given["position_bias"][:, 4:] = -torch.inf
    expected = decode_attention(**given, backend="reference")
    assert expected.isfinite().all()
    torch.testing.assert_close(decode_attention(**given, backend="cpp"), expected, rtol=1e-4, atol=1e-5)


def test_pages_that_lie_apart() -> None:
    """Keys and values interleaved in one pool are read and written where they are."""
    pool = torch.randn(6, 2, 4, 2, 8)
    table = torch.tensor([[4, 1, 0], [5, 2, 3]], dtype=torch.int32)
    cache = PagedCache(pool[:, 0], pool[:, 1], torch.zeros(6, 4, dtype=torch.int64), table)
    dense = PagedCache(pool[:, 0].clone(), pool[:, 1].clone(), torch.zeros(6, 4, dtype=torch.int64), table)
    q = torch.randn(2, 2, 8)
    lengths = torch.tensor([11, 6], dtype=torch.int32)
    out = decode_attention(q, cache, lengths, k=q, v=q, backend="cpp")
    assert torch.equal(out, decode_attention(q, dense, lengths, k=q, v=q, backend="cpp"))
    assert torch.equal(pool[:, 0], dense.key_pages) and torch.equal(pool[:, 1], dense.value_pages)


def test_heads_apart_are_refused() -> None:
    given = drawn([5], torch.float32)
    given["cache"].key_pages = given["cache"].key_pages.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match=r"decode_attention\[cpp\]: key_pages is not contiguous within an event"):
        decode_attention(**given, backend="cpp")


def native_arguments(lengths: list[int], table: list[list[int]], append: bool = True) -> list[Any]:
    users, pages = len(lengths), torch.zeros(3, 2, 1, 4)
    q = torch.ones(users, 1, 4)
    rows: list[Tensor | None] = [q, q] if append else [None, None]
    return [
        q, pages, pages.clone(), torch.zeros(3, 2, dtype=torch.int64), torch.tensor(table, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32), *rows, None, None, None, None, 0.5, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "table", "message"),
    [
        ([2, 5], [[0, 1], [2, -1]], r"lengths\[1\] is 5, expected 0 to 4"),
        ([-1, 1], [[0, 1], [2, -1]], r"lengths\[0\] is -1, expected 0 to 4"),
        ([2, 3], [[0, 1], [2, -1]], r"user 1 has length 3 but no page for its events from 2 on: block_table\[1, 1\] is "
         "-1, expected 0 to 2; reserve it first"),
        ([2, 3], [[0, 1], [2, 3]], r"block_table\[1, 1\] is 3, expected 0 to 2"),
        ([3, 1], [[0, 1], [1, -1]], r"users \[0, 1\] would all append to page 1, expected a page of its own for each"),
    ],
)  # fmt: skip
def test_the_kernel_refuses_by_itself(lengths: list[int], table: list[list[int]], message: str) -> None:
    """In the words of the op's own checks, which the direct path leaves out; nothing is written."""
    arguments = native_arguments(lengths, table)
    with pytest.raises(ValueError, match="^argus_native::decode_attention: .*" + message):
        forward(Arguments(*arguments))
    assert not arguments[1].count_nonzero() and not arguments[2].count_nonzero()


def test_shapes_and_dtypes_are_refused_by_the_kernel() -> None:
    arguments = native_arguments([1], [[0]])
    for place, value, message in (
        (1, torch.zeros(3, 2, 1, 5), r"key_pages has shape \[3, 2, 1, 5\], expected"),
        (1, torch.zeros(3, 2, 2, 4), "key_pages has 2 heads, expected a divisor of q's 1"),
        (2, torch.zeros(3, 2, 1, 4).half(), "value_pages is Half, expected Float"),
        (5, torch.ones(1, dtype=torch.int64), "lengths is Long, expected Int"),
        (6, None, "one of k and v is given"),
        (7, torch.ones(1, 1, 5), r"v has shape \[1, 1, 5\]"),
    ):
        changed = list(arguments)
        changed[place] = value
        with pytest.raises(ValueError, match="^argus_native::decode_attention: " + message):
            forward(Arguments(*changed))
