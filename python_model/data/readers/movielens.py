"""MovieLens: `u.data` (100K), `ratings.dat` (1M, 10M) and `ratings.csv` (20M and later), with genre and year."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from python_model.data.description import DatasetInfo
from python_model.data.engines import LOCAL, Engine
from python_model.data.feedback import BINARY, categorical
from python_model.data.readers.delimited import Form, Piece, pieces, read_delimited, read_piece, refuse
from python_model.data.readers.logs import PIECE_BYTES, Found, Rows, sort_logs
from python_model.data.readers.tables import Progress, align, labelled
from python_model.data.time_features import TIME_FEATURES, gap_bucket, hour_and_day
from python_model.data.times import SECONDS, times_of
from python_model.data.writer import DatasetWriter, refuse_existing
from python_model.io.errors import DataError
from python_model.io.files import present, require_path
from python_model.io.publish import scratch

RATINGS = ("u.data", "ratings.dat", "ratings.csv")
_COLUMNS = ("user", "item", "rating", "timestamp")
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_YEAR = re.compile(r"\((\d{4})\)\s*$")
# Users rate most of their films in one sitting: pairs of five minutes leave the rest of it as history
# (docs/data.md, "Pairs").
PAIR_WINDOW = 300


def read_movielens(
    path: str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> DatasetInfo:  # fmt: skip
    """Prepare a MovieLens directory or one of its rating files; ratings stream, see `python_model.data.readers.logs`.

    Feedback: like (rating >= 4), dislike (rating <= 2), rating (5 classes; 10 where the file has half stars). grade
    counts the same classes from 1. MovieLens does not record how a user found a film; ratings were given on lists that
    the site showed, so every event is an impression. Ties in time keep the order of the file. DataError where the files
    break their format.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    file = _rating_file(Path(path))
    todo = pieces(file, _form(file), PIECE_BYTES)
    with scratch(out) as space:
        logs = sort_logs(_read_ratings, todo, space / "logs", engine, progress=progress)
        classes = 10 if any(logs.notes) else 5
        found = _item_features(file.parent, logs.item_ids)
        features = found.features
        with DatasetWriter(
            out,
            name=f"movielens-{file.name}",
            source="movielens",
            context=TIME_FEATURES,
            derived=tuple(TIME_FEATURES),
            feedback={"like": BINARY, "dislike": BINARY, "rating": categorical(classes)},
            negative=("dislike",),
            item_features={name: max(len(found.labels[name]), 1) for name in features},
            grades="the rating: 1 to 5 stars" if classes == 5 else "the rating in half stars: 1 to 10",
            pair_window=PAIR_WINDOW,
            overwrite=overwrite,
        ) as writer:
            for columns in logs.columns(partial(_event_columns, classes), engine, progress):
                writer.write_events(columns)
            writer.write_users(logs.user_ids)
            writer.write_items(logs.item_ids, features, found.titles)
            stars = [f"{number / 2 if classes == 10 else number:g}" for number in range(1, classes + 1)]
            writer.write_labels({"feedback_rating": stars, **{f"item_{name}": found.labels[name] for name in features}})
    return DatasetInfo.load(out)


def _event_columns(classes: int, rows: Rows) -> Rows:
    """All columns of events.parquet, from whole users in order of time."""
    time, half_stars = rows["order"], rows["half_stars"]
    rating = half_stars - 1 if classes == 10 else half_stars // 2 - 1
    hour, day = hour_and_day(time)
    return {
        "user": rows["user"],
        "item": rows["item"],
        "time": time,
        "organic": np.zeros(len(time), bool),
        "grade": (rating + 1).astype(np.int8),
        "context_hour": hour,
        "context_day_of_week": day,
        "context_gap": gap_bucket(rows["user"], time),
        "feedback_like": (half_stars >= 8).astype(np.int16),
        "feedback_dislike": (half_stars <= 4).astype(np.int16),
        "feedback_rating": rating.astype(np.int16),
    }


