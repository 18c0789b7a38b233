"""Incremental inference: the encoder's state after one more event of some users, from their cached earlier events.

The states equal those of `Argus.encode` over the whole histories; with the HSTU encoder those of `encode` with a lag,
whose time bias counts from the event itself: they are final when it comes. Keys, values and times of each layer lie in
a paged cache; the caches of all layers share one page table, so users are evicted, forked and offloaded in all layers
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from argus_kernels import DirectDecoder, DirectLinear, PagedCache
from argus_kernels.attention.relative_bias import time_buckets
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.model.hstu import EPS, HstuBlock
from python_model.model.layers import Block, Head

AttendHere: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The attention of one layer: q, k, v [B, H, Dh] of the newest events → [B, H, Dh]."""


class Attend(Protocol):
    """Attention of the newest events of some users over their cached ones, in one layer."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor, time_bias: Tensor) -> Tensor:
        """q, k, v [B, H, Dh] → [B, H, Dh]; position_bias [H, P], time_bias [H, N]."""
        ...


@dataclass(frozen=True)
class DenseLayer:
    """A transformer block without its attention, for a few rows: x [B, d] → [B, 3d]; attended, x → x; x → hidden; …"""

    query_key_value: Callable[[Tensor], Tensor]
    output: Callable[[Tensor, Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, block: Block, backend: str | None = None) -> DenseLayer:
        """On the CPU with decode_linear, which reads the current weights at each call; elsewhere with stock torch."""
        if block.output.weight.device.type != "cpu":
            return cls.stock(block)
        return cls(
            _direct(block.query_key_value, norm=block.attention_norm, backend=backend),
            _direct(block.output, backend=backend),
            _direct(block.up, norm=block.feed_norm, activation="gelu", backend=backend),
            _direct(block.down, backend=backend),
        )

    @classmethod
    def stock(cls, block: Block) -> DenseLayer:
        """Computed by the block's own modules."""
        return cls(
            lambda x: block.query_key_value(block.attention_norm(x)),
            lambda attended, x: x + block.output(attended),
            lambda x: gelu(block.up(block.feed_norm(x))),
            lambda hidden, x: x + block.down(hidden),
        )

    def step(self, x: Tensor, heads: int, attend: AttendHere) -> Tensor:
        """The layer on x [B, d] → [B, d]."""
        q, k, v = self.query_key_value(x).view(len(x), 3, heads, -1).unbind(1)
        x = self.output(attend(q, k, v).reshape(x.shape), x)
        return self.down(self.up(x), x)


