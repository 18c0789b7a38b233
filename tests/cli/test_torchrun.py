"""`torchrun … -m python_model pretrain`: a rank that is killed in the middle of a step costs no more than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.batches import BatchPlan
from python_model.data.schema import load_dataset
from python_model.serving.bundle import Export
from python_model.train import training_rows
from python_model.training import checkpoint
from python_model.training.history_cost import cost_of_training
from python_model.training.progress import read_metrics
from tests.cli.elastic_worker import DEADLY_STEP

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, EVERY = 8, 3
SETTINGS = [
    "--recipe", "default", "--steps", str(STEPS), "--window", "32", "--batch-events", "128",
    *(f"--set={name}={value}" for name, value in {
        "batches_per_step": 4, "checkpoint_every": EVERY, "width": 16, "item_width": 8, "feature_width": 4,
        "vector_width": 8, "layers": 1, "dropout": 0.1, "shard_rows": 16, "sparse": "true", "keep": 9,
        "negatives_in_batch": 32, "negatives_uniform": 16, "sketch_width": 512,
    }.items()),
]  # fmt: skip


def torchrun(*arguments: str | Path, notes: Path, restarts: int) -> subprocess.CompletedProcess[str]:
    """Two ranks on this machine under an elastic agent, which picks a free port."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY), "ARGUS_TEST_NOTES": str(notes),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={restarts}",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
        "-m", "tests.cli.elastic_worker", *map(str, arguments),
    ]  # fmt: skip
    return subprocess.run(command, env=environment, cwd=notes, capture_output=True, text=True, timeout=240)


def records(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key not in ("seconds", "stage")} for one in read_metrics(run)]


@pytest.mark.slow
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    data, whole, killed = tmp_path / "data", tmp_path / "whole", tmp_path / "killed"
    for command in (
        ["prepare", "synthetic", "small", str(data), "--set", "users=60", "--set", "events_per_user=50"],
        ["pretrain", str(data), str(whole), *SETTINGS],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    done = torchrun("pretrain", data, killed, *SETTINGS, notes=tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "failed (exitcode: -9) local_rank: 1" in done.stderr
    assert done.stderr.count("Pre-training ends after 8 steps") == 1  # one rank speaks for both

    # Step 0 is the validation of the new model.
    assert [record["step"] for record in records(killed)] == list(range(STEPS + 1))
    for one, other in zip(records(whole), records(killed), strict=True):
        assert one == pytest.approx(other, rel=2e-6, abs=2e-6)

    # Both ranks went through their steps up to the deadly one, and after the restart from the last checkpoint on.
    saved = DEADLY_STEP // EVERY * EVERY
    visited = [*range(DEADLY_STEP + 1), *range(saved, STEPS)]
    expected = rows_of_steps(data, whole, STEPS)
    for rank in range(2):
        notes = [json.loads(line) for line in (tmp_path / f"rank-{rank}.jsonl").read_text().splitlines()]
        assert [note["step"] for note in notes] == visited
        for note in notes:
            assert note["rows"] == expected[note["step"]][rank::2]
    assert checkpoint.load_model(killed).features == checkpoint.load_model(whole).features
    result = CliRunner().invoke(app, ["export", str(data), str(killed), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert Export.open(tmp_path / "out").model().config == checkpoint.load_model(killed).config


def rows_of_steps(data: Path, run: Path, steps: int) -> list[list[list[int]]]:
    """The rows of the four batches of each step of a run, as one process takes them."""
    dataset, config = load_dataset(data), checkpoint.read_description(run).train_config
    cost = cost_of_training(checkpoint.load_model(run), config)
    plan = BatchPlan(dataset, 128, 32, 0, train=training_rows(dataset, "temporal"), cost=cost)
    return [
        [batch.rows.tolist() for batch in step.batches] for step in islice(plan.walk(plan.start(), range(4), 4), steps)
    ]