def _form(file: Path) -> Form:
    if file.suffix == ".csv":
        return Form()
    return Form("\t" if file.name == "u.data" else "::", _COLUMNS, quotes=False)


def _rating_file(path: Path) -> Path:
    require_path(path)
    if not path.is_dir():
        if path.name not in RATINGS:
            raise DataError(path, f"expected one of {', '.join(RATINGS)} or the directory of one")
        return path
    for name in RATINGS:
        if present(path / name):
            return path / name
    raise DataError(path, f"no MovieLens ratings here: expected one of {', '.join(RATINGS)}")


def _read_ratings(piece: Piece) -> Found:
    """user, item, order (time), half_stars (1 to 10): int64 [n] in file order; note: whether any has a half star."""
    file = piece.file
    users, items = ("userId", "movieId") if file.suffix == ".csv" else ("user", "item")
    table = read_piece(piece, integers=(users, items, "timestamp"), numbers=("rating",))
    doubled = table["rating"] * 2.0
    wrong = ~((doubled >= 1) & (doubled <= 10) & (doubled == np.floor(doubled)))
    refuse(file, "rating", table["rating"], wrong, "a rating of 0.5, 1, 1.5, ... 5")
    time = times_of(table["timestamp"], SECONDS, file, "timestamp")
    half_stars = doubled.astype(np.int64)
    rows = {"user": table[users], "item": table[items], "order": time, "half_stars": half_stars}
    return Found(rows, len(time), bool((half_stars % 2).any()))


@dataclass(frozen=True)
class _Items:
    """Features of the items, labels of their numbers, and titles."""

    features: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    titles: list[str] | None = None


def _item_features(directory: Path, item_ids: np.ndarray) -> _Items:
    """Genre (the first one listed), year and title from the item file that is present; nothing without one."""
    for name, reader in (("u.item", _read_u_item), ("movies.dat", _read_movies_dat), ("movies.csv", _read_movies_csv)):
        file = directory / name
        if present(file):
            ids, title, genre, column = reader(file)
            break
    else:
        return _Items()
    found = [_YEAR.search(text) for text in title]
    year = np.array([int(match.group(1)) if match else -1 for match in found], np.int64)
    numbers, labels = {}, {}
    numbers["genre"], labels["genre"] = labelled(genre, np.isin(genre, ["", "unknown", "(no genres listed)"]))
    numbers["year"], labels["year"] = labelled(year, year < 0)
    numbers["title"], titles = labelled(title.astype(str), title == "")
    features = align(ids, numbers, item_ids, file, column)
    titles = [*titles, ""]
    return _Items(features, labels, [titles[number] for number in features.pop("title")])


def _read_u_item(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """ids, titles, genres, and the name of the column of ids."""
    form = Form("|", ("item", "title", "released", "video", "url", *_GENRES), "latin-1", quotes=False)
    table = read_delimited(file, form, integers=("item", *_GENRES), texts=("title",))
    for name in _GENRES:
        refuse(file, name, table[name], (table[name] != 0) & (table[name] != 1), "0 or 1")
    flags = np.stack([table[name] for name in _GENRES], axis=1)
    genre = np.where(flags.any(axis=1), np.array(_GENRES)[np.argmax(flags, axis=1)], "")
    return table["item"], table["title"], genre, "item"


def _read_movies_dat(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    form = Form("::", ("item", "title", "genres"), "latin-1", quotes=False)
    table = read_delimited(file, form, integers=("item",), texts=("title", "genres"))
    return table["item"], table["title"], _first_genre(table["genres"]), "item"


def _read_movies_csv(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    table = read_delimited(file, Form(), integers=("movieId",), texts=("title", "genres"))
    return table["movieId"], table["title"], _first_genre(table["genres"]), "movieId"


def _first_genre(genres: np.ndarray) -> np.ndarray:
    return np.array([text.split("|", 1)[0] for text in genres], dtype=str)
