"""Data that goes away or comes in strange: a file lost or damaged, clocks that jump, new users, a million events."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.batches import BatchPlan, Step
from python_model.data.readers.yambda import read_yambda
from python_model.data.schema import Dataset, load_dataset, validate
from python_model.data.shards import SHARDS, shard_dataset
from python_model.evaluation.evaluate import sample_users
from python_model.evaluation.recommend import find_users
from python_model.io.errors import DataError
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.progress import StepReport
from tests.conftest import REPOSITORY
from tests.model.reliability.conftest import CONFIG, MODEL, flip_bit, truncate
from tests.model.training.test_train import assert_same_run


@pytest.fixture
def data(tiny_service: Dataset, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(tiny_service.path, tmp_path / "data"))


class TestFilesThatGoAway:
    def test_before_the_first_batch(self, data: Path, tmp_path: Path) -> None:
        dataset = load_dataset(data)
        (data / "events.parquet").unlink()
        with pytest.raises(DataError, match=r"events\.parquet: not found"):
            train("pretrain", dataset, tmp_path / "run", MODEL, CONFIG)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_truncated_after_it_was_opened(self, data: Path, share: float) -> None:
        """Reading must raise, not die: a mapped file that shrinks would take the process with it."""
        dataset = load_dataset(data)
        truncate(data / "events.parquet", share)
        with pytest.raises(DataError, match=r"events\.parquet"):
            dataset.column("item")

    def test_a_flipped_bit_in_a_column(self, data: Path) -> None:
        chunk = pq.ParquetFile(data / "events.parquet").metadata.row_group(0).column(1)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        flip_bit(data / "events.parquet", 8 * (start + chunk.total_compressed_size // 2))
        with pytest.raises(DataError, match=r"events\.parquet, column 'item': cannot be read"):
            load_dataset(data).item  # noqa: B018

    def test_other_events_under_the_old_description(self, data: Path) -> None:
        table = pq.read_table(data / "events.parquet")
        organic = pa.array(~table.column("organic").to_numpy())
        place = table.column_names.index("organic")
        pq.write_table(table.set_column(place, table.schema.field(place), organic), data / "events.parquet")
        with pytest.raises(DataError, match=r"expected the fingerprint .* of dataset\.json, found .*: other events"):
            validate(data)

    def test_in_the_middle_of_training(
        self, tiny_service: Dataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was learnt is saved before the sentence, and the run goes on with the batch that could not be read."""
        sound = BatchPlan.walk

        def failing(self: BatchPlan, place: Mapping[str, Any], numbers: Sequence[int], of: int) -> Iterator[Step]:
            for number, step in enumerate(sound(self, place, numbers, of)):
                if number == 5:
                    raise DataError("data/part-7.parquet", "cannot be read: No such file or directory")
                yield step

        monkeypatch.setattr(BatchPlan, "walk", failing)
        with pytest.raises(DataError) as caught:
            train("pretrain", tiny_service, tmp_path, MODEL, CONFIG)
        assert str(caught.value) == (
            "data/part-7.parquet: cannot be read: No such file or directory; training is saved at "
            f"{tmp_path}/checkpoints/step-00000005: put the file back, then resume"
        )
        assert checkpoint.describe(tmp_path)["step"] == 5
        monkeypatch.undo()
        train("pretrain", tiny_service, tmp_path, MODEL, CONFIG, resume=True)
        assert_same_run(whole, tmp_path)

    @pytest.mark.parametrize("what", ["removed", "truncated"])
    def test_a_shard_in_the_middle_of_training(self, tiny_service: Dataset, tmp_path: Path, what: str) -> None:
        """The same with real files: all shards go while one is being read, and come back later."""
        shard_dataset(tiny_service.path, tmp_path / "data", 5)
        sharded, shards, kept = load_dataset(tmp_path / "data"), tmp_path / "data" / SHARDS, tmp_path / "kept"
        train("pretrain", sharded, tmp_path / "whole", MODEL, CONFIG)
        shutil.copytree(shards, kept)

        def take_away(report: StepReport) -> None:
            for file in shards.glob("part-*.parquet") if report.step == 3 else ():
                file.unlink() if what == "removed" else truncate(file, 0.5)

        run = tmp_path / "run"
        with pytest.raises(DataError, match=r"shards/part-0000\d\.parquet: .*; training is saved at .*then resume"):
            train("pretrain", sharded, run, MODEL, CONFIG, progress=take_away)
        assert 3 <= checkpoint.describe(run)["step"] < CONFIG.steps
        shutil.copytree(kept, shards, dirs_exist_ok=True)
        train("pretrain", load_dataset(tmp_path / "data"), run, MODEL, CONFIG, resume=True)
        assert_same_run(tmp_path / "whole", run)


