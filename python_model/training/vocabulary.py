"""What the rows of a run's tables stand for: the original ids of its items and the labels of its categories.

`<run>/vocabulary/` holds them, so that a run can be continued on data in which they have other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.data.description import ITEMS
from python_model.data.identifiers import ids_of
from python_model.data.names import LABELS, read_names, write_labels
from python_model.data.schema import Dataset
from python_model.io.errors import DataError
from python_model.io.files import open_parquet, reading_parquet
from python_model.io.publish import whole_directory

VOCABULARY = "vocabulary"
Labels = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Vocabulary:
    """items: original ids [V], the row of each in the item table. labels: column -> number -> label."""

    items: np.ndarray
    labels: Labels

    @classmethod
    def of(cls, dataset: Dataset) -> Vocabulary:
        """Of a prepared data set."""
        return cls(dataset.item_column("item_id"), dataset.names.labels)

    @classmethod
    def read(cls, checkpoint: Path) -> Vocabulary:
        """Of the run that a checkpoint directory lies in; DataError where it is missing or damaged."""
        # RUN, RUN/checkpoints/step-… or RUN/best/checkpoints/step-…
        places = [above / VOCABULARY for above in (checkpoint, *checkpoint.resolve().parents[1:3])]
        found = next((place for place in places if (place / ITEMS).is_file()), None)
        if found is None:
            message = (
                "not found: the run does not say which items its rows stand for (an earlier version wrote it): train "
                "anew on all data"
            )
            raise DataError(places[0], message)
        with reading_parquet(found / ITEMS, "item_id"):
            column = open_parquet(found / ITEMS).read(columns=["item_id"]).column(0)
        ids = ids_of(column, found / ITEMS, "item_id")
        return cls(ids, read_names(found / ITEMS, found / LABELS).labels)

    def write(self, run: Path) -> None:
        """Write it into a run, whole or not at all; WriteError where the disk is full."""
        with whole_directory(run / VOCABULARY, ITEMS, overwrite=True) as folder:
            kind = pa.large_string() if self.items.dtype == object else None
            pq.write_table(pa.table({"item_id": pa.array(self.items, kind)}), folder / ITEMS, write_page_checksum=True)
            write_labels(folder / LABELS, {name: _in_order(found) for name, found in self.labels.items()})


def _in_order(labels: Mapping[int, str]) -> list[str]:
    """The labels of 0, 1, 2, …"""
    return [labels[number] for number in range(len(labels))]


def old_rows(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each of the new ids [V] its place among the old ones, −1 where it is new; int64 [V].

    ValueError where one are integers and the others text.
    """
    if len({ids.dtype.kind == "O" for ids in (old, new)}) > 1:
        kinds = ["text" if ids.dtype.kind == "O" else "integers" for ids in (old, new)]
        raise ValueError(
            f"the run's item ids are {kinds[0]}, those of the data set {kinds[1]}: they name nothing alike"
        )
    if old.dtype != new.dtype:  # int64 and uint64, which no numpy type holds together
        place = {int(one): number for number, one in enumerate(old)}
        return np.array([place.get(int(one), -1) for one in new], np.int64)
    return rows_in(pa.array(old), pa.array(new))


def rows_in(old: pa.Array, new: pa.Array) -> np.ndarray:
    """The place of each new value among the old ones, −1 where it is not one of them; int64."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.index_in(new, value_set=old), -1).to_numpy(zero_copy_only=False).astype(np.int64)
