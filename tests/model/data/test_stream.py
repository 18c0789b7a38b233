"""Shards and the batches from them: nothing lost, nothing twice, resumable anywhere, the same on any ranks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch, Step
from python_model.data.schema import Dataset, load_dataset, validate
from python_model.data.shards import kth_smallest, shard_dataset
from python_model.data.splits import split_at, temporal_split
from python_model.data.stream import Block, ShardStream
from python_model.io.errors import DataError
from python_model.train import train, training_rows
from python_model.training import checkpoint
from python_model.training.progress import read_metrics
from python_model.training.start import batch_source
from tests.model.training.test_train import MODEL, PRETRAIN

CONFIG = TrainConfig(batch_events=64, window=16, seed=5)
SHARDS, OF = 5, 3


@pytest.fixture(scope="module")
def sharded(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The service in five files of many small row groups."""
    out = tmp_path_factory.mktemp("shards") / "data"
    shard_dataset(tiny_service.path, out, SHARDS, row_group=100)
    return load_dataset(out)


def stream(dataset: Dataset, **settings: Any) -> ShardStream:
    source = batch_source(dataset, TrainConfig(**{"batch_events": 64, "window": 16, "seed": 5, **settings}))
    assert isinstance(source, ShardStream)
    return source


def same(one: JaggedBatch, other: JaggedBatch) -> bool:
    return one.rows.tolist() == other.rows.tolist() and one.users.tolist() == other.users.tolist()


def one_epoch(source: ShardStream) -> list[JaggedBatch]:
    """All batches of the first epoch of all lanes, however long each lane is."""
    found = []
    for number in range(OF):
        for step in source.walk(source.start(), [number], OF):
            if step.place["lanes"][str(number)]["epoch"] > 0:
                break
            found += step.batches
    return found


class TestShards:
    def test_they_are_the_data_set_in_whole_users(self, tiny_service: Dataset, sharded: Dataset) -> None:
        validate(sharded.path)
        for name in ("user", "item", "time", "grade", "feedback_skip"):
            assert np.array_equal(sharded.column(name), tiny_service.column(name))
        manifest = sharded.manifest
        assert manifest is not None and len(manifest.shards) == SHARDS
        for one, after in pairwise(manifest.shards):
            assert (one.first_user + one.users, one.first_row + one.events) == (after.first_user, after.first_row)
        assert max(one.events for one in manifest.shards) < 1.5 * len(tiny_service) / SHARDS
        for one in manifest.shards:
            file = pq.ParquetFile(sharded.path / one.file)
            groups = [file.read_row_group(index, ["user"])["user"].to_numpy() for index in range(file.num_row_groups)]
            assert all(before[-1] != after[0] for before, after in pairwise(groups))
            assert min(len(group) for group in groups[:-1]) >= 100

    def test_they_know_when_the_validation_part_begins(self, tiny_service: Dataset, sharded: Dataset) -> None:
        manifest = sharded.manifest
        assert manifest is not None and manifest.last_time == tiny_service.time.max()
        train = tiny_service.time < manifest.temporal_start
        assert np.array_equal(train, temporal_split(tiny_service).train)
        assert split_at(tiny_service, manifest.temporal_start, manifest.last_time).train.sum() == train.sum()

    @pytest.mark.parametrize("spread", [1, 3, 10**6, 2**40])
    def test_the_kth_smallest_of_chunks(self, spread: int) -> None:
        values = np.random.default_rng(spread).integers(-spread, spread, 1000)
        for k in (0, 1, 500, 998, 999):
            assert kth_smallest(lambda: iter(np.array_split(values, 7)), k) == np.sort(values)[k]

    def test_refusals_leave_nothing(self, tiny_service: Dataset, sharded: Dataset, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"shards is 61, expected 1 to the 60 users"):
            shard_dataset(tiny_service.path, tmp_path / "out", 61)
        with pytest.raises(FileExistsError, match="is not empty"):
            shard_dataset(tiny_service.path, sharded.path, 2)
        assert not list(tmp_path.iterdir())

    def test_as_many_shards_as_users(self, tiny_service: Dataset, tmp_path: Path) -> None:
        manifest = shard_dataset(tiny_service.path, tmp_path / "out", 60)
        assert [one.users for one in manifest.shards] == [1] * 60


