"""The settings of a model and of a training run: frozen dataclasses with validation, JSON round trip and presets.

`ModelConfig` fixes the shapes, `TrainConfig` one stage of training, `FeatureSpec` the vocabulary of the data that a
model was built for. All three travel with every checkpoint. `PRESETS` are the published sizes, `RECIPES`
holds settings that were tried on named data sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, TypeVar

from python_model.data.description import negative_by_name
from python_model.data.feedback import FeedbackComponent, components
from python_model.data.times import LATEST
from python_model.io.settings import Between, checked, settings_of, shown

Config = TypeVar("Config", bound="JsonConfig")

FORMS = ("simplified", "full")
ENCODERS = ("transformer", "hstu")
MODELS = ("argus", "sasrec", "hstu")
NEXT_ITEM_LOSSES = ("softmax", "bce")
STAGES = ("pretrain", "finetune")
PROTOCOLS = ("temporal", "leave-last-out", "yambda", "all")
SOFTMAX_FORMS = ("standard", "refined")
PRECISIONS = ("float32", "bfloat16")
SAMPLINGS = ("uniform", "recent")
BEST_METRICS = ("next_item_ne", "feedback_ne", "feedback_auc", "pair_loss", "pairwise_accuracy", "ndcg@10", "recall@10")


class JsonConfig:
    """Base of the frozen dataclasses here: JSON in and out, one clear error for an invalid value."""

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
            raise ValueError(f"{type(self).__name__}: {name} is {shown(getattr(self, name))}, expected {expected}")

    def _require_kinds(self) -> None:
        """ValueError naming the first field whose value is not what its annotation says."""
        for name, kind in _kinds(type(self)).items():  # type: ignore[arg-type]
            try:
                checked(kind, name, getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}: {error}") from None


@cache
def _kinds(owner: Any) -> dict[str, Any]:
    return settings_of(owner)


Count = Annotated[int, Between(1, 10**15)]
Amount = Annotated[int, Between(0, 10**15)]
Width = Annotated[int, Between(1, 1 << 16)]
Buckets = Annotated[int, Between(1, 1 << 16)]
Share = Annotated[float, Between(0, 1)]
Rate = Annotated[float, Between(0, 1e30)]
"""AdamW divides the rate by its bias correction; the quotient must fit float32. Training itself detects divergence."""
Int32 = Annotated[int, Between(0, 2**31 - 1)]


@dataclass(frozen=True)
class FeatureSpec(JsonConfig):
    """The vocabulary a model is built for.

    items: catalogue size. context, item_features: name -> cardinality. feedback: name -> component.
    negative: names of feedback that counts against an item; None: the names that runs without this field used.
    """

    items: Count
    context: Mapping[str, Count] = field(default_factory=dict)
    feedback: Mapping[str, FeedbackComponent] = field(default_factory=dict)
    item_features: Mapping[str, Count] = field(default_factory=dict)
    negative: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "feedback", components(self.feedback))
        self._require_kinds()
        object.__setattr__(self, "feedback", checked(_kinds(FeatureSpec)["feedback"], "feedback", self.feedback))
        negative = negative_by_name(self.feedback) if self.negative is None else tuple(self.negative)
        object.__setattr__(self, "negative", negative)
        self._require("negative", set(negative) <= set(self.feedback), "names of feedback")
        self._require("feedback", len(self.feedback) > 0, "at least one feedback component")

    @classmethod
    def of(cls, info: Any) -> FeatureSpec:
        """The vocabulary of a prepared data set (`python_model.data.schema.DatasetInfo`)."""
        return cls(info.items, dict(info.context), dict(info.feedback), dict(info.item_features), info.negative)

    @property
    def logits(self) -> tuple[int, ...]:
        """Number of logits of each feedback component, in order: `classes` of the op feedback_loss."""
        return tuple(component.logits for component in self.feedback.values())

    def identity(self) -> str:
        """The text that fingerprints are computed from; it is the same for files of earlier versions."""
        plain = {**asdict(self), "feedback": dict(zip(self.feedback, self.logits, strict=True))}
        if self.negative == negative_by_name(self.feedback):
            del plain["negative"]
        return json.dumps(plain, indent=2) + "\n"


@dataclass(frozen=True)
class ModelConfig(JsonConfig):
    """The shapes of one model.

    model: "argus", or a baseline over the sequence of items alone: "sasrec", "hstu" (`sequential`).
    form: "simplified" (one vector per interaction) or "full" (tokens context, item, feedback).
    encoder: "transformer" or "hstu", whose attention divides by max_events and which has no feed-forward network.
    layers: blocks of the encoder. width: of the encoder's states.
    heads: attention heads, a divisor of width; width / heads is the head width.
    feed_forward: hidden width of the feed-forward network, in widths.
    max_events: longest history in events. dropout: after embedding, attention and feed-forward.
    attention_dropout: of the attention weights.
    item_dropout: share of the events whose item is hidden from the encoder in training; it is still predicted.
    feedback_dropout: the same of what the user did.
    mimetic_logit: queries and keys begin as the same projection (mimetic initialisation, arXiv 2305.09828), scaled so
    that a token's logit with itself is this in the mean, and tokens that are alike find each other from the first step;
    0: independent projections. Transformer only.
    item_width: width of the item table. feature_width: width of every other table.
    vector_width: width of the user, query and item vectors whose dot products are the scores.
    item_hashes: 0 gives every item its own row; n > 0 gives n hashed rows of one table of hash_rows rows.
    hash_rows: rows of the table of hashed items; 0 where item_hashes is.
    position_buckets: length of each layer's bias table over positions. time_buckets: of that over time.
    time_bias: false keeps the biases over time differences at 0.
    feedback_input: false hides from the encoder what the user did; the heads still predict it.
    lag: seconds by which user states are old in fine-tuning and ranking; fine-tuning raises it above the pair window.
    temperature: initial factor on the cosine of the next-item head; learned, clipped to [0.01, 100].
    sparse: row-sparse gradients for the embedding tables.
    """

    model: str = "argus"
    form: str = "simplified"
    encoder: str = "transformer"
    layers: Annotated[int, Between(1, 1024)] = 2
    width: Width = 64
    heads: Count = 2
    feed_forward: Annotated[int, Between(1, 64)] = 4
    max_events: Annotated[int, Between(1, 2**31 - 1)] = 8192
    dropout: Annotated[float, Between(0, 1, below=True)] = 0.0
    attention_dropout: Annotated[float, Between(0, 1, below=True)] = 0.0
    item_dropout: Annotated[float, Between(0, 1, below=True)] = 0.0
    feedback_dropout: Annotated[float, Between(0, 1, below=True)] = 0.0
    mimetic_logit: Annotated[float, Between(0, 100)] = 0.0
    item_width: Width = 64
    feature_width: Width = 16
    vector_width: Width = 64
    item_hashes: Annotated[int, Between(0, 32)] = 0
    hash_rows: Int32 = 0
    position_buckets: Buckets = 256
    time_buckets: Annotated[int, Between(1, 1 << 12)] = 64
    time_bias: bool = True
    feedback_input: bool = True
    lag: Annotated[int, Between(0, LATEST)] = 0
    temperature: Annotated[float, Between(0.01, 100)] = 10.0
    sparse: bool = False

    def __post_init__(self) -> None:
        self._require_kinds()
        self._require("model", self.model in MODELS, f"one of {', '.join(MODELS)}")
        self._require("form", self.form in FORMS, f"one of {', '.join(FORMS)}")
        self._require("encoder", self.encoder in ENCODERS, f"one of {', '.join(ENCODERS)}")
        no_softmax = self.encoder == "hstu" and self.mimetic_logit > 0
        self._require("mimetic_logit", not no_softmax, "0 with the HSTU encoder, whose attention is not a softmax")
        self._require("heads", self.width % self.heads == 0, f"a divisor of width {self.width}")
        self._require("hash_rows", (self.hash_rows > 0) == (self.item_hashes > 0), "set exactly when item_hashes is")
        if self.model != "argus":
            encoder = "hstu" if self.model == "hstu" else "transformer"
            self._require("form", self.form == "simplified", f"simplified with model={self.model!r}")
            self._require("encoder", self.encoder == encoder, f"{encoder} with model={self.model!r}")
            self._require("item_width", self.item_width == self.width, f"width = {self.width}: items are its tokens")
            self._require("item_hashes", self.item_hashes == 0, f"0 with model={self.model!r}")
            self._require("feedback_dropout", self.feedback_dropout == 0, f"0 with model={self.model!r}: it sees none")


@dataclass(frozen=True)
class TrainConfig(JsonConfig):
    """One stage of training.

    stage: "pretrain" (next item + feedback) or "finetune" (two-tower pairwise ranking).
    steps: optimiser steps. epochs: passes over the training events that `steps` was computed from; None where it was
    given. batch_events: events in a batch at most. window: events of one user in a batch at most.
    batches_per_step: batches whose gradients make one step, dealt over the ranks that train together; a rank with
    several accumulates. None: one for every rank. It stays what it is when a run goes on with another number of ranks.
    balanced: deals the windows of a step to its batches by their cost in arithmetic, so that ranks take equally long;
    for data held in memory. None: where a new run can; it stays what it is when a run goes on.
    learning_rate: peak rate of AdamW for dense parameters.
    table_learning_rate: peak rate of the embedding tables (row-wise Adagrad where the model's gradients are sparse,
    AdamW otherwise). weight_decay: of AdamW, for dense parameters.
    warmup_steps: steps of a linear warm-up, after which the rate falls along a cosine.
    final_fraction: of the peak rate, at which the cosine ends.
    clip: largest gradient norm. seed: of weights, batches and negatives.
    protocol: which split the training rows come from, "temporal", "leave-last-out", "yambda" (only Listen+ events are
    next items to predict) or "all".
    train_share: share of the users trained on, the same ones for every seed, those of a smaller share among those of a
    larger one.
    train_days: only the events of so many days before the end of the training part are targets, what is before them is
    history alone; for data held in memory. None: all of the training part.
    stochastic_length_alpha: α in [1, 2] of HSTU's stochastic length: training replaces windows of more than
    window^(α/2) events by random subsequences of so many, with probability 1 − window^α / n²; 2 replaces none.
    stochastic_length_sampling: how their events are drawn, "uniform" or "recent" (weights that rise with the position).
    shuffle_ties: events of a user at the same second come in another order in every pass, for logs that keep no order
    within a second.
    negatives_in_batch: negatives of a step from its batch, at most; cut down to what the data has.
    negatives_uniform: negatives of a step from the whole catalogue, at most; cut down to what the data has.
    next_item_loss: "softmax" (sampled, with logQ) or "bce" (binary, one uniform negative an event, as SASRec has it).
    softmax_form: logQ correction, "standard" or "refined".
    log_q: false leaves the standard form uncorrected.
    merge_negatives: equal negatives become one candidate with its logQ, which the standard form alone can take.
    sketch_width, sketch_depth: the frequency sketch behind logQ, counters a row and rows.
    next_item_weight: weight of the next item in the joint loss.
    feedback_weights: component to its weight in the joint loss; components not named weigh 1.
    pair_window: seconds between the events of a pair at most, None takes the data set's.
    lag_pairs: false lets fine-tuning see the other event of a pair, which inflates its own accuracy.
    pretrain_weight: joint loss kept as a regulariser in fine-tuning.
    precision: "float32" or "bfloat16" (autocast; weights and optimiser states stay float32).
    compile: torch.compile of the encoder's blocks around attention, which fuses norms, activations and residuals; the
    results differ by rounding. Training does not begin where torch cannot compile.
    activation_checkpointing: keep only the inputs of the encoder's blocks and compute the rest anew for the gradients.
    shard_rows: on several ranks, tables of at least that many rows are cut into as many parts, the others copied.
    checkpoint_every: steps between checkpoints. keep: how many checkpoints stay.
    log_every: steps between logged losses.
    max_skipped_steps: steps in a row without an update because loss or gradient was not finite, before training stops.
    validate_every: steps between evaluations on the validation part; 0 for none.
    validate_events: how many of its events are evaluated, whole users drawn at random; None: as many as cost
    2.5 % of the training's arithmetic.
    best_metric: metric of the validation part by which the best checkpoint is chosen; None: next_item_ne in
    pre-training, pair_loss in fine-tuning.
    patience: evaluations in a row without improvement, after which training stops; 0: it goes on to the end.
    """

    stage: str = "pretrain"
    steps: Count = 1000
    epochs: Annotated[float, Between(1e-3, 10**6)] | None = None
    batch_events: Annotated[int, Between(1, 2**31 - 1)] = 2048
    batches_per_step: Count | None = None
    balanced: bool | None = None
    window: Annotated[int, Between(2, 2**31 - 1)] = 128
    learning_rate: Rate = 1e-3
    table_learning_rate: Rate = 1e-3
    weight_decay: Rate = 0.01
    warmup_steps: Amount = 50
    final_fraction: Share = 0.05
    clip: Annotated[float, Between(1e-12, 10**12)] = 1.0
    seed: Annotated[int, Between(0, 2**63 - 1)] = 0
    protocol: str = "temporal"
    train_share: Share = 1.0
    train_days: Annotated[float, Between(1e-3, 10**5)] | None = None
    stochastic_length_alpha: Annotated[float, Between(1, 2)] = 2.0
    stochastic_length_sampling: str = "uniform"
    shuffle_ties: bool = False
    negatives_in_batch: Int32 = 8192
    negatives_uniform: Int32 = 8192
    next_item_loss: str = "softmax"
    softmax_form: str = "standard"
    log_q: bool = True
    merge_negatives: bool = False
    sketch_width: Annotated[int, Between(1, 1 << 26)] = 1 << 16
    sketch_depth: Annotated[int, Between(1, 32)] = 4
    next_item_weight: Rate = 1.0
    feedback_weights: Mapping[str, Rate] = field(default_factory=dict)
    pair_window: Annotated[int, Between(0, LATEST - 1)] | None = None
    lag_pairs: bool = True
    pretrain_weight: Rate = 0.0
    precision: str = "float32"
    compile: bool = False
    activation_checkpointing: bool = False
    shard_rows: Count = 8192
    checkpoint_every: Count = 200
    keep: Count = 2
    log_every: Count = 1
    max_skipped_steps: Count = 10
    validate_every: Amount = 0
    validate_events: Count | None = None
    best_metric: str | None = None
    patience: Amount = 0

    def __post_init__(self) -> None:
        self._require_kinds()
        self._require("stage", self.stage in STAGES, f"one of {', '.join(STAGES)}")
        self._require("protocol", self.protocol in PROTOCOLS, f"one of {', '.join(PROTOCOLS)}")
        self._require("next_item_loss", self.next_item_loss in NEXT_ITEM_LOSSES, "softmax or bce")
        known = self.stochastic_length_sampling in SAMPLINGS
        self._require("stochastic_length_sampling", known, f"one of {', '.join(SAMPLINGS)}")
        self._require("softmax_form", self.softmax_form in SOFTMAX_FORMS, f"one of {', '.join(SOFTMAX_FORMS)}")
        self._require("log_q", self.log_q or self.softmax_form == "standard", 'true with softmax_form="refined"')
        allowed = not self.merge_negatives or self.softmax_form == "standard"
        self._require("merge_negatives", allowed, 'false with softmax_form="refined", which counts the candidates')
        known = self.best_metric is None or self.best_metric in BEST_METRICS
        self._require("best_metric", known, f"one of {', '.join(BEST_METRICS)}, or null")
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._require("window", self.window <= self.batch_events, f"at most batch_events = {self.batch_events}")
        self._require("train_share", self.train_share > 0, "a number in (0, 1]")
        negatives = self.negatives_in_batch + self.negatives_uniform
        self._require("negatives_uniform", negatives > 0, "above 0 where there are no in-batch negatives")


def _published(layers: int, width: int) -> ModelConfig:
    """A published size; the head width of 64 and the embedding widths are our choice."""
    return ModelConfig(
        layers=layers, width=width, heads=width // 64, item_width=min(width, 512), feature_width=min(width // 4, 128),
        vector_width=min(width, 512),
    )  # fmt: skip


def _hstu(like: ModelConfig, max_events: int) -> ModelConfig:
    """An HSTU model of a transformer's width and, to a few percent, its parameters; an HSTU block has 5/12 as many.

    Attention divides by max_events, so max_events is the longest history trained on. One position per distance and
    128 + 1 time buckets, as published.
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
PRESETS["hstu-dlrm-v4"] = ModelConfig(
    encoder="hstu", layers=3, width=512, heads=4, max_events=4086, dropout=0.1, item_width=512, feature_width=512,
    vector_width=512, position_buckets=4086, time_buckets=129, sparse=True,
)  # fmt: skip
"""The shapes of MLPerf's DLRM v4 workload on Yambda-5B; docs/model.md says what is taken from where."""


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
