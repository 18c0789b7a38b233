"""The products of sampled_softmax_loss on sm_90's product loop (TMA, wgmma), held to the error rule on the CPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from argus_kernels import sampled_softmax_loss
from argus_kernels.ops.sampled_softmax_loss import OP, native, reference
from argus_kernels.testing import captured_arguments
from tests.csrc.simt import host_executor
from tests.csrc.simt import sampled_softmax_loss_on_host as on_host
from tests.ops.softmax_draws import FORMS, draw, require_right, require_same_reach, results

NAME = on_host.BACKEND.name
HALF = [torch.bfloat16, torch.float16]
LOOP, TILES = on_host.Cut(4, 1 << 16, 1), on_host.Cut(3, 1 << 16, 0)
# Rows, candidates and columns past a tile; several tiles a block and several blocks; a depth of one step and of three.
SIZES = [(130, 270, 40), (1, 300, 8), (260, 3, 24), (20, 520, 136)]


@pytest.fixture(autouse=True)
def _with_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = on_host.BACKEND.available()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(OP, "backends", (*OP.backends, on_host.BACKEND))
    monkeypatch.setattr(on_host, "CUT", LOOP)
    yield


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "sizes", [SIZES[0], *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SIZES[1:])], ids=str
)
def test_error_rule_across_tiles(sizes: tuple[int, int, int], form: str, dtype: torch.dtype) -> None:
    require_right(draw(*sizes, dtype, form), NAME)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_error_rule_where_tensor_cores_err_as_far_as_they_may(form: str, dtype: torch.dtype) -> None:
    with host_executor.pessimistic(host_executor.load("sampled_softmax_loss", on_host.SOURCES)):
        require_right(draw(*SIZES[0], dtype, form), NAME)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_same_bits_in_every_order_and_on_any_number_of_blocks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call has a seed of its own. The sums over candidates and rows are cut by the sizes, but for d_query's."""
    arguments = draw(*SIZES[0], dtype)
    found = []
    for blocks in (4, 4, 10):
        monkeypatch.setattr(on_host, "CUT", on_host.Cut(blocks, 1 << 16, 1))
        found.append(results(arguments, NAME))
    assert all(torch.equal(found[1][name], one) for name, one in found[0].items())
    assert all(torch.equal(found[2][name], one) for name, one in found[0].items() if name != "d_query")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("strip_elements", [1 << 17, 70_000], ids=["a_strip_of_three_tiles", "strips_of_two_and_one"])
