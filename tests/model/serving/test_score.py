"""Every row scored once, with what was known at its time, whatever stops the job in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from python_model.data.batches import BatchBuilder
from python_model.data.schema import Dataset
from python_model.data.windows import Windows
from python_model.serving.bundle import Export
from python_model.serving.rows import input_parts, tables
from python_model.serving.score import prepare_states, score_parquet
from python_model.serving.scorers import ExportScorer, HistoryScorer, distinct
from python_model.training import checkpoint
from tests.model.serving.conftest import LAG, WINDOW, assert_close, random_model


def rows_of(dataset: Dataset, rows: np.ndarray) -> pa.Table:
    """Rows to score at some events, with their context."""
    columns: dict[str, Any] = {
        "user_id": dataset.user_ids[dataset.user[rows]],
        "item_id": dataset.item_column("item_id")[dataset.item[rows]],
        "time": dataset.time[rows],
        "organic": dataset.organic[rows],
    }
    columns |= {f"context_{name}": dataset.context(name)[rows] for name in dataset.info.context}
    return pa.table({**columns, "row": rows})


def history_scorer(dataset: Dataset, run: Path, folder: Path, rows: Path, **options: Any) -> HistoryScorer:
    scorer = HistoryScorer(checkpoint.load_model(run), dataset, None, window=WINDOW, **options)
    prepare_states(scorer, rows, folder)
    return scorer


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("part-*.parquet"))])


@pytest.mark.parametrize("stage", ["finetuned", "pretrained", "hstu"])
def test_scores_at_events_are_the_models_own(
    service: Dataset, request: pytest.FixtureRequest, tmp_path: Path, stage: str
) -> None:
    run: Path = request.getfixturevalue(stage)
    order = np.random.default_rng(0).permutation(len(service))
    pq.write_table(rows_of(service, order), tmp_path / "rows.parquet", row_group_size=300)
    scorer = history_scorer(service, run, tmp_path / "out", tmp_path / "rows.parquet")
    report = score_parquet(scorer, tmp_path / "rows.parquet", tmp_path / "out")
    found = read(tmp_path / "out")
    assert report.rows == report.scored == report.scored_now == len(service) and not report.missing
    np.testing.assert_array_equal(found.column("row").to_numpy(), order)

    model = checkpoint.load_model(run)
    offsets = service.offsets
    starts = np.maximum(offsets[:-1], offsets[1:] - WINDOW)
    assert (starts == offsets[:-1]).all(), "the histories are to fit into one window"
    batch = BatchBuilder(service).build(Windows(starts, starts, offsets[1:]))
    with torch.inference_mode():
        expected = model.ranking_scores(batch, lag=max(model.config.lag, 1)).numpy()
    assert_close(found.column("score").to_numpy(), expected[order])
    assert not (tmp_path / "out" / ".states").exists()


def test_a_score_knows_nothing_at_or_after_its_time(service: Dataset, finetuned: Path, tmp_path: Path) -> None:
    """A lag after an event it is known, a second earlier it is not."""
    user = int(np.argmax(np.diff(service.offsets)))
    newest = service.offsets[user + 1] - 1
    moments = service.time[newest] + np.array([0, LAG - 1, LAG, 10 * LAG])
    table = pa.table({
        "user_id": np.repeat(service.user_ids[user], 4), "item_id": np.repeat(service.item_column("item_id")[3], 4),
        "time": moments,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    scorer = history_scorer(service, finetuned, tmp_path / "out", tmp_path / "rows.parquet", vectors=True)
    known = scorer.state_rows(table)
    assert (known[2:] == newest).all() and (known[:2] < newest).all()
    assert (service.time[known] <= moments - LAG).all()
    scored = scorer(table)
    vectors = [np.array(scored.column(name).to_pylist(), np.float32) for name in ("user_vector", "item_vector")]
    assert_close((vectors[0] * vectors[1]).sum(1), scored.column("score").to_numpy())
    # At the moment of the export the two contracts meet.
    with torch.inference_mode():
        batch = BatchBuilder(service).build(
            Windows(service.offsets[user : user + 1], service.offsets[user : user + 1], service.offsets[user + 1 :][:1])
        )
        from python_model.evaluation.recommend import append_next_event

        expected = scorer._model.user_vectors(append_next_event(batch, LAG))[-1].numpy()
    assert_close(vectors[0][2], expected)


def hostile_rows(dataset: Dataset) -> pa.Table:
    """Known, unknown and missing ids, a time far in the past, and a user who had no event yet."""
    users, items = dataset.user_ids, dataset.item_column("item_id")
    late = int(dataset.time.max()) + 2 * LAG
    return pa.table({
        "note": ["good", "user", "item", "null user", "null item", "null time", "before all", "good again"],
        "user_id": pa.array([users[0], 10**9, users[1], None, users[2], users[3], users[4], users[5]]),
        "item_id": pa.array([items[0], items[1], -5, items[2], None, items[3], items[4], items[5]]),
        "time": pa.array([late, late, late, late, late, None, 0, late]),
    })  # fmt: skip


def test_what_has_no_score_is_null_and_counted(
    service: Dataset, finetuned: Path, exported: Export, tmp_path: Path
) -> None:
    pq.write_table(hostile_rows(service), tmp_path / "rows.parquet")
    report = score_parquet(ExportScorer(exported), tmp_path / "rows.parquet", tmp_path / "a")
    assert report.missing == {"unknown user": 2, "unknown item": 2, "no time": 1, "before the user's vector": 1}
    found = read(tmp_path / "a")
    assert [value is not None for value in found.column("score").to_pylist()] == [True] + [False] * 6 + [True]
    assert found.column("note").to_pylist() == hostile_rows(service).column("note").to_pylist()
    expected = exported.user_vectors()[5] @ exported.item_vectors()[5]
    assert found.column("score")[7].as_py() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scorer = history_scorer(service, finetuned, tmp_path / "b", tmp_path / "rows.parquet")
    report = score_parquet(scorer, tmp_path / "rows.parquet", tmp_path / "b")
    assert report.missing == {"unknown user": 2, "unknown item": 2, "no time": 1}
    scores = read(tmp_path / "b").column("score").to_pylist()
    assert scores[6] is not None, "a known user without known events has the start state"
    assert pl.read_parquet(tmp_path / "b" / "*.parquet").height == pq.read_table(tmp_path / "b").num_rows == 8


def test_a_scorer_is_pure_and_tables_may_be_cut_anywhere(service: Dataset, exported: Export) -> None:
    rows = rows_of(service, np.arange(60))
    rows = rows.set_column(2, "time", pa.array(service.time[:60] + 400 * 86_400))
    scorer = ExportScorer(exported, vectors=True)
    whole = scorer(rows)
    pieces = pa.concat_tables([scorer(rows.slice(0, 7)), scorer(rows.slice(7, 0)), scorer(rows.slice(7))])
    assert pieces.equals(whole) and whole.column("score").null_count == 0
    assert len(scorer(rows.slice(0, 0))) == 0


def test_timestamps_of_any_unit_are_times(service: Dataset, exported: Export) -> None:
    rows = rows_of(service, np.arange(5))
    seconds = service.time[:5] + 400 * 86_400
    expected = ExportScorer(exported)(rows.set_column(2, "time", pa.array(seconds))).column("score")
    for unit, factor in (("s", 1), ("ms", 1000), ("us", 10**6)):
        for zone in (None, "UTC"):
            stamps = pa.array(seconds * factor, pa.timestamp(unit, tz=zone))
            assert ExportScorer(exported)(rows.set_column(2, "time", stamps)).column("score").equals(expected)


KILLED = """
import sys, time
from pathlib import Path
from python_model.serving import score
from python_model.serving.bundle import Export
from python_model.serving.scorers import ExportScorer

