"""Writes files safely when the disk is full, a quota is used up or a mount is lost; earlier files stay.

`writing` turns the errors of libraries into a `WriteError` that names the path, the reason and what to do;
`require_writable` checks before the work; `whole_file` and `replace_text` write a file as a whole or not at all;
`flush` brings a file or directory to the disk. Symbolic links are followed: the link stays and its target is written.
Within a directory that is changed in place (a run, sessions, scores), links are refused (`refuse_link`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from python_model.io.names import hidden

REMEDY = "free some space or choose another directory"
ELSEWHERE = "choose another place"
"""Advice for errors other than lack of space."""
_ALMOST_NOTHING = 1 << 16
NO_SPACE = "no space is left on the device"
_REASONS = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow any further (the file system or `ulimit -f`)",
}
FULL = frozenset(_REASONS)
"""Error numbers of a full disk or an exceeded limit."""


class WriteError(OSError):
    """A file could not be written: `path` is the file, the message gives the reason and what to do."""

    def __init__(self, path: str | Path, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{path}: cannot be written, {reason}; {remedy}")
        self.path, self.reason, self.remedy = Path(path), reason, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled from its parts, so that it comes back whole from another process."""
        return WriteError, (self.path, self.reason, self.remedy)


@contextlib.contextmanager
def writing(path: Path, then: str = "", kept: str = "") -> Iterator[None]:
    """A block that writes `path` or files below it; a failure in it is raised as one WriteError.

    then: what to do once the reason is removed. kept: what stays until then.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        reason = reason_of(error, path)
        full = reason in _REASONS.values()
        if then:
            remedy = f"free some space, then {then}" if full else f"once that is mended, {then}"
        else:
            remedy = REMEDY if full else ELSEWHERE
        raise WriteError(path, reason, f"{kept}: {remedy}" if kept else remedy) from error


def as_write_error(error: BaseException | None, path: Path, partial: Path) -> WriteError | None:
    """The WriteError about `path` for an error from writing `partial`; None for any other error.

    Such an error says that the disk of `partial` is full, or names `partial`, a hidden name that users do not know.
    """
    if isinstance(error, (WriteError, FileExistsError)) or not isinstance(error, OSError):
        return None
    reason = reason_of(error, partial)
    if error.errno in FULL or (error.errno is None and reason == NO_SPACE):
        return WriteError(path, reason)
    if str(partial) in str(error):
        return WriteError(path, reason.replace(str(partial), str(path)), ELSEWHERE)
    return None


def reason_of(error: Exception, path: Path) -> str:
    """Why a write failed, in words."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number is None and _free(path) < _ALMOST_NOTHING:
        # numpy reports a short write without its reason.
        number = errno.ENOSPC
    if number is None:
        return str(error)
    return _REASONS.get(number, os.strerror(number).lower())


def followed(path: Path) -> Path:
    """The target of a path, symbolic links followed; WriteError where the path is a dangling link or no valid text."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise WriteError(repr(str(path)), "its name is not UTF-8", ELSEWHERE) from error
    with writing(path):
        if path.is_symlink() and not path.exists():
            reason = f"it is a link to {os.readlink(path)}, which is not there"
            raise WriteError(path, reason, "make that first or remove the link")
        target = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()  # raises where a name is too long
        return target


def refuse_link(path: Path) -> None:
    """WriteError where a path is a symbolic link: a received directory must not choose which files are written."""
    if path.is_symlink():
        raise WriteError(path, "it is a symbolic link, which is not followed here", "remove it")


def refuse_links(directory: Path) -> None:
    """`refuse_link` for every entry of a directory, which may be missing."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        refuse_link(path)


def require_writable(file: str | Path) -> Path:
    """Refuse, before the work, a file that could not be written after it; returns its final path.

    WriteError where its directory is missing or not writable, or where something other than a file has its name.
    """
    file = Path(file)
    target = followed(file)
    if target.is_dir():
        raise WriteError(file, "it is a directory", "name a file")
    taken = os.path.lexists(target)
    if taken and not target.is_file():
        raise WriteError(file, "it is no regular file", "name another file")
    require_parent(file, target, make=False)
    if taken and not os.access(target, os.W_OK):
        raise WriteError(file, "permission denied", ELSEWHERE)
    return target


def require_parent(path: Path, target: Path, *, make: bool) -> None:
    """WriteError, about `path`, where nothing can be created beside `target`.

    make: missing parent directories will be created.
    """
    above = target.parent
    while make and not os.path.lexists(above):
        above = above.parent
    if not os.path.lexists(above):
        raise WriteError(path, f"the directory {above} is not there", "make it first or choose another place")
    if not above.is_dir():
        raise WriteError(path, f"{above} is no directory", ELSEWHERE)
    if not os.access(above, os.W_OK | os.X_OK):
        raise WriteError(path, f"the directory {above} may not be written to", ELSEWHERE)


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A hidden file beside `file`: flushed and renamed to it when the block succeeds, removed otherwise.

    WriteError, before the block, where `file` cannot be written (see `require_writable`), and where the disk is full.
    """
    target = require_writable(file)
    partial = hidden(target, f".{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield partial
        with writing(file):
            flush(partial)
            os.replace(partial, target)
            flush(target.parent)
    except BaseException as error:
        explained = as_write_error(error, file, partial)
        if explained is not None:
            raise explained from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), replacing an earlier one atomically; WriteError where that fails."""
    with whole_file(path) as partial, writing(path):
        partial.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> int:
    """Free bytes on the disk of `path`, which may be missing."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
