"""Several ranks: they compute what one computes, each holds its part, and checkpoints fit any number of them."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from python_model.data.schema import load_dataset
from python_model.data.synthetic import generate, preset
from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.training import checkpoint
from python_model.training.progress import read_metrics
from python_model.training.row_sharding import BLOCK, RowSharding, initial_rows, span
from tests.model.training import distributed_worker as worker

LOSSES_OF = {"float32": 2e-6, "bfloat16": 5e-3}
"""How far losses may be apart, relative: sums are taken in another order, and bfloat16 rounds what differs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: each case on one rank and on two, and what goes on from another's checkpoint."""
    folder = tmp_path_factory.mktemp("ranks")
    generate(folder / "data", preset("demo", users=60, events_per_user=40.0, days=20, clusters=4, artists=4, tracks=4))
    for name in worker.cases():
        worker.train_one(folder, name)
    # One process imports torch and the model, all ranks are forked from it.
    multiprocessing.set_forkserver_preload(["python_model.training.checkpoint.sharded", worker.__name__])
    for size, work in ((2, worker.train_all), (4, worker.train_on_four)):
        start_processes(worker.in_ranks, (size, str(folder), work), nprocs=size, start_method="forkserver")
    worker.go_on(folder, 2)
    return folder


def records(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key not in ("seconds", "stage")} for one in read_metrics(run)]


