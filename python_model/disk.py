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
from collections.abc import Iterator
from pathlib import Path

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


@contextlib.contextmanager
def writing(path: Path, remedy: str = REMEDY) -> Iterator[None]:
    """A block that writes `path` or below it; what fails in it comes out as one WriteError."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        raise WriteError(path, reason_of(error, path), remedy) from error


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
