"""The encoder's states after chosen events, on disk: one pass over the histories, looked up by row afterwards.

rows.npy     int64 [n], rising: rows of events.parquet
states.npy   float32 [n, d]
done.json    how many are there; a stopped pass goes on from here
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from python_model.data.batches import evaluation_batches
from python_model.data.schema import Dataset
from python_model.io.disk import replace_text
from python_model.io.errors import DataError
from python_model.io.json_text import read_object
from python_model.model.argus import Argus
from python_model.serving.files import whole_file

BLOCK = 1 << 18
ROWS, STATES, DONE = "rows.npy", "states.npy", "done.json"

Progress = Callable[[int, int], None]


class StateFiles:
    """States float32 [n, d] after the events `rows` of a data set, mapped from a folder that `write_states` made."""

    def __init__(self, folder: Path) -> None:
        try:
            self.rows: np.ndarray = np.load(folder / ROWS)
            self._states: np.ndarray = np.load(folder / STATES, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(folder, f"the stored states cannot be read: {error}") from error

    def after(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, d] after the events `rows`, every one of which must be there."""
        place = np.searchsorted(self.rows, rows)
        if len(rows) and (place.max() >= len(self.rows) or (self.rows[place] != rows).any()):
            raise ValueError("StateFiles: a state is asked for that was not computed")
        return np.asarray(self._states[place])


def begun(folder: Path) -> np.ndarray | None:
    """The rows of a pass that was stopped, whose states are then gone on with; None where there are none to go on with.

    What cannot be read is computed anew: it is no more than what the job can make again.
    """
    try:
        done = read_object(folder / DONE).get("states")
        rows: np.ndarray = np.load(folder / ROWS)
        states = np.load(folder / STATES, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    whole = isinstance(done, int) and 0 <= done <= len(rows) and len(states) == len(rows) and rows.dtype == np.int64
    return rows if whole else None


@torch.inference_mode()
def write_states(
    model: Argus, dataset: Dataset, rows: np.ndarray, folder: Path, *, window: int, lag: int, token_budget: int = 8192,
    progress: Progress = lambda done, total: None,
) -> StateFiles:  # fmt: skip
    """Computes what of the states after `rows` (int64 [n], rising) is not in the folder yet; flushed block by block.

    A pass that was stopped goes on where it has the same rows; otherwise the folder begins anew.

    Every state has at least window // 2 events behind it, or all that its user has. lag: seconds after which they are
    read at the earliest. Only of the simplified form, whose states do not depend on what is asked of them then.
    """
    width = model.config.width
    folder.mkdir(parents=True, exist_ok=True)
    before = begun(folder)
    if before is not None and np.array_equal(before, rows):
        done = int(read_object(folder / DONE)["states"])
        states = open_memmap(folder / STATES, mode="r+")
    else:
        done = 0
        (folder / DONE).unlink(missing_ok=True)
        with whole_file(folder / ROWS) as partial, open(partial, "wb") as file:
            np.save(file, rows)
        states = open_memmap(folder / STATES, mode="w+", dtype=np.float32, shape=(len(rows), width))
    window = min(window, model.config.max_events)
    for start in range(done, len(rows), BLOCK):
        targets = np.zeros(len(dataset), bool)
        targets[rows[start : start + BLOCK]] = True
        place = start
        for batch in evaluation_batches(dataset, targets, max(token_budget, window), window):
            batch = batch.to(model.device)
            found = model.encode(batch, lag=lag)[batch.is_target].float().cpu().numpy()
            states[place : place + len(found)] = found
            place += len(found)
            progress(place, len(rows))
        if isinstance(states, np.memmap):
            states.flush()
        replace_text(folder / DONE, json.dumps({"states": place}) + "\n")
    if len(rows) == 0:
        replace_text(folder / DONE, json.dumps({"states": 0}) + "\n")
    return StateFiles(folder)
