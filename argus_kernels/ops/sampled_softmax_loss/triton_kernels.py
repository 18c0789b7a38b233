"""sampled_softmax_loss in Triton: the scores in both passes, tile by tile, and the launchers.

Forward: a program computes rows × a part of the candidates and keeps the running maximum, sum and count of its rows;
the candidates are split among programs so that all multiprocessors have about the same work, and the parts are joined
afterwards. Every score is relative to the row's positive. Backward: the scores' gradients are computed for a slab of
rows at a time, in memory of a fixed size, and multiplied by candidates and queries (`triton_products`). d_candidates is
summed slab by slab in float32, in order, without atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from argus_kernels.core.triton_jit import kernel
from argus_kernels.core.triton_support import (
    CompileCase,
    ceil_div,
    launch,
    loads_by_tma,
    next_power_of_two,
    processors,
)
from argus_kernels.core.tuning import Config, Tunable, configuration
from argus_kernels.ops.sampled_softmax_loss.arguments import Arguments
from argus_kernels.ops.sampled_softmax_loss.triton_grid import CONFIG_NAMES, resident_programs, split_blocks
from argus_kernels.ops.sampled_softmax_loss.triton_products import (
    add_candidate_gradient,
    dot_rows,
    marked,
    wild_parts,
    write_query_gradient,
)

_TILES = {
    "sampled_softmax_loss/forward": (
        (128, 32, 256, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 64, 256, 8, 3),
        (128, 128, 256, 8, 2),
        (64, 64, 256, 4, 2),
        (128, 64, 64, 8, 3),
    ),
    "sampled_softmax_loss/backward": ((128, 64, 64, 8, 3), (128, 128, 64, 8, 3), (64, 128, 64, 4, 4)),
}
_CONFIGS = {
    kernel: tuple(dict(zip(CONFIG_NAMES, tile, strict=True)) for tile in tiles) for kernel, tiles in _TILES.items()
}
_FLOAT32_CONFIG: Config = dict(zip(CONFIG_NAMES, (64, 32, 16, 4, 2), strict=True))
TUNABLES = tuple(
    Tunable(kernel, "triton", configs, backward=kernel.endswith("backward")) for kernel, configs in _CONFIGS.items()
)

SLAB_BYTES = 128 << 20
"""Memory of the score gradients under way: fixed, however many rows and candidates there are."""
PART = 32
"""Columns of a tile whose scores are worked on at once. A thread holds an id, an owner (64 bits each) and log_q for
every column of its own: for 64 columns at once they spill, 128 bytes a thread on sm_90."""
LIFT = 4096.0
"""Shares are stored as 16-bit numbers times this, because float16 has few digits left below 2⁻¹⁴."""

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_rows(packed, first, row, rows, begin, width, BLOCK_DEPTH: tl.constexpr, DESCRIBED: tl.constexpr):
    """Columns begin … begin + BLOCK_DEPTH − 1 of the rows from `first` on, zero past the last row and column.

    packed: (tensor, its row stride, its column stride), or the tensor's descriptor, whose loads TMA makes: the hardware
    has the bounds, and no thread computes an address.
    """
    if DESCRIBED:
        return packed.load([first, begin])
    else:
        column = begin + tl.arange(0, BLOCK_DEPTH)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        return tl.load(packed[0] + row[:, None] * packed[1] + column[None, :] * packed[2], mask=mask, other=0.0)


@triton.jit
def _products(
    query, candidates, first_row, first_candidate, row, candidate, rows, drawn, width,
    BLOCK_ROWS: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr, BLOCK_DEPTH: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """A tile's products of queries and candidates, float32, one part of the width at a time."""
    product = tl.zeros([BLOCK_ROWS, BLOCK_CANDIDATES], tl.float32)
    for begin in range(0, width, BLOCK_DEPTH):
        left = _load_rows(query, first_row, row, rows, begin, width, BLOCK_DEPTH, DESCRIBED)
        right = _load_rows(candidates, first_candidate, candidate, drawn, begin, width, BLOCK_DEPTH, DESCRIBED)
        product = tl.dot(left, tl.trans(right), product, input_precision="ieee")
    return product


