"""The losses: negatives and their logQ, the joint loss against its definition, pairs against an explicit list."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from python_model.config import FORMS, TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.model.losses import FinetuneLoss, PretrainLoss, rated_rows
from tests.model.conftest import FEATURES, random_batch, small_model

CATALOGUE = TrainConfig(negatives_in_batch=0, negatives_uniform=FEATURES.items)


@pytest.mark.parametrize("form", FORMS)
class TestPretraining:
    def test_with_the_whole_catalogue_it_is_the_full_softmax_and_plain_feedback_losses(self, form: str) -> None:
        model, batch = small_model(form), random_batch([7, 1, 0, 5], padding=3)
        batch = replace(batch, is_target=batch.is_target & (torch.arange(len(batch)) % 3 > 0))
        config = replace(CATALOGUE, next_item_weight=0.5, feedback_weights={"skip": 2.0})
        loss, parts = PretrainLoss(config, model)(batch, 0)
        counted = batch.is_target
        logits = model.next_item_scores(model.next_item_queries(batch), model.item_matrix())
        next_item = cross_entropy(logits[counted], batch.items[counted])
        torch.testing.assert_close(parts["next_item"], next_item.detach(), rtol=1e-5, atol=1e-5)
        feedback = plain_feedback_losses(model, batch)
        for name, value in feedback.items():
            torch.testing.assert_close(parts[f"feedback_{name}"], value.detach(), rtol=1e-5, atol=1e-5)
        expected = 0.5 * next_item + feedback["like"] + 2 * feedback["skip"] + feedback["share"]
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("softmax_form", ("standard", "refined"))
    def test_every_weight_gets_a_finite_gradient(self, form: str, softmax_form: str) -> None:
        model, batch = small_model(form), random_batch([7, 1, 0, 5], padding=3)
        config = TrainConfig(negatives_in_batch=6, negatives_uniform=6, softmax_form=softmax_form)
        loss, _ = PretrainLoss(config, model)(batch, 0)
        loss.backward()
        for name, parameter in model.named_parameters():
            if name.startswith("user_head"):
                assert parameter.grad is None
            else:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def plain_feedback_losses(model: Argus, batch: JaggedBatch) -> dict[str, torch.Tensor]:
    """Mean over the observed target rows, component by component, by torch's own losses."""
    out = {}
    for index, (name, logits) in enumerate(
        zip(FEATURES.feedback, model.feedback_logits(batch).split(FEATURES.logits, -1), strict=True)
    ):
        target = batch.feedback[:, index]
        seen = (target >= 0) & batch.is_target
        if logits.shape[1] == 1:
            out[name] = binary_cross_entropy_with_logits(logits[seen, 0], target[seen].float())
        else:
            out[name] = cross_entropy(logits[seen], target[seen])
    return out


def test_weights_of_unknown_components_are_refused() -> None:
    with pytest.raises(ValueError, match="feedback_weights names clap; the data has like, skip, share"):
        PretrainLoss(TrainConfig(feedback_weights={"clap": 1.0}), small_model())


class TestFinetuning:
    @pytest.mark.parametrize("form", FORMS)
    def test_it_is_the_mean_over_the_pairs_of_a_user(self, form: str) -> None:
        model, batch = small_model(form, lag=50_001), random_batch([9, 1, 0, 6], padding=3)
        batch = replace(batch, is_target=batch.is_target & (torch.arange(len(batch)) != 4))
        window = 50_000
        loss, parts = FinetuneLoss(TrainConfig(stage="finetune"), model, window)(batch, 0)
        scores = model.ranking_scores(batch, "pair")
        margins = []
        for begin, end in pairwise(batch.offsets.tolist()):
            rows = [t for t in range(begin, end) if batch.grade[t] >= 0 and batch.is_target[t]]
            margins += [
                scores[a] - scores[b]
                for a in rows
                for b in rows
                if batch.grade[a] > batch.grade[b] and abs(int(batch.time[a] - batch.time[b])) <= window
            ]
        stacked = torch.stack(margins)
        assert 5 < len(margins) == int(parts["pairs"])
        torch.testing.assert_close(loss, -logsigmoid(stacked).mean(), rtol=1e-5, atol=1e-6)
        assert float(parts["pairwise_accuracy"]) == pytest.approx(float((stacked > 0).float().mean()))

    def test_a_lag_that_lets_a_score_know_its_own_pair_is_refused(self) -> None:
        with pytest.raises(ValueError, match="lag is 60 s, expected more than the pair window of 60 s"):
            FinetuneLoss(TrainConfig(stage="finetune"), small_model(lag=60), 60)

    def test_without_pairs_the_loss_is_zero_and_trainable(self) -> None:
        model, batch = small_model(lag=1), random_batch([4, 2])
        loss, parts = FinetuneLoss(TrainConfig(stage="finetune"), model, 0)(
            replace(batch, grade=torch.full((6,), -1)), 0
        )
        loss.backward()
        assert loss.item() == 0 and int(parts["pairs"]) == 0

    def test_the_regulariser_adds_the_joint_loss(self) -> None:
        model, batch = small_model(lag=10**6 + 1), random_batch([9, 6])
        plain, _ = FinetuneLoss(replace(CATALOGUE, stage="finetune"), model, 10**6)(batch, 0)
        with_joint, parts = FinetuneLoss(replace(CATALOGUE, stage="finetune", pretrain_weight=0.1), model, 10**6)(
            batch, 0
        )
        joint, _ = PretrainLoss(CATALOGUE, model)(batch, 0)
        torch.testing.assert_close(with_joint, plain + 0.1 * joint)
        assert "next_item" in parts


def test_rated_rows_leave_out_padding_and_ungraded_events() -> None:
    batch = random_batch([2, 0, 3], padding=2)
    batch = replace(batch, grade=torch.tensor([1, -1, 0, 2, -1, 3, 3]), is_target=torch.ones(7, dtype=torch.bool))
    rows, offsets = rated_rows(batch)
    assert rows.tolist() == [0, 2, 3]
    assert offsets.tolist() == [0, 1, 1, 3] and offsets.dtype == torch.int32
