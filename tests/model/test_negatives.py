"""The negatives: their logQ against counts, merging against the unmerged loss, gathering over two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from argus_kernels import sampled_softmax_loss
from python_model.config import TrainConfig
from python_model.model.negatives import UNIFORM_OWNER, Negatives, NegativeSampler, gather_across_ranks, merge_repeated


class TestNegatives:
    def test_the_correction_is_the_expected_count(self) -> None:
        items, share = 50, np.arange(1, 51) / np.arange(1, 51).sum()
        random = np.random.default_rng(0)
        sampler = NegativeSampler(TrainConfig(negatives_in_batch=64, negatives_uniform=20), items)
        counts = np.zeros(items)
        steps = 1500
        for step in range(steps):
            drawn = sampler.draw(step, random.choice(items, 64, p=share), np.zeros(64, np.int64))
            counts += np.bincount(drawn.items.numpy(), minlength=items)
        expected = np.exp(sampler.log_q(np.arange(items), (64, 20)).numpy())
        np.testing.assert_allclose(counts / steps, expected, rtol=0.12)
        np.testing.assert_allclose(expected.sum(), 84, rtol=1e-3)

    def test_draws_depend_on_seed_and_step_alone(self) -> None:
        batch, owner = np.arange(30) % 7, np.arange(30) // 10
        config = TrainConfig(negatives_in_batch=8, negatives_uniform=8)
        first, second = NegativeSampler(config, 100), NegativeSampler(config, 100)
        first.draw(0, batch, owner)
        second.sketch.update(batch)
        one, two = first.draw(5, batch, owner), second.draw(5, batch, owner)
        assert torch.equal(one.items, two.items) and torch.equal(one.log_q, two.log_q)
        assert not torch.equal(one.items, second.draw(6, batch, owner).items)
        other = NegativeSampler(replace(config, seed=1), 100)
        assert not torch.equal(one.items, other.draw(5, batch, owner).items)

    def test_negatives_are_cut_down_to_the_data_and_know_their_owner(self) -> None:
        drawn = NegativeSampler(TrainConfig(), 10).draw(0, np.array([1, 2, 2]), np.array([0, 0, 4]))
        assert drawn.mix == (3, 10)
        assert sorted(drawn.items[3:].tolist()) == list(range(10))
        assert drawn.owner[3:].tolist() == [UNIFORM_OWNER] * 10
        owner_of = {(1, 0), (2, 0), (2, 4)}
        assert set(zip(drawn.items[:3].tolist(), drawn.owner[:3].tolist(), strict=True)) == owner_of


class TestMerging:
    def test_each_item_and_owner_once_with_its_count(self) -> None:
        given = Negatives(
            torch.tensor([3, 1, 3, 3]),
            torch.tensor([0, 0, 0, UNIFORM_OWNER]),
            torch.tensor([0.5, 0.0, 0.5, 0.5]),
            (3, 1),
        )
        merged = merge_repeated(given)
        assert merged.items.tolist() == [1, 3, 3]
        assert merged.owner.tolist() == [0, UNIFORM_OWNER, 0]
        torch.testing.assert_close(merged.log_q, torch.tensor([0.0, 0.5, 0.5 - np.log(2)], dtype=torch.float32))
        assert merged.mix == given.mix

    def test_the_loss_and_its_gradients_stay_the_same(self) -> None:
        random = np.random.default_rng(0)
        items, owner = random.integers(0, 12, 60), random.integers(0, 4, 60)
        plain = TrainConfig(negatives_in_batch=40, negatives_uniform=8)
        results = []
        for config in (plain, replace(plain, merge_negatives=True)):
            negatives = NegativeSampler(config, 12).draw(0, items, owner)
            table = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
            query = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
            positives = torch.from_numpy(items)
            loss, _ = sampled_softmax_loss(
                query, table[positives], table[negatives.items], positives, negatives.items, negatives.log_q,
                query_owner=torch.from_numpy(owner), candidate_owner=negatives.owner,
            )  # fmt: skip
            loss.sum().backward()
            results.append((len(negatives.items), loss.detach(), table.grad, query.grad))
        assert results[1][0] < results[0][0]
        for merged, unmerged in zip(results[1][1:], results[0][1:], strict=True):
            torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)

    def test_the_refined_form_refuses_it(self) -> None:
        with pytest.raises(ValueError, match="merge_negatives is True, expected false with softmax_form"):
            TrainConfig(merge_negatives=True, softmax_form="refined")


BATCHES = [([5, 7, 7], [0, 0, 1]), ([2], [0]), ([], [])]


def _gather(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(BATCHES))
    batch, owner = (np.array(values, np.int64) for values in BATCHES[rank])
    sampler = NegativeSampler(TrainConfig(negatives_in_batch=4, negatives_uniform=3), 9)
    drawn = sampler.draw(0, batch, owner)
    torch.save((*gather_across_ranks(batch, owner), drawn.items, drawn.log_q), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_their_batches(tmp_path: Path) -> None:
    """Every rank draws the same negatives from all batches; only its own items have an owner."""
    start_processes(_gather, (str(tmp_path),), nprocs=len(BATCHES), start_method="spawn")
    found: list[Any] = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(len(BATCHES))]
    begin = 0
    for rank, (batch, owner) in enumerate(BATCHES):
        items, owners, drawn, log_q = found[rank]
        assert items.tolist() == [5, 7, 7, 2]
        expected = np.full(4, UNIFORM_OWNER)
        expected[begin : begin + len(batch)] = owner
        assert owners.tolist() == expected.tolist()
        assert torch.equal(drawn, found[0][2]) and torch.equal(log_q, found[0][3])
        begin += len(batch)
    assert sorted(found[0][2][:4].tolist()) == [2, 5, 7, 7]


def test_one_rank_gathers_nothing() -> None:
    items, owner = np.arange(3), np.zeros(3, np.int64)
    assert gather_across_ranks(items, owner)[0] is items
