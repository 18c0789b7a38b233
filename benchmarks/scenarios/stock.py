"""The reference model's twin on stock torch: the code that an engineer would write without this package.

The same modules and parameters with different forward functions: tables are looked up one by one, concatenated and
projected; attention is `scaled_dot_product_attention` over users sorted by length and padded in groups, with the
position and time bias as a dense mask; the sampled softmax stores its [N, M] scores; tables use torch's sparse Adagrad.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer

from argus_kernels import Offsets
from argus_kernels.attention.relative_bias import time_buckets
from argus_kernels.core.varlen import user_of_row
from benchmarks.scenarios.workload import PretrainStep, Size, make_model
from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.model.base import Readings
from python_model.model.layers import Block, Encoder, Layout, TripleEmbedding
from python_model.model.negatives import NegativeSampler
from python_model.model.optim import clip_gradients

PADDED_PAIRS = 1 << 27
"""Most (query, key) pairs, padding included, in one group of users; more is a group of one user."""
SHORT = 64
"""Users in a group differ in length by a factor of two at most, those up to this length do not count as different."""

EMBEDDINGS = ("context_embedding", "item_embedding", "event_embedding", "item_tower")


class StockEmbedding(TripleEmbedding):
    """embedding + cat + linear."""

    def forward(self, tables: object, ids: Tensor) -> Tensor:
        """Ids [K, T] int64, −1 = missing → [T, width]."""
        parts = []
        for column, name in zip(ids, (self.names[place] for place in self.columns), strict=True):
            rows = F.embedding(column.clamp(min=0), tables[name], sparse=self.sparse)  # type: ignore[index]
            parts.append(rows.masked_fill((column < 0)[:, None], 0.0))
        return F.linear(torch.cat(parts, dim=1), self.weight.T, self.bias)


@dataclass(frozen=True)
class Group:
    """Users of similar length, padded: rows [B, L] into the packed batch, real [B, L], time buckets [B, L, L]."""

    rows: Tensor
    real: Tensor
    distance: Tensor
    buckets: Tensor

    def mask(self, position_bias: Tensor, time_bias: Tensor) -> Tensor:
        """The additive mask [B, H, L, L] of one layer."""
        places = self.distance.clamp(0, position_bias.shape[1] - 1)
        bias = looked_up(position_bias, places)[None] + looked_up(time_bias, self.buckets).transpose(0, 1)
        return bias.masked_fill(self.distance < 0, -torch.inf)


def looked_up(table: Tensor, columns: Tensor) -> Tensor:
    """table[:, columns]: [H, *columns.shape]. Forward and backward 10 to 40 times as fast as indexing or embedding."""
    return torch.gather(table, 1, columns.flatten().expand(table.shape[0], -1)).view(-1, *columns.shape)


def _offsets(layout: Layout) -> Tensor:
    return layout.offsets.tensor if isinstance(layout.offsets, Offsets) else layout.offsets


def padded_groups(layout: Layout, buckets: int, most_pairs: int = PADDED_PAIRS) -> list[Group]:
    """The users in groups of similar length, each of at most `most_pairs` padded pairs."""
    lengths = _offsets(layout).diff().tolist()
    users = sorted((user for user, length in enumerate(lengths) if length), key=lambda user: lengths[user])
    groups: list[list[int]] = []
    for user in users:
        length = lengths[user]
        similar = bool(groups) and length <= max(2 * lengths[groups[-1][0]], SHORT)
        if similar and (len(groups[-1]) + 1) * length**2 <= most_pairs:
            groups[-1].append(user)
        else:
            groups.append([user])
    return [_group(layout, buckets, torch.tensor(members)) for members in groups]


def _group(layout: Layout, buckets: int, members: Tensor) -> Group:
    offsets = _offsets(layout)
    device = offsets.device
    starts = offsets.long()[members.to(device)]
    lengths = offsets.diff().long()[members.to(device)]
    place = torch.arange(int(lengths.max()), device=device)
    real = place < lengths[:, None]
    rows = torch.where(real, starts[:, None] + place, starts[:, None])
    times = layout.times[rows]
    apart = time_buckets(times[:, :, None] - times[:, None, :], buckets)
    return Group(rows, real, place[:, None] - place[None, :], apart)


class StockBlock(Block):
    """The block with padded attention."""

    def attend(self, x: Tensor, groups: list[Group], position_bias: Tensor, time_bias: Tensor) -> Tensor:
        """X [T, d] → [T, d]."""
        projected = self.query_key_value(self.attention_norm(x)).view(-1, 3, self.heads, self.head_width)
        attended, rows = [], []
        for group in groups:
            q, k, v = projected[group.rows].permute(2, 0, 3, 1, 4)
            mask = group.mask(position_bias, time_bias).to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            attended.append(out.transpose(1, 2)[group.real])
            rows.append(group.rows[group.real])
        packed = torch.zeros_like(projected[:, 0]).index_copy(0, torch.cat(rows), torch.cat(attended))
        x = x + self.dropout(self.output(packed.reshape(x.shape)))
        return x + self.dropout(self.down(F.gelu(self.up(self.feed_norm(x)))))


class StockEncoder(Encoder):
    """The encoder over padded groups, which are made once for all layers."""

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Tokens [T, d] → states [T, d]."""
        groups = padded_groups(layout, self.time_bias.shape[-1])
        x = self.dropout(tokens)
        for block, position_bias, time_bias in zip(self.blocks, self.position_bias, self.time_bias, strict=True):
            assert isinstance(block, StockBlock)
            x = block.attend(x, groups, position_bias, time_bias)
        return self.norm(x)


