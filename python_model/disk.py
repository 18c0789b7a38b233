"""Writing files where the disk may be full, a quota used up or a mount lost: one sentence, and what was there stays.

`writing` turns what the libraries raise into a `WriteError` that names the path, the reason and what to do;
`replace_text` writes a file as a whole or not at all; `flush` brings a file or directory to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

REMEDY = "free some space or choose another directory"
_ALMOST_NOTHING = 1 << 16
NO_SPACE = "no space is left on the device"
_REASONS = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow any further (the file system or `ulimit -f`)",
}
FULL = frozenset(_REASONS)
"""Error numbers of a disk that takes no more."""


class WriteError(OSError):
    """A file could not be written; `path` says which, the message why and what to do."""

    def __init__(self, path: str | Path, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{path}: cannot be written, {reason}; {remedy}")
        self.path, self.reason, self.remedy = Path(path), reason, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled from its parts, so that it comes back whole from another process."""
        return WriteError, (self.path, self.reason, self.remedy)


@contextlib.contextmanager
def writing(path: Path, remedy: str = REMEDY) -> Iterator[None]:
    """A block that writes `path` or below it; what fails in it comes out as one WriteError."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        raise WriteError(path, reason_of(error, path), remedy) from error


def as_write_error(error: BaseException | None, path: Path, place: Path) -> WriteError | None:
    """The sentence for an error of a disk (that of `place`) that takes no more; None for any other error."""
    if isinstance(error, WriteError) or not isinstance(error, OSError):
        return None
    reason = reason_of(error, place)
    full = error.errno in FULL or (error.errno is None and reason == NO_SPACE)
    return WriteError(path, reason) if full else None


@contextlib.contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A hidden directory beside `out` for the length of a block; a disk that it fills up is one WriteError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".scratch", dir=out.parent) as directory:
        try:
            yield Path(directory)
        except OSError as error:
            explained = as_write_error(error, out, Path(directory))
            if explained is None:
                raise
            raise explained from error


def reason_of(error: Exception, path: Path) -> str:
    """Why a write failed, in words."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number is None and _free(path) < _ALMOST_NOTHING:
        # numpy reports a short write without saying why.
        number = errno.ENOSPC
    if number is None:
        return str(error)
    return _REASONS.get(number, os.strerror(number).lower())


def replace_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), replacing what was there as a whole; WriteError where that fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            partial.write_text(text, encoding="utf-8")
            flush(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> int:
    """Bytes free where `path` is, or would be."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
