"""Continues a run on other data: rows of its tables are kept by original id and by label, new ones begin as at first.

The weights of everything else are taken as they are, and so is the state of the optimisers: AdamW's moments, the
accumulators of row-wise Adagrad. A row that is new has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from python_model.config import FeatureSpec, ModelConfig
from python_model.data.schema import Dataset
from python_model.io.errors import DataError, counted
from python_model.model.base import Recommender
from python_model.model.optim import Optimisers
from python_model.training import checkpoint
from python_model.training.checkpoint import Description
from python_model.training.resume import SKETCH, require_same
from python_model.training.vocabulary import Vocabulary, old_rows

_ITEM_COLUMNS = "item_columns"
_TABLE = "tables.weights."
FREE = ("lag", "dropout", "attention_dropout", "item_dropout", "feedback_dropout")
"""Settings of the model that may differ: neither shapes nor optimisers depend on them."""


@dataclass(frozen=True)
class Continuation:
    """A checkpoint and the new data's place in it.

    rows: table -> int64 [rows], the row of the checkpoint that each row of the new table continues, −1 for a new one;
    tables not named keep their rows. old: rows of the checkpoint's tables.
    """

    directory: Path
    description: Description
    rows: Mapping[str, np.ndarray]
    old: Mapping[str, int]

    @classmethod
    def of(cls, source: Path, dataset: Dataset) -> Continuation:
        """ValueError where the run cannot be continued on a data set, DataError where it is damaged."""
        found = checkpoint.read_description(source)
        if found.stage != "pretrain":
            raise ValueError(f"{source}: the run is fine-tuned, expected a run of `argus pretrain`")
        features = FeatureSpec.of(dataset.info)
        _require_columns(source, found.features, features, dataset)
        before, now = Vocabulary.read(source), Vocabulary.of(dataset)
        items = old_rows(before.items, now.items)
        if not (items >= 0).any():
            raise ValueError(f"{dataset.path} has no item of {source}: expected a data set that continues the run's")
        if found.model_config.item_hashes:
            _require_numbers(source, items, len(before.items))
        rows: dict[str, np.ndarray] = {} if found.model_config.item_hashes else {"item": items}
        old = {"item": len(before.items)}
        sizes = {f"item_{name}": (found.features.item_features[name], n) for name, n in features.item_features.items()}
        sizes |= {f"context_{name}": (found.features.context[name], n) for name, n in features.context.items()}
        for name, (was, size) in sizes.items():
            rows[name] = _rows_by_label(before.labels.get(name), now.labels.get(name), was, size)
            old[name] = was
        return cls(source, found, rows, old)

    def text(self) -> str:
        """What is kept, new and dropped, in one sentence."""
        kept, new, gone = self.counts("item")
        parts = [f"{counted(kept, 'item')} kept, {new:,} new, {gone:,} of the run's gone and dropped"]
        for name in self.rows:
            kept, new, gone = self.counts(name)
            if name != "item" and (new or gone):
                column = name.removeprefix("item_").removeprefix("context_")
                parts.append(f"{column}: {kept:,} values kept, {new:,} new, {gone:,} dropped")
        return f"Continuing {self.directory} (step {self.description.step:,}): {'; '.join(parts)}"

    def counts(self, table: str) -> tuple[int, int, int]:
        """Rows of a table that are kept, new and dropped."""
        rows = self.rows.get(table, np.arange(self.old[table]))
        kept = int((rows >= 0).sum())
        return kept, len(rows) - kept, self.old[table] - len(np.unique(rows[rows >= 0]))

    def require_config(self, config: ModelConfig) -> None:
        """ValueError where the model's settings are others than the run's."""
        require_same(self.directory, "model_config", asdict(self.description.model_config), asdict(config), FREE)

    def fill(self, model: Recommender) -> None:
        """Copy the weights into a new model, whose new rows stay; DataError where the checkpoint is damaged.

        On several ranks each reads the tables in full and keeps its rows. A collective call.
        """
        checkpoint.require_weights_once(self.directory)
        found = checkpoint.read_tensors(self.directory, checkpoint.MODEL, {})
        wanted = model.state_dict()
        with torch.no_grad():
            for name, value in wanted.items():
                if name == _ITEM_COLUMNS:
                    continue
                given = self._tensor(checkpoint.MODEL, found, name)
                checkpoint.require_finite(self.directory / checkpoint.MODEL, name, given)
                table = name.removeprefix(_TABLE)
                part = model.tables.spans.get(table) if name.startswith(_TABLE) else None
                kept, values = self._continued(name, given, part)
                if values.shape[1:] != value.shape[1:] or (kept is None and values.shape != value.shape):
                    message = f"expected shape {list(value.shape)}, found {list(values.shape)}"
                    raise DataError(self.directory / checkpoint.MODEL, message, column=name)
                if kept is None:
                    value.copy_(values)
                else:
                    value[kept] = values.to(value)

    def fill_optimisers(self, optimisers: Optimisers) -> None:
        """Give the optimisers of the new run the states of the old one; new rows have a state of zeros."""
        leaves = optimisers.leaves
        states = {}
        for name, given in checkpoint.read_tensors(self.directory, checkpoint.TRAINER, {}).items():
            parameter = name.rsplit("::", 1)[0]
            if name == SKETCH or parameter not in leaves:
                continue
            checkpoint.require_finite(self.directory / checkpoint.TRAINER, name, given)
            leaf = leaves[parameter]
            part = None if leaf.rows is None else leaf.rows[:2]
            kept, values = self._continued(parameter, given, part)
            if kept is not None:
                full = torch.zeros((len(kept), *given.shape[1:]), dtype=given.dtype)
                full[kept] = values
                values = full
            states[name] = values
        optimisers.load(states)

    def _continued(self, name: str, given: Tensor, part: tuple[int, int] | None) -> tuple[Tensor | None, Tensor]:
        """Which rows of a parameter (or of the part of it that this rank holds) are kept, and their values.

        None: all of them.
        """
        table = name.removeprefix(_TABLE)
        rows = self.rows.get(table) if name.startswith(_TABLE) and given.dim() else None
        if rows is None:
            return None, given if part is None or not given.dim() else given[part[0] : part[1]]
        own = torch.from_numpy(rows if part is None else rows[part[0] : part[1]])
        kept = own >= 0
        return kept, given.index_select(0, own[kept])

    def _tensor(self, file: str, found: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in found:
            raise DataError(self.directory / file, "this tensor is missing", column=name)
        return found[name]


def _require_columns(source: Path, before: FeatureSpec, now: FeatureSpec, dataset: Dataset) -> None:
    for what in ("context", "item_features", "feedback"):
        old, new = getattr(before, what), getattr(now, what)
        same = list(old) == list(new) and (what != "feedback" or dict(old) == dict(new))
        if not same:
            shown = [", ".join(f"{name} ({getattr(one, 'classes', one)})" for name, one in side.items()) or "none"
                     for side in (old, new)]  # fmt: skip
            raise ValueError(
                f"{source}: trained with {what} {shown[0]}, {dataset.path} has {shown[1]}: a run goes on with the same "
                "columns in the same order"
            )


def _require_numbers(source: Path, rows: np.ndarray, old: int) -> None:
    if not np.array_equal(rows[:old], np.arange(old)):
        raise ValueError(
            f"{source}: its items are hashed from their numbers (item_hashes), and the data set numbers them "
            "otherwise: train anew"
        )


def _rows_by_label(old: Mapping[int, str] | None, new: Mapping[int, str] | None, was: int, size: int) -> np.ndarray:
    """The old row of each number of a column: of the same label, or without labels of the same number."""
    if old is None or new is None:
        numbers = np.arange(size)
        return np.where(numbers < was, numbers, -1)
    place = {label: number for number, label in old.items()}
    return np.array([place.get(new.get(number, ""), -1) for number in range(size)], np.int64)
