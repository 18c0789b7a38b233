"""KuaiRand: short-video impressions in its published CSV files, with video and user features where present."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from python_model.data.description import DatasetInfo
from python_model.data.engines import LOCAL, Engine
from python_model.data.feedback import BINARY, categorical
from python_model.data.readers.delimited import MISSING, Form, Piece, pieces, read_delimited, read_piece, refuse
from python_model.data.readers.logs import PIECE_BYTES, Found, Rows, sort_logs
from python_model.data.readers.tables import Progress, align, codes
from python_model.data.time_features import DAY, HOUR, TIME_FEATURES, gap_bucket, hour_and_day
from python_model.data.times import MILLISECONDS, times_of
from python_model.data.writer import DatasetWriter, refuse_existing
from python_model.io.errors import DataError
from python_model.io.files import require_path
from python_model.io.publish import scratch

TABS = 15
SHARE_EDGES = np.array([0.2, 0.4, 0.6, 0.8])
DURATION_EDGES = np.array([7, 15, 30, 60, 120, 300]) * 1000
GRADES = "0 hate, 1 shown, 2 click, 3 long view, 4 like or follow; hate outweighs the others"
_BINARY = ("is_click", "is_like", "is_follow", "is_hate", "long_view", "is_rand")
_INTEGERS = ("user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "tab")
_USER_FEATURES = ("user_active_degree", "follow_user_num_range", "register_days_range")
_BEIJING = 8 * HOUR


def read_kuairand(
    path: str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> DatasetInfo:  # fmt: skip
    """Prepare a KuaiRand directory (all of its log_*.csv) or one log file; logs stream, see `readers.logs`.

    The directory is the one of the logs, or the one above it that the published archive unpacks to (logs in data/).
    Feedback: click, like, follow, hate, long_view (binary), share (5 bins of play time / duration). Context: tab,
    hour and day of week in Beijing, gap, random (1 in the random-exposure log) and three features of the user. Every
    event is an impression. Logs, and ties in time, keep the order of the files by name. DataError where a file breaks
    the format.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    files = _log_files(Path(path))
    directory = files[0].parent
    todo = [piece for file in files for piece in pieces(file, Form(), PIECE_BYTES)]
    with scratch(out) as space:
        logs = sort_logs(_read_log, todo, space / "logs", engine, progress=progress)
        users, user_cardinality = _user_features(directory, logs.user_ids)
        features, item_cardinality = _video_features(directory, logs.item_ids)
        context = {"tab": TABS, **TIME_FEATURES, "random": 2, **user_cardinality}
        with DatasetWriter(
            out,
            name="kuairand",
            source="kuairand",
            context=context,
            derived=tuple(TIME_FEATURES),
            utc_offset=_BEIJING,
            feedback=dict.fromkeys(("click", "like", "follow", "hate", "long_view"), BINARY)
            | {"share": categorical(len(SHARE_EDGES) + 1)},
            negative=("hate",),
            item_features=item_cardinality,
            grades=GRADES,
            pair_window=DAY,
            params={"logs": [file.name for file in files]},
            overwrite=overwrite,
        ) as writer:
            for columns in logs.columns(_event_columns, engine, progress):
                of_user = {f"context_{name}": values[columns["user"]] for name, values in users.items()}
                writer.write_events(columns | of_user)
            writer.write_users(logs.user_ids)
            writer.write_items(logs.item_ids, features)
    return DatasetInfo.load(out)


def _log_files(path: Path) -> list[Path]:
    require_path(path)
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("log_*.csv")) or sorted((path / "data").glob("log_*.csv"))
    if not files:
        raise DataError(path, "no KuaiRand log here or in data/: expected log_standard_*.csv or log_random_*.csv")
    return files


