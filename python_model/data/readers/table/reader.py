"""`argus prepare table`: prepares a user's own log of any size; `from_frame` does the same in Python."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from python_model.data.description import DatasetInfo
from python_model.data.engines import LOCAL, Engine
from python_model.data.feedback import BINARY, FeedbackComponent, categorical
from python_model.data.identifiers import is_text
from python_model.data.readers.logs import SortedLogs, sort_logs
from python_model.data.readers.table import values as read_as
from python_model.data.readers.table.events import MAX_GRADE, EventPlan, event_columns, grades_in_words, read_part
from python_model.data.readers.table.items import Items, item_columns, labels_of_bins, read_items
from python_model.data.readers.table.mapping import MAPPING, TableMapping
from python_model.data.readers.table.profile import Profile
from python_model.data.readers.table.sources import Source, files_of, frame_source, open_source
from python_model.data.readers.tables import Progress
from python_model.data.time_features import TIME_FEATURES
from python_model.data.writer import DatasetWriter, refuse_existing
from python_model.io.errors import DataError
from python_model.io.publish import scratch

SOURCE = "table"
MAX_CLASSES = 1000
MAX_CATEGORIES = 1_000_000
EVENT = "event"
"""The one component of a log without feedback: 1 for every event."""


def read_table(
    paths: str | Path | Sequence[str | Path], out: str | Path, *, mapping: TableMapping, overwrite: bool = False,
    progress: Progress | None = None, engine: Engine = LOCAL,
) -> DatasetInfo:  # fmt: skip
    """Prepare one or several files of a log (or directories of them) as `mapping` says.

    CSV, TSV, JSON lines and Parquet, each also compressed with gzip; the format is recognised by the content. Ties in
    time keep the order in which the files are named. What was found is in `params["profile"]`. DataError with file,
    column and row where the log contradicts the mapping, and FileExistsError as `DatasetWriter`; nothing is left then.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = files_of([Path(path) for path in given])
    items = None if mapping.items is None else Path(mapping.items)
    if mapping.name is None:
        mapping = replace(mapping, name=Path(given[0]).name)
    with scratch(out) as space:
        unpacked = space / "unpacked"
        unpacked.mkdir()
        sources = [open_source(file, mapping.log_columns, unpacked) for file in files]
        described = None if items is None else open_source(items, item_columns(mapping), unpacked)
        return _prepare(sources, described, out, mapping, space, overwrite, progress, engine)


