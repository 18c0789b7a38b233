"""One event of one user at a time: the encoder with its cache, the same on stock torch, and full recomputation.

The timed span covers everything between an event and the state after it: the event's embedding, every layer with its
attention over the cached events, the final norm. The heads are not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from argus_kernels import DirectDecoder, PagedCache
from argus_kernels.attention.relative_bias import time_buckets
from benchmarks.harness.results import Quantiles
from python_model.config import ModelConfig
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.model.incremental import DenseLayer, blocks_of, encode_newest


@dataclass
class PagedDecoder:
    """The users' caches of all layers, read and written by decode_attention's direct path."""

    model: Argus
    caches: list[PagedCache]
    decoders: list[DirectDecoder]
    layers: list[DenseLayer]

    @classmethod
    def allocate(cls, model: Argus, users: int, max_events: int) -> PagedDecoder:
        """Empty caches on the model's device, in the dtype of its weights."""
        config = model.config
        shape = (users, max_events, config.heads, config.width // config.heads)
        dtype, device = model.encoder.norm.weight.dtype, model.device
        biases = zip(model.encoder.position_bias.detach(), model.encoder.time_bias.detach(), strict=True)
        decoders = [DirectDecoder(position_bias=position, time_bias=time) for position, time in biases]
        caches = PagedCache.allocate_layers(config.layers, *shape, dtype=dtype, device=device)
        return cls(model, caches, decoders, [DenseLayer.of(block) for block in blocks_of(model)])

    def rows(self, users: Sequence[int]) -> PagedDecoder:
        """The same caches, restricted to some users."""
        return replace(self, caches=[cache.rows(users) for cache in self.caches])

    def fill(self, seed: int = 0) -> None:
        """Drawn keys, values and times in every slot."""
        draw = torch.Generator(self.model.device).manual_seed(seed)
        for cache in self.caches:
            cache.key_pages.normal_(generator=draw)
            cache.value_pages.normal_(generator=draw)
            cache.time_pages.random_(1_690_000_000, 1_700_000_000, generator=draw)

    @torch.inference_mode()
    def append(self, tokens: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """States [B, d] after one more event each; times int64 [B], lengths int32 [B] with that event counted."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor, time_bias: Tensor) -> Tensor:
            return self.decoders[layer](q, self.caches[layer], lengths, k=k, v=v, query_time=times, key_time=times)

        return encode_newest(self.model, self.layers, tokens, attend)


@dataclass
class StockDecoder:
    """One user's cache in one tensor per layer, and scaled_dot_product_attention over it with a dense bias."""

    model: Argus
    keys: Tensor
    values: Tensor
    times: Tensor

    @classmethod
    def allocate(cls, model: Argus, max_events: int) -> StockDecoder:
        """An empty cache: keys and values [L, H, max_events, Dh], times [max_events]."""
        config, weight = model.config, model.encoder.norm.weight
        shape = (config.layers, config.heads, max_events, config.width // config.heads)
        keys, values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        return cls(model, keys, values, torch.zeros(max_events, dtype=torch.int64, device=weight.device))

    def fill(self, seed: int = 0) -> None:
        """Drawn keys, values and times in every slot."""
        draw = torch.Generator(self.keys.device).manual_seed(seed)
        self.keys.normal_(generator=draw)
        self.values.normal_(generator=draw)
        self.times.random_(1_690_000_000, 1_700_000_000, generator=draw)

    @torch.inference_mode()
    def append(self, tokens: Tensor, times: Tensor, length: int) -> Tensor:
        """The state [1, d] after one more event, the `length`-th."""
        self.times[length - 1] = times[0]
        config = self.model.config
        place = torch.arange(length - 1, -1, -1, device=times.device).clamp(max=config.position_buckets - 1)
        bucket = time_buckets(times - self.times[:length], config.time_buckets)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor, time_bias: Tensor) -> Tensor:
            self.keys[layer, :, length - 1] = k[0]
            self.values[layer, :, length - 1] = v[0]
            bias = (position_bias[:, place] + time_bias[:, bucket])[None, :, None].to(q.dtype)
            keys, values = self.keys[layer, None, :, :length], self.values[layer, None, :, :length]
            return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=bias)[:, :, 0]

        layers = [DenseLayer.stock(block) for block in blocks_of(self.model)]
        return encode_newest(self.model, layers, tokens, attend)


@dataclass(frozen=True)
class Latency:
    """Latency of one event of one user in milliseconds, over `requests` events of `users` cached users in turn."""

    method: str
    cached_events: int
    users: int
    requests: int
    p50: float
    p99: float


def decode_latencies(
    model: Argus, batch: JaggedBatch, cached: int, seconds: float, backend: str, users: int = 8
) -> list[Latency]:
    """Latency of the paged cache, of stock torch's cache and of re-encoding the whole history.

    batch: events to append, in turn; `users` users hold `cached` events each, drawn keys and values. seconds: for each
    method. The last method encodes one user of `cached` events, so the longest history of `batch` must have that many.
    """
    model = model.eval()
    paged = PagedDecoder.allocate(model, users, cached)
    paged.fill()
    views = [paged.rows([user]) for user in range(users)]
    stock = [StockDecoder.allocate(model, cached) for _ in range(users)]
    for user, decoder in enumerate(stock):
        decoder.fill(user)
    lengths = torch.full((1,), cached, dtype=torch.int32, device=model.device)
    history = longest_history(batch, cached)
    events = [last_event(batch, row) for row in range(min(len(batch), 64))]

    def run_paged(request: int) -> Tensor:
        event = events[request % len(events)]
        return views[request % users].append(tokens_of(model, event), event.time, lengths)

    def run_stock(request: int) -> Tensor:
        event = events[request % len(events)]
        return stock[request % users].append(tokens_of(model, event), event.time, cached)

    @torch.inference_mode()
    def start_over(request: int) -> Tensor:
        return model.encode(history)[-1]

    methods: dict[str, Callable[[int], Tensor]] = {
        f"paged cache ({backend})": run_paged,
        "stock torch cache": run_stock,
        f"encode the whole history ({backend})": start_over,
    }
    return [latency(name, call, cached, users, seconds, model.device.type == "cuda") for name, call in methods.items()]


def latency(
    method: str, call: Callable[[int], Tensor], cached: int, users: int, seconds: float, synchronise: bool
) -> Latency:
    """Calls request after request for `seconds` (at least ten times) and waits for each result, as a server would."""
    times: list[float] = []
    for request in range(3):
        call(request)
    ends = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < ends:
        started = time.perf_counter()
        call(len(times))
        if synchronise:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    p99 = float(torch.tensor(times, dtype=torch.float64).quantile(0.99))
    return Latency(method, cached, users, len(times), Quantiles.of(times).p50, p99)


def tokens_of(model: Argus, batch: JaggedBatch) -> Tensor:
    """Tokens [T, d] that enter the encoder, for events whose predecessors are not in the batch."""
    config: ModelConfig = model.config
    no_gap = torch.full_like(batch.items, config.time_buckets - 1)
    context = torch.cat([batch.organic.long()[None], no_gap[None], batch.context])
    ids = torch.cat([context, model.item_columns[:, batch.items].long(), batch.feedback.T])
    with torch.inference_mode():
        return model.event_embedding(model.tables, ids)


def last_event(batch: JaggedBatch, row: int) -> JaggedBatch:
    """A batch of one event of one user."""
    return _rows(batch, slice(row, row + 1))


def longest_history(batch: JaggedBatch, events: int) -> JaggedBatch:
    """A batch of the last `events` events of its longest history."""
    user = int(batch.offsets.diff().argmax())
    end = int(batch.offsets[user + 1])
    start = max(int(batch.offsets[user]), end - events)
    return _rows(batch, slice(start, end))


def _rows(batch: JaggedBatch, rows: slice) -> JaggedBatch:
    count = rows.stop - rows.start
    return JaggedBatch(
        offsets=torch.tensor([0, count], dtype=torch.int32, device=batch.items.device),
        max_length=count,
        users=batch.users[:1],
        rows=batch.rows[rows],
        items=batch.items[rows],
        time=batch.time[rows],
        organic=batch.organic[rows],
        grade=batch.grade[rows],
        context=batch.context[:, rows],
        feedback=batch.feedback[rows],
        is_target=batch.is_target[rows],
    )
