"""The sums by user give the metrics of the table, whatever the protocol."""

from __future__ import annotations

import pytest

from python_model.data.schema import Dataset
from python_model.evaluation.evaluate import evaluate


@pytest.mark.parametrize("protocol", ["temporal", "leave-last-out"])
def test_the_sums_over_users_are_the_metrics(tiny_service: Dataset, protocol: str) -> None:
    found = evaluate({}, tiny_service, protocol=protocol, max_events=300, item_average=True, by_user=True)
    assert set(found.by_user) == set(found.rows) == {"popularity", "item_average", "oracle"}
    for name, row in found.by_user.items():
        assert set(row) == {"ndcg@10", "recall@10", "next_item_ne", "pairwise_accuracy", "feedback_ne"}
        for metric, (gains, weights) in row.items():
            assert len(gains) == len(weights) == found.counts["users"]
            if found.rows[name][metric] is not None:
                assert gains.sum() / weights.sum() == pytest.approx(found.rows[name][metric]), (name, metric)


def test_without_asking_there_are_none(tiny_service: Dataset) -> None:
    found = evaluate({}, tiny_service, max_events=50)
    assert found.by_user == {} and "by_user" not in found.to_dict()