def from_frame(
    frame: Any, out: str | Path, *, items: Any = None, overwrite: bool = False, progress: Progress | None = None,
    **settings: Any,
) -> DatasetInfo:  # fmt: skip
    """Prepare a log that is a pandas or polars DataFrame or a pyarrow Table; see `read_table`.

    items: None, a file, or another frame with one row per item. settings: those of `TableMapping`. Errors name
    the frame as "frame" and "items"; rows count from 1.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    is_file = isinstance(items, (str, Path))
    # The mapping's checks of item columns apply to a frame too.
    mapping = TableMapping(**settings, items=None if items is None else str(items) if is_file else "items")
    mapping = replace(mapping, name=mapping.name or "frame")
    with scratch(out) as space:
        source = frame_source(frame, "frame", mapping.log_columns)
        described = None
        if items is not None:
            names = item_columns(mapping)
            described = open_source(Path(items), names, space) if is_file else frame_source(items, "items", names)
        return _prepare([source], described, out, mapping, space, overwrite, progress, LOCAL)


def _prepare(
    sources: Sequence[Source], described: Source | None, out: Path, mapping: TableMapping, space: Path,
    overwrite: bool, progress: Progress | None, engine: Engine,
) -> DatasetInfo:  # fmt: skip
    schemas = [source.schema for source in sources]
    kinds = {name: read_as.kind_of_ids(schemas, name) for name in mapping.log_columns}
    parts = [part for source in sources for part in source.parts]
    logs = sort_logs(partial(read_part, mapping, kinds), parts, space / "logs", engine, progress=progress)
    _require_one_kind_of_times(logs, [part.file for part in parts], mapping)
    if logs.rows == 0:
        raise DataError(parts[0].file, "no row has a user, an item and a time")
    _require_values(logs, parts[0].file, mapping)
    from_text = not any(schema is not None for schema in schemas)
    ids = {name: read_as.whole_ids(logs.values[name], from_text) for name in ("user", "item")}
    items = None if described is None else read_items(described, mapping, ids["item"])
    plan, labels = _plan(logs, mapping, parts[0].file)
    context = {name: len(labels[f"context_{name}"]) for name in mapping.context}
    found = items or Items()
    profile = Profile(plan.feedback, labels)
    with DatasetWriter(
        out,
        name=mapping.name or SOURCE,
        source=SOURCE,
        context={**TIME_FEATURES, **context},
        derived=tuple(TIME_FEATURES),
        feedback=plan.feedback,
        negative=mapping.negative,
        item_features=found.cardinality,
        grades=grades_in_words(mapping),
        pair_window=mapping.pair_window,
        overwrite=overwrite,
    ) as writer:
        for events in logs.columns(partial(event_columns, plan), engine, progress):
            writer.write_events(events.columns)
            profile.add(events)
        writer.write_users(ids["user"])
        writer.write_items(ids["item"], found.features, found.titles)
        writer.write_labels({**labels, **found.labels})
        read = sum(scan.read for scan in logs.scans)
        figures = profile.figures(logs.notes, items, read, mapping.duplicates == "drop")
        writer.set_params({"files": [str(source.file) for source in sources], "profile": figures})
        (writer.directory / MAPPING).write_text(_repeatable(mapping, described).to_toml(), "utf-8")
    return DatasetInfo.load(out)


def _repeatable(mapping: TableMapping, described: Source | None) -> TableMapping:
    """The mapping with an absolute path of the file of items."""
    if described is None or not described.file.is_file():
        return mapping
    return replace(mapping, items=str(described.file.absolute()))


def _require_one_kind_of_times(logs: SortedLogs, files: Sequence[Path], mapping: TableMapping) -> None:
    first, before = None, dict.fromkeys(files, 0)
    for scan, file in zip(logs.scans, files, strict=True):
        if scan.rows:
            first = first or scan.note.times
            if scan.note.times != first:
                message = f"expected {first} as in the rows before, found {scan.note.times}"
                raise DataError(file, message, column=mapping.time, row=before[file] + 1)
        before[file] += scan.read


def _require_values(logs: SortedLogs, file: Path, mapping: TableMapping) -> None:
    """DataError for a column without any value: its name is usually a mistake."""
    for name in mapping.log_columns:
        if not any(name in note.present for note in logs.notes):
            raise DataError(file, "no row has a value in this column", column=name)


def _plan(logs: SortedLogs, mapping: TableMapping, file: Path) -> tuple[EventPlan, dict[str, list[str]]]:
    """How rows become events, and the labels of contexts and feedback that the whole log has."""
    labels: dict[str, list[str]] = {}
    feedback: dict[str, FeedbackComponent] = {}
    orders: dict[str, np.ndarray] = {}
    for one in mapping.feedback_columns:
        column = f"feedback_{one.name}"
        if one.kind == "bool":
            feedback[one.name] = BINARY
        elif one.kind == "bins":
            # One edge makes two bins: a yes or no.
            feedback[one.name] = BINARY if len(one.edges) == 1 else categorical(len(one.edges) + 1)
            labels[column] = labels_of_bins(one.edges)
        else:
            labels[column], orders[one.name] = _classes(logs.values[column], file, one.column)
            feedback[one.name] = categorical(len(labels[column]))
    if mapping.grade in feedback and feedback[mapping.grade].classes > MAX_GRADE + 1:
        raise ValueError(f"grade: expected feedback of at most {MAX_GRADE + 1} classes, found {mapping.grade}")
    for name, column in mapping.context.items():
        values = logs.values[f"context_{name}"]
        if len(values) > MAX_CATEGORIES:
            message = f"expected at most {MAX_CATEGORIES:,} categories, found {len(values):,}: no category but a number"
            raise DataError(file, message, column=column)
        labels[f"context_{name}"] = [str(value) for value in values.to_pylist()]
    return EventPlan(mapping, feedback or {EVENT: BINARY}, orders), labels


def _classes(values: pa.Array, file: Path, column: str) -> tuple[list[str], np.ndarray]:
    """(labels in rising order, class of each value, then −1 for a missing one); text of numbers in numeric order."""
    texts = [str(value) for value in values.to_pylist()]
    if not 2 <= len(texts) <= MAX_CLASSES:
        found = f"{len(texts):,}" + (f" ({texts[0]!r} in every row)" if len(texts) == 1 else "")
        raise DataError(file, f"expected 2 to {MAX_CLASSES:,} classes, found {found}", column=column)
    order = np.arange(len(texts))
    if is_text(values.type):
        # Text that is not a number is sorted as text.
        with suppress(ValueError):
            order = np.argsort([float(text) for text in texts], kind="stable")
    place = np.empty(len(texts) + 1, np.int16)
    place[order], place[-1] = np.arange(len(texts)), -1
    return [texts[index] for index in order], place
