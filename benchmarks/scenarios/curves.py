"""What the scaling benchmark varies: an op's inputs as a function of one size, and the calls that are timed on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import argus_kernels
from argus_kernels.attention.samples import HistoryCase

HEADS, HEAD_WIDTH, BIAS_BUCKETS = 4, 64, 128
TABLE_WIDTH, OUT_WIDTH = 64, 256

Arguments = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Curve:
    """One op over one size.

    sizes: those of the full run. make(size, dtype, device): the arguments. passes: what is timed, by name; each takes
    the arguments and a backend's name and gives the call. bytes_of(size, element): what the arguments hold.
    """

    op: str
    axis: str
    sizes: tuple[int, ...]
    make: Callable[[int, torch.dtype, str], Arguments]
    passes: dict[str, Callable[[Arguments, str], Call]]
    bytes_of: Callable[[int, int], int]


def curves(device: str, *, tiny: bool = False) -> list[Curve]:
    """The curves of a device; `tiny` has sizes that only show that everything runs."""
    rows, width = (8192, 256) if device == "cuda" else (512, 128)
    events = 16_384 if device == "cuda" else 4096
    if tiny:
        rows, width, events = 16, 8, 32
    return [
        _attention("causal_attention", tiny),
        _attention("hstu_attention", tiny),
        _decode(2 if tiny else 64, tiny),
        _sampled_softmax(rows, width, tiny),
        _tables(events, tiny),
    ]


def _attention(op: str, tiny: bool) -> Curve:
    def make(size: int, dtype: torch.dtype, device: str) -> Arguments:
        case = HistoryCase(
            "one_user", (size,), heads=HEADS, width=HEAD_WIDTH, position_buckets=BIAS_BUCKETS,
            time_buckets=BIAS_BUCKETS,
        )  # fmt: skip
        drawn = case.make(torch.Generator().manual_seed(0), dtype)
        return _on(device, drawn, ("q", "k", "v", "position_bias", "time_bias"))

    grad = ("q", "k", "v", "position_bias", "time_bias")
    return Curve(
        op,
        "events per user",
        (32, 64, 128) if tiny else (512, 1024, 2048, 4096, 8192),
        make,
        _differentiable(getattr(argus_kernels, op), grad),
        lambda size, element: size * (6 * HEADS * HEAD_WIDTH * element + 16),
    )


def _decode(users: int, tiny: bool) -> Curve:
    """One new event of each user against caches of so many events, nothing appended."""

    def make(size: int, dtype: torch.dtype, device: str) -> Arguments:
        draw = torch.Generator(device).manual_seed(0)
        cache = argus_kernels.PagedCache.allocate(users, size, HEADS, HEAD_WIDTH, dtype=dtype, device=device)
        for pages in (cache.key_pages, cache.value_pages):
            pages.copy_(torch.randn(pages.shape, generator=draw, device=device))
        return {
            "q": torch.randn(users, HEADS, HEAD_WIDTH, generator=draw, device=device).to(dtype),
            "cache": cache,
            "lengths": torch.full((users,), size, dtype=torch.int32, device=device),
        }

    def forward(given: Arguments, backend: str) -> Call:
        def run() -> Any:
            with torch.no_grad():
                return argus_kernels.decode_attention(**given, backend=backend)

        return run

    return Curve(
        "decode_attention",
        "cached events per user",
        (32, 64, 128) if tiny else (512, 1024, 2048, 4096, 8192),
        make,
        {"forward": forward},
        lambda size, element: 2 * users * size * HEADS * HEAD_WIDTH * element,
    )


def _sampled_softmax(rows: int, width: int, tiny: bool) -> Curve:
    def make(size: int, dtype: torch.dtype, device: str) -> Arguments:
        draw = torch.Generator(device).manual_seed(0)
        shapes = {"query": rows, "positive": rows, "candidates": size}
        drawn: Arguments = {
            name: torch.randn(count, width, generator=draw, device=device).to(dtype) for name, count in shapes.items()
        }
        drawn["positive_ids"] = torch.randint(0, 10 * size, (rows,), generator=draw, device=device)
        drawn["candidate_ids"] = torch.randint(0, 10 * size, (size,), generator=draw, device=device)
        drawn["log_q"] = torch.zeros(size, device=device)
        drawn["scale"] = torch.tensor(width**-0.5, device=device)
        return _on(device, drawn, ("query", "positive", "candidates"))

    return Curve(
        "sampled_softmax_loss",
        "candidates",
        (64, 256, 1024) if tiny else (1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000),
        make,
        _differentiable(argus_kernels.sampled_softmax_loss, ("query", "positive", "candidates")),
        lambda size, element: 2 * (size + 2 * rows) * width * element + 12 * size,
    )


def _tables(events: int, tiny: bool) -> Curve:
    """The embedding of a batch from one table, and the optimiser's step on the rows that it read."""

    def make(size: int, dtype: torch.dtype, device: str) -> Arguments:
        draw = torch.Generator(device).manual_seed(0)
        return {
            "ids": torch.randint(0, size, (2, events), generator=draw, device=device),
            "table": torch.empty(size, TABLE_WIDTH, dtype=dtype, device=device)
            .uniform_(-0.1, 0.1, generator=draw)
            .requires_grad_(),
            "weight": torch.randn(2 * TABLE_WIDTH, OUT_WIDTH, generator=draw, device=device).to(dtype).requires_grad_(),
            "state": torch.zeros(size, device=device),
            "gradient": torch.randn(events, OUT_WIDTH, generator=draw, device=device).to(dtype),
        }

    def step(given: Arguments, backend: str) -> Call:
        def run() -> None:
            table = given["table"]
            out = argus_kernels.triple_embedding(
                given["ids"], [table], [0, 0], given["weight"], sparse=True, backend=backend
            )
            gradient, _ = torch.autograd.grad(out, (table, given["weight"]), given["gradient"])
            gradient = gradient.coalesce()
            with torch.no_grad():
                argus_kernels.rowwise_adagrad_(
                    table, given["state"], gradient.indices()[0], gradient.values(), lr=0.01, backend=backend
                )

        return run

    return Curve(
        "triple_embedding",
        "table rows",
        (100, 1_000, 10_000) if tiny else (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
        make,
        {"step": step},
        lambda size, element: size * (TABLE_WIDTH * element + 4) + (2 * TABLE_WIDTH + events) * OUT_WIDTH * element,
    )


def _differentiable(function: Callable[..., Any], grad: Sequence[str]) -> dict[str, Callable[[Arguments, str], Call]]:
    def forward(given: Arguments, backend: str) -> Call:
        def run() -> Any:
            with torch.no_grad():
                return function(**given, backend=backend)

        return run

    def forward_backward(given: Arguments, backend: str) -> Call:
        def run() -> Any:
            returned = function(**given, backend=backend)
            out: Tensor = returned[0] if isinstance(returned, tuple) else returned
            return torch.autograd.grad(out, [given[name] for name in grad], torch.ones_like(out))

        return run

    return {"forward": forward, "forward_backward": forward_backward}


def _on(device: str, drawn: Arguments, grad: Sequence[str]) -> Arguments:
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in drawn.items()}
    for name in grad:
        moved[name] = moved[name].detach().requires_grad_()
    return moved