@triton.jit
def _relative_scores(product, positive_product, ids, owners, log_q, scale, row, candidate, rows, drawn):
    """A tile's products and scores, both relative to the positive, and which of its candidates are not left out.

    Past the last candidate the score is −∞. ids, owners: those of the rows and of the candidates.
    """
    product -= tl.load(positive_product + row, mask=row < rows, other=0.0)[:, None]
    score = scale * product - tl.load(log_q + candidate, mask=candidate < drawn, other=float("inf"))[None, :]
    own = tl.load(ids[0] + row, mask=row < rows, other=0)
    theirs = tl.load(ids[1] + candidate, mask=candidate < drawn, other=0)
    # One operation per pair answers both: whether the ids differ, and whether the candidate exists.
    real = tl.where(candidate < drawn, -1, 0).to(tl.int64)
    counts = ((own[:, None] ^ theirs[None, :]) & real[None, :]) != 0
    if owners is not None:
        own = tl.load(owners[0] + row, mask=row < rows, other=0)
        theirs = tl.load(owners[1] + candidate, mask=candidate < drawn, other=0)
        # Candidates without an owner match no row: one comparison per row and per candidate, none per pair.
        counts = counts & (tl.maximum(own, -1)[:, None] != tl.where(theirs < 0, -2, theirs)[None, :])
    return product, score, counts


