"""`prepare`: one entry point for every source; the function behind `argus prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from python_model.data.description import DatasetInfo
from python_model.data.engines import LOCAL, Engine
from python_model.data.readers.kuairand import read_kuairand
from python_model.data.readers.movielens import read_movielens
from python_model.data.readers.table.mapping import TableMapping
from python_model.data.readers.table.reader import SOURCE as TABLE
from python_model.data.readers.table.reader import read_table
from python_model.data.readers.tables import Progress
from python_model.data.readers.yambda import read_yambda
from python_model.data.synthetic import SyntheticConfig, generate, preset
from python_model.io.settings import checked_settings, settings_of
from python_model.io.settings_help import listing

READERS: dict[str, Callable[..., DatasetInfo]] = {
    "yambda": read_yambda,
    "kuairand": read_kuairand,
    "movielens": read_movielens,
}
SOURCES = (*READERS, TABLE, "synthetic")
_COMMON = ("overwrite", "progress", "engine")


def prepare(
    source: str,
    path: str | Path | Sequence[str | Path] | None,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
    **options: Any,
) -> DatasetInfo:
    """Prepare the data at `path` (None for the synthetic service) into the new directory `out`.

    path: several files or directories for a table. options: those of the source's reader (`options_of`); for a table
    `mapping`, a TOML file, and the settings of `TableMapping`, which replace those of the file; for the synthetic
    service `preset`, `chunk_users` and any setting of `SyntheticConfig`. engine: where the work runs
    (`python_model.data.engines`); every engine gives the same rows. progress(done, total) is called as the work goes
    on, in rows or users.
    Raises ValueError for an unknown source or option, DataError for bad data, FileExistsError where `out` exists and
    overwrite is not set. After any of these errors nothing is left in `out`.
    """
    require_options(source, options)
    if source == "synthetic":
        return _prepare_synthetic(out, overwrite, progress, engine, **options)
    if path is None:
        raise ValueError(f"path: source {source!r} needs the file or directory to read")
    if source == TABLE:
        return _prepare_table(path, out, overwrite, progress, engine, **options)
    if not isinstance(path, (str, Path)):
        raise ValueError(f"path: source {source!r} reads one file or directory, found {len(path)}")
    return READERS[source](path, out, overwrite=overwrite, progress=progress, engine=engine, **options)


def options_of(source: str) -> tuple[str, ...]:
    """Names of the options that a source takes; ValueError where there is no such source."""
    if source == "synthetic":
        return ("preset", "chunk_users", *settings_of(SyntheticConfig))
    if source == TABLE:
        return ("mapping", *settings_of(TableMapping))
    if source not in READERS:
        raise ValueError(f"source: expected one of {', '.join(SOURCES)}, found {source!r}")
    return tuple(name for name in settings_of(READERS[source]) if name not in _COMMON)


def describe_options(source: str) -> str:
    """One line for each option of a source: default, range and meaning."""
    if source == "synthetic":
        return listing(generate, SyntheticConfig, without=(*_COMMON, "config", "name", "out"))
    if source == TABLE:
        return listing(TableMapping)
    return listing(READERS[source], without=_COMMON) or f"source {source!r} has no options"


def require_options(source: str, options: Iterable[str]) -> None:
    """ValueError where a source has no option of one of these names."""
    known = options_of(source)
    unknown = sorted(set(options) - set(known))
    if unknown:
        allowed = ", ".join(known) or "none"
        raise ValueError(f"unknown option {', '.join(unknown)} of source {source!r}; it has: {allowed}")


def _prepare_table(
    paths: str | Path | Sequence[str | Path], out: str | Path, overwrite: bool, progress: Progress | None,
    engine: Engine, mapping: str | Path | None = None, **settings: Any,
) -> DatasetInfo:  # fmt: skip
    settings = checked_settings(TableMapping, settings, TABLE)
    found = TableMapping(**settings) if mapping is None else TableMapping.read(Path(mapping), **settings)
    return read_table(paths, out, mapping=found, overwrite=overwrite, progress=progress, engine=engine)


def _prepare_synthetic(
    out: str | Path, overwrite: bool, progress: Progress | None, engine: Engine, **options: Any
) -> DatasetInfo:
    name = options.pop("preset", "demo")
    chunk_users = options.pop("chunk_users", 1024)
    config = preset(name, **options)
    return generate(
        out, config, name=f"synthetic-{name}", chunk_users=chunk_users, overwrite=overwrite, progress=progress,
        engine=engine,
    )  # fmt: skip
