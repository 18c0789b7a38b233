"""Yambda: music listens with likes and dislikes, flat or sequential, from separate files or multi_event.parquet.

The listens are the events. An explicit event (like, dislike) belongs to the listen of the same user and item nearest at
or before it, else to the next one; an unlike or undislike cancels the event before it on the same user and item.
Explicit events without any listen of the item are left out and counted in params["without_listen"].
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa

from python_model.data.description import LISTEN_PLUS_PCT, DatasetInfo
from python_model.data.engines import LOCAL, Engine
from python_model.data.feedback import BINARY, PositiveEvents, categorical
from python_model.data.readers.tables import Progress, codes
from python_model.data.readers.yambda_files import (
    EVENT_TYPES,
    LISTEN_ONLY,
    Cuts,
    EventFile,
    Rows,
    in_order_of_time,
    rows_of_users,
    whole_numbers,
)
from python_model.data.time_features import TIME_FEATURES, gap_bucket, hour_and_day
from python_model.data.writer import DatasetWriter, refuse_existing
from python_model.io.errors import DataError
from python_model.io.files import open_parquet, present, reading_parquet, require_column, require_path
from python_model.io.publish import scratch
from python_model.io.settings import Between, OneOf, checked_settings

UNSORTED = ("refuse", "sort")
FORMATS, SIZES = ("flat", "sequential"), ("50m", "500m", "5b")
SHARE_EDGES_PCT = np.array([20, 40, 50, 60, 80])
# One bin begins at the threshold of Listen+, so that a prepared data set can tell these listens.
LISTEN_PLUS = PositiveEvents("share", int(np.searchsorted(SHARE_EDGES_PCT, LISTEN_PLUS_PCT, side="right")))
FULL_PCT = 80
# One sitting: its impressions are ranked by the state from before it (docs/data.md, "Pairs").
PAIR_WINDOW = 3 * 3_600
_LISTEN_COLUMNS = ("item_id", "timestamp", "is_organic", *LISTEN_ONLY)
_EXPLICIT_COLUMNS = ("uid", "item_id", "timestamp", "event_type")
_FILES = {"like": "likes", "dislike": "dislikes", "unlike": "unlikes", "undislike": "undislikes"}


def read_yambda(
    path: str | Path,
    out: str | Path,
    *,
    format: Annotated[str, OneOf(FORMATS)] = "flat",
    size: Annotated[str, OneOf(SIZES)] = "50m",
    skip_below_pct: Annotated[int, Between(1, FULL_PCT)] = 30,
    unsorted: Annotated[str, OneOf(UNSORTED)] = "refuse",
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> DatasetInfo:
    """Prepare Yambda in memory bounded by half a million rows or one user, and by the number of distinct items.

    path: the directory with listens.parquet (likes.parquet and the like are read where present, a kind whose file is
    absent counts as not observed) or multi_event.parquet, such a file itself, or the top of the published tree.
    Feedback: like, dislike, skip, share (bins of played_ratio_pct, edges 20, 40, 50, 60, 80). Item features artist and
    album come from {artist,album}_item_mapping.parquet beside the data or up to two directories above.

    format: the part of the published tree, flat or sequential. size: the part of the published tree, 50m, 500m or 5b.
    skip_below_pct: played_ratio_pct under which a listen is a skip. unsorted: "refuse" a user whose time goes back (the
    published files are sorted), or "sort" their events and count in params["times_went_back"] how often it did.

    DataError where a file breaks the format.
    """
    given = {"format": format, "size": size, "skip_below_pct": skip_below_pct, "unsorted": unsorted}
    checked_settings(read_yambda, given, "yambda")
    out = Path(out)
    refuse_existing(out, overwrite)
    source = _open_source(Path(path), format, size, sort=unsorted == "sort")
    item_ids, parts = _plan(source)
    features, cardinality = _item_features(source.listens.file.parent, item_ids)
    without_listen: Counter[str] = Counter()
    writer = DatasetWriter(
        out,
        name=f"yambda-{source.listens.file.parent.name}",
        source="yambda",
        context=TIME_FEATURES,
        derived=tuple(TIME_FEATURES),
        feedback={"like": BINARY, "dislike": BINARY, "skip": BINARY, "share": categorical(len(SHARE_EDGES_PCT) + 1)},
        negative=("dislike", "skip"),
        item_features=cardinality,
        grades=f"impressions only: 0 dislike, 1 skip (under {skip_below_pct} % played), 2 listened in part, "
        f"3 at least {FULL_PCT} % played, 4 like; -1 for organic events",
        pair_window=PAIR_WINDOW,
        positive=LISTEN_PLUS,
        overwrite=overwrite,
    )
    with scratch(out) as space, writer:
        np.save(space / "items.npy", item_ids)
        users = went_back = 0
        work = partial(_prepare_part, source, space / "items.npy", skip_below_pct)
        for part, found in zip(parts, engine.map(work, parts), strict=True):
            without_listen.update(found.without_listen)
            went_back += found.went_back
            if len(found.user_ids):
                found.columns["user"] += users
                writer.write_events(found.columns)
                writer.write_users(found.user_ids)
                users += len(found.user_ids)
            if progress is not None:
                progress(part.listens[1], source.listens.rows)
        writer.write_items(item_ids, features)
        params = {
            "skip_below_pct": skip_below_pct,
            "share_edges_pct": SHARE_EDGES_PCT.tolist(),
            "without_listen": dict(without_listen),
        }
        writer.set_params(params | ({"times_went_back": went_back} if unsorted == "sort" else {}))
    return DatasetInfo.load(out)


@dataclass(frozen=True)
class _Source:
    """The file of listens, and files of explicit events by kind; none where the file of listens contains them."""

    listens: EventFile
    explicit: dict[str, EventFile]
    observed: frozenset[str]

    def read(self, part: _Part) -> tuple[Rows, Rows]:
        """(listens, explicit events with their event_type) of the users of a part."""
        rows = self.listens.read(*part.listens)
        if "event_type" in rows:
            is_listen = rows["event_type"] == EVENT_TYPES.index("listen")
            listens = {name: values[is_listen] for name, values in rows.items()}
            return listens, {name: rows[name][~is_listen] for name in _EXPLICIT_COLUMNS}
        found: list[Rows] = [{name: np.zeros(0, np.int64) for name in _EXPLICIT_COLUMNS}]
        for kind, file in self.explicit.items():
            events = file.read(*part.explicit[kind])
            found.append({**events, "event_type": np.full(len(events["uid"]), EVENT_TYPES.index(kind))})
        return rows, {name: np.concatenate([events[name] for events in found]) for name in _EXPLICIT_COLUMNS}


@dataclass(frozen=True)
class _Part:
    """Rows (first, last + 1) of the same whole users in every file."""

    listens: tuple[int, int]
    explicit: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class _Prepared:
    """A part's columns, with users numbered from 0, and its counts."""

    user_ids: np.ndarray
    columns: Rows
    without_listen: Counter[str]
    went_back: int


