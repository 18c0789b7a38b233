"""A data set in shards: the events in several files, each of whole users, for training that streams them.

    shards/part-00000.parquet …   events of users first_user … first_user + users − 1, in the schema of events.parquet
    shards/shards.json            the list of them, and the two times from which temporal splits are made

These files lie beside the dataset.json, items.parquet and users.parquet of every prepared data set. Row groups end
where a user's events end, so that a row group can be read alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from python_model.data.columns import require_range
from python_model.data.description import EVENTS, INFO, ITEMS, USERS, DatasetInfo, Fingerprint, event_schema
from python_model.data.names import LABELS
from python_model.data.times import SECONDS
from python_model.io.errors import DataError, printable
from python_model.io.files import open_parquet, present, reading_parquet, require_schema, require_values
from python_model.io.integrity import checksum
from python_model.io.json_text import kind_of, read_object
from python_model.io.publish import require_place, whole_directory
from python_model.io.settings import Between, checked, settings_of, shown

SHARDS, MANIFEST = "shards", "shards.json"
ROW_GROUP = 1 << 17
"""Least number of events of a row group, where the shard has as many; the group ends where that user ends."""
_READ = 1 << 18
_BINS = 1 << 16

Progress = Callable[[int, int], None]


_FILE = re.compile(r"shards/part-[0-9]{5,9}\.parquet")
_Count = Annotated[int, Between(0, 2**63 - 1)]
_Time = Annotated[int, Between(SECONDS.earliest, SECONDS.latest)]


@dataclass(frozen=True)
class Shard:
    """One file: its users first_user … first_user + users − 1, its events rows first_row … first_row + events − 1.

    crc32: checksum of the file, "" where it was not computed.
    """

    file: str
    first_user: _Count
    users: _Count
    first_row: _Count
    events: _Count
    crc32: str = ""


@dataclass(frozen=True)
class Manifest:
    """All shards in order. temporal_start: when the temporal split's validation part begins; last_time: in seconds."""

    shards: tuple[Shard, ...]
    temporal_start: _Time
    last_time: _Time

    def to_json(self) -> str:
        """The text of shards.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def require(self, directory: Path, info: DatasetInfo) -> None:
        """DataError where the shards do not cover all users and events of a description in order."""
        file = directory / SHARDS / MANIFEST
        users = events = 0
        for number, shard in enumerate(self.shards):
            if _FILE.fullmatch(shard.file) is None:
                raise DataError(file, f"shards[{number}]: expected a file {SHARDS}/part-…, found {shown(shard.file)}")
            if (shard.first_user, shard.first_row) != (users, events):
                found = f"user {shard.first_user} and row {shard.first_row}"
                raise DataError(file, f"shards[{number}]: expected user {users} and row {events} first, found {found}")
            users, events = users + shard.users, events + shard.events
        if (users, events) != (info.users, info.events):
            message = f"expected {info.users} users and {info.events} events as {INFO} says, found {users} and {events}"
            raise DataError(file, message)


def read_manifest(directory: Path) -> Manifest | None:
    """shards.json of a data set; None where it is not in shards, DataError where the file is damaged."""
    file = directory / SHARDS / MANIFEST
    if not present(file):
        return None
    raw = read_object(file)
    try:
        found = _exactly(Manifest, raw, "")
        shards = found.pop("shards")
        if not isinstance(shards, list):
            raise ValueError(f"shards: expected an array, found {kind_of(shards)}")
        made = [Shard(**_typed(Shard, one, f"shards[{number}]")) for number, one in enumerate(shards)]
        times = {name: checked(_Time, name, value) for name, value in found.items()}
        return Manifest(tuple(made), **times)
    except ValueError as error:
        raise DataError(file, f"damaged: {error}") from error


def _typed(owner: type, raw: Any, where: str) -> dict[str, Any]:
    values = _exactly(owner, raw, f"{where}: ")
    kinds = settings_of(owner)
    return {name: checked(kinds[name], f"{where}.{name}", value) for name, value in values.items()}


def _exactly(owner: type, raw: Any, where: str) -> dict[str, Any]:
    """A JSON object with exactly the fields of a dataclass, else ValueError; fields with a default may be absent."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where}expected an object, found {kind_of(raw)}")
    needed = {one.name for one in fields(owner) if one.default is MISSING}
    for name in sorted(needed - raw.keys()):
        raise ValueError(f"{where}{name} is missing")
    for name in sorted(raw.keys() - settings_of(owner).keys()):
        raise ValueError(f"{where}{printable(name)} is unknown")
    return dict(raw)


