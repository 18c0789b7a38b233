"""Continuing a run on a grown catalogue: rows are kept by original id, their optimisers' state with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_model.config import TrainConfig
from python_model.data.feedback import BINARY
from python_model.data.names import write_labels
from python_model.data.schema import Dataset, DatasetWriter, load_dataset
from python_model.data.shards import shard_dataset
from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.model.negatives import NegativeSampler
from python_model.model.optim import Optimisers
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.continued import Continuation
from python_model.training.start import count_training_items
from python_model.training.vocabulary import VOCABULARY, old_rows
from tests.model.conftest import SMALL

CONFIG = TrainConfig(
    steps=8, batch_events=128, window=16, negatives_in_batch=16, negatives_uniform=8, sketch_width=128,
    learning_rate=1e-2, table_learning_rate=1e-2, warmup_steps=2,
)  # fmt: skip
DEVICES, GENRES = ["phone", "tablet"], ["crime", "poetry", "travel"]


def made(
    out: Path, items: list[str], devices: list[str] = DEVICES, genres: list[str] = GENRES, **changes: Any
) -> Dataset:
    """A log on these items, in which every column has labels."""
    users, each = 20, 12
    feedback = changes.get("feedback", {"like": BINARY})
    random = np.random.default_rng(len(items))
    count = users * each
    with DatasetWriter(
        out, name="log", source="test", context={"device": len(devices)}, feedback=feedback,
        item_features={"genre": len(genres)}, grades="like", pair_window=100_000,
    ) as writer:  # fmt: skip
        like = random.integers(0, 2, count).astype(np.int16)
        columns = {f"feedback_{name}": like for name in feedback}
        writer.write_events({
            "user": np.repeat(np.arange(users, dtype=np.int32), each),
            "item": np.concatenate([np.arange(len(items)), random.integers(0, len(items), count - len(items))]),
            "time": np.arange(count) % each * 600 + np.repeat(np.arange(users), each),
            "organic": np.zeros(count, bool), "grade": like.astype(np.int8),
            "context_device": random.integers(0, len(devices), count).astype(np.int32), **columns,
        })  # fmt: skip
        writer.write_users(np.arange(users))
        ids = np.array(items, dtype=object) if isinstance(items[0], str) else np.array(items)
        writer.write_items(ids, {"genre": np.arange(len(items)) % len(genres)})
        write_labels(writer.directory / "labels.parquet", {"context_device": devices, "item_genre": genres})
    return load_dataset(out)


ITEMS = [f"B-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Dataset, Path]]:
    folder = tmp_path_factory.mktemp("continued")
    dataset = made(folder / "data", ITEMS)
    out = {}
    for sparse in (False, True):
        train("pretrain", dataset, folder / str(sparse), replace(SMALL, sparse=sparse), CONFIG)
        out[sparse] = dataset, folder / str(sparse)
    return out


GROWN = ["new-1", *ITEMS[:5], "new-2", *ITEMS[6:][::-1]]
"""Two new items, one (B-5) gone, the others in another order."""


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_and_states_follow_their_ids(runs: dict[bool, tuple[Dataset, Path]], tmp_path: Path, sparse: bool) -> None:
    _, run = runs[sparse]
    devices, genres = ["watch", "tablet", "phone"], ["travel", "crime", "poetry", "cooking"]
    dataset = made(tmp_path / "data", GROWN, devices, genres)
    found = Continuation.of(checkpoint.find(run), dataset)
    assert found.text() == (
        f"Continuing {checkpoint.find(run)} (step 8): 11 items kept, 2 new, 1 of the run's gone and dropped; "
        "genre: 3 values kept, 1 new, 0 dropped; device: 2 values kept, 1 new, 0 dropped"
    )
    torch.manual_seed(3)
    fresh = Argus.for_dataset(replace(SMALL, sparse=sparse), dataset).state_dict()
    torch.manual_seed(3)
    model = Argus.for_dataset(replace(SMALL, sparse=sparse), dataset)
    found.fill(model)
    before, now = checkpoint.load_model(run).state_dict(), model.state_dict()
    optimisers = Optimisers(model, CONFIG)
    found.fill_optimisers(optimisers)
    states, was = optimisers.state(), checkpoint.load_trainer(checkpoint.find(run)).tensors
    state = "sum" if sparse else "exp_avg_sq"
    for table, names, old in (("item", GROWN, ITEMS), ("context_device", devices, DEVICES),
                              ("item_genre", genres, GENRES)):  # fmt: skip
        key = f"tables.weights.{table}"
        for row, name in enumerate(names):
            if name in old:
                assert torch.equal(now[key][row], before[key][old.index(name)]), (table, name)
                assert torch.equal(states[f"{key}::{state}"][row], was[f"{key}::{state}"][old.index(name)])
            else:
                assert torch.equal(now[key][row], fresh[key][row]), (table, name)
                assert not states[f"{key}::{state}"][row].any()
    for name, value in before.items():
        if "tables" not in name and name != "item_columns":
            assert torch.equal(now[name], value), name
    dense = "encoder.blocks.0.up.weight::exp_avg"
    assert torch.equal(states[dense], was[dense])


def test_data_with_no_item_of_the_run_is_refused(runs: dict[bool, tuple[Dataset, Path]], tmp_path: Path) -> None:
    _, run = runs[False]
    dataset = made(tmp_path / "data", [f"C-{number}" for number in range(12)])
    with pytest.raises(ValueError, match=r"has no item of .*: expected a data set that continues the run's"):
        Continuation.of(checkpoint.find(run), dataset)


def test_a_continued_run_trains_and_resumes(runs: dict[bool, tuple[Dataset, Path]], tmp_path: Path) -> None:
    _, run = runs[True]
    dataset = made(tmp_path / "data", GROWN)
    model = replace(SMALL, sparse=True)
    for name in ("once", "twice"):
        train("pretrain", dataset, tmp_path / name, model, CONFIG, init_from=run)
    one, two = (checkpoint.load_model(tmp_path / name).state_dict() for name in ("once", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    longer = replace(CONFIG, steps=10)
    train("pretrain", dataset, tmp_path / "once", model, longer, init_from=run, resume=True)
    assert checkpoint.read_description(tmp_path / "once").step == 10


def test_the_sketch_counts_the_training_part(runs: dict[bool, tuple[Dataset, Path]]) -> None:
    dataset, _ = runs[False]
    sampler = NegativeSampler(CONFIG, dataset.info.items)
    count_training_items(sampler, dataset, TrainConfig(protocol="leave-last-out"))
    assert sampler.sketch.total == len(dataset) - 2 * dataset.info.users


@pytest.mark.parametrize("protocol", ["leave-last-out", "temporal", "all"])
def test_the_sketch_of_shards_is_that_of_one_file(
    runs: dict[bool, tuple[Dataset, Path]], tmp_path: Path, protocol: str
) -> None:
    dataset, _ = runs[False]
    shard_dataset(dataset.path, tmp_path / "shards", 3, row_group=20)
    config = TrainConfig(protocol=protocol, train_share=0.5)
    found = []
    for one in (dataset, load_dataset(tmp_path / "shards")):
        sampler = NegativeSampler(CONFIG, dataset.info.items)
        count_training_items(sampler, one, config)
        found.append(sampler.sketch.state_dict())
    assert 0 < found[0]["total"] == found[1]["total"] and np.array_equal(found[0]["table"], found[1]["table"])


def test_what_cannot_be_continued_is_one_sentence(runs: dict[bool, tuple[Dataset, Path]], tmp_path: Path) -> None:
    dataset, run = runs[False]
    other = made(tmp_path / "other", ITEMS, feedback={"hate": BINARY})
    with pytest.raises(ValueError, match=r"trained with feedback like \(2\), .*other has hate \(2\): a run goes"):
        train("pretrain", other, tmp_path / "no", SMALL, CONFIG, init_from=run)
    numbers = made(tmp_path / "numbers", list(range(12)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the run's item ids are text, those of the data set integers"):
        train("pretrain", numbers, tmp_path / "no", SMALL, CONFIG, init_from=run)
    with pytest.raises(ValueError, match="model_config differs: layers was 2, now 3"):
        train("pretrain", dataset, tmp_path / "no", replace(SMALL, layers=3), CONFIG, init_from=run)
    tuned = train("finetune", dataset, tmp_path / "tuned", SMALL, replace(CONFIG, stage="finetune", steps=1))
    with pytest.raises(ValueError, match="the run is fine-tuned, expected a run of `argus pretrain`"):
        train("pretrain", dataset, tmp_path / "no", SMALL, CONFIG, init_from=tuned)
    hashed = replace(SMALL, item_hashes=2, hash_rows=7)
    train("pretrain", dataset, tmp_path / "hashed", hashed, replace(CONFIG, steps=1))
    with pytest.raises(ValueError, match=r"hashed from their numbers \(item_hashes\), and the data set numbers them"):
        train("pretrain", made(tmp_path / "g", GROWN), tmp_path / "no", hashed, CONFIG, init_from=tmp_path / "hashed")
    appended = made(tmp_path / "appended", [*ITEMS, "B-12"])
    train("pretrain", appended, tmp_path / "yes", hashed, replace(CONFIG, steps=1), init_from=tmp_path / "hashed")
    assert not checkpoint.exists(tmp_path / "no")


def test_a_run_that_does_not_say_what_its_rows_stand_for(
    runs: dict[bool, tuple[Dataset, Path]], tmp_path: Path
) -> None:
    import shutil

    dataset, run = runs[False]
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / VOCABULARY)
    with pytest.raises(DataError, match="vocabulary: not found: the run does not say which items its rows stand for"):
        train("pretrain", dataset, tmp_path / "no", SMALL, CONFIG, init_from=copy)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (np.array([3, 1]), np.array([1, 2, 3]), [1, -1, 0]),
        (np.array(["b", "a"], object), np.array(["a", "c"], object), [1, -1]),
        (np.array([2**63 + 5, 7], np.uint64), np.array([7, 5]), [1, -1]),
        (np.array([7, -5]), np.array([2**63 + 1, 7], np.uint64), [-1, 0]),
    ],
)
def test_ids_of_any_type_are_compared_exactly(old: np.ndarray, new: np.ndarray, expected: list[int]) -> None:
    assert old_rows(old, new).tolist() == expected
