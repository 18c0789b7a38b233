"""What a run writes down: the same figures in metrics.jsonl and TensorBoard, and lines that are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from python_model.io.errors import DataError
from python_model.training.progress import METRICS, TENSORBOARD, MetricsLog, StepReport, read_metrics


def report(step: int) -> StepReport:
    losses = {"loss": 1.0 / step, "gradient_norm": 2.0}
    return StepReport("pretrain", step, 3, 10 * step, 1.0 * step, 100.0, 0.0, 0.01 * step, losses)


def test_tensorboard_has_the_learning_rate_and_every_loss(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(report(step))
    found = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    records = read_metrics(tmp_path)
    assert [record["learning_rate"] for record in records] == [0.01, 0.02, 0.03]
    for name in ("learning_rate", "loss", "gradient_norm"):
        scalars = found.Scalars(f"pretrain/{name}")
        assert [one.step for one in scalars] == [1, 2, 3]
        assert [one.value for one in scalars] == pytest.approx([record[name] for record in records], rel=1e-6)
    assert len(found.Scalars("pretrain/events_per_second")) == 3


@pytest.mark.parametrize(
    "line", [b"[1]", b"{}", b'{"step": "1"}', b'{"step": true}', b"null", b"[" * 100_000, b"\xff", b'{"step": NaN}']
)
def test_a_line_that_is_no_record_of_a_step(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is damaged: .*; remove it or the file"):
        read_metrics(tmp_path)


def test_a_torn_last_line_counts_as_not_written(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]
