"""`argus export`: vectors, ids, histories and the model of a trained run, in one directory that needs no data set.

Everything is computed and written in blocks, so that memory is bounded by the catalogue's vectors and one block of
users beside the columns of the data set. The user vector is that of `argus recommend`: for one more event after the
user's newest, in its context, `delay` seconds later.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from python_model.data.batches import BatchBuilder, history_windows
from python_model.data.names import LABELS, TITLE
from python_model.data.schema import Dataset
from python_model.data.windows import pack
from python_model.evaluation.recommend import append_next_event
from python_model.io.arrays import ArrayFile, ArrayWriter
from python_model.io.files import present
from python_model.io.integrity import seal
from python_model.model.argus import Argus
from python_model.serving import bundle, towers
from python_model.serving.arguments import whole_number
from python_model.serving.bundle import ExportInfo
from python_model.serving.exact import best_items
from python_model.serving.files import whole_directory
from python_model.serving.quantize import ErrorMeter, from_bfloat16, from_int8, to_bfloat16, to_int8
from python_model.training import checkpoint

BLOCK = 1 << 15
"""Rows of vectors computed and written at once; the row group size of the Parquet files."""

Progress = Callable[[int, int], None]


@torch.inference_mode()
def export(
    dataset: Dataset, run: str | Path, out: str | Path, *, score: str | None = None, window: int | None = None,
    best: int = 100, device: str = "cpu", token_budget: int = 8192, overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> ExportInfo:  # fmt: skip
    """Write the export of a run, whole or not at all; returns what export.json says.

    score: "pair" or "next_item"; None: that of the run's stage. window: newest events of a user behind their vector,
    also kept as their history; None: the window of the run's training. best: items of every user in scores.parquet, 0
    for none. Raises FileExistsError where `out` is not empty (see `overwrite`), ValueError or DataError for a run that
    is missing or has no such score.
    """
    whole_number(best, "best", 0)
    best = min(best, dataset.info.items)
    run = checkpoint.chosen(run)
    description = checkpoint.read_description(run)
    model = checkpoint.load_model(run, device)
    kind = towers.kind_of(model, score)
    wanted = description.train_config.window if window is None else window
    window = min(whole_number(wanted, "window", 2), model.config.max_events)
    with whole_directory(Path(out), bundle.INFO, overwrite=overwrite) as folder:
        (folder / bundle.VECTORS).mkdir()
        write_model(run, model, folder / bundle.MODEL)
        items, item_errors = _write_items(folder, model, dataset)
        blocks = _user_blocks(model, dataset, kind, window, token_budget, progress)
        user_errors = _write_users(folder, dataset, items, blocks, best)
        _write_seen(folder / bundle.SEEN, dataset)
        _write_history(folder / bundle.HISTORY, dataset, window)
        info = ExportInfo(
            score=kind, lag=towers.lag_of(model), delay=towers.delay_of(model, kind), width=items.shape[1],
            items=len(items), users=dataset.info.users, window=window, best=best, history=window,
            dataset=dataset.info.name, stage=description.stage, step=description.step,
            model=towers.fingerprint(model), errors={"items": item_errors, "users": user_errors},
            derived=dataset.info.derived, utc_offset=dataset.info.utc_offset,
        )  # fmt: skip
        (folder / bundle.INFO).write_text(info.to_json(), "utf-8")
        seal(folder)
    return info


def write_model(source: Path, model: Argus, target: Path) -> None:
    """Write a checkpoint's settings, and its weights in one file, however many ranks wrote them; no optimiser state."""
    target.mkdir()
    shutil.copyfile(source / checkpoint.CONFIG, target / checkpoint.CONFIG)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    try:
        save_file(weights, target / checkpoint.MODEL)
    except SafetensorError as error:
        # safetensors' own error for a full disk; the caller restates it for the whole directory.
        raise OSError(str(error)) from error
    seal(target)