def write_listens(directory: Path, **columns: np.ndarray) -> None:
    """listens.parquet in Yambda's schema; what is not given is drawn."""
    rows = len(columns["uid"])
    dice = np.random.default_rng(0)
    values = {
        "item_id": dice.integers(0, 200, rows), "timestamp": 5 * np.arange(rows),
        "is_organic": dice.integers(0, 2, rows), "played_ratio_pct": dice.integers(0, 101, rows),
        "track_length_seconds": np.full(rows, 200), **columns,
    }  # fmt: skip
    types = {"is_organic": np.uint8, "played_ratio_pct": np.uint16}
    directory.mkdir(exist_ok=True)
    arrays = {name: column.astype(types.get(name, np.uint32)) for name, column in values.items()}
    pq.write_table(pa.table(arrays), directory / "listens.parquet")


class TestClocksThatJump:
    def test_are_refused_by_default(self, tmp_path: Path) -> None:
        write_listens(tmp_path / "source", uid=np.array([1, 1, 1]), timestamp=np.array([10, 5, 20]))
        with pytest.raises(DataError, match=r"times sorted within a user \(unsorted=sort puts them in order\)"):
            read_yambda(tmp_path / "source", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_are_put_in_order_where_asked(self, tmp_path: Path) -> None:
        """Every event is kept, each user's in order of time, equal times in the order of the file."""
        dice = np.random.default_rng(1)
        uid, item = np.repeat([3, 8, 9], [40, 1, 60]), np.arange(101)
        timestamp = dice.integers(0, 30, 101) * 5
        write_listens(tmp_path / "source", uid=uid, timestamp=timestamp, item_id=item)
        arguments = ["prepare", "yambda", str(tmp_path / "source"), str(tmp_path / "out"), "--set", "unsorted=sort"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        dataset = load_dataset(tmp_path / "out")
        validate(tmp_path / "out")
        order = np.lexsort((np.arange(101), timestamp, uid))
        assert dataset.item_column("item_id")[dataset.item].tolist() == item[order].tolist()
        assert dataset.time.tolist() == timestamp[order].tolist()
        back = int(((np.diff(timestamp) < 0) & (np.diff(uid) == 0)).sum())
        assert json.loads((tmp_path / "out" / "dataset.json").read_text())["params"]["times_went_back"] == back > 0


@pytest.mark.parametrize("user", ["nobody", "-3", "9" * 30, "1.5", ""])
def test_a_user_who_was_not_there_in_training(tiny_service: Dataset, whole: Path, user: str) -> None:
    with pytest.raises(ValueError, match=r"is not in .*; its users are 0, 1, 2, … \(60\)"):
        find_users(tiny_service, [user])
    arguments = ["recommend", str(tiny_service.path), str(whole), "--user", "3", "--user", user]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"argus: user {user!r} is not in ") and result.stderr.count("\n") == 1


MILLION = """
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from python_model.config import preset
from python_model.data.schema import load_dataset, validate
from python_model.data.readers.yambda import read_yambda
from python_model.evaluation.recommend import find_users, recommend
from python_model.training import checkpoint, runs
from python_model.train import train
from tests.model.reliability.conftest import CONFIG, MODEL

def peak():
    # ru_maxrss begins with what the parent held.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

source, out, before = Path(sys.argv[1]), Path(sys.argv[2]), peak()
info = read_yambda(source, out / "data")
assert (info.events, info.users) == (1_000_040, 3), info
dataset = load_dataset(out / "data")
train("pretrain", dataset, out / "run", MODEL, replace(CONFIG, steps=3))
opened = runs.open_runs([str(out / "run")], dataset)
result = runs.evaluate_runs(opened, dataset, max_events=300)
assert 300 <= result.counts["events"] < 900, result.counts
found = recommend(checkpoint.load_model(out / "run"), dataset, find_users(dataset, ["5"]), window=32, k=3)
assert found[0].events == 1_000_000 and len(found[0].items) == 3
print(peak() - before)
"""


@pytest.mark.slow
def test_a_user_of_a_million_events(tmp_path: Path) -> None:
    """Prepared, trained on, evaluated and recommended to: memory follows the columns, not the user times the window."""
    uid = np.repeat([2, 5, 7], [20, 1_000_000, 20])
    # The short histories end with the long one: each user has events in the last tenth of the time.
    timestamp = np.concatenate([np.linspace(0, 5e6, 20), 5 * np.arange(1_000_000), np.linspace(0, 5e6, 20)])
    write_listens(tmp_path / "source", uid=uid, timestamp=timestamp.astype(np.int64))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", MILLION, str(tmp_path / "source"), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 700, "MB above the start"


def test_a_long_user_is_cut_in_a_sampled_evaluation(tiny_service: Dataset) -> None:
    rows = np.arange(len(tiny_service))
    longest = int(np.diff(tiny_service.offsets).max())
    most = longest // 4
    for seed in range(5):
        kept = sample_users(tiny_service, rows, most, seed)
        assert most <= len(kept) < 2 * most
        counts = np.bincount(tiny_service.user[kept])
        assert counts.max() <= most
        first = tiny_service.offsets[np.flatnonzero(counts)]
        assert all((kept[np.searchsorted(kept, start)] == start) for start in first)
