"""The Yambda protocol on files in the published schema: split, Listen+, one list a user, and the whole chain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch, evaluation_batches
from python_model.data.readers.yambda import read_yambda
from python_model.data.schema import Dataset, load_dataset
from python_model.data.splits import make_split, positive_events, targets_of, yambda_starts
from python_model.evaluation.baselines import Popularity
from python_model.evaluation.evaluate import evaluate
from python_model.evaluation.inference import ModelPredictor
from python_model.evaluation.predictions import Predictions
from python_model.evaluation.user_lists import Requests, UserLists
from python_model.model.argus import Argus
from python_model.model.losses import PretrainLoss
from python_model.train import train
from python_model.training.runs import evaluate_runs, open_runs
from tests.model.conftest import SMALL
from tests.model.data.test_yambda import LISTENS, table, write_flat

DAY, GAP = 86_400, 1_800
CONFIG = TrainConfig(
    steps=3, batch_events=256, window=32, negatives_in_batch=16, negatives_uniform=16, sketch_width=128,
    protocol="yambda",
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Thirty users of a week; the last of them comes on the last day."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(30):
        times = np.sort(random.integers(0, 7 * DAY // 5, 60)) * 5
        times[0], times[-1] = 5, 7 * DAY
        if user == 29:
            times = times[times > 6 * DAY]
        for time in times.tolist():
            percent = int(random.choice([0, 10, 49, 50, 51, 79, 100, 140]))
            rows.append((user * 3, time, int(random.integers(0, 25)), int(random.integers(0, 2)), percent, 200))
    folder = tmp_path_factory.mktemp("yambda")
    write_flat(folder / "flat" / "50m" / "listens.parquet", table(LISTENS, rows))
    read_yambda(folder, folder / "prepared")
    return load_dataset(folder / "prepared")


class Scores:
    """Random scores, some of them equal."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.scores = torch.randint(0, 12, (dataset.info.users, dataset.info.items)).float()

    def predict(self, rows: np.ndarray) -> Predictions:
        return Popularity(self.dataset, rows).predict(rows)

    def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
        yield from self.scores[torch.from_numpy(requests.users)].split(7)


def test_the_days_their_gaps_and_listen_plus(dataset: Dataset) -> None:
    split, time = make_split(dataset, "yambda"), dataset.time
    assert yambda_starts(dataset) == {"validation": 5 * DAY - GAP, "test": 6 * DAY}
    assert np.array_equal(split.train, time < 5 * DAY - 2 * GAP)
    assert np.array_equal(split.validation, (time >= 5 * DAY - GAP) & (time < 6 * DAY - GAP))
    assert np.array_equal(split.test, time >= 6 * DAY)
    assert dataset.info.params["share_edges_pct"] == [20, 40, 50, 60, 80]
    share = dataset.feedback("share")
    assert np.array_equal(positive_events(dataset), share >= 3)
    assert set(share.tolist()) == {0, 2, 3, 4, 5}, "49 % is below 50 %, in a bin of its own"


@pytest.mark.parametrize("part", ["validation", "test"])
def test_lists_are_those_of_the_definition(dataset: Dataset, part: str) -> None:
    split, scores = make_split(dataset, "yambda"), Scores(dataset)
    start = yambda_starts(dataset)[part]
    rows = split.test if part == "test" else split.validation
    ndcg, recall = [], []
    for user in range(dataset.info.users):
        mine = dataset.user == user
        wanted = set(dataset.item[mine & rows & positive_events(dataset)].tolist())
        if not wanted or not (mine & (dataset.time < start - GAP)).any():
            continue
        values = scores.scores[user].tolist()
        ranks = [sum(value >= values[item] for value in values) for item in wanted]
        best = sum(1 / math.log2(1 + r) for r in range(1, min(5, len(wanted)) + 1))
        ndcg.append(sum(1 / math.log2(1 + r) for r in ranks if r <= 5) / best)
        recall.append(sum(r <= 5 for r in ranks) / len(wanted))
    assert len(ndcg) < dataset.info.users, "the last user has no history"
    result = evaluate({"scores": scores}, dataset, protocol="yambda", part=part, k=[5])
    assert result.rows["scores"]["ndcg@5"] == pytest.approx(np.mean(ndcg))
    assert result.rows["scores"]["recall@5"] == pytest.approx(np.mean(recall))
    assert result.counts["lists"] == len(ndcg)
    assert any(f"means over {len(ndcg)} users" in note for note in result.notes)


@pytest.mark.parametrize(
    ("definition", "ndcg", "recall"), [("per-user", 1.0, 1.0), ("benchmark", 1 / (1 + 1 / math.log2(3)), 0.5)]
)
def test_one_relevant_item_heard_twice_and_ranked_first(
    tmp_path: Path, definition: str, ndcg: float, recall: float
) -> None:
    """User 0 hears item 5 twice on the last day; user 3 has no Listen+ event before the gap."""
    rows = [
        (0, 5, 1, 0, 100, 200), (0, 7 * DAY - 50, 5, 0, 100, 200), (0, 7 * DAY, 5, 0, 100, 200),
        (0, 5 * DAY, 2, 0, 100, 200), (3, 5, 1, 0, 10, 200), (3, 7 * DAY - 10, 2, 0, 100, 200),
    ]  # fmt: skip
    write_flat(tmp_path / "flat" / "50m" / "listens.parquet", table(LISTENS, sorted(rows)))
    read_yambda(tmp_path, tmp_path / "prepared")
    dataset = load_dataset(tmp_path / "prepared")

    class Knows:
        def predict(self, rows: np.ndarray) -> Predictions:
            return Popularity(dataset, rows).predict(rows)

        def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
            for user in requests.users:
                item = dataset.item[dataset.offsets[user + 1] - 1]
                yield torch.arange(dataset.info.items)[None] * -1.0 + 100 * (torch.arange(dataset.info.items) == item)

    result = evaluate({"knows": Knows()}, dataset, protocol="yambda", k=[10], lists=definition)
    assert result.rows["knows"]["ndcg@10"] == pytest.approx(ndcg, abs=1e-6)
    assert result.rows["knows"]["recall@10"] == pytest.approx(recall)
    assert result.counts["lists"] == (2 if definition == "per-user" else 1)
    assert ("repeated listens count" in result.notes[-1]) == (definition == "benchmark")


