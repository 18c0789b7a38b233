"""What the commands work on, made without training."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.data.schema import load_dataset
from python_model.data.synthetic import generate, preset
from python_model.serving.export import export
from tests.model.serving.conftest import random_model, save_run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data set, runs of both stages and an export, without training."""
    folder = tmp_path_factory.mktemp("hostile")
    shape = preset("demo", users=20, events_per_user=20.0, days=9, clusters=3, artists=3, tracks=4)
    generate(folder / "data", shape)
    data = load_dataset(folder / "data")
    for stage in ("pretrain", "finetune"):
        save_run(folder / stage, random_model(data, stage), data, stage)
    export(data, folder / "finetune", folder / "export", best=2)
    rows = {"user_id": data.user_ids[:3], "item_id": [0, 1, 2], "time": np.full(3, int(data.time.max()) + 10**6)}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    (folder / "blocked.txt").write_text("1\n")
    return {
        name: str(folder / name) for name in ("data", "pretrain", "finetune", "export", "rows.parquet", "blocked.txt")
    }