def shard_dataset(
    data: str | Path, out: str | Path, shards: int, *, row_group: int = ROW_GROUP, progress: Progress | None = None
) -> Manifest:
    """Cut a prepared data set into `shards` files of whole users and about as many events each, in the new `out`.

    Memory is one row group and 16 bytes per user. Raises ValueError where there are more shards than users,
    FileExistsError where `out` is not empty, WriteError where the disk is full; nothing is left then.
    """
    data, out = Path(data), Path(out)
    checked(Annotated[int, Between(1)], "row_group", row_group)
    info = DatasetInfo.load(data)
    if not 1 <= shards <= info.users:
        raise ValueError(f"shards is {shards}, expected 1 to the {info.users:,} users of {data}")
    require_place(out, INFO, overwrite=None)
    if present(data / SHARDS / MANIFEST):
        raise ValueError(f"{data} is in shards already: cut the data set that they were made from")
    require_schema(data / EVENTS, event_schema(info))
    cuts = _cut_users(data / EVENTS, info, shards)
    with whole_directory(out, INFO, overwrite=None) as partial:
        manifest = _write(data, partial, info, cuts, row_group, progress)
    return manifest


@dataclass(frozen=True)
class _Cuts:
    """offsets int64 [users + 1]: rows of each user; users int64 [shards + 1]: where shards begin."""

    offsets: np.ndarray
    users: np.ndarray


def _cut_users(events: Path, info: DatasetInfo, shards: int) -> _Cuts:
    counts = np.zeros(info.users, np.int64)
    first_row = 1
    for column in _column(events, "user"):
        require_range(column, 0, info.users - 1, events, "user", first_row)
        counts += np.bincount(column, minlength=info.users)
        first_row += len(column)
    if first_row - 1 != info.events:
        raise DataError(events, f"expected {info.events} rows as {INFO} says, found {first_row - 1}")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    ideal = np.searchsorted(offsets, np.arange(1, shards) * (info.events / shards))
    cuts = np.concatenate([[0], ideal, [info.users]]).astype(np.int64)
    # At least one user per shard, even where one user has more events than a shard should hold.
    for index in range(1, shards):
        cuts[index] = min(max(cuts[index], cuts[index - 1] + 1), info.users - (shards - index))
    return _Cuts(offsets, cuts)


