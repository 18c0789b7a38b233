"""The layers of the model: embeddings of an interaction, the causal encoder, heads.

Shapes: T packed events of B users with `offsets` int32 [B + 1]; rows past offsets[B] are padding, whatever they hold.
A "state" is the encoder's output at an event; `states_after` picks, for every event, the state after an earlier event,
so that the heads do not see their target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from argus_kernels import Offsets, causal_attention, triple_embedding
from argus_kernels.core.varlen import local_positions, user_of_row
from python_model.config import ModelConfig
from python_model.model.linear import affine, project
from python_model.training.row_sharding import ReadRows, RowSharding, initial_rows

MAY_BE_LARGE = ("item", "context_")
"""Prefixes of the names of tables that may be sharded over ranks: tables of the catalogue and of the data's context."""


FEW = 8
"""Number of events up to which plain lookups are faster than the fused op."""


class Tables(nn.Module):
    """Embedding tables by name, shared by every `TripleEmbedding` of a model.

    sharding: on several ranks, shards the large tables; `weights` then holds this rank's rows of them (`spans`), and
    lookups need their rows in an `at_hand` block. row_sparse: whether gradients may be row-sparse where a lookup asks
    for it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], sharding: RowSharding | None = None) -> None:
        super().__init__()
        self.rows = {name: rows for name, (rows, _) in shapes.items()}
        self.spans = _spans(self.rows, sharding) if sharding is not None else {}
        self.row_sparse = sharding is None
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(initial_rows(rows, width, number, self.spans.get(name)))
                for number, (name, (rows, width)) in enumerate(shapes.items())
            }
        )
        self._at_hand: Mapping[str, ReadRows] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._at_hand[name].rows if name in self._at_hand else self.weights[name]

    @contextmanager
    def at_hand(self, read: Mapping[str, ReadRows]) -> Iterator[None]:
        """Within the block, lookups in sharded tables find these rows."""
        self._at_hand = read
        try:
            yield
        finally:
            self._at_hand = {}

    def places(self, names: Sequence[str], ids: Tensor) -> Tensor:
        """Ids [K, T] of the columns' tables, renumbered where only a part of the table's rows is at hand."""
        if not self._at_hand:
            return ids
        columns = zip(names, ids, strict=True)
        return torch.stack([self._at_hand[n].places(one) if n in self._at_hand else one for n, one in columns])


def _spans(rows: Mapping[str, int], sharding: RowSharding) -> dict[str, tuple[int, int]]:
    spans = {name: sharding.span(count) for name, count in rows.items() if name.startswith(MAY_BE_LARGE)}
    return {name: held for name, held in spans.items() if held is not None}


class TripleEmbedding(nn.Module):
    """Looks up K columns in shared tables, concatenates and projects to `width`: one fused op.

    columns: the table of each column; several columns may read one table (hashed items).
    """

    def __init__(self, tables: Tables, columns: Sequence[str], width: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.names = list(dict.fromkeys(columns))
        self.columns = [self.names.index(name) for name in columns]
        self.column_names = tuple(columns)
        self.sparse = sparse
        fan_in = sum(tables[name].shape[1] for name in columns)
        # Each of the K columns contributes variance 1 / K, so that the sum has unit variance for any K.
        self.weight = nn.Parameter(torch.randn(fan_in, width) * len(columns) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tables: Tables, ids: Tensor) -> Tensor:
        """Vectors [T, width] of ids [K, T] int64, −1 = missing."""
        used = [tables[name] for name in self.names]
        ids = tables.places(self.column_names, ids)
        sparse = self.sparse and tables.row_sparse
        return triple_embedding(ids, used, self.columns, self.weight, self.bias, sparse=sparse)

    def of_few(self, tables: Tables, ids: Tensor) -> Tensor:
        """The same for a few events; on the CPU by plain lookups, which cost less than the call overhead of the op."""
        if ids.is_cuda or ids.shape[1] > FEW:
            vectors: Tensor = self(tables, ids)
            return vectors
        used = [tables[name] for name in self.names]
        columns = [used[column] for column in self.columns]
        events = tables.places(self.column_names, ids).T.tolist()
        rows = [
            table[row] if row >= 0 else table.new_zeros(table.shape[1])
            for event in events
            for table, row in zip(columns, event, strict=True)
        ]
        return torch.addmm(self.bias, torch.cat(rows).view(len(events), -1), self.weight)


@dataclass(frozen=True)
class Rows:
    """Some tokens of a batch, rising: the only ones whose states are read, so the only ones the last layer computes.

    index int64 [R]: packed rows; offsets int32 [B + 1] among the R; place int32 [R]: of a token within its user.
    """

    index: Tensor
    offsets: Tensor
    place: Tensor


SHARE_OF_ROWS = 0.9
"""Above this share of the tokens the last layer computes all. At 0.9 it takes 0.83 of their time forward and 0.91 with
gradients, at 1 the same (a layer of 3m over 8 × 1,024 events, two cores)."""


def rows_read(read: Tensor | None, offsets: Tensor) -> Rows | None:
    """The tokens where `read` (bool [T]) holds; None where they are nearly all. On a GPU this waits for it."""
    if read is None:
        return None
    index = read.nonzero()[:, 0]
    if len(index) > SHARE_OF_ROWS * len(read):
        return None
    user = user_of_row(offsets, len(read))[index]
    users = offsets.shape[0] - 1
    real = user < users
    index, user = index[real], user[real]
    counts = torch.bincount(user, minlength=users)[:users]
    return Rows(
        index,
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(),
        (index - offsets.long()[user]).int(),
    )


@dataclass(frozen=True)
class Layout:
    """The layout of packed tokens: users, times, and how much of its user's past each token may see.

    offsets int32 [B + 1], or a handle that all layers share; times int64 [T] seconds; max_length: tokens of the longest
    user at most; visible int32 [T] or None: token i sees itself and the first visible[i] tokens of its user (None: all
    before it). position int32 [T] or None: where a token stands for the position bias (None: its place). own: begin and
    end of the tokens that a token sees besides, int32 [T] each (None: itself).
    query_times int64 [T] or None: the time from which the time bias of each token counts (HSTU); None: its own time.
    rows: the tokens whose states are read, None for all. dropout_seed int64 [B]: of a layer's attention dropout, None
    without. history: the keys of a layer that the tokens see besides their own, None for none.
    """

    offsets: Tensor | Offsets
    times: Tensor
    max_length: int
    visible: Tensor | None = None
    position: Tensor | None = None
    own: tuple[Tensor, Tensor] | None = None
    query_times: Tensor | None = None
    rows: Rows | None = None
    dropout_seed: Tensor | None = None
    history: History | None = None
    kept: list[tuple[Tensor, Tensor]] | None = None

    def keys_and_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer attends to, from those of its own tokens."""
        if self.kept is not None:
            self.kept.append((k, v))
        return (k, v) if self.history is None else self.history.with_own(k, v)

    def attention(self) -> dict[str, Any]:
        """The arguments that an attention op takes of all this, besides q, k, v, biases and numbers."""
        query_times = self.times if self.query_times is None else self.query_times
        if self.history is not None:
            return {**self.history.attention(self), "query_time": query_times}
        found: dict[str, Any] = {"offsets": self.offsets, "max_length": self.max_length, "visible": self.visible}
        if self.rows is None:
            if self.position is not None:
                found["position"] = self.position
            if self.own is not None:
                found["own_begin"], found["own_end"] = self.own
        else:
            place, index = self.rows.place, self.rows.index
            begin, end = (place, place + 1) if self.own is None else (one[index] for one in self.own)
            found |= {
                "offsets": self.rows.offsets,
                "key_offsets": self.offsets,
                "key_max_length": self.max_length,
                "position": place if self.position is None else self.position[index],
                "own_begin": begin,
                "own_end": end,
                "visible": place if self.visible is None else self.visible[index],
            }
            query_times = query_times[index]
        return found | {"query_time": query_times, "key_time": self.times, "dropout_seed": self.dropout_seed}