@dataclass(frozen=True)
class HstuLayer:
    """An HSTU block without its attention, for a few rows: x [B, d] → [B, 4d]; attended and gated, x → x."""

    gate_value_query_key: Callable[[Tensor], Tensor]
    output: Callable[[Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, block: HstuBlock, backend: str | None = None) -> HstuLayer:
        """On the CPU with decode_linear, which reads the current weights at each call; elsewhere with stock torch."""
        projection, output = block.gate_value_query_key, block.output
        if output.weight.device.type != "cpu":
            return cls(
                lambda x: silu(projection(layer_norm(x, x.shape[-1:], eps=EPS))),
                lambda attended, x: x + output(attended),
            )
        direct = _direct(projection, backend=backend)
        return cls(lambda x: silu(direct(layer_norm(x, x.shape[-1:], eps=EPS))), _direct(output, backend=backend))

    def step(self, x: Tensor, heads: int, attend: AttendHere) -> Tensor:
        """The layer on x [B, d] → [B, d]."""
        gate, v, q, k = self.gate_value_query_key(x).view(len(x), 4, heads, -1).unbind(1)
        attended = layer_norm(attend(q, k, v).reshape(x.shape), x.shape[-1:], eps=EPS)
        return self.output(gate.reshape(x.shape) * attended, x)


def direct_head(head: Head, backend: str | None = None) -> Callable[[Tensor], Tensor]:
    """A head of the model for a few rows, [B, ·] → [B, fan_out]; on the CPU with decode_linear."""
    if head.output.weight.device.type != "cpu":
        return head
    hidden = _direct(head.hidden, activation="gelu", backend=backend)
    output = _direct(head.output, backend=backend)
    return lambda readings: output(hidden(readings))


def _direct(linear: nn.Linear, norm: nn.LayerNorm | None = None, **settings: Any) -> DirectLinear:
    if norm is not None:
        settings.update(norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps)
    return DirectLinear(linear.weight, linear.bias, **settings)


def blocks_of(model: Argus) -> list[Block]:
    """The encoder's transformer blocks."""
    return [block for block in model.encoder.blocks if isinstance(block, Block)]


def encode_newest(model: Argus, layers: Sequence[DenseLayer | HstuLayer], tokens: Tensor, attend: Attend) -> Tensor:
    """States [B, d] of the newest event of B users from their tokens [B, d]; all earlier events are cached."""
    encoder, x = model.encoder, tokens
    for number, layer in enumerate(layers):
        biases = {"position_bias": encoder.position_bias[number], "time_bias": encoder.time_bias[number]}
        x = layer.step(x, model.config.heads, partial(attend, number, **biases))
    return encoder.norm(x)


def _rule(block: nn.Module) -> dict[str, Any]:
    """How a block's attention weighs, as decode_attention takes it."""
    return {"rule": "silu", "scale": 1.0, "divisor": float(block.longest)} if isinstance(block, HstuBlock) else {}


def _projection(block: nn.Module) -> nn.Linear:
    """The linear layer of a block that makes keys and values."""
    return block.gate_value_query_key if isinstance(block, HstuBlock) else cast(Block, block).query_key_value


def _keys_and_values(block: nn.Module, projected: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What a block's attention reads of the output of its `_projection`: two of [T, H, Dh]."""
    if isinstance(block, HstuBlock):
        _, v, _, k = silu(projected).view(len(projected), 4, heads, -1).unbind(1)
    else:
        _, k, v = projected.view(len(projected), 3, heads, -1).unbind(1)
    return k, v


class IncrementalEncoder:
    """The states of `users` users of a simplified model, kept up to date event by event.

    users, max_events, page_size, pages, on_full, folder: as for `PagedCache.allocate`. Every user exists from the
    start, without events. dtype: of the cached keys and values, the weights' own by default, or torch.int8 with a scale
    for each event and head; a type of half the size halves the memory and nearly the time of a long history. backend:
    of decode_attention and decode_linear. `caches` holds one cache per layer, for operations that concern only pages.
    """

    def __init__(
        self, model: Argus, users: int, max_events: int, *, page_size: int = 64, pages: int | None = None,
        on_full: str = "refuse", folder: str | Path | None = None, dtype: torch.dtype | None = None,
        backend: str | None = None,
    ) -> None:  # fmt: skip
        config = model.config
        if config.form != "simplified":
            raise ValueError(f"IncrementalEncoder: the model's form is {config.form!r}, expected 'simplified'")
        self.model = model.eval()
        own = model.encoder.norm.weight.dtype
        cached = dtype or own
        # Queries, keys and values reach decode_attention so; it quantises them itself.
        self._dtype = own if cached == torch.int8 else cached
        self.caches = PagedCache.allocate_layers(
            config.layers, users, max_events, config.heads, config.width // config.heads, page_size=page_size,
            pages=pages, dtype=cached, device=model.device, on_full=on_full, folder=folder,
        )  # fmt: skip
        # Time in seconds of each user's newest event; the gap of the next event is counted from it.
        self._newest = torch.zeros(users, dtype=torch.int64, device=model.device)
        blocks = list(model.encoder.blocks)
        with torch.no_grad():
            biases = zip(model.encoder.position_bias, model.encoder.time_bias, strict=True)
            self._decoders = [
                DirectDecoder(
                    position_bias=position.expand(config.heads, -1), time_bias=time.expand(config.heads, -1),
                    backend=backend, **_rule(block),
                )
                for block, (position, time) in zip(blocks, biases, strict=True)
            ]  # fmt: skip
        self._layers: list[DenseLayer | HstuLayer] = [
            HstuLayer.of(block, backend) if isinstance(block, HstuBlock) else DenseLayer.of(cast(Block, block), backend)
            for block in blocks
        ]

    @torch.no_grad()
    def append(self, users: Sequence[int], events: JaggedBatch) -> Tensor:
        """States [n, d] of n users after one more event each; `events` holds one event of each, in the same order.

        Raises ValueError, having changed nothing, where pages run out or a user is evicted: see `PagedCache`.
        """
        if len(events.items) != len(users) or events.max_length > 1:
            raise ValueError(
                f"IncrementalEncoder.append: {len(users)} users and {len(events.items)} events, of one user up to "
                f"{events.max_length}, expected one each"
            )
        lengths = self.caches[0].extend(users)
        rows = self.caches[0].rows(users)
        views = [one.layer_like(rows) for one in self.caches]
        index = torch.tensor(list(users), device=self._newest.device)
        gap = time_buckets(events.time - self._newest[index], self.model.config.time_buckets)
        tokens = self._tokens(events, torch.where(lengths > 1, gap, -1))
        self._newest[index] = events.time

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor, time_bias: Tensor) -> Tensor:
            attended = self._decoders[layer](
                q.to(self._dtype), views[layer], lengths, k=k.to(self._dtype), v=v.to(self._dtype),
                query_time=events.time, key_time=events.time,
            )  # fmt: skip
            return attended.to(q.dtype)

        return encode_newest(self.model, self._layers, tokens, attend)

    @torch.no_grad()
    def prefill(self, user: int, events: JaggedBatch) -> Tensor:
        """The state [d] after the whole history of a user who has none yet, in one pass; `events` holds one user.

        Raises ValueError, having changed nothing, where the user has events or pages run out.
        """
        if len(events.offsets) != 2 or len(events) == 0:
            raise ValueError(
                f"IncrementalEncoder.prefill: {len(events.offsets) - 1} users and {len(events)} events, expected one "
                "user with events"
            )
        projected: list[Tensor] = []

        def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
            projected.append(output)

        blocks = list(self.model.encoder.blocks)
        handles = [_projection(one).register_forward_hook(keep) for one in blocks]
        try:
            states = self.model.encode(events, lag=0)
        finally:
            for handle in handles:
                handle.remove()
        heads = self.model.config.heads
        pairs = [_keys_and_values(block, one, heads) for block, one in zip(blocks, projected, strict=True)]
        keys, values = zip(*pairs, strict=True)
        self.caches[0].copy_in(user, [*self.caches[0].encoded([*keys, *values]), events.time])
        self._newest[user] = events.time[-1]
        return states[-1]

    def truncate(self, user: int, length: int) -> None:
        """Takes back a user's newest events, so that `length` are left; see `PagedCache.truncate`."""
        cache = self.caches[0]
        cache.truncate([user], [length])
        if length > 0:
            page, slot = divmod(length - 1, cache.page_size)
            self._newest[user] = cache.time_pages[cache.block_table[user, page], slot]

    def copy_out(self, user: int) -> list[Tensor]:
        """The user's events of all layers on the host; see `PagedCache.copy_out`."""
        return self.caches[0].copy_out(user)

    def copy_in(self, user: int, parts: Sequence[Tensor]) -> None:
        """Restores the result of `copy_out` for a user without events, from an encoder of the same model and dtype."""
        self.caches[0].copy_in(user, parts)
        if len(parts[-1]):
            self._newest[user] = parts[-1][-1]

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Lets the targets continue the source's history; see `PagedCache.fork`."""
        self.caches[0].fork(source, targets)
        self._newest[torch.tensor(list(targets), device=self._newest.device)] = self._newest[source].clone()

    def evict(self, users: Sequence[int]) -> None:
        """Forgets the users."""
        self.caches[0].evict(users)

    def _tokens(self, events: JaggedBatch, gap: Tensor) -> Tensor:
        model = self.model
        context = torch.cat([events.organic.long()[None], gap[None], events.context])
        items = torch.where(events.items >= 0, model.item_columns[:, events.items.clamp(min=0)].long(), -1)
        return model.event_embedding.of_few(model.tables, torch.cat([context, items, model.feedback_ids(events)]))
