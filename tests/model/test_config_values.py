"""Every setting against values of every kind: taken, or refused in one sentence that begins with its name."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from python_model.config import FeatureSpec, ModelConfig, TrainConfig

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, -1, 1.0, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"),
    2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, "", "0", "x", "١", "a" * 10_000, [], [1], {}, {"like": "a"},
    {"like": None}, {"like": float("nan")}, {1: 1.0}, {"like": {"x": 1}}, (1, 2), object(), b"1",
]  # fmt: skip
SETTINGS = [(owner, field.name) for owner in (ModelConfig, TrainConfig) for field in fields(owner)]


@pytest.mark.parametrize(("owner", "name"), SETTINGS, ids=[f"{owner.__name__}-{name}" for owner, name in SETTINGS])
def test_any_value_is_taken_or_refused_by_name(owner: type[ModelConfig | TrainConfig], name: str) -> None:
    taken = 0
    for value in VALUES:
        try:
            config = replace(owner(), **{name: value})
        except ValueError as error:
            text = str(error)
            assert text.startswith(f"{owner.__name__}: ") and " is " in text and ", expected " in text
            assert "\n" not in text and len(text) < 400
            continue
        taken += 1
        assert owner.from_json(config.to_json()) == config
        assert json.loads(config.to_json())[name] == value
    refused = len(VALUES) - taken
    assert refused >= len(VALUES) // 2, "a setting that takes anything takes what was mistyped"


@pytest.mark.parametrize("name", ["items", "context", "feedback", "item_features"])
def test_a_vocabulary_is_held_to_counts(name: str) -> None:
    good = {"items": 3, "feedback": {"like": 1}}
    for value in VALUES:
        if (name == "items" and value in (1, 2, 2**31)) or (name != "items" and value == {} and name != "feedback"):
            continue
        with pytest.raises(ValueError, match=rf"^FeatureSpec: {name} is .*, expected "):
            FeatureSpec(**{**good, name: value})
