"""End to end: the twin on stock torch computes the same, passes and prefixes agree, the cache gives the same states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks.harness.ceilings import measure_ceilings
from benchmarks.report.sections import end_to_end as report_section
from benchmarks.scenarios import decoding, end_to_end, impressions, stock, workload
from benchmarks.scenarios.workload import SIZES, lognormal_lengths, make_batch, make_model
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus
from python_model.model.layers import Block, Layout
from python_model.studies import one_pass

SIZE = SIZES["rehearsal"]


def batch_of(*lengths: int) -> JaggedBatch:
    return make_batch(lengths, SIZE.features(), "cpu")


def with_biases(model: Argus) -> Argus:
    """Bias tables are 0 in a new model, which would hide a wrong mask."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.encoder.position_bias.normal_(generator=generator)
        model.encoder.time_bias.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> Argus:
    return with_biases(make_model("tiny", SIZE, "cpu"))


@pytest.mark.parametrize("name", sorted(SIZES))
def test_lengths_sum_up_and_keep_the_longest(name: str) -> None:
    size = SIZES[name]
    lengths = lognormal_lengths(size.events, size.longest)
    assert sum(lengths) == size.events
    assert max(lengths) == size.longest and min(lengths) >= 1


@pytest.mark.parametrize("lengths", [(48, 5, 1, 7), (3,), (2, 2, 2, 2)])
def test_the_stock_twin_has_the_same_loss_and_gradients(
    model: Argus, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "PADDED_PAIRS", 30)
    batch = batch_of(*lengths)
    config = workload.train_config(SIZE, "float32")
    twin = stock.stock_model("tiny", SIZE, "cpu")
    twin.load_state_dict(model.state_dict())
    ours, _ = workload.pretrain_step(model, batch, config).loss(batch, 0)
    theirs, _ = stock.stock_step(twin, batch, config).loss(batch, 0)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    names = [name for name, _ in model.named_parameters()]
    gradients = [torch.autograd.grad(loss, list(m.parameters()), allow_unused=True) for loss, m in
                 ((ours, model), (theirs, twin))]  # fmt: skip
    for name, left, right in zip(names, *gradients, strict=True):
        assert (left is None) == (right is None), name
        if left is not None and right is not None:
            left, right = (g.to_dense() if g.is_sparse else g for g in (left, right))
            assert torch.allclose(left, right, rtol=1e-3, atol=1e-5), name


def test_the_stock_step_learns() -> None:
    batch = batch_of(30, 20)
    step = stock.stock_step(stock.stock_model("tiny", SIZE, "cpu"), batch, workload.train_config(SIZE, "float32"))
    before = {name: value.clone() for name, value in step.loss.model.state_dict().items()}  # type: ignore[attr-defined]
    assert torch.isfinite(step())
    after = step.loss.model.state_dict()  # type: ignore[attr-defined]
    assert not torch.equal(before["tables.weights.item"], after["tables.weights.item"])
    assert not torch.equal(before["encoder.blocks.0.up.weight"], after["encoder.blocks.0.up.weight"])


def test_padded_groups_hold_every_event_once() -> None:
    batch = batch_of(9, 1, 4, 4, 1, 7)
    layout = Layout(batch.offsets, batch.time, batch.max_length)
    for most_pairs in (1, 40, 10**9):
        groups = stock.padded_groups(layout, 64, most_pairs)
        rows = torch.cat([group.rows[group.real] for group in groups])
        assert torch.equal(rows.sort().values, torch.arange(26))
        assert all(group.rows.shape[0] * group.rows.shape[1] ** 2 <= max(most_pairs, 81) for group in groups)


def test_useful_flops_are_those_that_torch_counts() -> None:
    """With users of one event attention is a thousandth of the step, and torch counts every other product."""
    batch = batch_of(*[1] * 64)
    config = workload.train_config(SIZE, "float32")
    step = stock.stock_step(stock.stock_model("tiny", SIZE, "cpu"), batch, config)
    with FlopCounterMode(display=False) as counter:
        loss, _ = step.loss(batch, 0)
        loss.backward()
    useful = workload.step_flops(make_model("tiny", SIZE, "cpu"), batch, negatives=64)
    assert useful == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_attention_flops_grow_with_the_pairs() -> None:
    model = make_model("tiny", SIZE, "cpu")
    one, many = batch_of(64), batch_of(*[1] * 64)
    many = many.__class__(**{**many.__dict__, "items": one.items})
    pairs = 64 * 65 // 2 - 64
    expected = 3 * model.config.layers * 4 * model.config.width * pairs
    assert workload.step_flops(model, one, 8) - workload.step_flops(model, many, 8) == expected


def test_a_prefix_has_the_state_of_the_whole_history(model: Argus) -> None:
    batch = batch_of(12, 1, 30)
    ends = torch.tensor([3, 11, 12, 13, 42])
    pieces = one_pass.prefixes(batch, ends)
    assert pieces.offsets.diff().tolist() == [4, 12, 1, 1, 30]
    with torch.no_grad():
        whole, parts = model.encode(batch), model.encode(pieces)
    assert torch.allclose(whole[ends], parts[pieces.is_target], atol=1e-5)


def test_impressions_are_read_right_before_them() -> None:
    batch = batch_of(20, 1, 15)
    ends = one_pass.impression_ends(batch)
    assert not batch.organic[ends + 1].any()
    owner = torch.repeat_interleave(torch.arange(3), batch.offsets.diff())
    assert torch.equal(owner[ends], owner[ends + 1]), "never the state of another user"
    first = torch.tensor([0, 20, 21])
    expected = (~batch.organic).sum() - (~batch.organic)[first].sum()
    assert len(ends) == expected


