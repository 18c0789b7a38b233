"""The buckets of the two biases that all attention backends share."""

from __future__ import annotations

import io
import math
import tokenize
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch

from argus_kernels.attention.relative_bias import (
    LOG_STEP,
    position_buckets,
    threshold_values,
    time_buckets,
    time_thresholds,
)
from build_support.time_edges import HEADER, header_text
from tests.attention.attention_truth import bucket

REPOSITORY = Path(__file__).resolve().parents[2]
LARGEST = torch.iinfo(torch.int64).max
REACHED = [value for value in threshold_values(200) if value <= 2**62]


def test_thresholds_are_the_smallest_integers_of_their_buckets() -> None:
    """At every edge up to 2^62: ln(edge) / 0.301 reaches the bucket, ln(edge − 1) / 0.301 does not."""
    assert len(REACHED) == 143
    assert REACHED[0] == 0
    with localcontext() as context:
        context.prec = 80
        for index, edge in enumerate(REACHED[1:], start=1):
            assert Decimal(edge).ln() >= Decimal("0.301") * index
            assert edge == 1 or Decimal(edge - 1).ln() < Decimal("0.301") * index


def test_buckets_change_exactly_at_the_thresholds() -> None:
    edges = torch.tensor(REACHED[1:])
    expected = torch.searchsorted(time_thresholds(200), edges, right=True) - 1
    assert torch.equal(time_buckets(edges, 200), expected)
    assert torch.equal(time_buckets(-edges, 200), expected)
    below = torch.searchsorted(time_thresholds(200), edges - 1, right=True) - 1
    assert torch.equal(time_buckets(edges - 1, 200), below)
    assert bool((below < expected).all())


def test_many_differences_get_the_buckets_of_few() -> None:
    few = torch.tensor([edge + step for edge in REACHED for step in (-1, 0, 1)])
    many = few.repeat(1 + 2**15 // len(few))
    for buckets in (1, 64, 200):
        assert torch.equal(time_buckets(many, buckets)[: len(few)], time_buckets(few, buckets))


def test_an_edge_that_a_float64_logarithm_misses() -> None:
    edge = 53_195_770_115_076
    assert math.floor(math.log(edge - 1) / 0.301) == 105
    assert time_buckets(torch.tensor([edge, edge - 1]), 200).tolist() == [105, 104]


@pytest.mark.parametrize("buckets", [1, 2, 64, 129, 300])
def test_buckets_agree_with_the_search_for_every_size(buckets: int) -> None:
    generator = torch.Generator().manual_seed(buckets)
    exponent = torch.rand(20_000, generator=generator, dtype=torch.float64) * 62.9
    x = torch.cat([torch.tensor([0, 1, -1, 2, LARGEST, LARGEST - 1]), torch.exp2(exponent).long()])
    expected = torch.searchsorted(time_thresholds(min(buckets, 146)), x.abs(), right=True) - 1
    assert torch.equal(time_buckets(x, buckets), expected)


def test_buckets_agree_with_the_formula_in_float64() -> None:
    for x in [0, 1, 2, 3, 59, 60, 3_600, 86_400, 604_800, 31_536_000, 10**12]:
        assert int(time_buckets(torch.tensor(x), 128)) == bucket(x, 128)
        assert int(time_buckets(torch.tensor(-x), 128)) == bucket(x, 128)
    assert int(time_buckets(torch.tensor(10**12), 10)) == 9


def test_thresholds_past_int64_hold_its_maximum() -> None:
    thresholds = time_thresholds(200)
    assert thresholds.dtype == torch.int64
    assert bool((thresholds[1:] >= thresholds[:-1]).all())
    assert int(thresholds[-1]) == LARGEST
    assert time_thresholds(1).tolist() == [0]


def test_the_edges_in_c_plus_plus_are_those_of_the_definition() -> None:
    assert HEADER.read_text() == header_text(), "run python -m build_support.time_edges"


def numbers_of(text: str) -> set[str]:
    """The numbers in Python source, those in comments and strings left out."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.string for token in tokens if token.type == tokenize.NUMBER}


def test_the_width_of_a_bucket_is_written_once() -> None:
    assert numbers_of(f"x = 1 / {LOG_STEP}  # {LOG_STEP}5") == {"1", LOG_STEP}
    for folder in ("argus_kernels", "python_model"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            text = path.read_text()
            assert LOG_STEP not in text or LOG_STEP not in numbers_of(text), f"{path}: take it from relative_bias"
    sources = [path for path in (REPOSITORY / "csrc").rglob("*.*") if f"{LOG_STEP}f" in path.read_text()]
    assert sources == [HEADER]


def test_position_buckets_count_events_back() -> None:
    place = torch.arange(5)
    assert position_buckets(place, place, 3).tolist() == [[min(max(i - j, 0), 2) for j in range(5)] for i in range(5)]
