"""Yambda: music listens with likes and dislikes, flat or sequential, from separate files or multi_event.parquet.

The listens are the events. An explicit event (like, dislike) belongs to the listen of the same user and item nearest at
or before it, else to the next one; an unlike or undislike cancels the event before it on the same user and item.
Explicit events without any listen of the item are left out and counted in params["without_listen"].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from python_model.data.description import DatasetInfo
from python_model.data.errors import DataError
from python_model.data.tables import GAP_BUCKETS, Progress, codes, gap_bucket, hour_and_day
from python_model.data.writer import DatasetWriter
from python_model.data.yambda_files import (
    EVENT_TYPES,
    LISTEN_ONLY,
    EventFile,
    Rows,
    UserCursor,
    in_order_of_time,
    open_parquet,
    whole_users,
)

UNSORTED = ("refuse", "sort")
FORMATS, SIZES = ("flat", "sequential"), ("50m", "500m", "5b")
EXPLICIT = EVENT_TYPES[1:]
SHARE_EDGES_PCT = np.array([20, 40, 50, 60, 80])
# Listen+ of the benchmark: a bin of its own begins here, so that a prepared data set knows it.
LISTEN_PLUS_PCT = 50
LISTEN_PLUS_SHARE = int(np.searchsorted(SHARE_EDGES_PCT, LISTEN_PLUS_PCT, side="right"))
FULL_PCT = 80
# One sitting: what ranks its impressions is the state from before it (docs/data.md, "Pairs").
PAIR_WINDOW = 3 * 3_600
_LAST_USER = 2**63 - 1
_LISTEN_COLUMNS = ("item_id", "timestamp", "is_organic", *LISTEN_ONLY)
_FILES = {"like": "likes", "dislike": "dislikes", "unlike": "unlikes", "undislike": "undislikes"}


def read_yambda(
    path: str | Path,
    out: str | Path,
    *,
    format: str = "flat",
    size: str = "50m",
    skip_below_pct: int = 30,
    unsorted: str = "refuse",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Prepare Yambda in memory bounded by the users of one read (and by the number of distinct items).

    path: the directory with listens.parquet (likes.parquet and the like are read where present, a kind whose file is
    absent counts as not observed) or multi_event.parquet, such a file itself, or the top of the published tree, of
    which format and size then choose a part. Feedback: like, dislike, skip (played_ratio_pct < skip_below_pct), share
    (bins of played_ratio_pct, edges 20, 40, 50, 60, 80). Item features artist and album come from
    {artist,album}_item_mapping.parquet beside the data or up to two directories above. unsorted: "refuse" a user whose
    time goes back (the published files are sorted), or "sort" his events and count in params["times_went_back"] how
    often it did. DataError where a file breaks the format.
    """
    if not 0 < skip_below_pct <= FULL_PCT:
        raise ValueError(f"skip_below_pct: expected a value in [1, {FULL_PCT}], found {skip_below_pct}")
    if unsorted not in UNSORTED:
        raise ValueError(f"unsorted: expected one of {', '.join(UNSORTED)}, found {unsorted!r}")
    source = _open_source(Path(path), format, size, sort=unsorted == "sort")
    item_ids = _distinct_items(source.listens)
    features, cardinality = _item_features(source.listens.file.parent, item_ids)
    without_listen: Counter[str] = Counter()
    writer = DatasetWriter(
        out,
        name=f"yambda-{source.listens.file.parent.name}",
        source="yambda",
        context={"hour": 24, "day_of_week": 7, "gap": GAP_BUCKETS},
        feedback={"like": 1, "dislike": 1, "skip": 1, "share": len(SHARE_EDGES_PCT) + 1},
        item_features=cardinality,
        grades=f"impressions only: 0 dislike, 1 skip (under {skip_below_pct} % played), 2 listened in part, "
        f"3 at least {FULL_PCT} % played, 4 like; -1 for organic events",
        pair_window=PAIR_WINDOW,
        overwrite=overwrite,
    )
    with writer:
        users = 0
        for listens, explicit in source.chunks():
            ids, user = np.unique(listens["uid"], return_inverse=True)
            feedback = _feedback(listens, explicit, source.observed, skip_below_pct, without_listen)
            if len(ids) == 0:
                continue
            writer.write_events(_event_columns(listens, user.astype(np.int32) + users, item_ids, feedback))
            writer.write_users(ids)
            users += len(ids)
            if progress is not None:
                progress(users if source.listens.sequential else source.rows_done, source.listens.rows)
        writer.write_items(item_ids, features)
        params = {
            "skip_below_pct": skip_below_pct,
            "share_edges_pct": SHARE_EDGES_PCT.tolist(),
            "without_listen": dict(without_listen),
        }
        writer.set_params(params | ({"times_went_back": source.went_back} if unsorted == "sort" else {}))
    return DatasetInfo.load(out)