def _plan(source: _Source) -> tuple[np.ndarray, list[_Part]]:
    """One pass over order and items of all files: sorted item ids of the listens [V], and parts of whole users.

    DataError where there is no listen. Users without listens still belong to a part: their events are checked.
    """
    listens = source.listens
    columns = ("item_id", "timestamp", "event_type") if "event_type" in listens.columns else ("item_id", "timestamp")
    items, cuts = np.zeros(0, np.int64), Cuts()
    for rows, file_row in EventFile(listens.file, columns, sort=listens.sort).batches():
        found = rows["item_id"]
        if "event_type" in rows:
            found = found[rows["event_type"] == EVENT_TYPES.index("listen")]
        items = np.union1d(items, found)
        cuts.add(rows["uid"], file_row)
    if len(items) == 0:
        raise DataError(listens.file, "the data set is empty: no listen in it")
    spans = list(pairwise([0, *cuts.rows, listens.rows]))
    of_kind = {
        kind: list(pairwise([0, *rows_of_users(file, cuts.users), file.rows])) for kind, file in source.explicit.items()
    }
    return items, [_Part(span, {kind: of_kind[kind][i] for kind in of_kind}) for i, span in enumerate(spans)]


def _prepare_part(source: _Source, item_file: Path, skip_below_pct: int, part: _Part) -> _Prepared:
    listens, explicit = source.read(part)
    went_back = 0
    if source.listens.sort:
        listens, went_back = in_order_of_time(listens)
    without_listen: Counter[str] = Counter()
    feedback = _feedback(listens, explicit, source.observed, skip_below_pct, without_listen)
    user_ids, user = np.unique(listens["uid"], return_inverse=True)
    item_ids = np.load(item_file, mmap_mode="r")
    columns = _event_columns(listens, user.astype(np.int32), item_ids, feedback)
    return _Prepared(user_ids, columns, without_listen, went_back)


