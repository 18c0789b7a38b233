"""What a model and a training run are made of: frozen settings with validation, JSON round trip and presets.

`ModelConfig` fixes the shapes, `TrainConfig` one stage of training, `FeatureSpec` the vocabulary of the data that a
model was built for. All three travel with every checkpoint. `PRESETS` are the published sizes, `RECIPES`
holds settings that were tried on named data sets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

Config = TypeVar("Config", bound="JsonConfig")

FORMS = ("simplified", "full")
ENCODERS = ("transformer", "hstu")
MODELS = ("argus", "sasrec", "hstu")
NEXT_ITEM_LOSSES = ("softmax", "bce")
STAGES = ("pretrain", "finetune")
PROTOCOLS = ("temporal", "leave-last-out", "yambda", "all")
SOFTMAX_FORMS = ("standard", "refined")
PRECISIONS = ("float32", "bfloat16")


class JsonConfig:
    """Shared by the frozen dataclasses here: JSON in and out, one clear error for what does not fit."""

    def to_json(self) -> str:
        """A JSON object with every field."""
        return json.dumps(asdict(self), indent=2) + "\n"  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """From a mapping as `to_json` writes it; ValueError where a key is unknown or a value does not fit."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """From the text of `to_json`; ValueError where it is not a JSON object."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{cls.__name__}: expected JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__}: expected a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}, expected {expected}")

    def _require_whole(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._require(name, whole and value >= least, f"a whole number of at least {least}")

    def _require_real(self, least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            self._require(name, real and value >= least, f"a finite number of at least {least}")


@dataclass(frozen=True)
class FeatureSpec(JsonConfig):
    """The vocabulary a model is built for.

    items: catalogue size. context, item_features: name -> cardinality. feedback: name -> classes (1 = Bernoulli).
    """

    items: int
    context: Mapping[str, int] = field(default_factory=dict)
    feedback: Mapping[str, int] = field(default_factory=dict)
    item_features: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._require_whole(1, "items")
        self._require("feedback", len(self.feedback) > 0, "at least one feedback component")
        for name in ("context", "feedback", "item_features"):
            counts = getattr(self, name)
            fits = isinstance(counts, Mapping) and all(isinstance(n, int) and n >= 1 for n in counts.values())
            self._require(name, fits, "a mapping from name to a count of at least 1")

    @classmethod
    def of(cls, info: Any) -> FeatureSpec:
        """The vocabulary of a prepared data set (`python_model.data.schema.DatasetInfo`)."""
        return cls(info.items, dict(info.context), dict(info.feedback), dict(info.item_features))

    @property
    def classes(self) -> tuple[int, ...]:
        """Logits of each feedback component, in order."""
        return tuple(self.feedback.values())


@dataclass(frozen=True)
class ModelConfig(JsonConfig):
    """The shapes of one model.

    model: "argus", or a baseline over the sequence of items alone: "sasrec", "hstu" (`sequential`).
    form: "simplified" (one vector per interaction) or "full" (tokens context, item, feedback).
    encoder: "transformer" or "hstu", whose attention divides by max_events and which has no feed-forward network.
    layers, width, heads, feed_forward: the transformer; width / heads is the head width.
    max_events: longest history in events. dropout: after embedding, attention and feed-forward.
    item_width, feature_width: widths of the item table and of every other table.
    vector_width: width of the user, query and item vectors whose dot products are the scores.
    item_hashes: 0 gives every item its own row; n > 0 gives n hashed rows of one table of hash_rows rows.
    position_buckets, time_buckets: lengths of the bias tables of each layer; time_bias false keeps the latter's at 0.
    feedback_input: false hides from the encoder what the user did; the heads still predict it.
    lag: seconds by which user states are old in fine-tuning and ranking; fine-tuning raises it above the pair window.
    temperature: initial factor on the cosine of the next-item head; learned, clipped to [0.01, 100].
    sparse: row-sparse gradients for the embedding tables.
    """

    model: str = "argus"
    form: str = "simplified"
    encoder: str = "transformer"
    layers: int = 2
    width: int = 64
    heads: int = 2
    feed_forward: int = 4
    max_events: int = 8192
    dropout: float = 0.0
    item_width: int = 64
    feature_width: int = 16
    vector_width: int = 64
    item_hashes: int = 0
    hash_rows: int = 0
    position_buckets: int = 256
    time_buckets: int = 64
    time_bias: bool = True
    feedback_input: bool = True
    lag: int = 0
    temperature: float = 10.0
    sparse: bool = False

    def __post_init__(self) -> None:
        self._require("model", self.model in MODELS, f"one of {', '.join(MODELS)}")
        self._require("form", self.form in FORMS, f"one of {', '.join(FORMS)}")
        self._require("encoder", self.encoder in ENCODERS, f"one of {', '.join(ENCODERS)}")
        self._require_whole(
            1, "layers", "width", "heads", "feed_forward", "max_events", "item_width", "feature_width",
            "vector_width", "position_buckets", "time_buckets",
        )  # fmt: skip
        self._require_whole(0, "item_hashes", "hash_rows", "lag")
        self._require_real(0.0, "dropout")
        self._require_real(0.01, "temperature")
        self._require("heads", self.width % self.heads == 0, f"a divisor of width {self.width}")
        self._require("dropout", self.dropout < 1, "a number in [0, 1)")
        self._require("temperature", self.temperature <= 100, "a number in [0.01, 100]")
        self._require("hash_rows", (self.hash_rows > 0) == (self.item_hashes > 0), "set exactly when item_hashes is")
        for name in ("time_bias", "feedback_input", "sparse"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        if self.model != "argus":
            encoder = "hstu" if self.model == "hstu" else "transformer"
            self._require("form", self.form == "simplified", f"simplified with model={self.model!r}")
            self._require("encoder", self.encoder == encoder, f"{encoder} with model={self.model!r}")
            self._require("item_width", self.item_width == self.width, f"width = {self.width}: items are its tokens")
            self._require("item_hashes", self.item_hashes == 0, f"0 with model={self.model!r}")

    @property
    def encoder_parameters(self) -> int:
        """Parameters of the blocks: 12·L·d² + 13·L·d (transformer, feed-forward ratio 4), 5·L·d² + L·d (HSTU)."""
        d, ratio = self.width, self.feed_forward
        if self.encoder == "hstu":
            return self.layers * (5 * d * d + d)
        return self.layers * ((4 + 2 * ratio) * d * d + (9 + ratio) * d)


@dataclass(frozen=True)
class TrainConfig(JsonConfig):
    """One stage of training.

    stage: "pretrain" (next item + feedback) or "finetune" (two-tower pairwise ranking).
    steps: optimiser steps. batch_events: events in a batch at most. window: events of one user in a batch at most.
    batches_per_step: batches whose gradients make one step, dealt over the ranks that train together; a rank with
    several accumulates. None: one for every rank. It stays what it is when a run goes on with another number of ranks.
    learning_rate: AdamW, dense parameters; table_learning_rate: embedding tables (row-wise Adagrad where the model's
    gradients are sparse, AdamW otherwise). warmup_steps, final_fraction: linear warm-up, then a cosine down to
    final_fraction of the rate. clip: largest gradient norm.
    protocol: which split the training rows come from; under "yambda" only Listen+ events are next items to predict.
    train_share: share of the users trained on, the same ones for every seed, those of a smaller share among those of a
    larger one.
    negatives_in_batch, negatives_uniform: negatives of a step, at most; cut down to what the data has.
    next_item_loss: "softmax" (sampled, with logQ) or "bce" (binary, one uniform negative an event, as SASRec has it).
    merge_negatives: equal negatives become one candidate with its logQ, which the standard form alone can take.
    softmax_form: logQ correction, "standard" or "refined"; log_q false leaves the standard form uncorrected.
    sketch_width, sketch_depth: the frequency sketch.
    next_item_weight, feedback_weights: the joint loss; components not named weigh 1.
    pair_window: seconds, None takes the data set's. lag_pairs: false lets fine-tuning see the other event of a pair,
    which inflates its own accuracy. pretrain_weight: joint loss kept as a regulariser in fine-tuning.
    precision: "float32" or "bfloat16" (autocast; weights and optimiser states stay float32).
    activation_checkpointing: keep only the inputs of the encoder's blocks and compute the rest anew for the gradients.
    shard_rows: on several ranks, tables of at least that many rows are cut into as many parts, the others copied.
    checkpoint_every: steps between checkpoints; keep: how many stay. log_every: steps between logged losses.
    max_skipped_steps: steps in a row without an update because loss or gradient was not finite, before training stops.
    """

    stage: str = "pretrain"
    steps: int = 1000
    batch_events: int = 2048
    batches_per_step: int | None = None
    window: int = 128
    learning_rate: float = 1e-3
    table_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    final_fraction: float = 0.05
    clip: float = 1.0
    seed: int = 0
    protocol: str = "temporal"
    train_share: float = 1.0
    negatives_in_batch: int = 8192
    negatives_uniform: int = 8192
    next_item_loss: str = "softmax"
    softmax_form: str = "standard"
    log_q: bool = True
    merge_negatives: bool = False
    sketch_width: int = 1 << 16
    sketch_depth: int = 4
    next_item_weight: float = 1.0
    feedback_weights: Mapping[str, float] = field(default_factory=dict)
    pair_window: int | None = None
    lag_pairs: bool = True
    pretrain_weight: float = 0.0
    precision: str = "float32"
    activation_checkpointing: bool = False
    shard_rows: int = 8192
    checkpoint_every: int = 200
    keep: int = 2
    log_every: int = 1
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        self._require("stage", self.stage in STAGES, f"one of {', '.join(STAGES)}")
        self._require("protocol", self.protocol in PROTOCOLS, f"one of {', '.join(PROTOCOLS)}")
        self._require("next_item_loss", self.next_item_loss in NEXT_ITEM_LOSSES, "softmax or bce")
        self._require("softmax_form", self.softmax_form in SOFTMAX_FORMS, f"one of {', '.join(SOFTMAX_FORMS)}")
        for name in ("log_q", "merge_negatives", "lag_pairs"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        self._require("log_q", self.log_q or self.softmax_form == "standard", 'true with softmax_form="refined"')
        allowed = not self.merge_negatives or self.softmax_form == "standard"
        self._require("merge_negatives", allowed, 'false with softmax_form="refined", which counts the candidates')
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._require_whole(
            1, "steps", "batch_events", "sketch_width", "sketch_depth", "checkpoint_every", "keep", "log_every",
            "max_skipped_steps", "shard_rows",
        )  # fmt: skip
        if self.batches_per_step is not None:
            self._require_whole(1, "batches_per_step")
        self._require("activation_checkpointing", isinstance(self.activation_checkpointing, bool), "true or false")
        self._require_whole(2, "window")
        self._require_whole(0, "warmup_steps", "seed", "negatives_in_batch", "negatives_uniform")
        self._require_real(
            0.0, "learning_rate", "table_learning_rate", "weight_decay", "final_fraction", "next_item_weight",
            "pretrain_weight", "train_share",
        )  # fmt: skip
        self._require_real(1e-12, "clip")
        self._require("window", self.window <= self.batch_events, f"at most batch_events = {self.batch_events}")
        self._require("final_fraction", self.final_fraction <= 1, "a number in [0, 1]")
        self._require("train_share", 0 < self.train_share <= 1, "a number in (0, 1]")
        negatives = self.negatives_in_batch + self.negatives_uniform
        self._require("negatives_uniform", negatives > 0, "above 0 where there are no in-batch negatives")
        weights = self.feedback_weights.values() if isinstance(self.feedback_weights, Mapping) else [-1.0]
        self._require("feedback_weights", all(w >= 0 for w in weights), "a mapping from name to a weight of at least 0")
        if self.pair_window is not None:
            self._require_whole(0, "pair_window")


def _published(layers: int, width: int) -> ModelConfig:
    """A published size: head width 64 is our choice, embedding widths too."""
    return ModelConfig(
        layers=layers, width=width, heads=width // 64, item_width=min(width, 512), feature_width=min(width // 4, 128),
        vector_width=min(width, 512),
    )  # fmt: skip


def _hstu(like: ModelConfig, max_events: int) -> ModelConfig:
    """The width and, to a few percent, the parameters of a transformer: a block of HSTU has 5/12 of the other's.

    max_events is what attention divides by: the longest history trained on, not the longest imaginable. One position
    for every distance and 128 + 1 time buckets, as published.
    """
    return replace(
        like, encoder="hstu", layers=round(like.layers * 12 / 5), max_events=max_events, position_buckets=max_events,
        time_buckets=129,
    )  # fmt: skip


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(layers=2, width=64, heads=2),
    "3m": _published(4, 256),
    "19m": _published(6, 512),
    "126m": _published(10, 1024),
    "1b": _published(20, 2048),
}
PRESETS |= {f"hstu-{name}": _hstu(like, 128 if name == "tiny" else 8192) for name, like in PRESETS.items()}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A preset with some settings changed; ValueError where the name is unknown."""
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
    unknown = sorted(set(changes) - {f.name for f in fields(ModelConfig)})
    if unknown:
        raise ValueError(f"ModelConfig: unknown setting {', '.join(unknown)}")
    return replace(PRESETS[name], **changes)


@dataclass(frozen=True)
class Recipe:
    """Settings of both stages that were tried on a data set: a few minutes of training on two CPU cores."""

    model: ModelConfig
    pretrain: TrainConfig
    finetune: TrainConfig


def _recipe(
    model: ModelConfig, shared: Mapping[str, Any], pretrain: Mapping[str, Any], finetune: Mapping[str, Any]
) -> Recipe:
    return Recipe(
        model,
        TrainConfig(stage="pretrain", **{**shared, **pretrain}),
        TrainConfig(stage="finetune", **{**shared, **finetune}),
    )


_SAMPLED = {"batch_events": 1024, "negatives_in_batch": 256, "negatives_uniform": 256}

RECIPES: dict[str, Recipe] = {
    "demo": _recipe(
        preset("tiny", temperature=20.0),
        _SAMPLED,
        {"steps": 420, "learning_rate": 5e-3, "table_learning_rate": 1e-2},
        {"steps": 130, "learning_rate": 3e-3, "table_learning_rate": 6e-3, "warmup_steps": 20, "pretrain_weight": 0.3},
    ),
    "ml-100k": _recipe(
        preset("tiny", temperature=20.0, dropout=0.2),
        {**_SAMPLED, "weight_decay": 0.05},
        {"steps": 500, "learning_rate": 3e-3, "table_learning_rate": 6e-3},
        {"steps": 200, "learning_rate": 3e-3, "table_learning_rate": 3e-3, "warmup_steps": 20, "pretrain_weight": 0.3},
    ),
    "kuairand-pure": _recipe(
        preset("tiny", temperature=20.0, dropout=0.2),
        {**_SAMPLED, "weight_decay": 0.05, "window": 64},
        {"steps": 500, "learning_rate": 3e-3, "table_learning_rate": 6e-3},
        {"steps": 200, "learning_rate": 3e-3, "table_learning_rate": 3e-3, "warmup_steps": 20, "pretrain_weight": 0.3},
    ),
}
