"""Checkpoints of a run on several ranks: torch.distributed.checkpoint in the directory that every checkpoint has.

Each rank writes its parts in the background while training goes on. When all are on disk, rank 0 renames the hidden
directory, so that it is there as a whole or not at all. The parts know what whole they belong to: any number of ranks
reads them, one process (`checkpoint.load_model`) among them.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections import ChainMap
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh

from python_model import checkpoint, ranks
from python_model.checkpoint import Description
from python_model.data.errors import DataError
from python_model.distributed import part_of_rows
from python_model.integrity import sums_of


class BackgroundSaver:
    """Writes checkpoints while training goes on, one at a time; every method is called on all ranks alike."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep
        # Its own group: the writers of the ranks agree in the background while the main thread trains.
        self._group = dist.new_group(backend="gloo")
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._published: Future[Path] | None = None

    def start(self, description: Description, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Copy the tensors and begin to write them; returns where they will lie.

        Waits for the checkpoint before, where that is still written. WriteError where that one failed.
        """
        self.finish()
        step = description.step
        final, partial = checkpoint.directory_of(self.run, step), checkpoint.partial_of(self.run, step)
        if not ranks.on_first(lambda: self._begin(description, numbers)):
            return final
        written = async_save(dict(tensors), storage_writer=FileSystemWriter(partial), process_group=self._group)
        assert isinstance(written, Future)
        self._published = self._background.submit(self._publish, step, written)
        return final

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written, as far as this rank knows by now."""
        return self._published is not None and self._published.done() and self._published.exception() is not None

    def finish(self) -> Path | None:
        """Wait until the last checkpoint is the latest on every rank; its directory, None before the first."""
        return None if self._published is None else self._published.result()

    def _begin(self, description: Description, numbers: Mapping[str, Any]) -> bool:
        """On rank 0: make the hidden directory; False where the checkpoint of this step is there already."""
        if checkpoint.is_saved(self.run, description.step):
            return False
        with checkpoint.writing_checkpoint(self.run, description.step):
            checkpoint.begin(self.run, description, numbers)
        return True

    def _publish(self, step: int, written: Future[Any]) -> Path:
        """In the background: each rank sums up what it wrote, rank 0 makes it the latest checkpoint."""
        partial = checkpoint.partial_of(self.run, step)
        try:
            with checkpoint.writing_checkpoint(self.run, step):
                _result(written)
                sums: list[Any] = [None] * ranks.size()
                dist.all_gather_object(sums, sums_of(partial, self._own(partial)), group=self._group)
                all_sums = dict(ChainMap(*sums))
                ranks.on_first(lambda: checkpoint.publish(self.run, step, self.keep, all_sums), self._group)
        except BaseException:
            if ranks.rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return checkpoint.directory_of(self.run, step)

    def _own(self, partial: Path) -> list[Path]:
        """The files of this rank's parts; rank 0 has what is not a part as well."""
        own = list(partial.glob(f"__{ranks.rank()}_*"))
        return own + [file for file in partial.iterdir() if not file.name.startswith("__")] * (ranks.rank() == 0)


def _result(written: Future[Any]) -> None:
    """Waits for all ranks' parts; what failed on any of them comes out as it was."""
    try:
        written.result()
    except CheckpointException as error:
        raise next(cause for cause, _ in error.failures.values()) from error


def read(directory: Path, kind: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """As `checkpoint.read_tensors`."""
    reader = FileSystemReader(directory)
    try:
        stored = reader.read_metadata().state_dict_metadata
        out: dict[str, Tensor] = {}
        wanted: dict[str, Tensor] = {}
        mesh = init_device_mesh("cpu", (ranks.size(),)) if spans else None
        for key, entry in stored.items():
            name = key.removeprefix(f"{kind}/")
            if name == key or not isinstance(entry, TensorStorageMetadata):
                continue
            held = checkpoint.span_of(name, spans) if entry.size else None
            shape = entry.size if held is None else (held[1] - held[0], *entry.size[1:])
            out[name] = wanted[key] = torch.empty(shape, dtype=entry.properties.dtype)
            if held is not None and mesh is not None:
                wanted[key] = part_of_rows(out[name], entry.size[0], mesh)
        with warnings.catch_warnings():
            # One process reads alone, as asked.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(wanted, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(directory, f"damaged or incomplete: {str(error).splitlines()[0]}") from error
    return out
