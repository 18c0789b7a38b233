"""What the evaluations of a run on the validation part say: the best checkpoint, when to stop, warnings in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from python_model.config import TrainConfig
from python_model.io.settings import checked

PREFIX, BASELINE = "validation_", "validation_popularity_"
"""Of the names of metrics in metrics.jsonl: of the model, and of popularity on the same events."""
LOWER_IS_BETTER = ("next_item_ne", "feedback_ne", "pair_loss")
TURNED_AFTER = 2
"""Evaluations in a row without improvement, after which validation counts as turned."""
NOISE = {"pair_loss": 0.03, "pairwise_accuracy": 0.03}
"""Relative differences that are noise of the evaluated sample; 0.001 where none is named. On the 230 pairs of the demo,
the pair loss of neighbouring checkpoints differs by 3 % where the rate has fallen to a fifth. The lowest of ten is then
not the best: pairwise accuracy .687 on the test pairs, .707 at the end of the stage."""
TURNED = 3
"""By how many times the noise a turned metric is worse than its best."""
NOTHING = 0.99
"""Next-item NE from which a model has found next to nothing: the NE of a model that knows only the true frequencies of
1,000 equally likely items lies below 1 by the error of the counted frequencies, 0.0014 at 51,000 training events."""
NO_BETTER = "The model predicts the next item no better than its frequency"
TITLES = {
    "next_item_ne": "next-item NE", "feedback_ne": "feedback NE", "feedback_auc": "feedback AUC",
    "pair_loss": "pair loss", "pairwise_accuracy": "pairwise accuracy", "ndcg@10": "NDCG@10", "recall@10": "recall@10",
}  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """The metrics of the model after a step, and those of popularity on the same events; undefined ones are absent."""

    step: int
    metrics: Mapping[str, float]
    baseline: Mapping[str, float]

    def record(self) -> dict[str, float]:
        """By the names that metrics.jsonl and TensorBoard use."""
        of_model = {f"{PREFIX}{name}": value for name, value in self.metrics.items()}
        # The normalised entropies of popularity are 1 by definition.
        kept = {name: value for name, value in self.baseline.items() if not name.endswith("_ne")}
        return of_model | {f"{BASELINE}{name}": value for name, value in kept.items()}


@dataclass
class Watch:
    """The state of a run's validation; part of its checkpoints.

    metric: by which the best is chosen. best: its best value so far. best_step, kept: of the best checkpoint and its
    value, which is the latest within NOISE of the best value: a later one has seen more and learnt at a lower rate.
    since: evaluations in a row without a better value. next_item_ne: of the best checkpoint; last_next_item_ne: of the
    last evaluation.
    """

    metric: str = "next_item_ne"
    best: float | None = None
    best_step: int = 0
    kept: float | None = None
    since: int = 0
    next_item_ne: float | None = None
    last_next_item_ne: float | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Watch:
        """Of a new run."""
        # The accuracy on a few hundred pairs goes up and down by 3 % between steps; their loss is smooth.
        usual = "next_item_ne" if config.stage == "pretrain" else "pair_loss"
        return cls(config.best_metric or usual)

    @classmethod
    def from_state(cls, values: Any) -> Watch:
        """What `state` gave; ValueError where it is something else."""
        known = {one.name for one in fields(cls)}
        if not isinstance(values, dict) or values.keys() != known:
            raise ValueError(f"expected an object of {', '.join(sorted(known))}, found {values!r:.60}")
        kinds = {"metric": str, "best_step": int, "since": int}
        made = cls(**{name: checked(kinds.get(name, float | None), name, value) for name, value in values.items()})
        if made.metric not in TITLES or made.best_step < 0 or made.since < 0:
            raise ValueError(f"expected a known metric and counts of at least 0, found {values!r:.200}")
        return made

    def state(self) -> dict[str, Any]:
        """For a checkpoint's plain numbers."""
        return asdict(self)

    def take(self, found: Validation) -> tuple[bool, list[str]]:
        """Note an evaluation; returns whether it is the best so far, and warnings in words.

        Where the metric is not defined, none is the best.
        """
        before, now = self.last_next_item_ne, found.metrics.get("next_item_ne")
        self.last_next_item_ne = now
        warnings = []
        if self.metric == "next_item_ne" and now is not None and before is not None and before <= 1 < now:
            warnings.append(f"{NO_BETTER}: next-item NE {now:.4f} at step {found.step:,}")
        value = found.metrics.get(self.metric)
        if value is None:
            return False, warnings
        if self.best is None or self.better(value, self.best):
            self.best, self.since = value, 0
        else:
            self.since += 1
        worse = abs(value - self.best) / max(abs(self.best), 1e-9) / NOISE.get(self.metric, 0.001)
        if worse <= 1:
            self.best_step, self.kept, self.next_item_ne = found.step, value, now
            return True, warnings
        if self.since == TURNED_AFTER and worse > TURNED:
            warnings.append(
                f"Validation has turned: {TITLES[self.metric]} {value:.4f} at step {found.step:,}, {self.kept:.4f} at "
                f"step {self.best_step:,}: since then the model has learnt its training events by heart (overfitting)"
            )
        return False, warnings

    def better(self, value: float, than: float) -> bool:
        """Whether one value of the metric is better than another."""
        return value < than if self.metric in LOWER_IS_BETTER else value > than

    def stops(self, patience: int) -> bool:
        """Whether training ends here; patience 0 never ends it."""
        return 0 < patience <= self.since

    def verdict(self, step: int, steps: int, patience: int) -> list[str]:
        """What there is to say at the end of a run of `steps` that ended after `step`."""
        if self.best is None:
            return []
        out = []
        if self.stops(patience) and step < steps:
            out.append(f"Stopped before step {steps:,}: no better for {patience} validations (--patience)")
        out.append(f"Best checkpoint: step {self.best_step:,}, validation {TITLES[self.metric]} {self.kept:.4f}")
        ne = self.next_item_ne
        if self.metric == "next_item_ne" and ne is not None and ne >= NOTHING:
            out.append(f"Nothing was found: {NO_BETTER[0].lower()}{NO_BETTER[1:]}: best next-item NE {ne:.4f}")
        return out