class TestStream:
    @pytest.mark.parametrize("protocol", ["temporal", "leave-last-out", "all"])
    def test_an_epoch_has_every_training_event_once(
        self, tiny_service: Dataset, sharded: Dataset, protocol: str
    ) -> None:
        batches = one_epoch(stream(sharded, protocol=protocol, train_share=0.8))
        rows = np.concatenate([batch.rows.numpy()[batch.is_target.numpy()] for batch in batches])
        wanted = training_rows(tiny_service, protocol, 0.8)
        assert wanted is not None
        # Windows of one event teach nothing and are left out, as in memory.
        counts = np.bincount(rows, minlength=len(tiny_service))
        assert counts.max() == 1 and not counts[~wanted].any()
        assert counts.sum() > 0.95 * wanted.sum()
        for batch in batches:
            assert len(batch) <= 64
            begins = batch.offsets.numpy()
            assert np.array_equal(tiny_service.user[batch.rows.numpy()[begins[:-1]]], batch.users.numpy())
            assert np.array_equal(tiny_service.item[batch.rows.numpy()], batch.items.numpy())
            assert np.array_equal(tiny_service.time[batch.rows.numpy()], batch.time.numpy())

    def test_it_resumes_at_any_step(self, sharded: Dataset) -> None:
        source = stream(sharded)
        steps = list(islice(source.walk(source.start(), range(OF), OF), 60))
        assert any(lane["epoch"] > 0 for lane in steps[-1].place["lanes"].values())
        for number in random.Random(0).sample(range(59), 12):
            place = json.loads(json.dumps(steps[number].place))
            for again, meant in zip(source.walk(place, range(OF), OF), steps[number + 1 : number + 4], strict=False):
                assert all(map(same, again.batches, meant.batches)) and again.place == meant.place

    def test_ranks_may_change_and_nothing_else_does(self, sharded: Dataset) -> None:
        """Two ranks for ten steps, then four, one of which has nothing to read."""
        source = stream(sharded)
        alone = list(islice(source.walk(source.start(), range(OF), OF), 20))

        def taken(deal: Sequence[Sequence[int]], place: dict[str, Any]) -> list[list[Step]]:
            return [list(islice(source.walk(place, numbers, OF), 10)) for numbers in deal]

        first = taken([[0, 2], [1, 3]], source.start())
        place = source.merge([steps[-1].place for steps in first])
        second = taken([[0], [1], [2], [3]], place)
        for number, step in enumerate(alone):
            parts = [steps[number] for steps in first] if number < 10 else [steps[number - 10] for steps in second]
            order = [0, 2, 1, 3] if number < 10 else [0, 1, 2, 3]
            batches = [batch for part in parts for batch in part.batches]
            by_number = dict(zip(order, batches, strict=True))
            assert all(same(by_number[one], step.batches[one]) for one in range(OF))
            assert len(by_number[3]) == 0

    def test_epochs_differ_and_seeds_too(self, sharded: Dataset) -> None:
        one, two = (one_epoch(stream(sharded, seed=seed)) for seed in (1, 2))
        assert [batch.rows.tolist() for batch in one] != [batch.rows.tolist() for batch in two]

    def test_memory_is_that_of_blocks(self, sharded: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        sound = Block.__init__

        def noting(self: Block, *arguments: Any) -> None:
            sound(self, *arguments)
            sizes.append(len(self))

        monkeypatch.setattr(Block, "__init__", noting)
        monkeypatch.setattr("python_model.data.stream.BLOCK_BATCHES", 2)
        fresh = load_dataset(sharded.path)
        one_epoch(stream(fresh))
        assert not fresh._columns
        longest = int(np.diff(sharded.offsets).max())
        assert len(sizes) > SHARDS and max(sizes) < 2 * 64 + 100 + longest

    def test_more_batches_than_shards_are_refused(self, sharded: Dataset) -> None:
        with pytest.raises(ValueError, match=r"batches_per_step is 6, expected at most the 5 shards"):
            next(stream(sharded).walk({"lanes": {}}, [0], 6))

    @pytest.mark.parametrize("column", ["user", "time"])
    def test_rows_out_of_order_are_refused(self, tiny_service: Dataset, tmp_path: Path, column: str) -> None:
        shard_dataset(tiny_service.path, tmp_path / "data", OF)
        dataset = load_dataset(tmp_path / "data")
        assert dataset.manifest is not None
        file = dataset.path / dataset.manifest.shards[1].file
        table = pq.read_table(file)
        values = table.column(column).to_numpy().copy()
        if column == "user":
            values[-1] = values[0] - 1  # of the shard before
        else:
            values[1] = values[0] - 1
        place = table.column_names.index(column)
        pq.write_table(table.set_column(place, table.schema.field(place), [values]), file)
        expected = {"user": rf"column 'user', data row {len(values)}: expected a value in \[",
                    "time": "column 'time', data row 2: expected times sorted within a user, found"}  # fmt: skip
        source = stream(load_dataset(dataset.path))
        with pytest.raises(DataError, match=expected[column]):
            one_epoch(source)

    def test_data_that_gives_no_batch(self, sharded: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ShardStream, "_training_rows", lambda self, block: np.zeros(len(block), bool))
        with pytest.raises(ValueError, match=r"shards \[.*\]: train: nobody has two events"):
            next(stream(sharded).walk({"lanes": {}}, [0], 2))

    def test_a_lane_whose_shards_have_nobody_goes_on(self, sharded: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        """One shard in five has events to train on: each lane comes to it in some epoch, and none stops before."""
        assert sharded.manifest is not None
        second = sharded.manifest.shards[1].first_user

        def only_first(self: ShardStream, block: Block) -> np.ndarray:
            return np.full(len(block), block.users[0] < second)

        monkeypatch.setattr(ShardStream, "_training_rows", only_first)
        source = stream(sharded, protocol="all")
        for number in range(OF):
            steps = list(islice(source.walk(source.start(), [number], OF), 30))
            assert all(len(step.batches[0]) > 0 for step in steps)
            assert len({step.place["lanes"][str(number)]["epoch"] for step in steps}) > 1


class TestTraining:
    def test_a_run_goes_on_in_the_middle_of_a_shard(self, sharded: Dataset, tmp_path: Path) -> None:
        config = TrainConfig(**{**vars(PRETRAIN), "steps": 9, "batches_per_step": 2, "checkpoint_every": 4})
        train("pretrain", sharded, tmp_path / "whole", MODEL, config)
        stopped = tmp_path / "stopped"

        class Stop(Exception):
            pass

        def stop(report: Any) -> None:
            if report.step == 6:
                raise Stop

        with pytest.raises(Stop):
            train("pretrain", sharded, stopped, MODEL, config, progress=stop)
        place = checkpoint.load_trainer(checkpoint.find(stopped)).numbers["place"]
        assert set(place["lanes"]) == {"0", "1"} and any(lane["batch"] > 0 for lane in place["lanes"].values())
        train("pretrain", sharded, stopped, MODEL, config, resume=True)
        whole, found = ([{**one, "seconds": 0} for one in read_metrics(run)] for run in (tmp_path / "whole", stopped))
        assert whole == found

    def test_a_shard_that_disappears(self, tiny_service: Dataset, tmp_path: Path) -> None:
        shard_dataset(tiny_service.path, tmp_path / "data", 2)
        dataset = load_dataset(tmp_path / "data")
        (tmp_path / "data" / "shards" / "part-00001.parquet").unlink()
        with pytest.raises(DataError, match=r"part-00001\.parquet: not found$"):
            train("pretrain", dataset, tmp_path / "run", MODEL, PRETRAIN)
        with pytest.raises(DataError, match=r"part-00001\.parquet: not found"):
            load_dataset(tmp_path / "data")

    def test_a_run_keeps_its_way_of_reading(self, tiny_service: Dataset, sharded: Dataset, tmp_path: Path) -> None:
        config = TrainConfig(**{**vars(PRETRAIN), "steps": 1})
        train("pretrain", sharded, tmp_path, MODEL, config)
        with pytest.raises(ValueError, match=r"the run reads its data in shards, .* is in one file"):
            train("pretrain", tiny_service, tmp_path, MODEL, config, resume=True)
