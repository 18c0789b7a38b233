"""Discovery, calibration and intervals against cases worked out by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from python_model.data.schema import Dataset, load_dataset
from python_model.data.splits import temporal_split
from python_model.data.synthetic import generate, preset
from python_model.evaluation.baselines import Popularity
from python_model.evaluation.details import Discovery, calibration_of
from python_model.evaluation.evaluate import evaluate
from python_model.evaluation.metrics import clustered_standard_error
from python_model.evaluation.metrics_details import bootstrap_intervals, calibration, coverage, gini
from python_model.evaluation.user_lists import Requests


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("details") / "service"
    generate(out, preset("small", users=40))
    return load_dataset(out)


def test_gini_and_coverage_by_hand() -> None:
    assert gini(np.array([3, 3, 3, 3])) == 0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75), "(n - 1) / n where one item has everything"
    assert gini(np.array([3, 1])) == pytest.approx(0.25), "mean absolute difference 1 over twice the mean 2"
    assert math.isnan(gini(np.zeros(3)))
    assert coverage(np.array([0, 2, 0, 1])) == 0.5


def test_calibration_by_hand() -> None:
    """Bins .0-.5 and .5-1: predictions .1 and .3 with one event of two, .9 twice with both."""
    found = calibration(np.array([0.1, 0.3, 0.9, 0.9]), np.array([False, True, True, True]), bins=2)
    np.testing.assert_allclose(found.predicted, [0.2, 0.9])
    np.testing.assert_allclose(found.observed, [0.5, 1.0])
    assert found.events.tolist() == [2, 2]
    assert found.error == pytest.approx((0.3 + 0.1) / 2)
    assert calibration(np.array([1.0]), np.array([True])).error == 0, "a probability of 1 is in the last bin"
    assert math.isnan(calibration(np.zeros(0), np.zeros(0, bool)).error)
    with pytest.raises(ValueError, match=r"probability: expected numbers in \[0, 1\]"):
        calibration(np.array([1.5]), np.array([True]))


def test_several_classes_are_calibrated_by_their_most_probable_one() -> None:
    log_p = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    assert calibration_of(log_p, np.array([0, 1])).error == pytest.approx(0.1), "half of them right at .6"
    binary = np.log(np.array([[0.2, 0.8], [0.2, 0.8]]))
    assert calibration_of(binary, np.array([1, 1])).error == pytest.approx(0.2)


def test_intervals_are_as_wide_as_the_standard_error_says() -> None:
    random = np.random.default_rng(3)
    weights = random.integers(1, 20, 400).astype(float)
    gains = weights * random.random(400)
    [[low, high]] = bootstrap_intervals(gains[:, None], weights[:, None])
    error = clustered_standard_error(gains, weights)
    assert low < gains.sum() / weights.sum() < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    same = bootstrap_intervals(np.ones((5, 1)), np.ones((5, 1)))
    np.testing.assert_array_equal(same, [[1, 1]])
    assert np.isnan(bootstrap_intervals(np.ones((1, 1)), np.ones((1, 1)))).all(), "one user has no spread"


class Listed:
    """The same order of the catalogue for every user: item 0 first."""

    def __init__(self, items: int) -> None:
        self.items = items

    def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
        yield -torch.arange(self.items, dtype=torch.float32).expand(len(requests.users), -1)


def test_discovery_by_hand(dataset: Dataset) -> None:
    """Heard items leave the list, so the rank of a new item is one more than the unheard items before it."""
    rows = np.flatnonzero(temporal_split(dataset).test)
    ndcg, recall = [], []
    for user in np.unique(dataset.user[rows]):
        mine = rows[dataset.user[rows] == user]
        heard = set(dataset.item[dataset.offsets[user] : mine[0]].tolist())
        new = sorted(set(dataset.item[mine].tolist()) - heard)
        if not new or not heard:
            continue
        ranks = [1 + sum(other not in heard for other in range(item)) for item in new]
        gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= 20)
        ndcg.append(gain / sum(1 / math.log2(1 + r) for r in range(1, min(20, len(new)) + 1)))
        recall.append(sum(rank <= 20 for rank in ranks) / len(new))
    found = Discovery(dataset, rows).row(Listed(dataset.info.items), [20])
    assert len(ndcg) > 20 and 0 < np.mean(recall) < 1
    assert found["new_ndcg@20"] == pytest.approx(np.mean(ndcg))
    assert found["new_recall@20"] == pytest.approx(np.mean(recall))
    assert found["coverage@20"] == pytest.approx(20 / dataset.info.items)
    assert found["gini@20"] == pytest.approx(1 - 20 / dataset.info.items)
    assert set(Discovery(dataset, rows).row(object(), [20]).values()) == {None}


def test_details_are_in_the_result_only_where_asked_for(dataset: Dataset) -> None:
    split = temporal_split(dataset)
    model = Popularity(dataset, np.flatnonzero(split.train))
    assert "details" not in evaluate({"model": model}, dataset, oracle=False).to_dict()
    result = evaluate({"model": model}, dataset, k=[5, 10], details=True)
    details = result.to_dict()["details"]
    assert set(details["discovery"]["model"]) == {
        f"{name}@{k}" for name in ("new_ndcg", "new_recall", "coverage", "gini") for k in (5, 10)
    }
    assert details["discovery"]["oracle"]["new_ndcg@5"] is None, "the oracle makes no lists"
    low, high = details["intervals"]["model"]["ndcg@10"]
    value = result.rows["model"]["ndcg@10"]
    assert value is not None and low < value < high
    assert details["calibration"]["oracle"]["skip"]["error"] < 0.06
    assert sum(details["calibration"]["model"]["share"]["events"]) == result.counts["events"]


def test_details_are_printed_and_drawn(dataset: Dataset, tmp_path: Path) -> None:
    from rich.console import Console

    from python_model.reporting import console
    from python_model.reporting.report import write_report

    result = evaluate({}, dataset, details=True)
    # The width of a file or a pipe.
    printed = Console(width=160, record=True, file=io.StringIO())
    for table in console.details_tables(result):
        printed.print(table)
    text = printed.export_text()
    assert "new_recall@10" in text and "ECE share" in text and "│ popularity │" in text and "…" not in text
    low, high = result.details["intervals"]["oracle"]["pairwise_accuracy"]
    assert f"[{low:.4f}, {high:.4f}]" in text
    page = write_report(tmp_path / "r.html", title="t", dataset=dataset, result=result, stages=[]).read_text("utf-8")
    assert "calibration of like" in page and "new recall@10" in page