class Slow(ExportScorer):
    def __call__(self, rows):
        time.sleep(0.05)
        return super().__call__(rows)

score.score_parquet(Slow(Export.open(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_killed_job_goes_on_and_has_every_row_once(service: Dataset, exported: Export, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = rows_of(service, random.integers(0, len(service), 4000))
    rows = rows.set_column(2, "time", pa.array(rows.column("time").to_numpy() + 400 * 86_400))
    rows = rows.append_column("number", pa.array(np.arange(4000)))
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=100)
    command = [sys.executable, "-c", KILLED, *map(str, (exported.path, tmp_path / "rows.parquet", tmp_path / "out"))]
    repository = str(Path(__file__).resolve().parents[3])
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": repository})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list((tmp_path / "out").glob("part-*.parquet"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("part-*.parquet")}
    assert 5 <= len(before) < 40 and not (tmp_path / "out" / "_finished.json").exists()
    report = score_parquet(ExportScorer(exported), tmp_path / "rows.parquet", tmp_path / "out")
    assert report.rows == 4000 and report.scored_now == 4000 - 100 * len(before)
    found = read(tmp_path / "out")
    np.testing.assert_array_equal(found.column("number").to_numpy(), np.arange(4000))
    assert found.column("score").equals(ExportScorer(exported)(rows).column("score"))
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time_ for name, time_ in before.items())
    again = score_parquet(ExportScorer(exported), tmp_path / "rows.parquet", tmp_path / "out")
    assert again == replace(report, scored_now=0)


def test_states_go_on_where_they_were_stopped(
    service: Dataset, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("python_model.serving.states.BLOCK", 50)
    pq.write_table(rows_of(service, np.arange(len(service))), tmp_path / "rows.parquet")
    scorer = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=64)
    encode, calls = scorer._model.encode, []

    def stopping(*given: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*given, **named)

    monkeypatch.setattr(scorer._model, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare_states(scorer, tmp_path / "rows.parquet", tmp_path / "out")
    assert json.loads((tmp_path / "out" / ".states" / "done.json").read_text()) == {"states": 50}
    prepare_states(scorer, tmp_path / "rows.parquet", tmp_path / "out")
    score_parquet(scorer, tmp_path / "rows.parquet", tmp_path / "out")
    whole = HistoryScorer(checkpoint.load_model(finetuned), service, None, window=64)
    prepare_states(whole, tmp_path / "rows.parquet", tmp_path / "other")
    score_parquet(whole, tmp_path / "rows.parquet", tmp_path / "other")
    assert_close(read(tmp_path / "out").column("score").to_numpy(), read(tmp_path / "other").column("score").to_numpy())


def test_another_job_does_not_go_on_in_the_same_folder(service: Dataset, exported: Export, tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pq.write_table(rows_of(service, np.arange(10)), rows)
    score_parquet(ExportScorer(exported), rows, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds the scores of another job \(vectors differs\)"):
        score_parquet(ExportScorer(exported, vectors=True), rows, tmp_path / "out")
    pq.write_table(rows_of(service, np.arange(1, 11)), rows)
    with pytest.raises(ValueError, match=r"holds the scores of another job \(rows differs\)"):
        score_parquet(ExportScorer(exported), rows, tmp_path / "out")
    assert score_parquet(ExportScorer(exported), rows, tmp_path / "out", overwrite=True).rows == 10
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(ValueError, match="is there and is no folder of scores"):
        score_parquet(ExportScorer(exported), rows, tmp_path / "mine", overwrite=True)


def test_garbage_is_one_sentence_and_leaves_no_part(
    service: Dataset, exported: Export, finetuned: Path, tmp_path: Path
) -> None:
    good = rows_of(service, np.arange(10))
    wrong = {
        "column 'time': this column is missing": good.drop_columns(["time"]),
        "column 'time': expected a whole number of seconds .* or a timestamp, found double": good.set_column(
            2, "time", pa.array(np.zeros(10))
        ),
        "column 'user_id': expected integers like the ids of the users, found string": good.set_column(
            0, "user_id", pa.array(["a"] * 10)
        ),
        "column 'score': this column is what scoring adds": good.append_column("score", pa.array(np.zeros(10))),
    }
    for number, (sentence, table) in enumerate(wrong.items()):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        with pytest.raises(ValueError, match=sentence):
            score_parquet(ExportScorer(exported), tmp_path / f"{number}.parquet", tmp_path / f"out{number}")
        assert not (tmp_path / f"out{number}").exists()
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        score_parquet(ExportScorer(exported), tmp_path / "text.parquet", tmp_path / "x")
    model = checkpoint.load_model(finetuned)
    context = next(iter(service.info.context))
    far = good.set_column(good.column_names.index(f"context_{context}"), f"context_{context}", pa.array([99999] * 10))
    with pytest.raises(ValueError, match=f"column 'context_{context}', data row 1: expected a value in"):
        HistoryScorer(model, service, None, window=8)(far)
    unknown = good.append_column("context_hours", pa.array(np.zeros(10, np.int64)))
    with pytest.raises(ValueError, match=f"column 'context_hours': expected a context .* data set .*context_{context}"):
        HistoryScorer(model, service, None, window=8)(unknown)
    with pytest.raises(ValueError, match="needs the simplified form"):
        HistoryScorer(random_model(service, "finetune", form="full"), service, None, window=8)


def test_folders_empty_files_and_row_groups(service: Dataset, exported: Export, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(rows_of(service, np.arange(25)), folder / "b.parquet", row_group_size=10)
    pq.write_table(rows_of(service, np.arange(5)), folder / "a.parquet")
    parts = input_parts(folder)
    assert [(part.file.name, part.group, part.rows) for part in parts] == [
        ("a.parquet", 0, 5), ("b.parquet", 0, 10), ("b.parquet", 1, 10), ("b.parquet", 2, 5)
    ]  # fmt: skip
    assert sum(len(table) for table in tables(parts[2])) == 10
    score_parquet(ExportScorer(exported), folder, tmp_path / "out")
    np.testing.assert_array_equal(
        read(tmp_path / "out").column("row").to_numpy(), np.concatenate([np.arange(5), np.arange(25)])
    )
    pq.write_table(rows_of(service, np.arange(0)), tmp_path / "empty.parquet")
    assert score_parquet(ExportScorer(exported), tmp_path / "empty.parquet", tmp_path / "none").rows == 0
    assert read(tmp_path / "none").column_names[-2:] == ["score", "score_missing"]
    pq.write_table(pa.table({"x": [1]}), folder / "c.parquet")
    with pytest.raises(
        ValueError, match=r"c\.parquet: its columns differ from those of a\.parquet: 'user_id' is in one of them only"
    ):
        input_parts(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"the folder has no \.parquet file"):
        input_parts(folder)


def test_distinct_rows_of_columns_that_overflow_together() -> None:
    random = np.random.default_rng(0)
    columns = [random.integers(-1, high, 500) * (1 << 40 if high == 3 else 1) for high in (3, 2, 3, 50)]
    columns = [np.maximum(column, -1) for column in columns]
    first, place = distinct(columns)
    stacked = np.stack(columns, 1)
    np.testing.assert_array_equal(stacked[first][place], stacked)
    assert len(first) == len(np.unique(stacked, axis=0))