def _read_log(piece: Piece) -> Found:
    """The columns of a log with user, item and order (time_ms): int64 [n] in file order."""
    file = piece.file
    log = read_piece(piece, integers=(*_INTEGERS, *_BINARY))
    for name in _BINARY:
        refuse(file, name, log[name], (log[name] != 0) & (log[name] != 1), "0 or 1")
    for name in ("play_time_ms", "duration_ms"):
        refuse(file, name, log[name], log[name] < 0, "a duration that is not negative")
    refuse(file, "tab", log["tab"], (log["tab"] < 0) | (log["tab"] >= TABS), f"a value in [0, {TABS - 1}]")
    time = times_of(log.pop("time_ms"), MILLISECONDS, file, "time_ms")
    return Found({"user": log.pop("user_id"), "item": log.pop("video_id"), "order": time, **log}, len(time))


def _event_columns(log: Rows) -> Rows:
    """All columns of events.parquet except the user's features, from whole users in order of time."""
    user, time = log["user"], log["order"] // 1000
    hour, day = hour_and_day(time + _BEIJING)
    share = np.searchsorted(SHARE_EDGES, log["play_time_ms"] / np.maximum(log["duration_ms"], 1), side="right")
    good = (log["is_like"] == 1) | (log["is_follow"] == 1)
    grade = np.select([log["is_hate"] == 1, good, log["long_view"] == 1, log["is_click"] == 1], [0, 4, 3, 2], 1)
    feedback = {"click": "is_click", "like": "is_like", "follow": "is_follow", "hate": "is_hate"}
    return {
        "user": user,
        "item": log["item"],
        "time": time,
        "organic": np.zeros(len(user), bool),
        "grade": grade.astype(np.int8),
        "context_tab": log["tab"].astype(np.int32),
        "context_hour": hour,
        "context_day_of_week": day,
        "context_gap": gap_bucket(user, time),
        "context_random": log["is_rand"].astype(np.int32),
        **{f"feedback_{name}": log[column].astype(np.int16) for name, column in feedback.items()},
        "feedback_long_view": log["long_view"].astype(np.int16),
        "feedback_share": np.where(log["duration_ms"] > 0, share, -1).astype(np.int16),
    }


def _feature_file(directory: Path, pattern: str) -> Path | None:
    files = sorted(directory.glob(pattern))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(directory, f"expected one file {pattern}, found {names}")
    return files[0] if files else None


def _user_features(directory: Path, user_ids: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    file = _feature_file(directory, "user_features*.csv")
    if file is None:
        return {}, {}
    table = read_delimited(file, Form(), integers=("user_id",), texts=_USER_FEATURES)
    coded = {name: codes(table[name].astype(str), (table[name] == "") | (table[name] == "UNKNOWN"))
             for name in _USER_FEATURES}  # fmt: skip
    numbers = {name: numbers for name, (numbers, _) in coded.items()}
    values = align(table["user_id"], numbers, user_ids, file, "user_id")
    return values, {name: cardinality for name, (_, cardinality) in coded.items()}


def _video_features(directory: Path, item_ids: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """author, music (categories of their ids), tag (the first one), type, duration (bucket of DURATION_EDGES)."""
    file = _feature_file(directory, "video_features_basic*.csv")
    if file is None:
        return {}, {}
    table = read_delimited(
        file, Form(), integers=("video_id",), optional=("author_id", "music_id"), numbers=("video_duration",),
        texts=("video_type", "tag"),
    )  # fmt: skip
    refuse(file, "video_duration", table["video_duration"], table["video_duration"] < 0, "a duration in milliseconds")
    tag = np.array([text.split(",", 1)[0] for text in table["tag"]], dtype=str)
    kind = table["video_type"].astype(str)
    duration = np.searchsorted(DURATION_EDGES, table["video_duration"], side="right").astype(np.int32)
    coded = {
        "author": codes(table["author_id"], table["author_id"] == MISSING),
        "music": codes(table["music_id"], table["music_id"] == MISSING),
        "tag": codes(tag, tag == ""),
        "type": codes(kind, (kind == "") | (kind == "UNKNOWN")),
        "duration": (np.where(np.isnan(table["video_duration"]), -1, duration), len(DURATION_EDGES) + 1),
    }
    numbers = {name: numbers for name, (numbers, _) in coded.items()}
    values = align(table["video_id"], numbers, item_ids, file, "video_id")
    return values, {name: cardinality for name, (_, cardinality) in coded.items()}