class VectorWriter:
    """Vectors of one side in every form: .npy files of all rows, and one Parquet file beside its other columns."""

    def __init__(self, folder: Path, side: str, rows: int, width: int, schema: pa.Schema) -> None:
        self._side, self._width = side, width

        def array(form: str, dtype: type, *shape: int) -> ArrayWriter:
            return ArrayWriter(folder / bundle.VECTORS / f"{side}.{form}.npy", dtype, (rows, *shape))

        self.float32 = array("float32", np.float32, width)
        self._bfloat16 = array("bfloat16", np.uint16, width)
        self._int8, self._scale = array("int8", np.int8, width), array("int8_scale", np.float32)
        self._meters = {"bfloat16": ErrorMeter(), "int8": ErrorMeter()}
        forms = [("vector", pa.list_(pa.float32(), width)), ("vector_bfloat16", pa.list_(pa.uint16(), width))]
        forms += [("vector_int8", pa.list_(pa.int8(), width)), ("vector_int8_scale", pa.float32())]
        self._schema = pa.schema([*schema, *(pa.field(name, form) for name, form in forms)])
        self._parquet = pq.ParquetWriter(folder / f"{side}.parquet", self._schema, compression="zstd")

    def write(self, start: int, vectors: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Rows from `start` on: vectors float32 [n, D] and the other columns."""
        towers.require_finite(vectors, f"{self._side}' vectors")
        bits = to_bfloat16(vectors)
        values, scale = to_int8(vectors)
        forms = (self.float32, vectors), (self._bfloat16, bits), (self._int8, values), (self._scale, scale)
        for array, rows in forms:
            array.write(start, rows)
        self._meters["bfloat16"].add(vectors, from_bfloat16(bits))
        self._meters["int8"].add(vectors, from_int8(values, scale))
        lists = {"vector": vectors, "vector_bfloat16": bits, "vector_int8": values}
        arrays = {name: pa.FixedSizeListArray.from_arrays(part.ravel(), self._width) for name, part in lists.items()}
        table = pa.table({**columns, **arrays, "vector_int8_scale": scale}, self._schema)
        self._parquet.write_table(table, row_group_size=BLOCK)

    def close(self) -> dict[str, dict[str, float]]:
        """The errors of both small forms."""
        self._parquet.close()
        for array in (self.float32, self._bfloat16, self._int8, self._scale):
            array.close()
        return {form: meter.summary() for form, meter in self._meters.items()}


def _write_items(folder: Path, model: Argus, dataset: Dataset) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    names = ["item_id", *(f"item_{name}" for name in dataset.info.item_features), "count"]
    columns = {"item": np.arange(dataset.info.items, dtype=np.int32)}
    columns |= {name: dataset.item_column(name) for name in names}
    if dataset.names.titles is not None:
        columns[TITLE] = dataset.names.titles
    if present(dataset.path / LABELS):
        shutil.copyfile(dataset.path / LABELS, folder / LABELS)
    schema = pa.table({name: values[:1] for name, values in columns.items()}).schema
    writer = VectorWriter(folder, "items", dataset.info.items, model.config.vector_width, schema)
    for start in range(0, dataset.info.items, BLOCK):
        part = torch.arange(start, min(start + BLOCK, dataset.info.items), device=model.device)
        vectors = model.item_vectors(part).cpu().numpy()
        writer.write(start, vectors, {name: values[start : start + BLOCK] for name, values in columns.items()})
    errors = writer.close()
    return ArrayFile(writer.float32.file, np.float32, writer.float32.shape).read(), errors


def _user_blocks(
    model: Argus, dataset: Dataset, kind: str, window: int, token_budget: int, progress: Progress
) -> Iterator[tuple[int, np.ndarray]]:
    """(first user, vectors float32 [n, D]) of all users, block after block."""
    builder, delay = BatchBuilder(dataset), towers.delay_of(model, kind)
    users = dataset.info.users
    for start in range(0, users, BLOCK):
        newest = dataset.offsets[start + 1 : min(start + BLOCK, users) + 1] - 1
        # The placeholder after the newest event takes one position of the window.
        windows = history_windows(dataset, newest, window - 1)
        found = []
        for part in pack(windows, max(token_budget, window), window):
            batch = append_next_event(builder.build(part), delay).to(model.device)
            found.append(towers.vectors_of_targets(model, batch, kind).cpu().numpy())
            progress(start + sum(map(len, found)), users)
        yield start, np.concatenate(found)


def _write_users(
    folder: Path, dataset: Dataset, items: np.ndarray, blocks: Iterator[tuple[int, np.ndarray]], best: int
) -> dict[str, dict[str, float]]:
    users = dataset.info.users
    newest = dataset.offsets[1:] - 1
    columns = {
        "user": np.arange(users, dtype=np.int32), "user_id": dataset.user_ids,
        "time": dataset.time[newest], "events": np.diff(dataset.offsets),
    }  # fmt: skip
    schema = pa.table({name: values[:1] for name, values in columns.items()}).schema
    writer = VectorWriter(folder, "users", users, items.shape[1], schema)
    scores = ScoreWriter(folder / bundle.SCORES, dataset.user_ids, dataset.item_column("item_id"), best)
    for start, vectors in blocks:
        rows = slice(start, start + len(vectors))
        writer.write(start, vectors, {name: values[rows] for name, values in columns.items()})
        if best:
            scores.write(np.arange(rows.start, rows.stop), *best_items(vectors, items, best))
    scores.close()
    return writer.close()


class ScoreWriter:
    """The best items of users as rows (user_id, rank, item_id, score) of one Parquet file; no file where k is 0.

    titles: [V], which become a column `title`.
    """

    def __init__(
        self, file: Path, user_ids: np.ndarray, item_ids: np.ndarray, k: int, titles: np.ndarray | None = None
    ) -> None:
        self._user_ids, self._item_ids, self._titles = user_ids, item_ids, titles
        kinds = [("user_id", pa.array(user_ids[:1]).type), ("rank", pa.int32())]
        kinds += [("item_id", pa.array(item_ids[:1]).type), ("score", pa.float32())]
        if titles is not None:
            kinds.append((TITLE, pa.string()))
        self._schema = pa.schema(kinds)
        self._parquet = pq.ParquetWriter(file, self._schema, compression="zstd") if k else None

    def write(self, users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        """Takes users [n], items int64 [n, k], −1 where there are fewer; scores float32 [n, k]."""
        if self._parquet is None:
            return
        found = items >= 0
        rank = np.broadcast_to(np.arange(1, items.shape[1] + 1, dtype=np.int32), items.shape)
        user = np.broadcast_to(users[:, None], items.shape)
        columns = [self._user_ids[user[found]], rank[found], self._item_ids[items[found]], scores[found]]
        if self._titles is not None:
            columns.append(self._titles[items[found]])
        self._parquet.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Close the file."""
        if self._parquet is not None:
            self._parquet.close()


def _write_seen(folder: Path, dataset: Dataset) -> None:
    folder.mkdir()
    catalogue, offsets = dataset.info.items, dataset.offsets
    found, counts = [], []
    for start in range(0, dataset.info.users, BLOCK):
        stop = min(start + BLOCK, dataset.info.users)
        rows = slice(int(offsets[start]), int(offsets[stop]))
        pairs = np.unique((dataset.user[rows].astype(np.int64) - start) * catalogue + dataset.item[rows])
        found.append((pairs % catalogue).astype(np.int32))
        counts.append(np.bincount(pairs // catalogue, minlength=stop - start))
    np.save(folder / "items.npy", np.concatenate(found))
    np.save(folder / "offsets.npy", np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]))


def _write_history(folder: Path, dataset: Dataset, window: int) -> None:
    folder.mkdir()
    info = dataset.info
    starts = np.maximum(dataset.offsets[:-1], dataset.offsets[1:] - window)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(dataset.offsets[1:] - starts)])
    np.save(folder / "offsets.npy", offsets)
    kept = np.arange(len(dataset)) >= np.repeat(starts, np.diff(dataset.offsets))

    def columns(values: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.stack([one[kept] for one in values], 1) if values else np.zeros((int(offsets[-1]), 0), dtype)

    np.save(folder / "items.npy", dataset.item[kept])
    np.save(folder / "time.npy", dataset.time[kept])
    np.save(folder / "organic.npy", dataset.organic[kept])
    np.save(folder / "context.npy", columns([dataset.context(name) for name in info.context], np.int32))
    np.save(folder / "feedback.npy", columns([dataset.feedback(name) for name in info.feedback], np.int16))
