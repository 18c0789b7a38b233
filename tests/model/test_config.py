"""Settings: the published sizes, JSON round trip, and one clear error for each thing that does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from python_model.config import PRESETS, RECIPES, FeatureSpec, ModelConfig, TrainConfig, preset
from python_model.model.argus import Argus
from tests.model.conftest import FEATURES, encoder_parameters

PUBLISHED = {"3m": 3.16e6, "19m": 18.9e6, "126m": 126.0e6, "1b": 1.0072e9}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("form", ("simplified", "full"))
def test_presets_have_the_published_encoder_sizes(name: str, form: str) -> None:
    config = preset(name, form=form)
    with torch.device("meta"):
        model = Argus(config, FEATURES, torch.empty(2, FEATURES.items, dtype=torch.int32))
    counted = sum(parameter.numel() for parameter in model.encoder.blocks.parameters())
    layers, width = config.layers, config.width
    formula = 5 * width**2 + width if config.encoder == "hstu" else 12 * width**2 + 13 * width
    assert counted == layers * formula == encoder_parameters(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    if name in PUBLISHED:
        assert counted == pytest.approx(PUBLISHED[name], rel=2e-3)
        assert width // config.heads == 64
        assert config.max_events == 8192
    if name.startswith("hstu-") and name != "hstu-dlrm-v4":
        like = preset(name.removeprefix("hstu-"))
        assert counted == pytest.approx(encoder_parameters(like), rel=0.05)
        assert (config.width, config.heads, config.time_buckets) == (like.width, like.heads, 129)
        assert config.position_buckets == config.max_events


def test_the_preset_of_the_mlperf_workload() -> None:
    config = preset("hstu-dlrm-v4")
    assert (config.encoder, config.layers, config.heads, config.width // config.heads) == ("hstu", 3, 4, 128)
    assert config.max_events == config.position_buckets == 4086
    assert config.item_width == config.feature_width == config.vector_width == config.width == 512
    assert config.sparse, "its embedding tables are trained with row-wise Adagrad"


@pytest.mark.parametrize(
    "config",
    [
        preset("3m", form="full", lag=60, dropout=0.1, sparse=True),
        TrainConfig(stage="finetune", feedback_weights={"like": 2.0}, pair_window=3600),
        FEATURES,
    ],
)
def test_json_round_trip(config: ModelConfig | TrainConfig | FeatureSpec) -> None:
    assert type(config).from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "half"}, "form is 'half', expected one of simplified, full"),
        ({"encoder": "rnn"}, "encoder is 'rnn', expected one of transformer, hstu"),
        (
            {"encoder": "hstu", "mimetic_logit": 4.0},
            "mimetic_logit is 4.0, expected 0 with the HSTU encoder, whose attention is not a softmax",
        ),
        ({"mimetic_logit": -1.0}, "mimetic_logit"),
        ({"heads": 3}, "heads is 3, expected a divisor of width 64"),
        ({"layers": 0}, r"layers is 0, expected a whole number in \[1, 1024\]"),
        ({"width": 64.0}, "width is 64.0, expected a whole number"),
        ({"layers": True}, "layers is True, expected a whole number"),
        ({"dropout": 1.0}, r"dropout is 1.0, expected a finite number in \[0, 1\)"),
        ({"dropout": float("nan")}, "dropout is nan, expected a finite number"),
        ({"lag": -1}, r"lag is -1, expected a whole number in \[0, "),
        ({"item_hashes": 2}, "hash_rows is 0, expected set exactly when item_hashes is"),
        ({"temperature": 1000.0}, "temperature is 1000.0"),
    ],
)
def test_a_model_setting_that_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("tiny", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "posttrain"}, "stage is 'posttrain'"),
        ({"protocol": "random"}, "protocol is 'random'"),
        ({"steps": 0}, "steps is 0"),
        ({"window": 1}, r"window is 1, expected a whole number in \[2, "),
        ({"window": 4096}, "window is 4096, expected at most batch_events = 2048"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"negatives_in_batch": 0, "negatives_uniform": 0}, "negatives_uniform is 0, expected above 0"),
        ({"feedback_weights": {"like": -1.0}}, "feedback_weights"),
        ({"precision": "float8"}, "precision is 'float8'"),
        ({"pair_window": -5}, "pair_window is -5"),
    ],
)
def test_a_training_setting_that_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(), **changes)  # type: ignore[arg-type]


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown setting learning_rte; known: .*learning_rate"):
        TrainConfig.from_dict({"learning_rte": 1e-3})
    with pytest.raises(ValueError, match="unknown setting depth"):
        preset("tiny", depth=3)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "null"])
def test_what_is_not_a_json_object(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected (a )?JSON"):
        ModelConfig.from_json(text)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset is '2b', expected one of tiny, 3m, 19m, 126m, 1b, hstu-tiny"):
        preset("2b")


def test_settings_from_before_there_was_a_choice_of_encoder() -> None:
    values = json.loads(preset("tiny").to_json())
    del values["encoder"]
    assert ModelConfig.from_dict(values) == preset("tiny")


def test_recipes_are_complete_and_survive_json() -> None:
    assert set(RECIPES) == {"demo", "ml-100k", "kuairand-pure"}
    for recipe in RECIPES.values():
        assert (recipe.pretrain.stage, recipe.finetune.stage) == ("pretrain", "finetune")
        for config in (recipe.model, recipe.pretrain, recipe.finetune):
            assert type(config).from_dict(json.loads(config.to_json())) == config
