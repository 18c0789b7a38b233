"""Components of feedback and positive events: what they are, in the form of today and in that of earlier versions."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.config import FeatureSpec
from python_model.data.description import INFO, DatasetInfo
from python_model.data.feedback import BINARY, FeedbackComponent, PositiveEvents, categorical
from python_model.data.schema import Dataset, load_dataset
from python_model.data.splits import events_to_predict, positive_events
from python_model.io.errors import DataError

EARLIER = {
    "name": "yambda-50m", "source": "yambda", "users": 2, "items": 3, "events": 9, "context": {}, "item_features": {},
    "feedback": {"like": 1, "share": 6}, "grades": "", "pair_window": 60,
    "params": {"share_edges_pct": [20, 40, 50, 60, 80]}, "format": 1,
}  # fmt: skip


def described(folder: Path, **changes: Any) -> DatasetInfo:
    (folder / INFO).write_text(json.dumps({**EARLIER, **changes}))
    return DatasetInfo.load(folder)


def test_a_component_says_what_it_is() -> None:
    assert (BINARY.classes, BINARY.logits, BINARY.is_binary) == (2, 1, True)
    assert (categorical(2).classes, categorical(2).logits, categorical(2).is_binary) == (2, 2, False)
    with pytest.raises(ValueError, match="a binary component has 2 classes, found 3"):
        FeedbackComponent("binary", 3)


def test_what_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    info = described(tmp_path)
    assert info.feedback == {"like": BINARY, "share": categorical(6)}
    assert info.positive == PositiveEvents("share", 3)
    (tmp_path / INFO).write_text(info.to_json())
    assert DatasetInfo.load(tmp_path) == info
    assert json.loads(info.to_json())["feedback"]["like"] == {"kind": "binary", "classes": 2}
    others: list[dict[str, Any]] = [{"source": "mine"}, {"params": {}}, {"params": {"share_edges_pct": [20, 60]}}]
    for changes in others:
        assert described(tmp_path, **changes).positive is None


def test_fingerprints_of_a_vocabulary_stay_what_they_were() -> None:
    """Exports and sessions of earlier versions are of the same vocabulary: they wrote the number of logits."""
    given = {"items": 3, "context": {"hour": 24}, "feedback": {"like": 1, "share": 6}, "item_features": {}}
    earlier = FeatureSpec.from_dict(given)
    assert earlier == FeatureSpec.from_dict(json.loads(earlier.to_json()))
    assert earlier.identity() == json.dumps(given, indent=2) + "\n" and earlier.logits == (1, 6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feedback": {"like": 0}}, "feedback is {'like': 0}, expected a mapping from text to an object of kind"),
        ({"feedback": {"like": {"kind": "ternary", "classes": 3}}}, "feedback is {'like': {"),
        ({"feedback": {"like": {"kind": "binary", "classes": 3}}}, "feedback is {'like': {"),
        ({"feedback": {"like": {"kind": "categorical"}}}, "feedback is {'like': {"),
        ({"feedback": {"like": {"kind": "categorical", "classes": 1}}}, "feedback is {'like': {"),
        ({"positive": {"feedback": "love", "at_least": 1}}, "positive: expected a class of one of like, share, found"),
        ({"positive": {"feedback": "like", "at_least": 2}}, "positive: expected a class of one of like, share, found"),
        ({"positive": {"feedback": "like"}}, "positive is {'feedback': 'like'}, expected an object of feedback"),
        ({"params": {"share_edges_pct": [50, 60]}, "feedback": {"like": 1}}, "positive: expected a class of one of"),
    ],
)
def test_what_is_no_component_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"dataset\.json") as refused:
        described(tmp_path, **changes)
    assert says in str(refused.value)


def test_any_data_set_may_say_what_is_positive(tiny_service: Dataset, tmp_path: Path) -> None:
    dataset = load_dataset(shutil.copytree(tiny_service.path, tmp_path / "data"))
    assert dataset.info.positive is None and events_to_predict(dataset, "temporal").all()
    with pytest.raises(
        ValueError, match=r"protocol yambda: .* prepared from synthetic, which does not say what events are"
    ):
        positive_events(dataset)
    raw = asdict(dataset.info) | {"positive": {"feedback": "like", "at_least": 1}}
    (tmp_path / "data" / INFO).write_text(json.dumps(raw))
    dataset = load_dataset(tmp_path / "data")
    assert np.array_equal(events_to_predict(dataset, "yambda"), dataset.feedback("like") == 1)