@dataclass(frozen=True)
class History:
    """Tokens that were encoded before, as the keys of tokens that follow them: candidates, or a request's context.

    place int64 [Tk]: where each key lies among `stored` [S, …] followed by the new tokens' own [T, …], so that a
    user's stored tokens come first. offsets int32 [B + 1] of the Tk keys, longest: keys of a user at most; times int64
    [Tk]; visible and position int32 [T]: the mask rule of the new tokens, whose own keys are themselves.
    keys, values: of every layer, [S, H, Dh].
    """

    place: Tensor
    offsets: Tensor
    longest: int
    times: Tensor
    visible: Tensor
    position: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    layer: int = 0

    def with_own(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [Tk, H, Dh] of the layer: the stored ones and those of the new tokens."""
        stored = self.keys[self.layer], self.values[self.layer]
        return tuple(  # type: ignore[return-value]
            torch.cat([before.to(own.dtype), own]).index_select(0, self.place)
            for before, own in zip(stored, (k, v), strict=True)
        )

    def attention(self, layout: Layout) -> dict[str, Any]:
        """See `Layout.attention`."""
        return {
            "offsets": layout.offsets, "max_length": layout.max_length, "key_offsets": self.offsets,
            "key_max_length": self.longest, "visible": self.visible, "position": self.position,
            "key_time": self.times,
        }  # fmt: skip


class Halves(NamedTuple):
    """What a block computes before attention and after it, with the block as first argument.

    `model.compiled` puts compiled ones in place of a block's own.
    """

    before: Callable[..., tuple[Tensor, ...]]
    after: Callable[..., Tensor]


class Block(nn.Module):
    """Pre-norm transformer block: 12·d² + 13·d parameters at a feed-forward ratio of 4."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.feed_forward * config.width
        self.heads, self.head_width = config.heads, width // config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_dropout = config.attention_dropout
        self.halves = Halves(Block.before, Block.after)
        for residual in (self.output, self.down):
            nn.init.normal_(residual.weight, std=(2 * config.layers * residual.in_features) ** -0.5)
            nn.init.zeros_(residual.bias)
        if config.mimetic_logit > 0:
            self._begin_alike(config.mimetic_logit)

    def _begin_alike(self, logit: float) -> None:
        """Makes keys the projection that queries are, so that a normed token's mean logit with itself is `logit`."""
        width = self.query_key_value.in_features
        with torch.no_grad():
            query, key, _ = self.query_key_value.weight.chunk(3)
            # A normed token has the squared length `width`; the logit is the squared length of its query / √head width.
            nn.init.normal_(query, std=(logit / (width * self.head_width**0.5)) ** 0.5)
            key.copy_(query)
            self.query_key_value.bias[: 2 * width] = 0

    def forward(self, x: Tensor, layout: Layout, position_bias: Tensor | None, time_bias: Tensor | None) -> Tensor:
        """One layer on x [T, d] → [T, d], or [R, d] of `layout.rows`.

        position_bias [H, P], time_bias [H, N], or none.
        """
        index = None if layout.rows is None else layout.rows.index
        q, *own = self.halves.before(self, x, index)
        k, v = layout.keys_and_values(*own)
        attended = causal_attention(
            q, k, v, position_bias=position_bias, time_bias=time_bias,
            dropout=0.0 if layout.dropout_seed is None else self.attention_dropout, **layout.attention(),
        )  # fmt: skip
        return self.halves.after(self, x, index, attended)

    def before(self, x: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        """Queries [T or R, H, Dh], keys and values [T, H, Dh] of x [T, d]; index [R]: the rows that are queries."""
        normed = self.attention_norm(x)
        if index is None:
            return project(self.query_key_value, normed).view(-1, 3, self.heads, self.head_width).unbind(1)
        weight, bias, width = self.query_key_value.weight, self.query_key_value.bias, x.shape[1]
        q = affine(normed.index_select(0, index), weight[:width], bias[:width])
        both = affine(normed, weight[width:], bias[width:]).view(-1, 2, self.heads, self.head_width)
        return q.view(-1, self.heads, self.head_width), *both.unbind(1)

    def after(self, x: Tensor, index: Tensor | None, attended: Tensor) -> Tensor:
        """The layer's output [T or R, d] from its input and from what attention gave: [T or R, H, Dh]."""
        if index is not None:
            x = x.index_select(0, index)
        x = x + self.dropout(project(self.output, attended.reshape(x.shape)))
        hidden = nn.functional.gelu(project(self.up, self.feed_norm(x)))
        return x + self.dropout(project(self.down, hidden))


class Encoder(nn.Module):
    """Causal transformer over packed tokens, with learned biases for relative position and elapsed time.

    The bias tables and the final norm are outside `blocks`: the published parameter counts are those of the blocks.
    block: makes one block. bias_heads: number of heads with their own tables, by default all. recompute: activation
    checkpointing.
    """

    def __init__(
        self, config: ModelConfig, block: Callable[[ModelConfig], nn.Module] = Block, bias_heads: int | None = None
    ) -> None:
        super().__init__()
        heads = bias_heads or config.heads
        self.recompute = False
        self.blocks = nn.ModuleList(block(config) for _ in range(config.layers))
        self.position_bias = nn.Parameter(torch.zeros(config.layers, heads, config.position_buckets))
        time_bias = torch.zeros(config.layers, heads, config.time_buckets)
        self.time_bias = nn.Parameter(time_bias, requires_grad=config.time_bias)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_dropout = config.attention_dropout

    def layer(self, block: nn.Module, x: Tensor, *inputs: Layout | Tensor | None) -> Tensor:
        """Run one block; under `recompute` it keeps only its inputs and recomputes the rest in the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, x, *inputs, use_reentrant=False)
        return block(x, *inputs)

    def layouts(self, layout: Layout) -> list[Layout]:
        """The layout of every layer: all tokens but in the last, their own seeds of dropout, their own stored keys."""
        layers = len(self.blocks)
        found = [replace(layout, rows=None)] * (layers - 1) + [layout]
        if self.training and self.attention_dropout > 0:
            users = layout.offsets.users if isinstance(layout.offsets, Offsets) else layout.offsets.shape[0] - 1
            seeds = torch.randint(2**62, (layers, users), device=layout.times.device)
            found = [replace(one, dropout_seed=seed) for one, seed in zip(found, seeds, strict=True)]
        if layout.history is not None:
            found = [replace(one, history=replace(layout.history, layer=n)) for n, one in enumerate(found)]
        return found

    def biases(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """The two tables of every layer, or None."""
        return iter(zip(self.position_bias, self.time_bias, strict=True))

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """States [T, d] of tokens [T, d]; a state depends on its own token and the visible tokens before it.

        States that are not of `layout.rows` are 0.
        """
        x = self.dropout(tokens)
        for block, one, biases in zip(self.blocks, self.layouts(layout), self.biases(), strict=True):
            x = self.layer(block, x, one, *biases)
        x = self.norm(x)
        if layout.rows is None:
            return x
        return x.new_zeros(len(tokens), x.shape[1]).index_copy(0, layout.rows.index, x)


class Head(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(fan_in, hidden)
        self.output = nn.Linear(hidden, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [T, fan_out] of x [T, fan_in]."""
        return self.output(nn.functional.gelu(self.hidden(x)))


def hidden(ids: Tensor, share: float) -> Tensor:
    """Ids [C, T] of events, missing (−1) in all columns of a random share of the events."""
    if share == 0:
        return ids
    return torch.where(torch.rand(ids.shape[-1], device=ids.device) < share, -1, ids)


def next_times(times: Tensor, offsets: Tensor) -> Tensor:
    """Time of the user's next event after each event, int64 [T]; for a user's last event, its own time."""
    total = times.shape[0]
    later = torch.arange(1, total + 1, device=times.device).clamp(max=max(total - 1, 0))
    user = user_of_row(offsets, total)
    return torch.where(user[later] == user, times[later], times)


def events_before(times: Tensor, offsets: Tensor, lag: int | None) -> Tensor:
    """Number of events of its user visible to each event, int64 [T]: those before it and at least `lag` s older.

    lag None: every event before it, whatever its time. Times rise within a user; padding rows get 0.
    """
    total = times.shape[0]
    local = local_positions(offsets, total).clamp(min=0)
    if lag is None or total == 0:
        return local
    user = user_of_row(offsets, total)
    real = user < offsets.shape[0] - 1
    first = torch.where(real, times, times.new_full((), torch.iinfo(torch.int64).max)).min()
    since = torch.where(real, times - first, 0)
    # Shift the users' times so that one rising sequence holds all of them, further apart than any lag.
    key = user * (since.max() + lag + 1) + since
    old = torch.searchsorted(key, key - lag, right=True)
    starts = torch.cat([offsets, offsets[-1:]]).long()[user]
    return torch.where(real, torch.minimum(old - starts, local), 0)


def states_after(states: Tensor, start: Tensor, offsets: Tensor, seen: Tensor) -> Tensor:
    """For each event the state after the first `seen` events of its user: [T, d]; `start` [d] where seen is 0."""
    user = user_of_row(offsets, seen.shape[0])
    starts = torch.cat([offsets, offsets[-1:]]).long()[user]
    rows = torch.where(seen > 0, starts + seen, 0)
    return torch.cat([start[None].to(states.dtype), states]).index_select(0, rows)
