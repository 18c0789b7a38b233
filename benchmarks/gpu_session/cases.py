"""The samples of a session beside those that are timed: several tiles in every direction, and odd remainders.

The small samples of the rooms, which gradcheck goes through element by element, fit into one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.samples import HistoryCase
from argus_kernels.core import Op, Sample
from argus_kernels.ops import OPS
from argus_kernels.ops.causal_attention.samples import _of as causal_samples
from argus_kernels.ops.decode_attention.samples import _Case as DecodeCase
from argus_kernels.ops.decode_attention.samples import _sample as decode_sample
from argus_kernels.ops.feedback_loss.samples import _case as feedback_case
from argus_kernels.ops.hstu_attention.samples import _of as hstu_samples
from argus_kernels.ops.pairwise_loss.samples import _case as pairwise_case
from argus_kernels.ops.rowwise_adagrad.samples import _case as adagrad_case
from argus_kernels.ops.sampled_softmax_loss.samples import _case as softmax_case
from argus_kernels.ops.triple_embedding.samples import _case as embedding_case

WIDTHS = (64, 128, 256)


def op_of(name: str) -> Op:
    """The op of that name."""
    return next(op for op in OPS if op.name == name)


def tile_samples(op: str, rehearse: bool) -> list[Sample]:
    """Several tiles of an op, at each of the widths; a rehearsal takes a quarter of every size and fewer of them."""
    samples = _TILES[op](4 if rehearse else 1)
    return samples[:2] if rehearse else samples


def _histories(make: Callable[..., list[Sample]], part: int) -> list[Sample]:
    lengths = tuple(length // part for length in (300, 0, 129, 4, 257, 64))
    plain = [HistoryCase(f"tiles_{width}", lengths, width=width, padding=5) for width in WIDTHS]
    hostile = [
        replace(case, name=f"{case.name}_{mask}", mask=mask, position_buckets=70, time_buckets=50, window=window)
        for case, mask, window in zip(plain, ("lagged", "candidates", "lagged"), (100, None, None), strict=True)
    ]
    windowed = HistoryCase("tiles_64_window", lengths, width=64, window=40, padding=1)
    return make(*(case for pair in zip(plain, hostile, strict=True) for case in pair), windowed)


def _decode(part: int) -> list[Sample]:
    lengths = tuple(length // part for length in (700, 0, 129, 4, 64))

    def case(width: int, end: str, buckets: int, window: int | None) -> Sample:
        return decode_sample(
            DecodeCase(
                f"tiles_{width}{end}",
                lengths,
                width=width,
                page_size=16,
                position_buckets=buckets,
                time_buckets=buckets,
                window=window,
            )
        )

    return [case(width, *kind) for width in WIDTHS for kind in (("", 0, None), ("_biases", 40, 200 // part))]


def _softmax(part: int) -> list[Sample]:
    every: dict[str, Any] = {"positive_log_q": True, "row_weight": True, "owners": True, "garbage": True}
    return [
        softmax_case(f"tiles_{width}{end}", 300 // part, 516 // part, width, catalogue=400, **given)
        for width in WIDTHS
        for end, given in (("", {}), ("_everything", every), ("_refined", {**every, "form": "refined"}))
    ]


def _embedding(part: int) -> list[Sample]:
    # Tables are the model's, not the batch's: their heights are compiled in.
    tables = ((5000, 64), (300, 16), (24, 20))
    return [
        embedding_case(f"tiles_{width}{end}", 700 // part, tables, (0, 1, 0, 2), width, **given)
        for width in WIDTHS
        for end, given in (("", {}), ("_sparse_no_bias", {"sparse": True, "bias": False}))
    ]


def _feedback(part: int) -> list[Sample]:
    return [
        feedback_case(f"tiles_{width}", 700 // part, width, (1, 1, 1, 8), weights=True, garbage=True)
        for width in WIDTHS
    ]


def _pairwise(part: int) -> list[Sample]:
    lengths = [length // part for length in (700, 0, 130, 4)]
    return [
        pairwise_case("tiles", lengths, 250, padding=3),
        pairwise_case("tiles_out_of_order", lengths, 250, padding=3, shuffled=True),
    ]


def _adagrad(part: int) -> list[Sample]:
    repeated = [
        adagrad_case(f"tiles_{width}", 900 // part, width, 2000 // part, weight_decay=0.1, skipped=True)
        for width in WIDTHS
    ]
    return [*repeated, adagrad_case("hot_rows", 3, 64, 20_000 // part**2)]


_TILES: dict[str, Callable[[int], list[Sample]]] = {
    "causal_attention": lambda part: _histories(causal_samples, part),
    "hstu_attention": lambda part: _histories(hstu_samples, part),
    "decode_attention": _decode,
    "sampled_softmax_loss": _softmax,
    "triple_embedding": _embedding,
    "feedback_loss": _feedback,
    "pairwise_loss": _pairwise,
    "rowwise_adagrad_": _adagrad,
}


def with_nan_padding(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments with NaN, and the largest integers, in the rows past the last offset; None where there are none."""
    if "offsets" not in arguments:
        return None
    rows = next(arguments[name].shape[0] for name in ("q", "scores") if name in arguments)
    used = int(arguments["offsets"][-1])
    if used == rows:
        return None
    return {
        name: _garbage_from(value, used) if _is_per_row(name, value, rows) else value
        for name, value in arguments.items()
    }


def _is_per_row(name: str, value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows and name != "offsets"


def _garbage_from(value: Tensor, used: int) -> Tensor:
    value = value.clone()
    value[used:] = torch.nan if value.is_floating_point() else torch.iinfo(value.dtype).max
    return value