class StockPretrainLoss:
    """The joint loss with all scores and all logits in memory; draws the negatives that `PretrainLoss` draws."""

    def __init__(self, config: TrainConfig, model: Argus) -> None:
        self.config, self.model = config, model
        self.sampler = NegativeSampler(config, model.features.items)

    def __call__(self, batch: JaggedBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts."""
        readings = self.model.read(batch, self.model.encode(batch))
        next_item = self._next_item(batch, step, readings)
        feedback = self._feedback(batch, readings)
        return self.config.next_item_weight * next_item + feedback, {"next_item": next_item.detach()}

    def _next_item(self, batch: JaggedBatch, step: int, readings: Readings) -> Tensor:
        owner = user_of_row(batch.offsets, len(batch))
        device = batch.items.device
        negatives = self.sampler.draw(step, batch.items.cpu().numpy(), owner.cpu().numpy())
        items, negative_owner = negatives.items.to(device), negatives.owner.to(device)
        distinct, place = torch.unique(torch.cat([batch.items, items]), return_inverse=True)
        vectors = self.model.item_vectors(distinct).index_select(0, place)
        query, positive, candidates = self.model.queries(readings), vectors[: len(batch)], vectors[len(batch) :]
        scale = self.model.temperature
        scores = scale * (query @ candidates.T) - negatives.log_q.to(device)
        hidden = (batch.items[:, None] == items) | (owner[:, None] == negative_owner)
        scores = scores.masked_fill(hidden, -torch.inf)
        right = scale * (query * positive).sum(-1)
        losses = torch.logsumexp(torch.cat([right[:, None], scores], dim=1), dim=1) - right
        weight = batch.is_target.float()
        return (losses * weight).sum() / weight.sum().clamp(min=1)

    def _feedback(self, batch: JaggedBatch, readings: Readings) -> Tensor:
        logits = self.model.feedback_logits_of(readings)
        total = logits.new_zeros(())
        parts = logits.split(self.model.features.logits, dim=-1)
        for part, target in zip(parts, batch.feedback.T, strict=True):
            seen = (target >= 0) & batch.is_target
            if part.shape[1] == 1:
                losses = F.binary_cross_entropy_with_logits(part[:, 0], target.clamp(min=0).float(), reduction="none")
            else:
                losses = F.cross_entropy(part, target.clamp(min=0), reduction="none")
            total = total + (losses * seen).sum() / seen.sum().clamp(min=1)
        return total


class StockOptimisers:
    """AdamW for dense parameters, torch's sparse Adagrad for the tables."""

    def __init__(self, model: Argus, config: TrainConfig) -> None:
        tables = list(model.tables.parameters())
        held = set(tables)
        dense = [parameter for parameter in model.parameters() if parameter not in held]
        self.clip, self.parameters = config.clip, [*dense, *tables]
        self.all: list[Optimizer] = [
            AdamW(dense, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay),
            Adagrad(tables, lr=config.table_learning_rate),
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimiser in self.all:
            optimiser.zero_grad(set_to_none=True)

    def step(self, step: int) -> None:
        """Clip and update."""
        clip_gradients(self.parameters, self.clip)
        # Adagrad builds sparse tensors; torch warns unless this setting says whether to check them.
        with torch.sparse.check_sparse_tensor_invariants(False):
            for optimiser in self.all:
                optimiser.step()


def stock_model(name: str, size: Size, device: str, seed: int = 0) -> Argus:
    """`make_model` of the same arguments, with the same parameters, on stock torch."""
    model = make_model(name, size, device, seed)
    state = model.state_dict()
    for attribute in EMBEDDINGS:
        ours: TripleEmbedding = getattr(model, attribute)
        columns = [ours.names[place] for place in ours.columns]
        setattr(model, attribute, StockEmbedding(model.tables, columns, ours.weight.shape[1], sparse=ours.sparse))
    model.encoder = StockEncoder(model.config)
    model.encoder.blocks = nn.ModuleList(StockBlock(model.config) for _ in range(model.config.layers))
    model.load_state_dict(state)
    return model.to(device)


def stock_step(model: Argus, batch: JaggedBatch, config: TrainConfig) -> PretrainStep:
    """The step on a model of `stock_model`."""
    return PretrainStep(batch, StockPretrainLoss(config, model), StockOptimisers(model, config), config.precision)
