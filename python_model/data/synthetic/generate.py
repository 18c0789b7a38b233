"""Writes a synthetic data set: chunks of users, simulated and streamed to the prepared format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
from typing_extensions import Self

from python_model.data.description import DatasetInfo, event_schema
from python_model.data.engines import LOCAL, Engine
from python_model.data.feedback import BINARY, categorical
from python_model.data.synthetic.behaviour import GRADES, SHARE_EDGES
from python_model.data.synthetic.catalogue import build_catalogue
from python_model.data.synthetic.config import DEVICES, SyntheticConfig
from python_model.data.synthetic.simulation import Chunk, ChunkSimulation
from python_model.data.writer import DatasetWriter
from python_model.io.settings import Between, checked

ORACLE = "oracle"
# One session: its impressions are ranked by the state from before it (docs/data.md, "Pairs").
PAIR_WINDOW = 3 * 3_600
Progress = Callable[[int, int], None]
ChunkUsers = Annotated[int, Between(1, 2**31 - 1)]
"""Users that are simulated at once."""


def generate(
    out: str | Path,
    config: SyntheticConfig,
    *,
    name: str = "synthetic",
    chunk_users: ChunkUsers = 1024,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> DatasetInfo:
    """Generate the service of `config` into the new directory `out`; memory grows with chunk_users, not with users.

    chunk_users: users that are simulated at once; the files do not depend on it. progress: called with (users done,
    users) after every chunk. Measured statistics are in dataset.json under params["statistics"].
    """
    checked(ChunkUsers, "chunk_users", chunk_users)
    starts = range(0, config.users, chunk_users)
    chunks = [(first, min(first + chunk_users, config.users)) for first in starts]
    statistics = _Statistics()
    writer = DatasetWriter(
        out,
        name=name,
        source="synthetic",
        has_oracle=True,
        overwrite=overwrite,
        params=config.to_params(),
        derived=("hour", "day_of_week"),
        context=_contexts(config),
        feedback={"like": BINARY, "dislike": BINARY, "skip": BINARY, "share": categorical(len(SHARE_EDGES) + 1)},
        negative=("dislike", "skip"),
        item_features={"artist": config.clusters * config.artists, "cluster": config.clusters},
        grades=GRADES,
        pair_window=PAIR_WINDOW,
    )
    with writer:
        schema = event_schema(writer.info)
        oracle = writer.directory / ORACLE
        oracle.mkdir()
        item = np.arange(config.items)
        writer.write_items(item, {"artist": item // config.tracks, "cluster": item // (config.tracks * config.artists)})
        with _Arrays(oracle, config.dimensions) as arrays:
            sessions = 0
            simulated = engine.map(partial(_simulate, config), chunks)
            for (first, last), chunk in zip(chunks, simulated, strict=True):
                columns = chunk.columns
                writer.write_events({f.name: columns[f.name].astype(f.type.to_pandas_dtype()) for f in schema})
                writer.write_users(np.arange(first, last))
                arrays.append("event_session", columns["session"] + sessions)
                arrays.append("full_listen", columns["full_listen"])
                arrays.append("session_taste", chunk.sessions["taste"])
                arrays.append("session_estimate", chunk.sessions["estimate"])
                sessions += len(chunk.sessions["user"])
                statistics.add(columns, len(chunk.sessions["user"]))
                if progress is not None:
                    progress(last, config.users)
        writer.set_params({**config.to_params(), "statistics": statistics.summary()})
    return DatasetInfo.load(out)


def _contexts(config: SyntheticConfig) -> dict[str, int]:
    """Name and cardinality of each context."""
    season = {"season": config.seasons} if config.has_seasons else {}
    return {"hour": 24, "day_of_week": 7, "device": len(DEVICES), "source": len(config.sources), **season}


def _simulate(config: SyntheticConfig, users: tuple[int, int]) -> Chunk:
    return ChunkSimulation(config, _catalogue(config), *users).run()


# A worker simulates many chunks of one service.
_catalogue = lru_cache(maxsize=1)(build_catalogue)


class _Statistics:
    """Marginals of everything generated, from integer sums, so that chunking cannot change them."""

    def __init__(self) -> None:
        self.events = self.sessions = self.skips = self.likes = self.dislikes = self.recommended = self.percent = 0

    def add(self, columns: Mapping[str, np.ndarray], sessions: int) -> None:
        self.events += len(columns["user"])
        self.sessions += sessions
        self.skips += int(columns["feedback_skip"].sum())
        self.likes += int(columns["feedback_like"].sum())
        self.dislikes += int(columns["feedback_dislike"].sum())
        self.recommended += int((~columns["organic"]).sum())
        self.percent += int(columns["played_pct"].sum())

    def summary(self) -> dict[str, float]:
        return {
            "skip_rate": self.skips / self.events,
            "like_rate": self.likes / self.events,
            "dislike_rate": self.dislikes / self.events,
            "recommended_share": self.recommended / self.events,
            "mean_played_share": self.percent / self.events / 100.0,
            "listens_per_session": self.events / self.sessions,
        }


class _Arrays:
    """The .npy files of the oracle, written as a stream; the length in the header is set at the end."""

    def __init__(self, directory: Path, dimensions: int) -> None:
        shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "event_session": (np.dtype(np.int64), ()),
            "full_listen": (np.dtype(np.float32), ()),
            "session_taste": (np.dtype(np.float32), (dimensions,)),
            "session_estimate": (np.dtype(np.float32), (dimensions,)),
        }
        self._shapes = shapes
        self._rows = dict.fromkeys(shapes, 0)
        self._files = {name: (directory / f"{name}.npy").open("wb+") for name in shapes}

    def __enter__(self) -> Self:
        for name in self._files:
            self._write_header(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, file in self._files.items():
            if kind is None:
                self._write_header(name)
            file.close()

    def append(self, name: str, values: np.ndarray) -> None:
        dtype, _ = self._shapes[name]
        self._files[name].write(np.ascontiguousarray(values, dtype.newbyteorder("<")).tobytes())
        self._rows[name] += len(values)

    def _write_header(self, name: str) -> None:
        # numpy pads the header so that its first dimension can grow to any length in place.
        dtype, shape = self._shapes[name]
        file = self._files[name]
        file.seek(0)
        shape = (self._rows[name], *shape)
        description = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, description)
