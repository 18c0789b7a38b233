"""The rows of a request, scored in one pass, have the scores that the model gives each event of the history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from python_model.cli import app
from python_model.data.batches import BatchBuilder
from python_model.data.schema import Dataset
from python_model.data.windows import Windows
from python_model.serving import joint
from python_model.serving.joint import JointScorer
from python_model.serving.score import score_parquet
from python_model.serving.scorers import HistoryScorer
from tests.model.serving.conftest import LAG, WINDOW, assert_close, random_model
from tests.model.serving.test_score import history_scorer, hostile_rows, read, rows_of


@pytest.mark.parametrize(
    ("lag", "kind", "encoder"),
    [
        pytest.param(lag, kind, encoder, id=f"{lag}-{kind}-{encoder}", marks=[pytest.mark.slow] * ((i + j + k) % 2))
        for i, lag in enumerate([1, LAG])
        for j, kind in enumerate(["next_item", "feedback"])
        for k, encoder in enumerate(["transformer", "hstu"])
    ],
)
def test_joint_scores_at_events_are_the_models_own(
    service: Dataset, tmp_path: Path, lag: int, kind: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "TOKENS", 200)
    model = random_model(service, "pretrain", form="full", encoder=encoder).eval()
    order = np.random.default_rng(0).permutation(len(service))
    pq.write_table(rows_of(service, order), tmp_path / "rows.parquet", row_group_size=300)
    scorer = JointScorer(model, service, score=kind, lag=lag, window=WINDOW)
    report = score_parquet(scorer, tmp_path / "rows.parquet", tmp_path / "out")
    assert report.rows == report.scored == len(service)
    found = np.empty(len(service), np.float32)
    found[order] = read(tmp_path / "out").column("score").to_numpy()

    offsets = service.offsets
    batch = BatchBuilder(service).build(Windows(offsets[:-1], offsets[:-1], offsets[1:]))
    with torch.inference_mode():
        expected = model.ranking_scores(batch, kind, lag=lag).numpy()
    assert_close(found, expected)


def test_joint_and_stored_states_agree(service: Dataset, finetuned: Path, tmp_path: Path) -> None:
    table = hostile_rows(service)
    pq.write_table(table, tmp_path / "rows.parquet")
    stored = history_scorer(service, finetuned, tmp_path / "out", tmp_path / "rows.parquet")
    together = JointScorer(stored._model, service, window=WINDOW)
    one, other = stored(table), together(table)
    assert one.column("score_missing").to_pylist() == other.column("score_missing").to_pylist()
    known = ~np.array(one.column("score").is_null())
    assert known.any() and not known.all()
    assert_close(other.column("score").to_numpy()[known], one.column("score").to_numpy()[known])
    assert together.identity != stored.identity


def test_missing_context_of_a_request_is_missing(service: Dataset, finetuned: Path, tmp_path: Path) -> None:
    table = rows_of(service, np.arange(12)).select(["user_id", "item_id", "time"])
    table = table.append_column("organic", pa.array([None, True, False] * 4))
    for name in service.info.context:
        table = table.append_column(f"context_{name}", pa.array([None, 1, 0, -1] * 3, pa.int32()))
    pq.write_table(table, tmp_path / "rows.parquet")
    stored = history_scorer(service, finetuned, tmp_path / "out", tmp_path / "rows.parquet")
    together = JointScorer(stored._model, service, window=WINDOW)
    assert_close(together(table).column("score").to_numpy(), stored(table).column("score").to_numpy())


def test_no_row_is_an_empty_part(service: Dataset) -> None:
    model = random_model(service, "pretrain", form="full")
    scored = JointScorer(model, service, window=WINDOW)(rows_of(service, np.arange(0)))
    assert scored.column("score").type == pa.float32() and len(scored) == 0
    with pytest.raises(ValueError, match="score with --joint, or from an export"):
        HistoryScorer(model, service, None, window=8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--score", "feedback"], "--score feedback needs --joint"),
        (["--joint", "--vectors"], "--vectors is given with --joint"),
    ],
)
def test_options_that_contradict(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["score", *(str(tmp_path / one) for one in ("run", "rows", "out")), *options])
    assert result.exit_code == 2 and sentence in " ".join(result.stderr.split())


def test_the_command_scores_jointly(service: Dataset, finetuned: Path, tmp_path: Path) -> None:
    pq.write_table(rows_of(service, np.arange(200)), tmp_path / "rows.parquet")
    for out, options in (("stored", []), ("joint", ["--joint"])):
        command = ["score", str(finetuned), str(tmp_path / "rows.parquet"), str(tmp_path / out)]
        result = CliRunner().invoke(app, [*command, "--data", str(service.path), *options])
        assert result.exit_code == 0, result.output
    stored, together = (read(tmp_path / out).column("score").to_numpy() for out in ("stored", "joint"))
    assert_close(together, stored)
