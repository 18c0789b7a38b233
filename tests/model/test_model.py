"""The model's surface: shapes, probabilities, scores, hashing, what is trained and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from python_model.config import FORMS, FeatureSpec, preset
from python_model.data.schema import Dataset
from python_model.model.argus import Argus, item_columns_of
from python_model.model.losses import PretrainLoss
from tests.model.conftest import FEATURES, SMALL, random_batch, small_model
from tests.model.test_losses import CATALOGUE


@pytest.mark.parametrize("form", FORMS)
def test_readings_have_one_row_an_event(form: str) -> None:
    model, batch = small_model(form), random_batch([4, 0, 3], padding=2)
    queries, items = model.next_item_queries(batch), model.item_matrix()
    assert queries.shape == (9, 8) and items.shape == (40, 8)
    assert model.next_item_scores(queries, items).shape == (9, 40)
    assert model.feedback_logits(batch).shape == (9, 7)
    assert model.user_vectors(batch).shape == (9, 8)
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(items.norm(dim=1), torch.ones(40))


def test_feedback_probabilities_are_those_of_the_logits() -> None:
    model, batch = small_model(), random_batch([6])
    logits, found = model.feedback_logits(batch), model.feedback_probabilities(batch)
    assert list(found) == ["like", "skip", "share"]
    torch.testing.assert_close(found["skip"], torch.sigmoid(logits[:, 1]))
    torch.testing.assert_close(found["share"], logits[:, 2:].softmax(-1))


def test_ranking_kinds() -> None:
    model, batch = small_model(), random_batch([6, 4])
    own = model.next_item_scores(model.next_item_queries(batch), model.item_matrix())
    own = own[torch.arange(10), batch.items]
    torch.testing.assert_close(model.ranking_scores(batch, "next_item"), own)
    p = model.feedback_probabilities(batch)
    expected = p["like"] - p["skip"] + p["share"] @ torch.tensor([0, 0.25, 0.5, 0.75, 1])
    torch.testing.assert_close(model.ranking_scores(batch, "feedback"), expected)
    assert torch.equal(model.ranking_scores(batch), model.ranking_scores(batch, "next_item"))
    model.stage = "finetune"
    assert torch.equal(model.ranking_scores(batch), model.ranking_scores(batch, "pair", model.encode(batch)))
    with pytest.raises(ValueError, match="kind is 'best', expected one of pair, next_item, feedback"):
        model.ranking_scores(batch, "best")


@pytest.mark.parametrize("value", [-50.0, 0.0, 50.0])
def test_the_temperature_stays_in_its_range(value: float) -> None:
    model = small_model()
    with torch.no_grad():
        model.log_temperature.fill_(value)
    assert float(model.temperature.detach()) == pytest.approx(min(max(math.exp(value), 0.01), 100))


def test_an_unknown_item_reads_as_nothing() -> None:
    model, batch = small_model(), random_batch([3])
    unknown = replace(batch, items=torch.tensor([3, -1, 4]))
    assert model.feedback_logits(unknown).isfinite().all()
    vectors = model.item_vectors(torch.tensor([-1, -1]))
    torch.testing.assert_close(vectors[0], torch.nn.functional.normalize(model.item_tower.bias, dim=0))


def test_hashed_items_share_one_table(tiny_service: Dataset) -> None:
    config = replace(SMALL, item_hashes=2, hash_rows=11)
    columns = item_columns_of(config, tiny_service)
    assert columns.shape == (2 + len(tiny_service.info.item_features), tiny_service.info.items)
    assert columns[:2].min() >= 0 and columns[:2].max() < 11
    model = Argus.for_dataset(config, tiny_service)
    assert model.tables["item"].shape == (11, SMALL.item_width)
    pairs = len(set(zip(columns[0].tolist(), columns[1].tolist(), strict=True)))
    assert len(model.item_matrix().unique(dim=0)) >= pairs > 11


@pytest.mark.parametrize("form", FORMS)
def test_sparse_and_dense_table_gradients_agree(form: str) -> None:
    batch = random_batch([6, 3])
    gradients = []
    for sparse in (False, True):
        model = small_model(form, sparse=sparse)
        PretrainLoss(CATALOGUE, model)(batch, 0)[0].backward()
        gradients.append({name: table.grad for name, table in model.tables.weights.items()})
    for name, dense in gradients[0].items():
        given = gradients[1][name]
        assert dense is not None and given is not None and given.is_sparse and not dense.is_sparse
        torch.testing.assert_close(given.to_dense(), dense, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_autocast_is_close(form: str) -> None:
    model, batch = small_model(form), random_batch([6, 3])
    loss = PretrainLoss(CATALOGUE, model)
    exact, _ = loss(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = loss(batch, 0)
    rounded.backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[], [0, 0], [1]])
def test_batches_with_next_to_nothing_in_them(form: str, lengths: list[int]) -> None:
    model, batch = small_model(form, lag=5), random_batch(lengths)
    assert model.user_vectors(batch).shape == (sum(lengths), 8)
    assert model.next_item_queries(batch).isfinite().all()
    assert model.feedback_logits(batch).isfinite().all()


def test_item_columns_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"item_columns has shape \[1, 40\], expected \[2, 40\]"):
        Argus(SMALL, FEATURES, torch.zeros(1, 40, dtype=torch.int32))


def test_a_history_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="a history of 6 events, expected at most max_events = 5"):
        small_model(max_events=5).next_item_queries(random_batch([2, 6]))


def test_a_vocabulary_without_feedback_is_refused() -> None:
    with pytest.raises(ValueError, match=r"feedback is \{\}, expected at least one feedback component"):
        FeatureSpec(items=3)


def test_the_tiny_preset_takes_data_without_item_features(tiny_service: Dataset) -> None:
    features = replace(FeatureSpec.of(tiny_service.info), item_features={})
    model = Argus(preset("tiny"), features, torch.arange(features.items)[None].int())
    assert model.item_matrix().shape == (features.items, 64)