def test_prefix_chunks_keep_the_budget_and_the_order() -> None:
    batch = batch_of(20, 15)
    ends = one_pass.impression_ends(batch).flip(0)
    chunks = list(one_pass.prefix_chunks(batch, ends, 40))
    assert len(chunks) > 1 and all(len(chunk) <= 40 for chunk, _ in chunks)
    seen = torch.cat([chunk.rows[wanted] for chunk, wanted in chunks])
    assert torch.equal(seen, ends)


def test_both_ways_train_the_same(model: Argus) -> None:
    """Sums of the gradients of all prefixes are those of one pass."""
    batch = batch_of(10, 6)
    ends = one_pass.impression_ends(batch)
    above = torch.randn(len(ends), model.config.width, generator=torch.Generator().manual_seed(2))
    block = model.encoder.blocks[0]
    assert isinstance(block, Block)

    def gradient_after(events: JaggedBatch, rows: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        one_pass.train_states(model, events, rows, gradients, "float32")
        assert block.up.weight.grad is not None
        return block.up.weight.grad.clone()

    whole = gradient_after(batch, ends, above)
    summed, place = torch.zeros_like(whole), 0
    for chunk, wanted in one_pass.prefix_chunks(batch, ends, 24):
        summed += gradient_after(chunk, wanted, above[place : place + len(wanted)])
        place += len(wanted)
    model.zero_grad()
    assert torch.allclose(whole, summed, rtol=1e-3, atol=1e-4)


def test_the_cost_of_both_ways(model: Argus) -> None:
    cost = impressions.impression_cost(model, batch_of(40, 30), 96, seconds=0.5)
    assert 0 < cost.measured <= cost.impressions
    assert cost.ratio == pytest.approx(cost.per_impression_ms / cost.whole_history_ms.p50)
    assert cost.ratio > 1


@pytest.mark.parametrize("kind", ["paged", "stock"])
def test_event_by_event_gives_the_states_of_one_pass(model: Argus, kind: str) -> None:
    batch = batch_of(20)
    with torch.inference_mode():
        ids = torch.cat([model._context_ids(batch, None), model.item_ids(batch.items), batch.feedback.T])
        tokens = model.event_embedding(model.tables, ids)
        expected = model.eval().encode(batch)
    paged, cached = decoding.PagedDecoder.allocate(model, 1, 64), decoding.StockDecoder.allocate(model, 64)
    states = []
    for place in range(20):
        token, time = tokens[place : place + 1], batch.time[place : place + 1]
        if kind == "paged":
            states.append(paged.append(token, time, torch.tensor([place + 1], dtype=torch.int32)))
        else:
            states.append(cached.append(token, time, place + 1))
    assert torch.allclose(torch.cat(states), expected, atol=1e-4)


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    end_to_end.register(app)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor would take longer than all the rest.
    monkeypatch.setattr("python_model.model.compiled.COMPILER", {"backend": "aot_eager"})
    done = run_command("--rehearse", "--time-budget", "3", "--out", str(tmp_path), "--compiled")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "end_to_end.json").read_text())
    backends = [row["backend"] for row in found["steps"]]
    assert backends[0] == "auto" and backends[-2:] == ["auto, compiled", "stock torch"]
    for row in found["steps"]:
        assert row["skipped"] is None and row["events_per_second"] > 0 and row["mfu"] > 0
    assert found["impressions"]["tiny"]["ratio"] > 1
    assert len(found["decoding"]["tiny"]) == 3
    assert all(one["p50"] <= one["p99"] for one in found["decoding"]["tiny"])
    assert "stock torch" in report_section(found)


def test_a_backend_that_cannot_serve_is_skipped_with_its_reasons() -> None:
    plan = end_to_end.make_plan("cpu", ["tiny"], ["cuda"], "float32", 1.0, rehearse=True)
    rows = end_to_end.step_results(plan, "tiny", measure_ceilings("cpu", ("fp32",), seconds=0.01))
    assert rows[0].ms is None
    assert "expected one of auto, eager" in (rows[0].skipped or "") or "cuda" in (rows[0].skipped or "")
    assert rows[1].backend == "stock torch" and rows[1].ms is not None


def test_presets_that_would_not_end_in_time_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(0, 10**9, 3600))
    saved: list[int] = []
    monkeypatch.setattr(end_to_end, "_measure_preset", lambda plan, name, ceilings, found, say: None)
    plan = end_to_end.make_plan("cpu", ["tiny", "3m"], ["auto"], "float32", 60.0, rehearse=True)
    found = end_to_end.run(plan, save=lambda partial: saved.append(1), clock=lambda: float(next(hours)))
    assert saved == [] and len(found.steps) == 2
    found = end_to_end.run(plan, save=lambda partial: saved.append(1), clock=lambda: 0.0)
    assert saved == [1, 1] and found.steps == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "2b"), "preset is '2b', expected one of tiny, 3m"),
        (("--precision", "fp32"), "precision is 'fp32', expected one of float32, bfloat16"),
        (("--device", "tpu"), "device is 'tpu', expected cpu or cuda"),
        (("--time-budget", "-1"), "time budget is -1.0, expected seconds above 0"),
    ],
)
def test_bad_options_are_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    done = run_command(*arguments)
    assert done.exit_code == 2
    assert message in done.output
