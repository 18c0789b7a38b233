"""Checkpoints of a run on several ranks: torch.distributed.checkpoint in the directory that every checkpoint has.

Each rank writes its parts in the background while training continues. When all are on disk, rank 0 renames the hidden
directory, so the checkpoint appears atomically. parts.json (`parts`) maps the parts to whole tensors, so any number of
ranks can read them, also a single process (`checkpoint.load_model`).
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
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from python_model.io.errors import DataError
from python_model.io.integrity import sums_of
from python_model.training import process_group
from python_model.training.checkpoint import directory as directories
from python_model.training.checkpoint.directory import Description
from python_model.training.checkpoint.parts import Part, StoredTensor, read_parts, write_parts


class BackgroundSaver:
    """Writes checkpoints while training goes on, one at a time; every method is called on all ranks alike."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep
        # A separate group: the ranks' writers communicate in the background while the main thread trains.
        self._group = dist.new_group(backend="gloo")
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._published: Future[Path] | None = None

    def start(self, description: Description, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Copy the tensors and begin to write them; returns where they will lie.

        Waits for the checkpoint before, where that is still written. WriteError where that one failed.
        """
        self.finish()
        step = description.step
        final, partial = directories.directory_of(self.run, step), directories.partial_of(self.run, step)
        if not process_group.on_first(lambda: self._begin(description, numbers)):
            return final
        written = async_save(dict(tensors), storage_writer=_Writer(partial), process_group=self._group)
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
        if directories.is_saved(self.run, description.step):
            return False
        with directories.writing_checkpoint(self.run, description.step):
            directories.begin(self.run, description, numbers)
        return True

    def _publish(self, step: int, written: Future[Any]) -> Path:
        """In the background: each rank sums up what it wrote, rank 0 makes it the latest checkpoint."""
        partial = directories.partial_of(self.run, step)
        try:
            with directories.writing_checkpoint(self.run, step):
                _result(written)
                sums: list[Any] = [None] * process_group.size()
                dist.all_gather_object(sums, sums_of(partial, self._own(partial)), group=self._group)
                all_sums = dict(ChainMap(*sums))
                process_group.on_first(lambda: directories.publish(self.run, step, self.keep, all_sums), self._group)
        except BaseException:
            if process_group.rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return directories.directory_of(self.run, step)

    def _own(self, partial: Path) -> list[Path]:
        """The files of this rank's parts; rank 0 has what is not a part as well."""
        own = list(partial.glob(f"__{process_group.rank()}_*"))
        return own + [file for file in partial.iterdir() if not file.name.startswith("__")] * (
            process_group.rank() == 0
        )


def _result(written: Future[Any]) -> None:
    """Waits for all ranks' parts; what failed on any of them comes out as it was."""
    try:
        written.result()
    except CheckpointException as error:
        raise next(cause for cause, _ in error.failures.values()) from error


def read(directory: Path, kind: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """As `checkpoint.read_tensors`."""
    stored = read_parts(directory)
    out: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    mesh = init_device_mesh("cpu", (process_group.size(),)) if spans else None
    for key, tensor in stored.items():
        name = key.removeprefix(f"{kind}/")
        if name == key:
            continue
        held = directories.span_of(name, spans) if tensor.size else None
        shape = tensor.size if held is None else (held[1] - held[0], *tensor.size[1:])
        out[name] = wanted[key] = torch.empty(shape, dtype=tensor.dtype)
        if held is not None and mesh is not None:
            wanted[key] = part_of_rows(out[name], tensor.size[0], mesh)
    try:
        with warnings.catch_warnings():
            # One process reads alone, as asked.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(wanted, storage_reader=_Reader(directory, stored), no_dist=True)
    except CheckpointException as error:
        cause = next((cause for cause, _ in error.failures.values()), error)
        raise DataError(directory, f"damaged or incomplete: {_reason(cause)}") from error
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(directory, f"damaged or incomplete: {_reason(error)}") from error
    return out


def part_of_rows(value: Tensor, rows: int, mesh: DeviceMesh) -> DTensor:
    """This rank's rows of a tensor of that many as the DTensor they are part of; the storage is shared."""
    shape = torch.Size((rows, *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(value.contiguous(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


class _Writer(FileSystemWriter):
    """torch's writer of parts, which ends with our parts.json and not with a pickle."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, once all parts are written."""
        places = {one.index: one.storage_data for results_of_rank in results for one in results_of_rank}
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata), f"{name} is no tensor"
            parts = []
            for chunk in entry.chunks:
                place = places[MetadataIndex(name, chunk.offsets)]
                first, rows = (chunk.offsets[0], chunk.sizes[0]) if entry.size else (0, 1)
                parts.append(Part(place.relative_path, place.offset, place.length, first, rows))
            tensors[name] = StoredTensor(entry.properties.dtype, tuple(entry.size), parts)
        write_parts(Path(self.path), tensors)


class _Reader(FileSystemReader):
    """torch's reader of parts, told by parts.json what lies where; the parts themselves hold tensors and no code."""

    def __init__(self, directory: Path, tensors: Mapping[str, StoredTensor]) -> None:
        super().__init__(directory)
        self._tensors = tensors

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        """What torch would have read from its pickle."""
        entries: dict[str, Any] = {}
        places = {}
        for name, tensor in self._tensors.items():
            chunks = [
                ChunkStorageMetadata(torch.Size(tensor.offsets(part)), torch.Size(tensor.shape(part)))
                for part in tensor.parts
            ]
            entries[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), torch.Size(tensor.size), chunks)
            for part in tensor.parts:
                places[MetadataIndex(name, tensor.offsets(part))] = part
        return Metadata(entries, storage_data=places, storage_meta=StorageMeta())


def _reason(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # torch's own message suggests weights_only=False, which would run code from the file.
        return "expected parts that hold tensors alone, found a pickle of something else, which is not read"
    return (str(error).splitlines() or [type(error).__name__])[0]
