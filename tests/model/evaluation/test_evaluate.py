"""Evaluation: the right events, the right averages, no event seen too early, and every row comparable."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from python_model.config import preset as model_preset
from python_model.data.checks import EventChecker
from python_model.data.feedback import BINARY, categorical
from python_model.data.schema import Dataset, DatasetWriter, load_dataset
from python_model.data.splits import leave_last_out, temporal_split
from python_model.data.synthetic import generate, preset
from python_model.evaluation.evaluate import evaluate, make_split, sample_users
from python_model.evaluation.inference import ModelPredictor, feedback_log_probabilities
from python_model.evaluation.metrics import Ranking
from python_model.evaluation.predictions import Predictions
from python_model.model.argus import Argus

KEYS = ["ndcg@10", "recall@10", "pairwise_accuracy", "next_item_ne", "feedback_ne", "feedback_auc"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("evaluate") / "service"
    generate(out, preset("small", users=60, seed=5))
    return load_dataset(out)


class Clairvoyant:
    """Knows every answer; `sign` -1 knows it and says the opposite."""

    def __init__(self, dataset: Dataset, sign: int = 1) -> None:
        self.dataset, self.sign = dataset, sign
        self.rows = np.zeros(0, np.int64)

    def predict(self, rows: np.ndarray) -> Predictions:
        self.rows = rows
        last = self.dataset.info.items
        rank = np.full(len(rows), 1 if self.sign > 0 else last)
        feedback = {}
        for task, component in self.dataset.info.feedback.items():
            labels = self.dataset.feedback(task)[rows].astype(np.int64)
            right = np.zeros((len(rows), component.classes))
            right[np.arange(len(rows)), labels] = self.sign * 3.0
            feedback[task] = right - np.log(np.exp(right).sum(axis=1, keepdims=True))
        grade = self.dataset.grade[rows].astype(np.float64)
        return Predictions(Ranking(rank, np.full(len(rows), 0.5)), feedback, self.sign * grade)


def test_rows_and_keys(dataset: Dataset) -> None:
    result = evaluate({"pretrained": Clairvoyant(dataset), "finetuned": Clairvoyant(dataset, -1)}, dataset)
    assert list(result.rows) == ["popularity", "pretrained", "finetuned", "oracle"]
    assert all(list(row) == KEYS for row in result.rows.values())
    assert next(iter(result.to_dict())) == "rows"


def test_a_clairvoyant_is_perfect_and_its_opposite_is_not(dataset: Dataset) -> None:
    result = evaluate({"right": Clairvoyant(dataset), "wrong": Clairvoyant(dataset, -1)}, dataset)
    right, wrong = result.rows["right"], result.rows["wrong"]
    assert (right["ndcg@10"], right["recall@10"], right["pairwise_accuracy"], right["feedback_auc"]) == (1, 1, 1, 1)
    assert (wrong["ndcg@10"], wrong["recall@10"], wrong["pairwise_accuracy"], wrong["feedback_auc"]) == (0, 0, 0, 0)
    assert right["feedback_ne"] is not None and wrong["feedback_ne"] is not None
    assert right["feedback_ne"] < 0.5 and wrong["feedback_ne"] > 2.0


@pytest.mark.parametrize("protocol", ["temporal", "leave-last-out"])
def test_every_test_event_and_no_other_is_evaluated(dataset: Dataset, protocol: str) -> None:
    predictor = Clairvoyant(dataset)
    result = evaluate({"model": predictor}, dataset, protocol=protocol)
    split = temporal_split(dataset) if protocol == "temporal" else leave_last_out(dataset)
    assert predictor.rows.tolist() == np.flatnonzero(split.test).tolist()
    assert result.counts["events"] == split.test.sum()
    assert result.counts["users"] == len(np.unique(dataset.user[split.test]))


def test_leave_last_out_has_no_pairs_and_says_so(dataset: Dataset) -> None:
    result = evaluate({"model": Clairvoyant(dataset)}, dataset, protocol="leave-last-out")
    assert result.counts["pairs"] == 0
    assert all(row["pairwise_accuracy"] is None for row in result.rows.values())
    assert any("pairwise accuracy is not defined" in note for note in result.notes)


def test_the_table_equals_its_definitions(dataset: Dataset) -> None:
    result = evaluate({}, dataset, k=[5])
    split = temporal_split(dataset)
    counts = np.bincount(dataset.item[split.train], minlength=dataset.info.items)
    rows = np.flatnonzero(split.test)
    gains, pairs, right = [], 0, 0.0
    for row in rows:
        rank = int((counts >= counts[dataset.item[row]]).sum())
        gains.append(1 / math.log2(1 + rank) if rank <= 5 else 0.0)
        for other in rows:
            near = abs(dataset.time[row] - dataset.time[other]) <= dataset.info.pair_window
            if (
                dataset.user[row] != dataset.user[other]
                or not near
                or not 0 <= dataset.grade[other] < dataset.grade[row]
            ):
                continue
            pairs += 1
            a, b = counts[dataset.item[row]], counts[dataset.item[other]]
            right += 1.0 if a > b else 0.5 if a == b else 0.0
    row_found = result.rows["popularity"]
    assert row_found["ndcg@5"] == pytest.approx(np.mean(gains))
    assert result.counts["pairs"] == pairs
    assert row_found["pairwise_accuracy"] == pytest.approx(right / pairs)
    assert row_found["next_item_ne"] == 1.0


def test_sampling_keeps_whole_users(dataset: Dataset) -> None:
    rows = np.flatnonzero(make_split(dataset, "temporal").test)
    taken = sample_users(dataset, rows, 40, seed=1)
    assert 40 <= len(taken) < len(rows)
    assert taken.tolist() == rows[np.isin(dataset.user[rows], dataset.user[taken])].tolist()
    assert taken.tolist() == sample_users(dataset, rows, 40, seed=1).tolist()
    assert taken.tolist() != sample_users(dataset, rows, 40, seed=2).tolist()


def test_a_model_gives_the_same_whatever_shares_its_batch(dataset: Dataset) -> None:
    model = Argus.for_dataset(model_preset("tiny"), dataset)
    rows = np.flatnonzero(temporal_split(dataset).test)
    small = ModelPredictor(model, dataset, window=128, token_budget=128).predict(rows)
    large = ModelPredictor(model, dataset, window=128, token_budget=1 << 16).predict(rows)
    assert small.next_item is not None and large.next_item is not None
    assert small.ranking is not None and large.ranking is not None
    np.testing.assert_allclose(small.next_item.log_loss, large.next_item.log_loss, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(small.ranking, large.ranking, rtol=1e-3, atol=1e-4)
    for task in small.feedback:
        np.testing.assert_allclose(small.feedback[task], large.feedback[task], rtol=1e-3, atol=1e-4)


def test_a_model_predicts_events_in_the_order_asked(dataset: Dataset) -> None:
    """One event at a time, each in a batch of its own, gives what one call for all of them gives."""
    model = Argus.for_dataset(model_preset("tiny"), dataset)
    predictor = ModelPredictor(model, dataset, window=4096, token_budget=8192)
    rows = np.flatnonzero(temporal_split(dataset).test)[::7]
    together = predictor.predict(rows)
    assert together.ranking is not None
    alone = [predictor.predict(rows[i : i + 1]).ranking for i in range(len(rows))]
    np.testing.assert_allclose(together.ranking, np.concatenate(alone), rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["pair", "next_item", "feedback"])
def test_no_pairwise_score_knows_another_event_of_its_pair_window(dataset: Dataset, kind: str) -> None:
    """What happened at one event changes the ranking score of no event at most a pair window later."""
    model = Argus.for_dataset(model_preset("tiny"), dataset)
    rows = np.arange(int(dataset.offsets[4]), int(dataset.offsets[5]))
    followed = rows[:-1][np.diff(dataset.time[rows]) <= dataset.info.pair_window]
    middle = followed[len(followed) // 2]
    changed = load_dataset(dataset.path)
    for name in ("item", "feedback_like", "feedback_skip", "feedback_dislike", "feedback_share", "grade"):
        column = dataset.column(name).copy()
        column[middle] = 1 - min(column[middle], 1)
        changed._columns[name] = column
    before, after = (
        ModelPredictor(model, data, window=4096, ranking_kind=kind).predict(rows) for data in (dataset, changed)
    )
    assert before.ranking is not None and after.ranking is not None
    age = dataset.time[rows] - dataset.time[middle]
    near = (age <= dataset.info.pair_window) & (rows != middle)
    assert (near & (age > 0)).any() and (age > dataset.info.pair_window).any()
    np.testing.assert_array_equal(before.ranking[near], after.ranking[near])
    assert (before.ranking[age > dataset.info.pair_window] != after.ranking[age > dataset.info.pair_window]).any()


def test_feedback_log_probabilities_are_those_of_the_logits() -> None:
    logits = torch.tensor([[0.3, 1.0, -1.0, 0.5]])
    found = feedback_log_probabilities(logits, {"like": BINARY, "share": categorical(3)})
    assert math.exp(found["like"][0, 1]) == pytest.approx(1 / (1 + math.exp(-0.3)))
    total = math.exp(1.0) + math.exp(-1.0) + math.exp(0.5)
    assert math.exp(found["share"][0, 2]) == pytest.approx(math.exp(0.5) / total)


def one_class_dataset(out: Path) -> Dataset:
    """Two feedback tasks, one of which is never positive; no context, no item features, no oracle."""
    rng = np.random.default_rng(0)
    users, each = 20, 12
    with DatasetWriter(
        out, name="mini", source="test", context={}, feedback={"like": BINARY, "hate": BINARY}, item_features={},
        grades="like", pair_window=100_000,
    ) as writer:  # fmt: skip
        like = rng.integers(0, 2, users * each).astype(np.int16)
        writer.write_events(
            {
                "user": np.repeat(np.arange(users, dtype=np.int32), each),
                "item": rng.integers(0, 9, users * each).astype(np.int32),
                "time": np.arange(users * each, dtype=np.int64) % each * 600 + np.repeat(np.arange(users), each),
                "organic": np.zeros(users * each, bool),
                "grade": like.astype(np.int8),
                "feedback_like": like,
                "feedback_hate": np.zeros(users * each, np.int16),
            }
        )
        writer.write_users(np.arange(users))
        writer.write_items(np.arange(9), {})
    return load_dataset(out)


def test_a_task_of_one_class_is_left_out_and_named(tmp_path: Path) -> None:
    dataset = one_class_dataset(tmp_path / "mini")
    result = evaluate({}, dataset)
    assert list(result.rows) == ["popularity"]
    assert result.feedback["popularity"]["hate"] == {"normalized_entropy": None, "auc": None}
    assert result.rows["popularity"]["feedback_ne"] == result.feedback["popularity"]["like"]["normalized_entropy"]
    assert any("leave out hate" in note for note in result.notes)


def test_a_predictor_of_one_thing_leaves_the_others_undefined_for_itself_only(dataset: Dataset) -> None:
    class Newest:
        def predict(self, rows: np.ndarray) -> Predictions:
            return Predictions(ranking=dataset.time[rows].astype(np.float64))

    result = evaluate({"newest": Newest()}, dataset)
    assert result.rows["newest"]["pairwise_accuracy"] is not None
    others = [result.rows["newest"][key] for key in KEYS if key != "pairwise_accuracy"]
    assert others == [None] * len(others)
    assert result.rows["popularity"]["feedback_ne"] is not None


def test_bad_arguments(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="protocol: expected one of temporal, leave-last-out, yambda, found 'random'"):
        evaluate({}, dataset, protocol="random")
    with pytest.raises(ValueError, match="k: expected cut-offs"):
        evaluate({}, dataset, k=[0])
    with pytest.raises(ValueError, match="max_events"):
        evaluate({}, dataset, max_events=0)


def test_nan_predictions_are_refused(dataset: Dataset) -> None:
    class Broken(Clairvoyant):
        def predict(self, rows: np.ndarray) -> Predictions:
            good = super().predict(rows)
            assert good.ranking is not None
            good.ranking[dataset.grade[rows] >= 0] = np.nan
            return good

    with pytest.raises(ValueError, match="NaN"):
        evaluate({"model": Broken(dataset)}, dataset)


def test_standard_errors_stand_beside_the_figures(dataset: Dataset) -> None:
    result = evaluate({}, dataset)
    error = result.standard_errors["oracle"]["ndcg@10"]
    assert error is not None and 0 < error < 0.2


def test_of_one_item_alone_nothing_is_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a data set is no longer made, but may have been."""
    monkeypatch.setattr(EventChecker, "finish", lambda self, items, unpublished=None: None)
    row = np.arange(20)
    with DatasetWriter(
        tmp_path / "d", name="one", source="test", context={}, feedback={"like": BINARY}, item_features={}, grades="",
        pair_window=60,
    ) as writer:  # fmt: skip
        writer.write_events({
            "user": row // 10, "item": row * 0, "time": row, "organic": row < 0, "grade": row % 2,
            "feedback_like": row % 2,
        })  # fmt: skip
        writer.write_users(["a", "b"])
        writer.write_items([7], {})
    found = evaluate({}, load_dataset(tmp_path / "d"), protocol="leave-last-out", item_average=True, item_knn=True)
    for values in found.rows.values():
        assert (values["ndcg@10"], values["next_item_ne"]) == (1.0, None)
