"""`argus` as a rank that torchrun starts, watched: it notes the rows of every batch, and rank 1 dies once in a step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from python_model.cli import main
from python_model.data.batches import JaggedBatch
from python_model.train import Trainer
from python_model.training import process_group
from python_model.training.distributed import DistributedModel

DEADLY_STEP = 5
"""0-based. Rank 1 is killed between the gradients of its two batches of this step, the first time it comes there."""


def watch() -> None:
    gradients, backward = Trainer._gradients, DistributedModel.backward
    notes = Path(os.environ["ARGUS_TEST_NOTES"])
    now = [0]

    def noting(self: Trainer, batches: Sequence[JaggedBatch]) -> list[dict[str, Tensor]]:
        now[0] = self.step
        note = {"step": self.step, "rank": process_group.rank(), "rows": [batch.rows.tolist() for batch in batches]}
        with (notes / f"rank-{process_group.rank()}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        return gradients(self, batches)

    def dying(self: DistributedModel, loss: Tensor, *, last: bool) -> None:
        backward(self, loss, last=last)
        if now[0] == DEADLY_STEP and process_group.rank() == 1 and not last and not process_group.restarted():
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._gradients = noting  # type: ignore[method-assign]
    DistributedModel.backward = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    watch()
    main()
