"""Original ids from a program or a file through the prepared data, its shards and an export, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.data.feedback import BINARY
from python_model.data.prepare import prepare
from python_model.data.schema import Dataset, DatasetWriter, load_dataset, validate
from python_model.data.shards import shard_dataset
from python_model.serving.bundle import Export
from python_model.serving.export import export
from python_model.serving.ids import IdTable
from tests.model.serving.conftest import random_model, save_run

ITEMS = 12
KINDS: dict[str, tuple[list[Any], pa.DataType]] = {
    "int64": ([-(2**63), -1, 0, 7, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1, 11, 12, 13, 14], pa.int64()),
    "uint64": ([2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1, 0, 7, 2**53, 2**53 + 1, 11, 12, 13, 14], pa.uint64()),
    "text": (["007", "7", " 7", "7.0", "٥", "é", "e\u0301", "a\nb", "NaN", "None", "-0", "x" * 1024], pa.string()),
}


def prepared(out: Path, ids: list[Any]) -> Dataset:
    """Twelve users of four events each on twelve items, both with these ids."""
    row = np.arange(4 * ITEMS)
    with DatasetWriter(
        out, name="ids", source="test", context={}, feedback={"like": BINARY}, item_features={}, grades="",
        pair_window=60,
    ) as writer:  # fmt: skip
        writer.write_events({
            "user": row // 4, "item": row % ITEMS, "time": row, "organic": row < 0, "grade": row % 2,
            "feedback_like": row % 2,
        })  # fmt: skip
        for start in range(0, ITEMS, 5):
            writer.write_users(ids[start : start + 5])
            writer.write_items(ids[start : start + 5], {})
    validate(out)
    return load_dataset(out)


def exported(dataset: Dataset, folder: Path) -> Export:
    run = save_run(folder / "run", random_model(dataset, "finetune"), dataset, "finetune")
    export(dataset, run, folder / "export")
    return Export.open(folder / "export")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_survive(tmp_path: Path, kind: str) -> None:
    ids, arrow = KINDS[kind]
    dataset = prepared(tmp_path / "data", ids)
    shard_dataset(dataset.path, tmp_path / "shards", 3)
    found = exported(dataset, tmp_path)
    for held in (dataset, load_dataset(tmp_path / "shards")):
        assert held.user_ids.tolist() == held.item_column("item_id").tolist() == ids
    for table in (IdTable(dataset.user_ids, "the users"), found.user_ids, found.item_ids):
        assert table.original(np.arange(ITEMS)).tolist() == ids
        assert table.find(pa.array(ids, arrow), "item_id").tolist() == list(range(ITEMS))
        assert [table.number(one) for one in ids] == list(range(ITEMS))
    for name, column in (("items.parquet", "item_id"), ("users.parquet", "user_id")):
        assert pq.read_schema(dataset.path / name).field(column).type == arrow
    scores = pq.read_table(found.path / "scores.parquet")
    assert set(scores.column("user_id").to_pylist()) == set(ids)
    assert set(scores.column("item_id").to_pylist()) <= set(ids)


def test_ids_of_files_survive(tmp_path: Path) -> None:
    ids = [-5, 0, 7, 2**53, 2**53 + 1, 2**63 - 1]
    rows = [f"{user},{item},4,{n}" for n, (user, item) in enumerate((u, i) for u in ids for i in ids)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]))
    prepare("movielens", tmp_path, tmp_path / "data")
    found = exported(load_dataset(tmp_path / "data"), tmp_path)
    for table in (found.user_ids, found.item_ids):
        assert table.original(np.arange(len(ids))).tolist() == ids
