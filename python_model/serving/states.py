"""The encoder's states after chosen events, on disk: one pass over the histories, looked up by row afterwards.

rows.npy     int64 [n], rising: rows of events.parquet
states.npy   float32 [n, d]
done.json    number of finished states; a stopped pass resumes from here
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from python_model.data.batches import evaluation_batches
from python_model.data.schema import Dataset
from python_model.io.arrays import ArrayFile, ArrayWriter
from python_model.io.disk import refuse_links, replace_text
from python_model.io.json_text import read_object
from python_model.model.argus import Argus
from python_model.serving.files import whole_file

BLOCK = 1 << 18
ROWS, STATES, DONE = "rows.npy", "states.npy", "done.json"

Progress = Callable[[int, int], None]


class StateFiles:
    """States float32 [n, d] after the events `rows` of a data set, read from a folder that `write_states` made."""

    def __init__(self, folder: Path) -> None:
        self.rows: np.ndarray = ArrayFile(folder / ROWS, np.int64, (None,)).read()
        self._states = ArrayFile(folder / STATES, np.float32, (len(self.rows), None))

    def after(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, d] after the events `rows` (rising), all of which must be stored.

        DataError where the file has been truncated since.
        """
        place = np.searchsorted(self.rows, rows)
        if len(rows) and (place.max() >= len(self.rows) or (self.rows[place] != rows).any()):
            raise ValueError("StateFiles: a state is asked for that was not computed")
        return self._states.take(place)


def begun(folder: Path) -> np.ndarray | None:
    """The rows of a stopped pass that can be resumed; None where there is none.

    Unreadable files are computed again.
    """
    try:
        done = read_object(folder / DONE).get("states")
        rows = StateFiles(folder).rows
    except (OSError, ValueError):
        return None
    return rows if isinstance(done, int) and 0 <= done <= len(rows) else None


@torch.inference_mode()
def write_states(
    model: Argus, dataset: Dataset, rows: np.ndarray, folder: Path, *, window: int, lag: int, token_budget: int = 8192,
    progress: Progress = lambda done, total: None,
) -> StateFiles:  # fmt: skip
    """Computes the states after `rows` (int64 [n], rising) that the folder lacks; flushed block by block.

    A stopped pass with the same rows resumes; otherwise the folder is started again.

    Every state has at least window // 2 events behind it, or all that its user has. lag: the states are read at least
    so many seconds later. Only for the simplified form, whose states do not depend on the later request.
    """
    width = model.config.width
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    before = begun(folder)
    if before is not None and np.array_equal(before, rows):
        done = int(read_object(folder / DONE)["states"])
        states = ArrayWriter(folder / STATES, np.float32, (len(rows), width), again=True)
    else:
        done = 0
        (folder / DONE).unlink(missing_ok=True)
        with whole_file(folder / ROWS) as partial, open(partial, "wb") as file:
            np.save(file, rows)
        states = ArrayWriter(folder / STATES, np.float32, (len(rows), width))
    window = min(window, model.config.max_events)
    for start in range(done, len(rows), BLOCK):
        targets = np.zeros(len(dataset), bool)
        targets[rows[start : start + BLOCK]] = True
        place = start
        for batch in evaluation_batches(dataset, targets, max(token_budget, window), window):
            batch = batch.to(model.device)
            found = model.encode(batch, lag=lag, read=batch.is_target)[batch.is_target].float().cpu().numpy()
            states.write(place, found)
            place += len(found)
            progress(place, len(rows))
        states.flush()
        replace_text(folder / DONE, json.dumps({"states": place}) + "\n")
    if len(rows) == 0:
        replace_text(folder / DONE, json.dumps({"states": 0}) + "\n")
    states.close()
    return StateFiles(folder)