@triton.jit
def _parts(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr):
    """A tile's columns, PART at a time, as a tuple; registers only change their names."""
    if COLUMNS == PART:
        return (tile,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(tile, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        return _parts(left, ROWS, COLUMNS // 2, PART) + _parts(right, ROWS, COLUMNS // 2, PART)


@kernel
def forward_kernel(
    query, candidates, positive_product, ids, owners, log_q, scale, largest, total, count,
    rows, drawn, width, split_candidates,
    WHOLE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
    PART: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(0) * BLOCK_ROWS
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    factor = tl.load(scale)
    peak = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    # One sum per column of a part: they are added across threads once, at the end.
    mass = tl.zeros([BLOCK_ROWS, PART], tl.float32)
    counted = tl.zeros([BLOCK_ROWS, PART], tl.int32)
    # If BLOCK_DEPTH covers the width, the queries are loaded once and the candidates stream.
    own_query = 0
    if WHOLE:
        own_query = _load_rows(query, first_row, row, rows, 0, width, BLOCK_DEPTH, DESCRIBED)
    first = tl.program_id(1) * split_candidates
    for begin in range(first, tl.minimum(first + split_candidates, drawn), BLOCK_CANDIDATES):
        candidate = begin + tl.arange(0, BLOCK_CANDIDATES).to(tl.int64)
        if WHOLE:
            right = _load_rows(candidates, begin, candidate, drawn, 0, width, BLOCK_DEPTH, DESCRIBED)
            product = tl.dot(own_query, tl.trans(right), input_precision="ieee")
        else:
            product = _products(
                query, candidates, first_row, begin, row, candidate, rows, drawn, width,
                BLOCK_ROWS, BLOCK_CANDIDATES, BLOCK_DEPTH, DESCRIBED,
            )  # fmt: skip
        parts = _parts(product, BLOCK_ROWS, BLOCK_CANDIDATES, PART)
        for part in tl.static_range(BLOCK_CANDIDATES // PART):
            column = begin + part * PART + tl.arange(0, PART)
            _, score, counts = _relative_scores(
                parts[part], positive_product, ids, owners, log_q, factor, row, column, rows, drawn
            )
            score = tl.where(counts, score, -float("inf"))
            higher = tl.maximum(peak, tl.max(score, axis=1))
            # While no candidate counts the maximum is −∞, and −∞ − −∞ would be NaN.
            taken = tl.where(higher == -float("inf"), 0.0, higher)
            kept = tl.exp2((peak - taken) * _LOG2_E)
            mass = mass * kept[:, None] + tl.exp2((score - taken[:, None]) * _LOG2_E)
            if count is not None:
                counted += counts.to(tl.int32)
            peak = higher
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(largest + place, peak, mask=row < rows)
    tl.store(total + place, tl.sum(mass, axis=1), mask=row < rows)
    if count is not None:
        tl.store(count + place, tl.sum(counted, axis=1), mask=row < rows)


@kernel
def score_gradient_kernel(
    query, candidates, positive_product, ids, owners, log_q, scale, statistics, row_factor, kept, d_score, scale_sums,
    share_sums, first_row, rows, drawn, width, slab_rows, score_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr, BLOCK_DEPTH: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(drawn, BLOCK_CANDIDATES)
    line = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    candidate = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_CANDIDATES + tl.arange(0, BLOCK_CANDIDATES)
    end = tl.minimum(first_row + slab_rows, rows)
    row = first_row + line
    product = _products(
        query, candidates, first_row + tl.program_id(0) // tiles * BLOCK_ROWS,
        tl.program_id(0) % tiles * BLOCK_CANDIDATES, row, candidate, end, drawn, width,
        BLOCK_ROWS, BLOCK_CANDIDATES, BLOCK_DEPTH, DESCRIBED,
    )  # fmt: skip
    product, score, counts = _relative_scores(
        product, positive_product, ids, owners, log_q, tl.load(scale), row, candidate, end, drawn
    )
    real = row < end
    whole = tl.load(statistics + rows + row, mask=real, other=0.0)
    factor = tl.load(row_factor + row, mask=real, other=0.0)
    if kept is not None:
        counts = counts & tl.load(kept + row, mask=real, other=0).to(tl.int1)[:, None]
    share = tl.exp2(tl.where(counts, (score - whole[:, None]) * _LOG2_E, -float("inf")))
    gradient = share * factor[:, None]
    place = line[:, None] * score_stride + candidate[None, :]
    stored = marked(gradient.to(d_score.dtype.element_ty), counts)
    tl.store(d_score + place, stored, mask=real[:, None] & (candidate < drawn)[None, :])
    # One number per row: Triton 3.6 fails to compile the sum of a whole tile in sm_100's tensor memory.
    own = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tl.store(scale_sums + own, tl.sum(tl.where(counts, gradient * product, 0.0), axis=1))
    tl.store(share_sums + own, tl.sum(tl.where(counts, gradient, 0.0), axis=1))


class Rows(NamedTuple):
    """The rows as the kernels read them: rows of weight 0 are zero."""

    query: Tensor
    positive: Tensor
    positive_product: Tensor
    """float32 [N]."""
    kept: Tensor | None
    """bool [N], or None where every row counts."""


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [N], lse [N], statistics [2, N]) as `reference.forward`."""
    rows = _rows(given)
    negatives, count = _negatives(given, rows)
    positive_log_q = given.positive_log_q
    if positive_log_q is not None and rows.kept is not None:
        positive_log_q = torch.where(rows.kept, positive_log_q, -1)
    if given.form == "refined":
        assert positive_log_q is not None and count is not None
        denominator = negatives + (-positive_log_q.exp()).log1p() - count.clamp_min(1).log()
        loss = torch.where(denominator == -torch.inf, 0, denominator) * denominator.sigmoid()
        whole = negatives
    else:
        own = torch.zeros_like(negatives) if positive_log_q is None else -positive_log_q
        loss = whole = denominator = torch.logaddexp(own, negatives)
    lse = denominator + given.scale * rows.positive_product
    if given.form == "refined":
        lse = torch.where(denominator == -torch.inf, denominator, lse)
    statistics = torch.stack([denominator, whole])
    if given.row_weight is None:
        return loss, lse, statistics
    return (
        torch.where(rows.kept, given.row_weight * loss, 0),  # type: ignore[arg-type]
        torch.where(rows.kept, lse, 0),  # type: ignore[arg-type]
        torch.where(rows.kept, statistics, 0),  # type: ignore[arg-type]
    )


def backward(
    gradients: Sequence[Tensor], outputs: Sequence[Tensor], needs: dict[str, bool], given: Arguments
) -> list[Tensor | None]:
    """Gradients of query, positive, candidates and scale, from those of (loss, lse)."""
    rows = _rows(given)
    denominator, whole = outputs[2]
    d_lse = torch.where(denominator == -torch.inf, 0, gradients[1])
    d_loss = gradients[0] if given.row_weight is None else gradients[0] * given.row_weight
    d_loss = d_loss * denominator.sigmoid() if given.form == "refined" else d_loss
    if rows.kept is not None:
        d_lse, d_loss = torch.where(rows.kept, d_lse, 0), torch.where(rows.kept, d_loss, 0)
    row_factor = d_loss + d_lse
    share = _negatives_share(given, denominator, whole)
    if rows.kept is not None:
        share = torch.where(rows.kept, share, 0)
    d_positive_score = d_lse - row_factor * share
    d_query, d_candidates, d_scale = _through_scores(
        given, rows, outputs[2], row_factor, share, d_positive_score, needs
    )
    d_positive = None
    if needs["positive"]:
        d_positive = ((given.scale * d_positive_score)[:, None] * rows.query).to(given.positive.dtype)
    if d_scale is not None:
        d_scale = d_scale + (d_lse * rows.positive_product).sum()
    return [d_query, d_positive, d_candidates, d_scale]


def _rows(given: Arguments) -> Rows:
    query, positive, kept = given.query, given.positive, None
    if given.row_weight is not None:
        kept = given.row_weight != 0
        query, positive = torch.where(kept[:, None], query, 0), torch.where(kept[:, None], positive, 0)
    product = dot_rows(query, positive)
    return Rows(query, positive, product, kept)


def _score_arguments(given: Arguments, rows: Rows, config: Config) -> dict[str, Any]:
    """The arguments of both score kernels."""
    owners = None
    if given.query_owner is not None and given.candidate_owner is not None:
        owners = (given.query_owner.contiguous(), given.candidate_owner.contiguous())
    depth = config["block_depth"]
    query: Any = (rows.query, *rows.query.stride())
    candidates: Any = (given.candidates, *given.candidates.stride())
    described = loads_by_tma(rows.query, given.candidates)
    if described:
        query = TensorDescriptor.from_tensor(rows.query, [config["block_rows"], depth])
        candidates = TensorDescriptor.from_tensor(given.candidates, [config["block_candidates"], depth])
    return {
        "query": query,
        "candidates": candidates,
        "DESCRIBED": described,
        "positive_product": rows.positive_product,
        "ids": (given.positive_ids.contiguous(), given.candidate_ids.contiguous()),
        "owners": owners,
        "log_q": given.log_q.contiguous(),
        "scale": given.scale,
        "rows": given.query.shape[0],
        "drawn": given.candidates.shape[0],
        "width": given.query.shape[1],
        "BLOCK_ROWS": config["block_rows"],
        "BLOCK_CANDIDATES": config["block_candidates"],
        "BLOCK_DEPTH": config["block_depth"],
    }


def _negatives(given: Arguments, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the candidates' relative scores, −∞ if none counts, and the number that count; [N] float32.

    Only the refined form counts them.
    """
    count, drawn = given.query.shape[0], given.candidates.shape[0]
    config = _config("forward", given)
    row_blocks = ceil_div(count, config["block_rows"])
    blocks = ceil_div(drawn, config["block_candidates"])
    slots = processors(given.query.device) * resident_programs(config, given.query)
    split = split_blocks(row_blocks, blocks, slots) * config["block_candidates"]
    splits = max(1, ceil_div(drawn, split))
    largest, total = (given.query.new_empty(splits, count, dtype=torch.float32) for _ in range(2))
    counted = None
    if given.form == "refined":
        counted = given.query.new_empty(splits, count, dtype=torch.int32)
    arguments = _score_arguments(given, rows, config) | {
        "PART": min(PART, config["block_candidates"]),
        "WHOLE": given.query.shape[1] <= config["block_depth"],
        "largest": largest,
        "total": total,
        "count": counted,
        "split_candidates": split,
    }
    # Two programs of 8 warps share a multiprocessor at 128 registers; without a limit ptxas spills 8 bytes on sm_100.
    limit = 128 if config["block_candidates"] <= PART and config["warps"] == 8 else None
    launch(
        forward_kernel,
        (row_blocks, splits),
        arguments,
        warps=config["warps"],
        stages=config["stages"],
        registers=limit,
    )
    peak = largest.amax(0)
    shift = torch.where(peak == -torch.inf, 0, peak)
    # In units of ln 2 the maximum would be rounded twice, an error of every share of the row.
    together = (total * (largest - shift).exp()).sum(0)
    return shift + together.log(), None if counted is None else counted.sum(0).float()


def _negatives_share(given: Arguments, denominator: Tensor, whole: Tensor) -> Tensor:
    """The candidates' total share of the denominator, [N]."""
    if given.form == "refined":
        return (whole != -torch.inf).to(whole.dtype)
    own = torch.zeros_like(whole) if given.positive_log_q is None else -given.positive_log_q
    return -torch.expm1((own - denominator).clamp(max=0))


def _through_scores(
    given: Arguments,
    rows: Rows,
    statistics: Tensor,
    row_factor: Tensor,
    share: Tensor,
    d_positive_score: Tensor,
    needs: dict[str, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of query, candidates and scale through the scores, one slab of rows after the other.

    statistics: the forward pass's float32 [2, N], of which the second row is the logarithm of the candidates' sum.
    """
    (count, width), drawn = given.query.shape, given.candidates.shape[0]
    config = _config("backward", given)
    # A power of two near the largest factor: the stored numbers are neither tiny nor rounded by it. A row that is not
    # finite must not affect the others through it.
    largest = row_factor.nan_to_num(0.0, 0.0, 0.0).abs().amax() if count else given.scale
    unit = torch.ldexp(torch.ones_like(given.scale), torch.frexp(largest)[1])
    lifted = row_factor * (LIFT / unit)
    slab = max(config["block_rows"], SLAB_BYTES // max(drawn * given.query.element_size(), 1))
    slab = min(ceil_div(slab, config["block_rows"]) * config["block_rows"], max(count, 1))
    # A row stride that is a multiple of 16 for any number of candidates: vector loads, and one kernel for all batches.
    d_score = given.query.new_empty(slab, max(ceil_div(drawn, 16), 1) * 16)[:, :drawn]
    d_query = given.query.new_empty(count, width)
    sums = given.query.new_zeros(drawn, width, dtype=torch.float32)
    d_scale = given.query.new_zeros((), dtype=torch.float64)
    launch_options = {"warps": config["warps"], "stages": config["stages"]}
    shared = _score_arguments(given, rows, config)
    shared |= {"statistics": statistics.contiguous(), "row_factor": lifted, "kept": rows.kept}
    wild_queries, wild_candidates = wild_parts(rows.query, given.candidates)
    for first in range(0, count, slab):
        here = min(slab, count - first)
        blocks = ceil_div(here, config["block_rows"]), ceil_div(drawn, config["block_candidates"])
        scale_sums, share_sums = given.query.new_empty(2, *blocks, config["block_rows"], dtype=torch.float32)
        own = {"d_score": d_score, "scale_sums": scale_sums, "share_sums": share_sums}
        own_arguments = shared | own | {"first_row": first, "slab_rows": slab, "score_stride": d_score.stride(0)}
        launch(score_gradient_kernel, (blocks[0] * blocks[1],), own_arguments, **launch_options)
        part = slice(first, first + here)
        by_row, gradient_sum = (sums.sum(1, dtype=torch.float64).flatten()[:here] for sums in (scale_sums, share_sums))
        # The rounding of the stored logarithm is an error of every share of its row; the shares' sum corrects it.
        exact = (lifted[part].double() * share[part].double() / gradient_sum).nan_to_num(1.0, 1.0, 1.0)
        d_scale += (by_row * exact).sum()
        if needs["candidates"]:
            add_candidate_gradient(sums, d_score[:here], rows.query[part], wild_queries, exact)
        if needs["query"]:
            row_term = d_positive_score[part] * (LIFT / unit)
            factor = given.scale * (unit / LIFT)
            write_query_gradient(
                d_score[:here], given.candidates, wild_candidates, d_query[part], row_term, rows.positive[part], factor
            )
    d_candidates = (sums * (given.scale * (unit / LIFT))).to(given.candidates.dtype)
    return (
        d_query if needs["query"] else None,
        d_candidates if needs["candidates"] else None,
        (d_scale * (unit / LIFT)).to(given.scale.dtype) if needs["scale"] else None,
    )


def _config(part: str, given: Arguments) -> Config:
    kernel = f"sampled_softmax_loss/{part}"
    default = _FLOAT32_CONFIG if given.query.dtype == torch.float32 else _CONFIGS[kernel][0]
    if part == "forward" and default is not _FLOAT32_CONFIG:
        depth = max(16, next_power_of_two(given.query.shape[1]))
        # Queries of a wider model do not fit beside the candidates.
        default = {**default, "block_depth": depth} if depth <= 256 else _CONFIGS[kernel][1]
    return configuration(
        kernel,
        width=given.query.shape[1],
        dtype=given.query.dtype,
        size=given.query.shape[0],
        default=default,
        device=given.query.device,
    )


def compile_cases() -> list[CompileCase]:
    """The production shape with owners for every dtype, without for bfloat16, and other widths of the forward pass."""
    return [
        compile_case("owners-bfloat16", torch.bfloat16),
        *(compile_case(f"owners-bfloat16-{width}", torch.bfloat16, width=width) for width in (64, 128, 512)),
        compile_case("plain-float32", torch.float32, owners=False),
        compile_case("plain-bfloat16", torch.bfloat16, owners=False, twin=True),
        compile_case("owners-float16", torch.float16, twin=True),
    ]


def compile_case(
    name: str, dtype: torch.dtype, *, owners: bool = True, width: int = 256, twin: bool = False
) -> CompileCase:
    """Both passes over 8,192 rows and 16,384 candidates."""

    def call() -> None:
        rows, drawn = 8_192, 16_384
        with torch.device("meta"):
            query, positive = torch.empty(2, rows, width, dtype=dtype)
            ids, query_owner = torch.empty(2, rows, dtype=torch.int64)
            candidate_ids, candidate_owner = torch.empty(2, drawn, dtype=torch.int64)
            given = Arguments(
                query=query,
                positive=positive,
                candidates=torch.empty(drawn, width, dtype=dtype),
                positive_ids=ids,
                candidate_ids=candidate_ids,
                log_q=torch.empty(drawn),
                positive_log_q=None,
                scale=torch.empty(()),
                row_weight=None,
                query_owner=query_owner if owners else None,
                candidate_owner=candidate_owner if owners else None,
                form="standard",
                reduced=False,
            )
        outputs = forward(given)
        backward(outputs, outputs, dict.fromkeys(("query", "positive", "candidates", "scale"), True), given)

    return CompileCase(name, call, twin=twin)