def _open_source(path: Path, format: str, size: str, *, sort: bool) -> _Source:
    require_path(path)
    if not path.is_dir():
        directory, single = path.parent, path.name == "multi_event.parquet"
        if not single and path.name != "listens.parquet":
            raise DataError(path, "expected listens.parquet or multi_event.parquet, or their directory")
    else:
        directory = path / format / size if (path / format / size).is_dir() else path
        single = not present(directory / "listens.parquet")
        if single and not present(directory / "multi_event.parquet"):
            raise DataError(directory, "no Yambda data here: expected listens.parquet or multi_event.parquet")
    if single:
        listens = EventFile(directory / "multi_event.parquet", (*_LISTEN_COLUMNS, "event_type"), sort=sort)
        return _Source(listens, {}, frozenset(("like", "dislike")))
    explicit = {
        kind: EventFile(directory / f"{name}.parquet", ("item_id", "timestamp"), sort=sort)
        for kind, name in _FILES.items()
        if present(directory / f"{name}.parquet")
    }
    observed = frozenset(kind for kind in ("like", "dislike") if kind in explicit)
    return _Source(EventFile(directory / "listens.parquet", _LISTEN_COLUMNS, sort=sort), explicit, observed)


def _event_columns(listens: Rows, user: np.ndarray, item_ids: np.ndarray, feedback: Rows) -> Rows:
    organic = listens["is_organic"] != 0
    hour, day = hour_and_day(listens["timestamp"])
    played = np.where(listens["played_ratio_pct"] >= FULL_PCT, 3, 2)
    grade = np.select(
        [organic, feedback["dislike"] == 1, feedback["like"] == 1, feedback["skip"] == 1], [-1, 0, 4, 1], played
    )
    return {
        "user": user,
        "item": np.searchsorted(item_ids, listens["item_id"]).astype(np.int32),
        "time": listens["timestamp"],
        "organic": organic,
        "grade": grade.astype(np.int8),
        "context_hour": hour,
        "context_day_of_week": day,
        "context_gap": gap_bucket(user, listens["timestamp"]),
        **{f"feedback_{name}": values for name, values in feedback.items()},
    }


def _feedback(
    listens: Rows, explicit: Rows, observed: frozenset[str], skip_below_pct: int, without_listen: Counter[str]
) -> Rows:
    """int16 columns like, dislike, skip and share of the listens."""
    percent = listens["played_ratio_pct"]
    columns = {
        "skip": (percent < skip_below_pct).astype(np.int16),
        "share": np.searchsorted(SHARE_EDGES_PCT, percent, side="right").astype(np.int16),
    }
    for kind, cancel in (("like", "unlike"), ("dislike", "undislike")):
        if kind not in observed:
            columns[kind] = np.full(len(percent), -1, np.int16)
            continue
        standing = uncancelled(explicit, EVENT_TYPES.index(kind), EVENT_TYPES.index(cancel))
        places = nearest_listen(listens, standing)
        without_listen[kind] += int((places < 0).sum())
        columns[kind] = np.zeros(len(percent), np.int16)
        columns[kind][places[places >= 0]] = 1
    return columns


