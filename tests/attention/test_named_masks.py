"""The masks of causal_attention's README are those of the packages that they are named after, written here anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import argus_kernels
from argus_kernels.attention.mask_rule import Queries, packed_queries, seen_keys
from argus_kernels.core.registry import capture

README = Path(__file__).resolve().parents[2] / "argus_kernels" / "ops" / "causal_attention" / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text().split("### The masks")[1].split("\n## ")[0], re.S)
SETTING, EXAMPLES = BLOCKS[0], {block.splitlines()[0].strip("# ").split(":")[0]: block for block in BLOCKS[1:]}
LENGTHS = (6, 3)


def masks_of(example: str) -> list[Tensor]:
    """Every user's mask, bool [Lq, Lk], from what the example calls; the call itself is made, too."""
    calls: list[Any] = []

    def called(*arguments: Any, **options: Any) -> Tensor:
        calls.append(capture(argus_kernels.causal_attention, *arguments, **options)[1])
        found: Tensor = argus_kernels.causal_attention(*arguments, **options)
        return found

    names: dict[str, Any] = {}
    exec(SETTING, names)
    names["causal_attention"] = called
    exec(EXAMPLES[example], names)
    (rule,) = calls
    numbers = {name: getattr(rule, name) for name in ("visible", "position", "own_begin", "own_end", "prefix")}
    queries = packed_queries(rule.offsets, rule.q.shape[0], key_offsets=rule.key_offsets, **numbers)
    masks = []
    for user, (begin, end) in enumerate(zip(rule.offsets[:-1], rule.offsets[1:], strict=True)):
        own = Queries(*(None if one is None else one[begin:end] for one in queries))  # type: ignore[arg-type]
        masks.append(seen_keys(own, torch.arange(int(rule.keys[user + 1] - rule.keys[user])), rule.window))
    return masks


def mask(rows: int, keys: int, sees: Callable[[int, int], bool]) -> Tensor:
    return torch.tensor([[sees(i, j) for j in range(keys)] for i in range(rows)])


def of_users(sees: Callable[[int, int, int], bool]) -> list[Tensor]:
    return [mask(n, n, lambda i, j, user=user: sees(user, i, j)) for user, n in enumerate(LENGTHS)]  # type: ignore[misc]


def meta(targets: tuple[int, int], window: int, context: tuple[int, int] = (0, 0)) -> list[Tensor]:
    """generative-recommenders: ids are cut at the history's end, a row sees itself and rows of lower ids, at most
    max_attn_len = window − 1 lower; rows of the context see all that is no target.
    """
    found = []
    for length, target, first in zip(LENGTHS, targets, context, strict=True):

        def cut(i: int, end: int = length - target) -> int:
            return min(i, end)

        causal = mask(length, length, lambda i, j: (i == j or cut(i) > cut(j)) and cut(i) - cut(j) <= window - 1)
        causal[:first, : length - target] = True
        found.append(causal)
    return found


def fbgemm(targets: tuple[int, int], group: int, context: tuple[int, int] = (0, 0)) -> list[Tensor]:
    """FBGEMM: causal; a target does not see the groups before its own; the context sees all that is no target."""
    found = []
    for length, target, first in zip(LENGTHS, targets, context, strict=True):
        causal = torch.ones(length, length).tril().bool()
        causal[:first, : length - target] = True
        begin = length - target
        for row in range(begin, length):
            causal[row, begin : begin + (row - begin) // group * group] = False
        found.append(causal)
    return found


OLD_ENOUGH = ((0, 0, 1, 1, 3, 3), (0, 1, 1))
EXPECTED: dict[str, list[Tensor]] = {
    "causal": of_users(lambda user, i, j: j <= i),
    "lagged": of_users(lambda user, i, j: j == i or j < OLD_ENOUGH[user][i]),
    "candidates": meta((2, 2), 3),
    "groups of candidates": fbgemm((4, 2), 2),
    "context": of_users(lambda user, i, j: j <= i or (i < (2, 1)[user] and j < (2, 1)[user])),
    "context over the whole history": fbgemm((1, 1), 99, (2, 1)),
    "semi-local": of_users(lambda user, i, j: j <= i and (i - j < 2 or j == 0)),
    "the last rows": [mask(2, 6, lambda i, j: j <= 4 + i), mask(1, 3, lambda i, j: True)],
    "any rows": [mask(2, 6, lambda i, j: j <= (1, 4)[i]), mask(1, 3, lambda i, j: j <= 1)],
    "candidates against a stored history": [
        mask(count, stored + count, lambda i, j, stored=stored: j < stored or j == stored + i)  # type: ignore[misc]
        for count, stored in ((2, 6), (3, 3))
    ],
    "cross-attention": [torch.ones(2, 6).bool(), torch.ones(1, 3).bool()],
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_mask_of_the_readme(name: str) -> None:
    found = masks_of(name)
    assert [one.tolist() for one in found] == [one.tolist() for one in EXPECTED[name]]


def test_every_example_has_its_mask() -> None:
    assert set(EXAMPLES) == set(EXPECTED)


def test_the_context_of_generative_recommenders_without_targets() -> None:
    """Its ids start over behind the context, so that without a window the two packages agree."""
    assert [one.tolist() for one in meta((1, 1), 99, (2, 1))] == [one.tolist() for one in fbgemm((1, 1), 99, (2, 1))]


def test_the_score_of_a_candidate_does_not_depend_on_its_slot() -> None:
    """Three equal candidates behind 12 events, with a window of 5 and both biases, score alike."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 15, 2, 8)
    for one in (q, k, v):
        one[12:] = one[12:13]
    place = torch.arange(15).clamp(max=12)
    times = place * 1000
    out = argus_kernels.causal_attention(
        q, k, v, torch.tensor([0, 15]), visible=place, position=place, window=5, position_bias=torch.randn(2, 9),
        time_bias=torch.randn(2, 20), query_time=times, key_time=times,
    )  # fmt: skip
    torch.testing.assert_close(out[13:], out[12:13].expand(2, -1, -1))