@dataclass
class _Source:
    """Listens with the explicit events of the same users; `explicit` has event_type and may be empty."""

    listens: EventFile
    explicit: dict[str, EventFile]
    observed: frozenset[str]
    rows_done: int = 0
    went_back: int = 0

    def chunks(self) -> Iterator[tuple[Rows, Rows]]:
        """Whole users at a time: (listens, explicit events of users up to the last of these); either may be empty."""
        cursors = {kind: UserCursor(file.batches()) for kind, file in self.explicit.items()}
        for rows in whole_users(self.listens.batches()):
            self.rows_done += len(rows["uid"])
            if "event_type" in rows:
                listens, explicit = self._separate(rows)
            else:
                listens, explicit = rows, self._gather(cursors, int(rows["uid"][-1]))
            if self.listens.sort:
                listens, went_back = in_order_of_time(listens)
                self.went_back += went_back
            yield listens, explicit
        # What is left are explicit events of users behind the last one who listens: read, so checked and counted.
        yield dict.fromkeys(("uid", *_LISTEN_COLUMNS), np.zeros(0, np.int64)), self._gather(cursors, _LAST_USER)

    @staticmethod
    def _separate(rows: Rows) -> tuple[Rows, Rows]:
        is_listen = rows["event_type"] == EVENT_TYPES.index("listen")
        listens = {name: values[is_listen] for name, values in rows.items()}
        return listens, {name: rows[name][~is_listen] for name in ("uid", "item_id", "timestamp", "event_type")}

    @staticmethod
    def _gather(cursors: dict[str, UserCursor], uid: int) -> Rows:
        parts: list[Rows] = [{name: np.zeros(0, np.int64) for name in ("uid", "item_id", "timestamp", "event_type")}]
        for kind, cursor in cursors.items():
            rows = cursor.through(uid)
            if rows is not None:
                kinds = np.full(len(rows["uid"]), EVENT_TYPES.index(kind))
                parts.append({**rows, "event_type": kinds})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _open_source(path: Path, format: str, size: str, *, sort: bool) -> _Source:
    if format not in FORMATS or size not in SIZES:
        raise ValueError(f"format, size: expected one of {FORMATS} and one of {SIZES}, found {format!r}, {size!r}")
    if path.is_file():
        directory, single = path.parent, path.name == "multi_event.parquet"
        if not single and path.name != "listens.parquet":
            raise DataError(path, "expected listens.parquet or multi_event.parquet, or their directory")
    else:
        directory = path / format / size if (path / format / size).is_dir() else path
        single = not (directory / "listens.parquet").is_file()
        if single and not (directory / "multi_event.parquet").is_file():
            raise DataError(directory, "no Yambda data here: expected listens.parquet or multi_event.parquet")
    if single:
        listens = EventFile(directory / "multi_event.parquet", (*_LISTEN_COLUMNS, "event_type"), sort=sort)
        return _Source(listens, {}, frozenset(("like", "dislike")))
    explicit = {
        kind: EventFile(directory / f"{name}.parquet", ("item_id", "timestamp"), sort=sort)
        for kind, name in _FILES.items()
        if (directory / f"{name}.parquet").is_file()
    }
    observed = frozenset(kind for kind in ("like", "dislike") if kind in explicit)
    return _Source(EventFile(directory / "listens.parquet", _LISTEN_COLUMNS, sort=sort), explicit, observed)


def _distinct_items(listens: EventFile) -> np.ndarray:
    """Sorted item ids of all listens [V]; DataError where there is none."""
    columns = ("item_id", "timestamp", "event_type") if "event_type" in listens.columns else ("item_id", "timestamp")
    items = np.zeros(0, np.int64)
    for rows in EventFile(listens.file, columns, sort=listens.sort).batches():
        found = rows["item_id"]
        if "event_type" in rows:
            found = found[rows["event_type"] == EVENT_TYPES.index("listen")]
        items = np.union1d(items, found)
    if len(items) == 0:
        raise DataError(listens.file, "the data set is empty: no listen in it")
    return items


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
    """The events of `kind` that no `cancel` follows directly among the two on the same (uid, item_id).

    At the same time the event comes before what cancels it.
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
    # Few pairs have an explicit event: sorting only their listens is several times faster. Pairs that this key
    # confuses are sorted along, nothing more.
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
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            values[name], cardinality[name] = _read_mapping(file, f"{name}_id", item_ids)
    return values, cardinality


def _read_mapping(file: Path, column: str, item_ids: np.ndarray) -> tuple[np.ndarray, int]:
    parquet = open_parquet(file)
    for name in ("item_id", column):
        if name not in parquet.schema_arrow.names:
            raise DataError(
                file, f"this column is missing; it has {', '.join(parquet.schema_arrow.names)}", column=name
            )
        if not pa.types.is_integer(parquet.schema_arrow.field(name).type):
            found = parquet.schema_arrow.field(name).type
            raise DataError(file, f"expected integers, found {found}", column=name)
    owner = np.full(len(item_ids), -1, np.int64)
    start = 0
    for batch in parquet.iter_batches(columns=["item_id", column]):
        for name in ("item_id", column):
            if batch.column(name).null_count:
                row = int(np.argmax(batch.column(name).is_null().to_numpy(zero_copy_only=False)))
                raise DataError(file, "expected a value, found null", column=name, row=start + row + 1)
        item, value = (batch.column(name).to_numpy().astype(np.int64) for name in ("item_id", column))
        place = np.minimum(np.searchsorted(item_ids, item), len(item_ids) - 1)
        known = item_ids[place] == item
        place, value = place[known], value[known]
        order = np.argsort(-value, kind="stable")
        candidate = np.full(len(item_ids), np.iinfo(np.int64).max)
        candidate[place[order]] = value[order]
        lower = (candidate < np.iinfo(np.int64).max) & ((owner < 0) | (candidate < owner))
        owner[lower] = candidate[lower]
        start += batch.num_rows
    return codes(owner, owner < 0)