def test_clusters_give_the_bits_of_blocks_alone(
    strip_elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tiles of rows: one block of the last cluster computes a tile past the end."""
    arguments = draw(300, 270, 40, dtype)
    monkeypatch.setattr(on_host, "CUT", on_host.Cut(10, strip_elements, 1))
    clusters = results(arguments, NAME)
    monkeypatch.setenv("ARGUS_CLUSTERS", "0")
    alone = results(arguments, NAME)
    assert all(torch.equal(clusters[name], one) for name, one in alone.items())


def test_clusters_take_more_than_one_tile_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    library = host_executor.load("sampled_softmax_loss", on_host.SOURCES)
    blocks = library.sampled_softmax_loss_loop_cluster
    assert [blocks(ctypes.c_int64(rows)) for rows in (1, 128, 129, 300)] == [1, 1, 2, 2]
    monkeypatch.setenv("ARGUS_CLUSTERS", "0")
    assert blocks(ctypes.c_int64(300)) == 1


def test_the_loop_differs_from_the_tiles_in_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs at all: candidates in chunks of 256 round otherwise than in those of the tiles."""
    arguments = draw(60, 700, 16, torch.float16)
    loop = sampled_softmax_loss(**arguments, backend=NAME)[0]
    monkeypatch.setattr(on_host, "CUT", TILES)
    tiles = sampled_softmax_loss(**arguments, backend=NAME)[0]
    assert not torch.equal(loop, tiles)
    torch.testing.assert_close(loop, tiles, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("sizes", "dtype", "expected"),
    [
        ((4, 5, 16), torch.bfloat16, True),
        ((4, 5, 8), torch.float16, True),
        ((4, 5, 16), torch.float32, False),
        ((4, 5, 12), torch.bfloat16, False),
        ((4, 5, 37), torch.float16, False),
        ((4, 0, 16), torch.bfloat16, False),
    ],
    ids=str,
)
def test_explain_says_what_the_library_decides(sizes: tuple[int, int, int], dtype: torch.dtype, expected: bool) -> None:
    given = captured_arguments(OP, draw(*sizes, dtype))
    parameters, _ = on_host.parameters_of(given)
    library = host_executor.load("sampled_softmax_loss", on_host.SOURCES)
    assert bool(library.sampled_softmax_loss_fits_loop(ctypes.byref(parameters))) == expected
    assert (not native.why_not_loop(given)) == expected


@pytest.mark.parametrize("width", [12, 37])
def test_rows_that_tma_cannot_load_take_the_tiles(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = draw(20, 300, width, torch.bfloat16)
    asked = sampled_softmax_loss(**arguments, backend=NAME)
    monkeypatch.setattr(on_host, "CUT", TILES)
    assert all(map(torch.equal, asked, sampled_softmax_loss(**arguments, backend=NAME)))


def few_left_out(rows: int, drawn: int, dtype: torch.dtype, form: str) -> dict[str, Any]:
    """Some pairs by id and some by owner, in many pieces of the tiles, with scores that outweigh all others'."""
    arguments = draw(rows, drawn, 16, dtype, form, catalogue=10**9)
    generator = torch.Generator().manual_seed(3)
    arguments["query_owner"] = torch.arange(rows)
    arguments["candidate_owner"] = torch.full((drawn,), -1)
    columns = torch.randperm(drawn, generator=generator)[:24]
    for index, (row, column) in enumerate(zip(torch.randint(rows, (24,), generator=generator), columns, strict=True)):
        if index % 2:
            arguments["candidate_owner"][column] = row
        else:
            arguments["candidate_ids"][column] = arguments["positive_ids"][row]
        arguments["candidates"][column] = 6 * arguments["query"][row]
    return arguments


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_few_candidates_left_out(form: str, dtype: torch.dtype) -> None:
    require_right(few_left_out(150, 600, dtype, form), NAME)


def own_id_as_owner(arguments: dict[str, Any]) -> None:
    """An owner of a candidate equals a row's positive id, and the other way round: neither leaves anything out."""
    arguments["positive_ids"] = torch.arange(0, 150)
    arguments["query_owner"] = torch.arange(1000, 1150)
    arguments["candidate_ids"] = torch.arange(1000, 1600)
    arguments["candidate_owner"] = torch.arange(0, 600)


def far_and_negative(arguments: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in ("positive_ids", "candidate_ids"):
        arguments[name] = torch.randint(-(2**63), 2**63 - 1, arguments[name].shape, generator=generator)
    arguments["candidate_ids"][::50] = arguments["positive_ids"][:12]
    # The lower halves agree, the upper do not.
    arguments["candidate_ids"][1::50] = arguments["positive_ids"][20:32] ^ 2**40


def users_in_a_row(arguments: dict[str, Any]) -> None:
    arguments["query_owner"], arguments["candidate_owner"] = torch.arange(150) // 40, torch.arange(600) // 160


def without_owners(arguments: dict[str, Any]) -> None:
    arguments["query_owner"] = arguments["candidate_owner"] = None


@pytest.mark.parametrize("change", [None, own_id_as_owner, far_and_negative, users_in_a_row, without_owners])
def test_just_the_pieces_that_leave_something_out_are_marked(change: Callable[[dict[str, Any]], None] | None) -> None:
    arguments = few_left_out(150, 600, torch.float16, "standard")
    if change is not None:
        change(arguments)
    given = captured_arguments(OP, arguments)
    expected = torch.zeros(192, 768, dtype=torch.bool)
    expected[:150, :600] = reference._left_out(given)
    # A candidate that does not exist is left out by every row.
    expected[:, 600:] = True
    pieces = expected.view(3, 8, 8, 3, 4, 64).any(dim=5).any(dim=2)  # [half tile, group, tile, piece]
    words = on_host.left_out_words(given)
    bits = words[..., None] >> torch.arange(32) & 1  # [half tile, tile, piece · 8 + group]
    assert torch.equal(bits.view(3, 3, 4, 8).bool(), pieces.permute(0, 2, 3, 1))
    assert 0 < int(bits.sum()) < bits.numel()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["query", "positive", "candidates", "d_loss"])
def test_what_is_not_finite_reaches_what_it_reaches_in_float64(name: str, value: float) -> None:
    require_same_reach(draw(135, 140, 16, torch.bfloat16), name, value, NAME, 2e-2)


def test_rows_of_weight_zero_may_hold_nan() -> None:
    clean = draw(*SIZES[0], torch.bfloat16)
    ignored = clean["row_weight"] == 0
    dirty = {**clean, "query": clean["query"].clone(), "positive": clean["positive"].clone()}
    dirty["query"][ignored], dirty["positive"][ignored] = torch.nan, torch.inf
    ours, theirs = results(dirty, NAME), results(clean, NAME)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("form", FORMS)
def test_every_candidate_a_hit(form: str) -> None:
    arguments = draw(140, 150, 16, torch.float16, form, catalogue=1)
    loss, lse = sampled_softmax_loss(**arguments, backend=NAME)
    assert bool(loss.isfinite().all())
    if form == "refined":
        assert not loss.count_nonzero()
        assert (lse[arguments["row_weight"] != 0] == -math.inf).all()
