"""SampledSoftmaxLoss: the next-item loss with the negatives that it draws and the item frequencies that it counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from argus_kernels.core import Problems
from argus_kernels.host import FrequencySketch
from argus_kernels.ops.sampled_softmax_loss import sampled_softmax_loss

FORMS = ("standard", "refined")
REDUCTIONS = ("mean", "sum", "none")
SCALE_RANGE = (0.01, 100.0)


class Negatives(NamedTuple):
    """M drawn candidates: ids int64 [M]; log_q float32 [M], see `sampled_softmax_loss`; owner int64 [M] or None.

    positive_log_q: float32 [N] with the refined form, else None.
    """

    ids: Tensor
    log_q: Tensor
    owner: Tensor | None
    positive_log_q: Tensor | None


class SampledSoftmaxLoss(nn.Module):
    """Softmax of the next item against negatives drawn from the batch and uniformly from the catalogue.

    Of M = b + u negatives, b are positives of the batch and u uniform items; item j is expected
    b · frequency(j) + u / items times among them, and log of that corrects its logit (logQ). The frequencies come from
    a count-min sketch, which counts the positives of every batch in training mode. Draws repeat with (seed, number of
    the call in training); the sketch and this number are in `state_dict` (as extra state, which torch.load reads with
    weights_only=True). Ranks that train together each draw and count for their own batches: give each its own seed.

    The draw runs on the CPU and waits for the ids; torch.compile leaves it to eager execution. For fullgraph=True call
    `draw` outside and pass its result.

    Args:
        items: size of the catalogue; ids are 0 … items − 1.
        in_batch: b, at most; fewer where the batch has fewer positives.
        uniform: u, at most the catalogue; drawn without replacement.
        scale: initial factor on the scores, the inverse temperature.
        learn_scale: whether it is learned, as parameter `log_scale`, within [0.01, 100].
        form: "standard" or "refined".
        log_q: False leaves the correction out; standard form only.
        reduction: "mean" over the rows by their weight, "sum" or "none" ([N]).
        sketch_width: counters in a row of the sketch.
        sketch_depth: rows of the sketch; its memory is 8 · width · depth bytes.
        seed: of the draws and of the sketch.

    Raises:
        ValueError: a size out of range, no negatives at all, another form or reduction.

    Examples:
        >>> import torch
        >>> from argus_kernels.nn import SampledSoftmaxLoss
        >>> table = torch.nn.Embedding(1000, 16)
        >>> loss = SampledSoftmaxLoss(1000, in_batch=4, uniform=64)
        >>> loss(torch.randn(5, 16), torch.tensor([3, 1, 4, 1, 5]), table).backward()
    """

    log_scale: nn.Parameter | None

    def __init__(
        self,
        items: int,
        *,
        in_batch: int = 512,
        uniform: int = 512,
        scale: float = 1.0,
        learn_scale: bool = False,
        form: str = "standard",
        log_q: bool = True,
        reduction: str = "mean",
        sketch_width: int = 1 << 20,
        sketch_depth: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        problems = Problems("SampledSoftmaxLoss")
        self.items: int = problems.integer("items", items, least=1)
        self.in_batch: int = problems.integer("in_batch", in_batch, least=0)
        self.uniform: int = problems.integer("uniform", uniform, least=0)
        self.seed: int = problems.integer("seed", seed, least=0)
        self.scale: float = problems.number("scale", scale, above=0)
        self.log_q = problems.flag("log_q", log_q)
        problems.require(self.in_batch + self.uniform > 0, "in_batch and uniform are 0, expected one of them above 0")
        problems.choice("form", form, FORMS)
        problems.choice("reduction", reduction, REDUCTIONS)
        problems.require(self.log_q or form != "refined", "log_q is False, expected True with form 'refined'")
        learned = problems.flag("learn_scale", learn_scale)
        low, high = SCALE_RANGE
        in_range = not learned or low <= self.scale <= high
        problems.require(in_range, f"scale is {scale}, expected {low:g} to {high:g} with learn_scale")
        problems.raise_if_any()
        self.form, self.reduction = form, reduction
        self.sketch = FrequencySketch(sketch_width, sketch_depth, seed)
        self.calls = 0
        made = nn.Parameter(torch.tensor(math.log(self.scale))) if learned else None
        self.register_parameter("log_scale", made)

    def forward(
        self,
        query: Tensor,
        positive_ids: Tensor,
        embed: Callable[[Tensor], Tensor],
        *,
        owner: Tensor | None = None,
        row_weight: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> Tensor:
        """The loss of query [N, D] against the items positive_ids [N] int64; −1 leaves a row out.

        embed: vectors [n, D] of items [n] int64, in query's dtype, such as `nn.Embedding`; called once. owner: int64
        [N] ≥ 0, the user of each row, whose own items are not negatives for them. row_weight: [N] ≥ 0. negatives: what
        `draw` gave, else it is called. ValueError as `argus_kernels.sampled_softmax_loss`, and for an id outside.
        """
        if negatives is None:
            drawing = torch.compiler.disable(self.draw) if torch.compiler.is_compiling() else self.draw
            negatives = drawing(positive_ids, owner)
        known = positive_ids >= 0
        weight = known.to(torch.promote_types(query.dtype, torch.float32))
        weight = weight if row_weight is None else weight * row_weight
        positives = positive_ids.clamp(min=0)
        vectors = embed(torch.cat([positives, negatives.ids]))
        count = positive_ids.shape[0]
        loss, _ = sampled_softmax_loss(
            query, vectors[:count], vectors[count:], positives, negatives.ids, negatives.log_q,
            positive_log_q=negatives.positive_log_q, scale=self.current_scale(), row_weight=weight,
            query_owner=None if negatives.owner is None else owner, candidate_owner=negatives.owner, form=self.form,
            reduction=self.reduction,
        )  # fmt: skip
        return loss

    def current_scale(self) -> float | Tensor:
        """The factor on the scores: the setting, or the learned one within its range."""
        return self.scale if self.log_scale is None else self.log_scale.exp().clamp(*SCALE_RANGE)

    @torch.no_grad()
    def draw(self, positive_ids: Tensor, owner: Tensor | None = None) -> Negatives:
        """Counts the positives [N] (in training mode) and draws negatives from them and from the catalogue."""
        problems = Problems("SampledSoftmaxLoss")
        problems.tensor("positive_ids", positive_ids, shape=(None,), dtype=torch.int64)
        if owner is not None:
            problems.tensor("owner", owner, shape=positive_ids.shape, dtype=torch.int64, like="positive_ids")
        problems.raise_if_any()
        ids = positive_ids.cpu().numpy()
        self._require_ids(ids)
        rows = np.flatnonzero(ids >= 0)
        if self.training:
            self.sketch.update(ids[rows])
            self.calls += 1
        random = np.random.default_rng([self.seed, self.calls])
        chosen = rows[random.choice(len(rows), min(self.in_batch, len(rows)), replace=False, shuffle=False)]
        uniform = random.choice(self.items, min(self.uniform, self.items), replace=False, shuffle=False)
        drawn = np.concatenate([ids[chosen], uniform]).astype(np.int64)
        mix = (len(chosen), len(uniform))
        device = positive_ids.device
        owners = None
        if owner is not None:
            of_batch = owner[torch.from_numpy(chosen).to(device)]
            owners = torch.cat([of_batch, of_batch.new_full((len(uniform),), -1)])
        positive_log_q = self._log_q(np.maximum(ids, 0), mix).to(device) if self.form == "refined" else None
        return Negatives(torch.from_numpy(drawn).to(device), self._log_q(drawn, mix).to(device), owners, positive_log_q)

    def _require_ids(self, ids: np.ndarray) -> None:
        wrong = (ids < -1) | (ids >= self.items)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"SampledSoftmaxLoss: positive_ids[{at}] is {ids[at]}, expected 0 to items − 1 = {self.items - 1}, or "
                "−1 to leave the row out"
            )

    def _log_q(self, ids: np.ndarray, mix: tuple[int, int]) -> Tensor:
        """Log of how often each id is expected among the drawn; of its share of them with the refined form."""
        if not self.log_q:
            return torch.zeros(len(ids))
        in_batch, uniform = mix
        expected = np.full(len(ids), uniform / self.items)
        if in_batch:
            expected += in_batch * np.exp(self.sketch.log_q(ids).astype(np.float64))
        draws = max(sum(mix), 1) if self.form == "refined" else 1
        return torch.from_numpy(np.log(expected / draws).astype(np.float32))

    def get_extra_state(self) -> dict[str, Any]:
        """The sketch and the number of calls."""
        state = self.sketch.state_dict()
        return {**state, "table": torch.from_numpy(state["table"]), "calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` gave; ValueError where the sketch has other sizes or another seed."""
        fits = isinstance(state, dict) and isinstance(state.get("table"), Tensor) and type(state.get("calls")) is int
        if not fits:
            raise ValueError("SampledSoftmaxLoss: the extra state is not one of this module, expected sketch and calls")
        self.sketch.load_state_dict({**state, "table": state["table"].cpu().numpy()})
        self.calls = state["calls"]

    def extra_repr(self) -> str:
        return (
            f"items={self.items}, in_batch={self.in_batch}, uniform={self.uniform}, form={self.form!r}, "
            f"log_q={self.log_q}, reduction={self.reduction!r}, learn_scale={self.log_scale is not None}"
        )
