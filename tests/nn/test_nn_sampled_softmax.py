"""SampledSoftmaxLoss: its draws, its frequencies, its correction, and its state."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from argus_kernels import sampled_softmax_loss
from argus_kernels.nn import SampledSoftmaxLoss

ITEMS = 40


def loss_of(**settings: Any) -> SampledSoftmaxLoss:
    return SampledSoftmaxLoss(ITEMS, **{"in_batch": 3, "uniform": 10, "sketch_width": 512} | settings)


def batch() -> tuple[torch.Tensor, torch.Tensor, nn.Embedding]:
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    return torch.randn(8, 16), ids, nn.Embedding(ITEMS, 16)


def test_the_whole_catalogue_is_the_full_softmax() -> None:
    query, ids, table = batch()
    loss = loss_of(in_batch=0, uniform=ITEMS, scale=2.0)
    expected = nn.functional.cross_entropy(2.0 * query @ table.weight.T, ids)
    assert torch.allclose(loss(query, ids, table), expected, atol=1e-5)


def test_it_is_the_op_with_what_it_draws() -> None:
    query, ids, table = batch()
    owner = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    for form in ("standard", "refined"):
        loss = loss_of(form=form, reduction="none")
        twin = copy.deepcopy(loss)
        drawn = twin.draw(ids, owner)
        assert drawn.ids.shape == (13,) and drawn.owner is not None and (drawn.owner[3:] == -1).all()
        expected, _ = sampled_softmax_loss(
            query, table(ids), table(drawn.ids), ids, drawn.ids, drawn.log_q, positive_log_q=drawn.positive_log_q,
            query_owner=owner, candidate_owner=drawn.owner, form=form,
        )  # fmt: skip
        assert torch.equal(loss(query, ids, table, owner=owner), expected)


def test_the_correction_is_how_often_an_item_is_expected() -> None:
    ids = torch.tensor([7] * 6 + [8] * 2)
    loss = loss_of(in_batch=4, uniform=10)
    drawn = loss.draw(ids)
    expected = {7: 4 * 6 / 8 + 10 / ITEMS, 8: 4 * 2 / 8 + 10 / ITEMS}
    # The sketch counts an unseen item as seen once.
    for item, log_q in zip(drawn.ids.tolist(), drawn.log_q.tolist(), strict=True):
        assert log_q == pytest.approx(np.log(expected.get(item, 4 / 8 + 10 / ITEMS)), abs=1e-5)
    assert not loss_of(log_q=False).draw(ids).log_q.any()


def test_rows_without_an_item_or_a_weight_are_left_out() -> None:
    query, ids, table = batch()
    loss = loss_of(in_batch=0, uniform=ITEMS)
    ids[0] = -1
    weight = torch.tensor([1.0, 0, 1, 1, 1, 1, 1, 1])
    query[:2] = float("nan")
    found = loss(query, ids, table, row_weight=weight)
    assert torch.allclose(found, nn.functional.cross_entropy(query[2:] @ table.weight.T, ids[2:]), atol=1e-5)
    assert loss(query, torch.full_like(ids, -1), table).item() == 0


def test_evaluation_counts_nothing_and_repeats() -> None:
    query, ids, table = batch()
    loss = loss_of()
    loss(query, ids, table)
    loss.eval()
    total = loss.sketch.total
    assert torch.equal(loss(query, ids, table), loss(query, ids, table))
    assert loss.sketch.total == total == 8


def test_training_goes_on_where_a_state_left_off() -> None:
    query, ids, table = batch()
    loss = loss_of(learn_scale=True, scale=5.0)
    loss(query, ids, table)
    stored = io.BytesIO()
    torch.save(loss.state_dict(), stored)
    stored.seek(0)
    loaded = loss_of(learn_scale=True)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    copies = [loaded, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    expected = loss(query, ids, table)
    for other in copies:
        assert torch.equal(other(query, ids, table), expected)
    with pytest.raises(ValueError, match="width is 512, expected 64"):
        loss_of(learn_scale=True, sketch_width=64).load_state_dict(loss.state_dict())
    with pytest.raises(ValueError, match="the extra state is not one of this module"):
        loss.set_extra_state({"table": 3})


def test_gradients_reach_query_table_and_scale() -> None:
    query, ids, _ = batch()
    query.requires_grad_()
    table = nn.Embedding(ITEMS, 16, sparse=True)
    loss = loss_of(learn_scale=True, scale=5.0)
    loss(query, ids, table).backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert table.weight.grad is not None and table.weight.grad.is_sparse
    assert loss.log_scale is not None and loss.log_scale.grad is not None


def test_with_negatives_given_it_compiles_as_one_graph() -> None:
    query, ids, table = batch()
    loss = loss_of()
    negatives = loss.draw(ids)
    expected = loss(query, ids, table, negatives=negatives)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, ids, table, negatives=negatives), expected)


def test_without_them_the_draw_is_left_to_eager_execution() -> None:
    query, ids, table = batch()
    loss = loss_of()
    twin = copy.deepcopy(loss)
    assert torch.equal(torch.compile(loss, backend="aot_eager")(query, ids, table), twin(query, ids, table))
    assert loss.sketch.total == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_batch": 0, "uniform": 0}, "in_batch and uniform are 0, expected one of them above 0"),
        ({"form": "best"}, "form is 'best', expected one of standard, refined"),
        ({"form": "refined", "log_q": False}, "log_q is False, expected True with form 'refined'"),
        ({"scale": 1000.0, "learn_scale": True}, "scale is 1000.0, expected 0.01 to 100 with learn_scale"),
        ({"sketch_depth": 99}, "depth is 99"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(**settings)


def test_an_id_outside_the_catalogue_is_named() -> None:
    query, ids, table = batch()
    ids[2] = ITEMS
    loss = loss_of()
    with pytest.raises(ValueError, match=r"positive_ids\[2\] is 40, expected 0 to items − 1 = 39"):
        loss(query, ids, table)
    assert loss.sketch.total == 0 and loss.calls == 0