def uncancelled(explicit: Rows, kind: int, cancel: int) -> Rows:
    """The events of `kind` not directly followed by a `cancel`, among events of these two types on one (uid, item_id).

    At equal times, the event comes before its cancellation.
    """
    mine = np.flatnonzero((explicit["event_type"] == kind) | (explicit["event_type"] == cancel))
    rows = {name: values[mine] for name, values in explicit.items()}
    is_cancel = rows["event_type"] == cancel
    order = np.lexsort((is_cancel, rows["timestamp"], rows["item_id"], rows["uid"]))
    rows = {name: values[order] for name, values in rows.items()}
    is_cancel = is_cancel[order]
    same_as_next = np.zeros(len(order), bool)
    same_as_next[:-1] = (np.diff(rows["uid"]) == 0) & (np.diff(rows["item_id"]) == 0)
    cancelled = same_as_next & np.append(is_cancel[1:], False)
    return {name: values[~is_cancel & ~cancelled] for name, values in rows.items()}


def nearest_listen(listens: Rows, explicit: Rows) -> np.ndarray:
    """int64 [explicit]: index of the listen each belongs to, -1 for none.

    That is the last listen of the same (uid, item_id) at or before the event, else the first one after it.
    """
    # Few pairs have an explicit event: sorting only their listens is several times faster. Pairs that collide in this
    # key are sorted too, without further effect.
    wanted = np.isin((listens["uid"] << 32) ^ listens["item_id"], (explicit["uid"] << 32) ^ explicit["item_id"])
    rows = np.flatnonzero(wanted)
    count = len(rows)
    uid, item, time = (np.concatenate([listens[n][rows], explicit[n]]) for n in ("uid", "item_id", "timestamp"))
    is_explicit = np.arange(len(uid)) >= count
    order = np.lexsort((is_explicit, time, item, uid))
    uid, item, is_explicit = uid[order], item[order], is_explicit[order]
    position = np.arange(len(order))
    new_pair = np.ones(len(order), bool)
    new_pair[1:] = (np.diff(uid) != 0) | (np.diff(item) != 0)
    pair = np.cumsum(new_pair)
    before = np.maximum.accumulate(np.where(is_explicit, -1, position))
    after = np.minimum.accumulate(np.where(is_explicit, len(order), position)[::-1])[::-1]
    before_valid = (before >= 0) & (pair[before] == pair)
    after_valid = (after < len(order)) & (pair[np.minimum(after, len(order) - 1)] == pair)
    place = np.where(before_valid, before, np.where(after_valid, after, -1))[is_explicit]
    result = np.full(len(place), -1, np.int64)
    found = place >= 0
    result[order[is_explicit][found] - count] = rows[order[place[found]]]
    return result


def _item_features(directory: Path, item_ids: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Artist and album of each item as categories; the smallest id where an item has several."""
    values: dict[str, np.ndarray] = {}
    cardinality: dict[str, int] = {}
    for name in ("artist", "album"):
        places = (directory, *list(directory.parents)[:2])
        files = [place / f"{name}_item_mapping.parquet" for place in places]
        file = next((file for file in files if present(file)), None)
        if file is not None:
            values[name], cardinality[name] = _read_mapping(file, f"{name}_id", item_ids)
    return values, cardinality


def _read_mapping(file: Path, column: str, item_ids: np.ndarray) -> tuple[np.ndarray, int]:
    parquet = open_parquet(file)
    for name in ("item_id", column):
        kind = require_column(file, parquet.schema_arrow, name)
        if not pa.types.is_integer(kind):
            raise DataError(file, f"expected integers, found {kind}", column=name)
    owner, has_owner = np.full(len(item_ids), np.iinfo(np.int64).max), np.zeros(len(item_ids), bool)
    with reading_parquet(file):
        start = 1
        for batch in parquet.iter_batches(columns=["item_id", column]):
            file_row = np.arange(start, start + batch.num_rows)
            item, value = (whole_numbers(batch.column(name), file, name, file_row) for name in ("item_id", column))
            place = np.minimum(np.searchsorted(item_ids, item), len(item_ids) - 1)
            known = item_ids[place] == item
            np.minimum.at(owner, place[known], value[known])
            has_owner[place[known]] = True
            start += batch.num_rows
    return codes(owner, ~has_owner)