def assert_same_losses(one: Path, other: Path, tolerance: float) -> None:
    first, second = records(one), records(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance), f"step {a['step']} of {one.name} and {other.name}"


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    first, second = (checkpoint.load_model(run).state_dict() for run in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        here, there = without_key_bias(name, value), without_key_bias(name, second[name])
        assert torch.allclose(here, there, rtol=tolerance, atol=tolerance), f"{name} of {one.name}, {other.name}"


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """The gradient of the keys' bias is 0 but for rounding, which AdamW scales up to a step: it says nothing."""
    if not name.endswith("query_key_value.bias"):
        return value
    query, _, values = value.chunk(3)
    return torch.cat([query, values])


@pytest.mark.slow
@pytest.mark.parametrize("name", worker.cases())
def test_two_ranks_compute_what_one_computes(folder: Path, name: str) -> None:
    precision = worker.cases()[name][1].precision
    assert_same_losses(folder / f"{name}-1", folder / f"{name}-2", LOSSES_OF[precision])
    if precision == "float32":
        assert_same_weights(folder / f"{name}-1", folder / f"{name}-2", 1e-4)


@pytest.mark.slow
def test_ranks_validate_and_decide_alike(folder: Path) -> None:
    decided = [json.loads((folder / f"decided-watched-2-{rank}.json").read_text()) for rank in range(2)]
    assert decided[0] == decided[1] and len(decided[0]) > 2
    alone = json.loads((folder / "decided-watched-1-0.json").read_text())
    assert [step for step, _ in alone] == [step for step, _ in decided[0]]
    watches = [
        checkpoint.read_json(checkpoint.find(folder / f"watched-{size}") / checkpoint.STATE)["watch"] for size in (1, 2)
    ]
    assert {watch.pop("metric") for watch in watches} == {"next_item_ne"}
    assert watches[0] == pytest.approx(watches[1], rel=1e-5)
    best = [checkpoint.chosen(folder / f"watched-{size}") for size in (1, 2)]
    assert [path.name for path in best] == [f"step-{watches[0]['best_step']:08d}"] * 2
    assert_same_weights(best[0], best[1], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("written_by", "read_by"), [(2, 1), (2, 4), (1, 4)])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(folder: Path, written_by: int, read_by: int) -> None:
    run = folder / f"from-{written_by}-on-{read_by}"
    assert_same_losses(folder / "rowwise-1", run, 2e-6)
    assert_same_weights(folder / "rowwise-1", run, 1e-4)


@pytest.mark.slow
def test_each_rank_holds_its_part(folder: Path) -> None:
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(2)]
    model = Argus.for_dataset(worker.MODEL, load_dataset(folder / "data"))
    cut = 0
    for name, parameter in model.named_parameters():
        parts = [one[name] for one in held]
        copied = parameter.dim() == 0 or (name.startswith("tables.") and parameter.shape[0] < 16)
        copied |= any(name == f"tables.weights.{table}" for table in ("organic", "gap"))
        if copied:
            assert parts == [list(parameter.shape)] * 2, name
        else:
            rows = parameter.shape[0]
            assert [part[0] for part in parts] == [math.ceil(rows / 2), rows // 2], name
            cut += name.startswith("tables.")
    assert cut >= 2


@pytest.mark.slow
def test_a_damaged_checkpoint_of_several_ranks_is_refused(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "rowwise-2", run)
    directory = checkpoint.find(run)
    part = next(directory.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(
        DataError, match=r"damaged or truncated: .* found 1,000; the checkpoint before it is .*-00000003"
    ):
        checkpoint.load_model(run)
    with pytest.raises(DataError, match="damaged or incomplete"):
        checkpoint.read_tensors(directory, checkpoint.MODEL, {})
    part.unlink()
    with pytest.raises(DataError, match=f"{part.name}: not found"):
        checkpoint.load_model(run)
    assert checkpoint.recover(run).name == "step-00000003"


@pytest.mark.slow
class TestErrors:
    """An error on one rank ends the run on all of them, with its sentence, and none waits for another."""

    @pytest.fixture
    def ends(self, folder: Path) -> list[dict[str, list[str]]]:
        return [json.loads((folder / f"ends-{rank}.json").read_text()) for rank in range(2)]

    def test_data_that_one_rank_loses(self, folder: Path, ends: list[dict[str, list[str]]]) -> None:
        saved = folder / "lost" / "checkpoints" / "step-00000002"
        sentence = f"part-7.parquet: cannot be read; training is saved at {saved}: put the file back, then resume"
        assert [one["data"] for one in ends] == [["DataError", sentence]] * 2
        assert checkpoint.load_trainer(saved).numbers["place"] == {"epoch": 0, "batch": 8}

    def test_a_loss_that_is_not_finite(self, folder: Path, ends: list[dict[str, list[str]]]) -> None:
        for rank, one in enumerate(ends):
            kind, sentence = one["loss"]
            assert kind == "TrainingDiverged" and "expected finite numbers (1 in a row)" in sentence
            kept = [f"step-00000002-batch-{number}.parquet" for number in (rank, rank + 2)]
            assert all(name in sentence and (folder / "wild" / "skipped" / name).is_file() for name in kept)

    def test_a_run_that_another_process_owns(self, folder: Path, ends: list[dict[str, list[str]]]) -> None:
        kinds, sentences = zip(*(one["taken"] for one in ends), strict=True)
        assert set(kinds) == {"InUseError"} and len(set(sentences)) == 1
        assert sentences[0].startswith(f"{folder / 'taken'} is in use by process ")

    def test_a_full_disk(self, folder: Path, ends: list[dict[str, list[str]]]) -> None:
        for one in ends:
            kind, sentence = one["disk"]
            assert kind == "WriteError" and "step-00000006: cannot be written, the file may not grow" in sentence
        assert not list((folder / "full" / "checkpoints").iterdir())


class TestRows:
    @pytest.mark.parametrize("rows", [1, 2, 7, 8, 4 * BLOCK + 3])
    def test_every_row_lies_on_one_rank(self, rows: int) -> None:
        spans = [span(rank, 3, rows) for rank in range(3)]
        assert [first for first, _ in spans] == [0, *(last for _, last in spans[:-1])]
        assert spans[-1][1] == rows

    def test_a_rank_draws_the_rows_that_one_process_would_have(self) -> None:
        rows, width = 2 * BLOCK + 5, 2
        torch.manual_seed(3)
        whole = initial_rows(rows, width, 1, None)
        assert whole.std() == pytest.approx(2**-0.5, rel=0.02)
        assert not torch.equal(whole[:5], whole[BLOCK : BLOCK + 5])
        for rank in range(3):
            held = span(rank, 3, rows)
            assert torch.equal(initial_rows(rows, width, 1, held), whole[slice(*held)])
        assert not torch.equal(initial_rows(rows, width, 2, None), whole)

    def test_small_tables_are_not_cut(self) -> None:
        sharding = RowSharding(rank=1, ranks=2, least_rows=10)
        assert sharding.span(9) is None and sharding.span(11) == (6, 11)


@pytest.mark.slow
def test_a_run_says_how_many_batches_its_step_has(folder: Path) -> None:
    config = checkpoint.read_description(folder / "rowwise-2").train_config
    assert (config.batches_per_step, config.balanced) == (4, True)
    assert checkpoint.read_description(folder / "from-1-on-4").train_config.balanced is True
