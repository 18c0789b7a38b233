"""Steps whose loss or gradient is not finite: they change nothing, are counted, and their batches are stored.

A run stops with `TrainingDiverged` after `max_skipped_steps` of them in a row. `<run>/skipped/step-<n>.parquet` holds
the batch of a skipped step, one row per event with its original ids; `read_batch` makes a `JaggedBatch` of it again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from python_model.data.batches import JaggedBatch
from python_model.data.schema import Dataset
from python_model.io.disk import WriteError, writing
from python_model.io.errors import DataError
from python_model.io.json_text import parse

SKIPPED = "skipped"
KEPT_BATCHES = 20
"""Batches of skipped steps that stay in a run, the newest ones: a run that skips now and then must not fill a disk."""
_ABOUT = b"argus_skipped_step"

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Loss or gradient were NaN or infinite too often in a row; the last checkpoint is from before that."""


class SkippedSteps:
    """Counts of a run's skipped steps, in total and in a row up to now; part of its checkpoints."""

    def __init__(self, run: Path, dataset: Dataset, most_in_a_row: int) -> None:
        self.run, self.dataset, self.most_in_a_row = run, dataset, most_in_a_row
        self.total = self.in_a_row = 0

    def state(self) -> dict[str, int]:
        """For a checkpoint's plain numbers."""
        return {"skipped": self.total, "skipped_in_a_row": self.in_a_row}

    def load(self, numbers: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.total, self.in_a_row = numbers.get("skipped", 0), numbers.get("skipped_in_a_row", 0)

    def note(self, step: int, numbers: Mapping[str, float], batches: Mapping[str, JaggedBatch]) -> None:
        """Count the step (from 1) that `numbers` (losses, gradient_norm) make unusable and keep its batches.

        batches: by what is added to their file's name.

        TrainingDiverged where it is the last allowed in a row.
        """
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        wrong = ", ".join(f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value))
        where = ", ".join(self._keep(f"step-{step:08d}{name}", step, numbers, one) for name, one in batches.items())
        if self.in_a_row >= self.most_in_a_row:
            raise TrainingDiverged(
                f"step {step}: {wrong}, expected finite numbers ({self.in_a_row} in a row); {where}. "
                "A lower learning rate or a longer warm-up usually helps"
            )
        logger.warning(
            "Step %d skipped: %s; %d in a row, training stops after %d; %s",
            step, wrong, self.in_a_row, self.most_in_a_row, where,
        )  # fmt: skip

    def end_row(self) -> None:
        """Call after a step that was not skipped."""
        self.in_a_row = 0

    def _keep(self, name: str, step: int, numbers: Mapping[str, float], batch: JaggedBatch) -> str:
        """Write the batch, drop the oldest of too many; says where it is, or why not: that must not hide the rest."""
        file = self.run / SKIPPED / f"{name}.parquet"
        about = {"step": step, **{name: str(value) for name, value in numbers.items()}}
        try:
            write_batch(file, batch, self.dataset, about)
        except WriteError as error:
            return f"its batch is not kept: {error}"
        for old in sorted(file.parent.glob("step-*.parquet"))[:-KEPT_BATCHES]:
            old.unlink(missing_ok=True)
        return f"its batch: {file}"


def write_batch(file: Path, batch: JaggedBatch, dataset: Dataset, about: Mapping[str, Any]) -> None:
    """One row per event: window, user, row in events.parquet, original ids, and everything else the model saw.

    about: plain values, kept in the file's metadata. WriteError where the disk is full; nothing half-written stays.
    """
    batch = batch.to("cpu")
    windows = len(batch.offsets) - 1
    window = torch.repeat_interleave(torch.arange(windows), batch.offsets.diff().long(), output_size=len(batch))
    user = batch.users[window]
    columns = {
        "window": window, "user": user, "row": batch.rows, "item": batch.items, "time": batch.time,
        "organic": batch.organic, "grade": batch.grade, "is_target": batch.is_target,
        **{f"context_{name}": batch.context[index] for index, name in enumerate(dataset.info.context)},
        **{f"feedback_{name}": batch.feedback[:, index] for index, name in enumerate(dataset.info.feedback)},
    }  # fmt: skip
    arrays = {name: values.numpy() for name, values in columns.items()}
    ids = {"user_id": dataset.user_ids[user.numpy()], "item_id": dataset.item_column("item_id")[batch.items.numpy()]}
    table = pa.table({**ids, **arrays}).replace_schema_metadata({_ABOUT: json.dumps(dict(about)).encode()})
    partial = file.with_name(f".{file.name}.partial")
    try:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, partial)
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_batch(file: str | Path) -> tuple[JaggedBatch, dict[str, Any]]:
    """The batch of a skipped step, and what `write_batch` was told about it; DataError where the file is none."""
    try:
        table = pq.read_table(file)
        return _as_batch(table), parse(table.schema.metadata[_ABOUT])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(file, f"expected the batch of a skipped step: {error}") from error


def _as_batch(table: pa.Table) -> JaggedBatch:
    columns = {name: torch.from_numpy(table.column(name).to_numpy().copy()) for name in table.column_names[2:]}
    window = columns.pop("window").numpy()
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    lengths = np.diff(np.append(starts, len(window)))
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    context = [values for name, values in columns.items() if name.startswith("context_")]
    feedback = [values for name, values in columns.items() if name.startswith("feedback_")]
    empty = torch.empty((0, len(window)), dtype=torch.int64)
    return JaggedBatch(
        offsets=offsets, max_length=int(lengths.max(initial=0)), users=columns["user"][torch.from_numpy(starts)],
        rows=columns["row"], items=columns["item"], time=columns["time"], organic=columns["organic"],
        grade=columns["grade"], context=torch.stack(context) if context else empty,
        feedback=torch.stack(feedback, dim=1) if feedback else empty.T, is_target=columns["is_target"],
    )  # fmt: skip