def test_the_benchmark_divides_mean_by_mean(dataset: Dataset) -> None:
    """One user with 1 relevant item at rank 2, another with 3 listens of 2 items at ranks 1 and 11."""
    lists = UserLists(dataset, make_split(dataset, "yambda"), "test", np.arange(dataset.info.users), "benchmark")
    lists._owner, lists._wanted = np.array([0, 1, 1]), np.array([1, 3])
    lists.requests = Requests(np.array([0, 1]), np.array([1, 1]), 0)
    gains = lists.gains(np.array([2, 1, 11]), 10)
    dcg, ideal = gains["ndcg"]
    np.testing.assert_allclose(dcg, [1 / math.log2(3), 1.0])
    np.testing.assert_allclose(ideal, [1.0, 1 + 1 / math.log2(3) + 0.5])
    np.testing.assert_allclose(gains["recall"][0] / gains["recall"][1], [1.0, 1 / 3])


def test_benchmark_metrics_are_of_the_yambda_protocol(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="metrics: expected per-user, or benchmark with the protocol yambda, found b"):
        evaluate({}, dataset, protocol="temporal", lists="benchmark")


def test_popularity_counts_listen_plus_of_the_training_part(dataset: Dataset) -> None:
    split = make_split(dataset, "yambda")
    counts = np.bincount(dataset.item[split.train & positive_events(dataset)], minlength=dataset.info.items)
    lists = UserLists(dataset, split, "test", np.arange(dataset.info.users))

    class Counts:
        def catalogue_scores(self, requests: Requests) -> Iterator[Tensor]:
            yield torch.from_numpy(counts)[None].expand(len(requests.users), -1)

    row, _ = lists.row(Counts(), [10])
    assert evaluate({}, dataset, protocol="yambda").rows["popularity"]["ndcg@10"] == row["ndcg@10"]


def test_a_list_knows_what_is_older_than_the_gap_and_nothing_younger(dataset: Dataset) -> None:
    model = Argus.for_dataset(SMALL, dataset)
    requests = UserLists(dataset, make_split(dataset, "yambda"), "test", np.arange(dataset.info.users)).requests
    user, end = int(requests.users[0]), int(requests.ends[0])
    assert dataset.time[end - 1] < requests.time - GAP <= dataset.time[end] and dataset.user[end] == user

    def first(changed_row: int) -> Tensor:
        changed = Dataset(dataset.path)
        item = dataset.item.copy()
        item[changed_row] = (item[changed_row] + 1) % dataset.info.items
        changed._columns["item"] = item
        return next(ModelPredictor(model, changed, window=64).catalogue_scores(requests))[0]

    assert torch.equal(first(end), first(end + 1))
    assert not torch.equal(first(end - 1), first(end))


def test_only_listen_plus_is_a_next_item_to_predict(dataset: Dataset) -> None:
    batch: JaggedBatch = next(evaluation_batches(dataset, np.ones(len(dataset), bool), 512, 64))
    model = Argus.for_dataset(SMALL, dataset)
    loss = PretrainLoss(CONFIG, model, targets_of(dataset, CONFIG.protocol))
    skipped = batch.feedback.clone()
    skipped[:, list(model.features.feedback).index("share")] = 2
    _, parts = loss(type(batch)(**{**vars(batch), "feedback": skipped}), 0)
    assert parts["next_item"] == 0 and parts["feedback_share"] > 0
    assert loss(batch, 0)[1]["next_item"] > 0


def test_both_stages_and_the_table(dataset: Dataset, tmp_path: Path) -> None:
    train("pretrain", dataset, tmp_path / "a", SMALL, CONFIG)
    finetune = TrainConfig.from_dict({**vars(CONFIG), "stage": "finetune"})
    train("finetune", dataset, tmp_path / "b", None, finetune, init_from=tmp_path / "a")
    result = evaluate_runs(open_runs([str(tmp_path / "a"), str(tmp_path / "b")], dataset), dataset)
    assert result.protocol == "yambda"
    for name in ("popularity", "pretrained", "finetuned"):
        row = result.rows[name]
        assert all(value is not None for value in row.values()), name
        assert 0 <= row["ndcg@10"] <= 1  # type: ignore[operator]


def test_other_data_are_refused(tiny_service: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"protocol yambda: .* was prepared from synthetic, .* make it with"):
        train("pretrain", tiny_service, tmp_path / "run", SMALL, CONFIG)
    with pytest.raises(ValueError, match="protocol yambda"):
        evaluate({}, tiny_service, protocol="yambda")
