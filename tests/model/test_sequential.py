"""SASRec and HSTU as trained baselines: what they may know, their scores and losses, both ends of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from python_model.config import ModelConfig, TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.data.schema import Dataset
from python_model.evaluation.inference import ModelPredictor
from python_model.evaluation.recommend import recommend
from python_model.model.losses import PretrainLoss
from python_model.model.negatives import NegativeSampler
from python_model.model.sequential import SequenceModel
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.progress import read_metrics
from python_model.training.runs import evaluate_runs, open_runs
from tests.model.conftest import FEATURES, SMALL, random_batch

Change = Callable[[JaggedBatch, int, str], JaggedBatch]
KINDS = {"sasrec": "transformer", "hstu": "hstu"}
TRAIN = TrainConfig(
    steps=12, batch_events=256, window=16, learning_rate=5e-3, table_learning_rate=1e-2, warmup_steps=2,
    negatives_in_batch=32, negatives_uniform=32, sketch_width=256, checkpoint_every=5,
)  # fmt: skip


def config_of(kind: str, **changes: Any) -> ModelConfig:
    return replace(SMALL, model=kind, encoder=KINDS[kind], item_width=16, max_events=16, **changes)


def model_of(kind: str) -> SequenceModel:
    """A model whose every parameter is random."""
    torch.manual_seed(0)
    model = SequenceModel(config_of(kind), FEATURES, torch.zeros(2, FEATURES.items))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def said(model: SequenceModel, batch: JaggedBatch, lag: int) -> dict[str, Tensor]:
    with torch.no_grad():
        return {
            "next_item": model.next_item_scores(model.next_item_queries(batch), model.item_matrix()),
            "feedback": model.feedback_logits(batch),
            "lagged": model.queries(model.read_lagged(batch, model.encode(batch), lag)),
        }


def moved(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).reshape(len(before), -1).any(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["items", "feedback", "context", "time"])
def test_what_a_reading_may_know(kind: str, field: str, changed: Change) -> None:
    batch, model, row = random_batch([6, 0, 12, 5]), model_of(kind), 6 + 3
    batch = replace(batch, time=torch.arange(len(batch)) * 1_000)
    later_by = 400 * (batch.rows == row)
    other = replace(batch, time=batch.time + later_by) if field == "time" else changed(batch, row, field)
    before, after = said(model, batch, 2_500), said(model, other, 2_500)
    event = torch.arange(len(batch))
    later = (event > row) & (event < 18)
    known = (event >= row + 3) & (event < 18)
    touched = {name: moved(before[name], after[name]) for name in before}
    if field in ("feedback", "context") or (field == "time" and kind == "sasrec"):
        assert not any(rows.any() for rows in touched.values())
    elif field == "items":
        assert torch.equal(touched["next_item"], later) and torch.equal(touched["lagged"], known)
        assert torch.equal(touched["feedback"], later | (event == row))
    else:
        assert not touched["next_item"][~(later | (event == row))].any() and touched["next_item"][row]
        assert not touched["lagged"][~known].any() and touched["lagged"][known].any()


def test_scores_of_sasrec_are_dot_products_and_of_hstu_cosines_over_its_temperature() -> None:
    batch = random_batch([4, 7])
    for kind in KINDS:
        model = model_of(kind)
        with torch.no_grad():
            states = model.read(batch, model.encode(batch)).item
            table = model.tables["item"]
            expected = states @ table.T
            if kind == "hstu":
                expected = expected / states.norm(dim=1, keepdim=True) / table.norm(dim=1) / 0.05
            found = model.next_item_scores(model.next_item_queries(batch), model.item_matrix())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_positions_count_from_the_first_event_of_each_user() -> None:
    model, batch = model_of("sasrec"), random_batch([5, 5])
    same = replace(batch, items=batch.items[:5].repeat(2))
    states = model.encode(same)
    torch.testing.assert_close(states[:5], states[5:])
    shifted = model.encode(replace(same, items=same.items[:1].expand(10)))
    assert not torch.allclose(shifted[0], shifted[1])
    with pytest.raises(ValueError, match="a history of 17 events, expected at most max_events = 16"):
        model.encode(random_batch([17]))


def test_binary_loss_is_its_definition() -> None:
    batch, model = random_batch([6, 9], padding=2), model_of("sasrec")
    loss = PretrainLoss(replace(TRAIN, next_item_loss="bce"), model)
    _, parts = loss(batch, 3)
    owner = np.repeat([0, 1, 2], [6, 9, 2])
    drawn = loss.sampler.draw_unseen(3, batch.items.numpy(), owner)
    with torch.no_grad():
        scores = model.next_item_queries(batch) @ model.item_matrix().T
    positive = scores.gather(1, batch.items[:, None])[:15, 0]
    negative = scores.gather(1, drawn[:, None])[:15, 0]
    expected = -(logsigmoid(positive) + logsigmoid(-negative)).mean()
    torch.testing.assert_close(parts["next_item"], expected, rtol=1e-4, atol=1e-5)


def test_unseen_items_are_those_that_the_user_has_not() -> None:
    sampler = NegativeSampler(TRAIN, 12)
    items, owner = np.arange(300) % 11, np.repeat([0, 1, 2], 100)
    items[100:200] = 3
    drawn = sampler.draw_unseen(0, items, owner).numpy()
    assert (drawn[:100] == 11).mean() > 0.5, "eleven of twelve are seen: ten draws mostly find the twelfth"
    assert (drawn[100:200] != 3).all() and len(set(drawn[100:200].tolist())) == 11
    assert np.array_equal(drawn, sampler.draw_unseen(0, items, owner).numpy())
    assert not np.array_equal(drawn, sampler.draw_unseen(1, items, owner).numpy())


@pytest.mark.parametrize(("kind", "loss"), [("sasrec", "softmax"), ("sasrec", "bce"), ("hstu", "softmax")])
def test_a_run_learns_resumes_and_is_evaluated(tiny_service: Dataset, tmp_path: Path, kind: str, loss: str) -> None:
    config, run = replace(TRAIN, next_item_loss=loss), tmp_path / "run"
    train("pretrain", tiny_service, run, config_of(kind), config)
    records = read_metrics(run)
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    assert {"next_item", "feedback_like"} <= records[0].keys()
    final = checkpoint.load_recommender(run).state_dict()
    (run / "checkpoints" / "latest").write_text("step-00000010\n")
    train("pretrain", tiny_service, run, config_of(kind), config, resume=True)
    assert all(torch.equal(value, final[name]) for name, value in checkpoint.load_recommender(run).state_dict().items())
    assert checkpoint.load_recommender(run).temperature == pytest.approx(20.0 if kind == "hstu" else 1.0)
    result = evaluate_runs(open_runs([f"{kind}={run}"], tiny_service), tiny_service)
    assert all(value is not None for value in result.rows[kind].values())
    best = recommend(checkpoint.load_recommender(run), tiny_service, np.array([0, 3]), k=3, window=16)
    assert [len(one.items) for one in best] == [3, 3]


def test_what_baselines_do_not_have(tiny_service: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("pretrain", tiny_service, run, config_of("sasrec"), replace(TRAIN, steps=1))
    with pytest.raises(ValueError, match="finetune trains the two towers of ARGUS, and 'sasrec' has none"):
        train("finetune", tiny_service, tmp_path / "b", None, replace(TRAIN, stage="finetune"), init_from=run)
    with pytest.raises(ValueError, match="holds the baseline 'sasrec', expected a run of ARGUS"):
        checkpoint.load_model(run)
    predictor = ModelPredictor(checkpoint.load_recommender(run), tiny_service, window=16, ranking_kind="pair")
    with pytest.raises(ValueError, match="kind is 'pair', expected next_item or feedback: sasrec has no other score"):
        predictor.predict(np.arange(5))
    with pytest.raises(ValueError, match="score: 'pair' is of ARGUS' two towers"):
        recommend(checkpoint.load_recommender(run), tiny_service, np.array([0]), window=16, score="pair")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert4rec"}, "model is 'bert4rec', expected one of argus, sasrec, hstu"),
        ({"form": "full"}, "form is 'full', expected simplified with model='sasrec'"),
        ({"model": "hstu"}, "encoder is 'transformer', expected hstu with model='hstu'"),
        ({"item_width": 8}, "item_width is 8, expected width = 16"),
        ({"item_hashes": 2, "hash_rows": 9}, "item_hashes is 2, expected 0 with model='sasrec'"),
    ],
)
def test_settings_that_do_not_fit_a_baseline(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config_of("sasrec"), **changes)