def _write(
    data: Path, partial: Path, info: DatasetInfo, cuts: _Cuts, row_group: int, progress: Progress | None
) -> Manifest:
    (partial / SHARDS).mkdir()
    rows, schema, fingerprint = _RowReader(data / EVENTS, info), event_schema(info), Fingerprint()
    found = []
    for number, (first, last) in enumerate(zip(cuts.users[:-1], cuts.users[1:], strict=True)):
        name = f"{SHARDS}/part-{number:05d}.parquet"
        with pq.ParquetWriter(partial / name, schema, compression="zstd", write_page_checksum=True) as writer:
            for end in _group_ends(cuts.offsets, int(first), int(last), row_group):
                group = rows.until(end)
                writer.write_table(group, row_group_size=max(len(group), 1))
                fingerprint.update(schema, {name: group.column(name).to_numpy() for name in schema.names})
                if progress is not None:
                    progress(end, info.events)
        begin, end = int(cuts.offsets[first]), int(cuts.offsets[last])
        found.append(Shard(name, int(first), int(last - first), begin, end - begin, checksum(partial / name)))
    if info.fingerprint not in ("", fingerprint.text()):
        message = f"expected the fingerprint {info.fingerprint} of {INFO}, found {fingerprint.text()}: other events"
        raise DataError(data / EVENTS, message)
    for name in (INFO, ITEMS, USERS):
        shutil.copyfile(data / name, partial / name)
    if present(data / LABELS):
        shutil.copyfile(data / LABELS, partial / LABELS)
    if (data / "oracle").is_dir():
        shutil.copytree(data / "oracle", partial / "oracle")
    last_time = max(int(times.max()) for times in _column(data / EVENTS, "time"))
    manifest = Manifest(tuple(found), temporal_start(lambda: _column(data / EVENTS, "time"), info.events), last_time)
    (partial / SHARDS / MANIFEST).write_text(manifest.to_json(), "utf-8")
    return manifest


def _group_ends(offsets: np.ndarray, first: int, last: int, row_group: int) -> Iterator[int]:
    """End rows of the row groups of users first … last − 1; a group has whole users and at least row_group rows."""
    while first < last:
        first = min(int(np.searchsorted(offsets, offsets[first] + row_group)), last)
        yield int(offsets[first])


class _RowReader:
    """Reads a file's rows in order, up to any row, from batches of any size."""

    def __init__(self, file: Path, info: DatasetInfo) -> None:
        self._file, self._schema = file, event_schema(info)
        self._batches = open_parquet(file).iter_batches(_READ, columns=self._schema.names)
        self._held: list[pa.Table] = []
        self._row = self._read = 0

    def until(self, end: int) -> pa.Table:
        """The rows from the end of the last call up to `end`."""
        while self._read < end:
            with reading_parquet(self._file):
                self._held.append(pa.Table.from_batches([next(self._batches)]))
            for name in self._schema.names:
                require_values(self._file, name, self._held[-1].column(name), self._read + 1)
            self._read += self._held[-1].num_rows
        joined = pa.concat_tables(self._held)
        taken, rest = joined.slice(0, end - self._row), joined.slice(end - self._row)
        self._held, self._row = [rest], end
        return taken.combine_chunks().cast(self._schema)


def temporal_start(times: Callable[[], Iterator[np.ndarray]], events: int) -> int:
    """Start time of the validation part of `splits.temporal_split`, from several passes over the times."""
    return kth_smallest(times, min(int((1 - 0.05 - 0.1) * events), events - 1))


def kth_smallest(chunks: Callable[[], Iterator[np.ndarray]], k: int) -> int:
    """The k-th smallest value (from 0) of integers that come in chunks: one histogram per pass, in 0.5 MB of memory."""
    bounds = [(int(chunk.min()), int(chunk.max())) for chunk in chunks() if len(chunk)]
    low, high = min(first for first, _ in bounds), max(last for _, last in bounds)
    while low < high:
        width = -(-(high - low + 1) // _BINS)
        counts = np.zeros(_BINS, np.int64)
        for chunk in chunks():
            inside = chunk[(chunk >= low) & (chunk <= high)]
            counts += np.bincount((inside - low) // width, minlength=_BINS)
        before = np.concatenate([[0], np.cumsum(counts)])
        place = int(np.searchsorted(before, k, side="right")) - 1
        k -= int(before[place])
        low, high = low + place * width, min(low + (place + 1) * width - 1, high)
    return low


def _column(file: Path, name: str) -> Iterator[np.ndarray]:
    first_row = 1
    batches = open_parquet(file).iter_batches(_READ, columns=[name])
    while True:
        with reading_parquet(file, name):
            batch = next(batches, None)
        if batch is None:
            return
        require_values(file, name, batch.column(0), first_row)
        first_row += batch.num_rows
        yield batch.column(0).to_numpy()
