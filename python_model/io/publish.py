"""Publishes directories atomically: a directory appears under its name when it is complete, or not at all.

    NAME is missing        `.NAME.argus-partial` beside it is written, flushed and renamed
    NAME is empty          it stays (a mount point, a link's target, the current directory): `NAME/.argus-partial` is
                           written, flushed, renamed to `NAME/.argus-complete` and its entries move up, the marker last
    NAME is to be replaced `.NAME.argus-partial` is written, flushed and exchanged with it in one step of the kernel;
                           where the file system cannot do this, NAME is first renamed to `.NAME.old`

A kill at any time leaves the old directory, the new one or, between two renames, a state that `recover` repairs. Only
one process owns a name at a time (`io.exclusive`), so hidden files found by the owner come from dead processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from python_model.io.disk import (
    ELSEWHERE,
    WriteError,
    as_write_error,
    flush,
    followed,
    require_parent,
    writing,
)
from python_model.io.exclusive import InUseError, replacing
from python_model.io.names import hidden

PARTIAL, OLD, SCRATCH = ".argus-partial", ".old", ".argus-scratch"
COMPLETE, CONTENTS = ".argus-complete", "argus-contents"
_OURS = {PARTIAL, COMPLETE, SCRATCH, f".{CONTENTS}.lock", f".{SCRATCH}.lock"}
"""Names that a killed process may have left in a directory that still counts as empty."""
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}

logger = logging.getLogger(__name__)


def require_place(out: Path, marker: str, *, overwrite: bool | None = False) -> Path:
    """Refuse, before the work, a directory that could not be created after it; returns its path, links followed.

    marker: the file that identifies this kind of directory. overwrite: None where the command never replaces one.
    FileExistsError where `out` exists and is not empty, unless `overwrite` is set and it has the marker; WriteError
    where `out` cannot be created or replaced.
    """
    target = followed(out)
    recover(target, marker)
    if not os.path.lexists(target):
        require_parent(out, target, make=True)
        return target
    if not target.is_dir():
        raise FileExistsError(f"{out} is a file, expected a directory")
    if is_vacant(target):
        if not os.access(target, os.W_OK | os.X_OK):
            raise WriteError(out, "permission denied", ELSEWHERE)
        return target
    if not overwrite:
        hint = "" if overwrite is None else " or pass --overwrite"
        raise FileExistsError(f"{out} exists and is not empty: choose another directory{hint}")
    if not (target / marker).is_file():
        raise FileExistsError(f"{out} has no {marker}: it was not made by this command and is not overwritten")
    if os.path.ismount(target):
        raise WriteError(out, "a mount point cannot be replaced as a whole", "empty it or choose another directory")
    if _holds_this_process(target):
        reason = "the current directory lies in it, which would then be gone"
        raise WriteError(out, reason, "start the command from elsewhere or choose another directory")
    require_parent(out, target, make=False)
    return target


def _holds_this_process(directory: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(directory)
    except FileNotFoundError:  # the current directory is gone already
        return False


def is_vacant(directory: Path) -> bool:
    """Whether a directory exists and is empty, except for what a killed process left in it."""
    return directory.is_dir() and all(path.name in _OURS for path in directory.iterdir())


@contextlib.contextmanager
def whole_directory(out: Path, marker: str, *, overwrite: bool | None = False) -> Iterator[Path]:
    """A hidden directory that is flushed and becomes `out` when the block succeeds, and is removed otherwise.

    Raises as `require_place`, InUseError where another process is writing `out`, WriteError where the disk is full.
    """
    target = require_place(out, marker, overwrite=overwrite)
    with _owned(out, target):
        _tidy(target, marker)
        require_place(out, marker, overwrite=overwrite)
        partial = target / PARTIAL if is_vacant(target) else hidden(target, PARTIAL)
        with writing(out):
            partial.mkdir()
        try:
            yield partial
            _flush_tree(partial)
            require_place(out, marker, overwrite=overwrite)
            with writing(out):
                _publish(partial, target, marker)
        except BaseException as error:
            explained = as_write_error(error, out, partial)
            if explained is not None:
                raise explained from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A temporary hidden directory beside `out` during a block; a disk that it fills up is one WriteError."""
    target = followed(out)
    if not is_vacant(target):
        require_parent(out, target, make=True)
    directory = target / SCRATCH if is_vacant(target) else hidden(target, SCRATCH)
    with replacing(directory, out):
        _remove(directory)
        try:
            directory.mkdir()
            yield directory
        except OSError as error:
            explained = as_write_error(error, out, directory)
            if explained is None:
                raise
            raise explained from error
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def recover(path: Path, marker: str) -> None:
    """Repair the state after a kill between two renames: move the old directory back, or the remaining entries up.

    Does nothing while another process owns the path, or without permission to write there.
    """
    target = Path(os.path.realpath(path))
    if not _is_torn(target, marker):
        return
    with contextlib.suppress(InUseError, OSError), _owned(path, target):
        _mend(target, marker)


def _is_torn(target: Path, marker: str) -> bool:
    if os.path.lexists(target):
        return _is_made_here(target / COMPLETE, marker, moved=True)
    return _is_made_here(hidden(target, OLD), marker)


def _is_made_here(directory: Path, marker: str, *, moved: bool = False) -> bool:
    """Whether it is a real directory (no link) with the marker, or an empty one where all entries have `moved`."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    return (directory / marker).is_file() or (moved and not any(directory.iterdir()))


def _mend(target: Path, marker: str) -> None:
    if not _is_torn(target, marker):
        return
    if os.path.lexists(target):
        _move_up(target, marker)
        logger.warning("%s: completed; a command that was making it had been killed", target)
    else:
        os.rename(hidden(target, OLD), target)
        logger.warning("%s: put back; a command that was replacing it had been killed", target)


def _tidy(target: Path, marker: str) -> None:
    """Remove the leftovers of dead processes; the caller owns the name."""
    _mend(target, marker)
    _remove(hidden(target, PARTIAL))
    _remove(target / PARTIAL)
    if (target / marker).is_file() and _is_made_here(hidden(target, OLD), marker):
        os.rename(hidden(target, OLD), hidden(target, PARTIAL))
        _remove(hidden(target, PARTIAL))


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _owned(out: Path, target: Path) -> Iterator[None]:
    beside = os.access(target.parent, os.W_OK | os.X_OK) or not target.is_dir()
    with replacing(target if beside else target / CONTENTS, out):
        yield


def _publish(partial: Path, target: Path, marker: str) -> None:
    if partial.parent == target:
        os.rename(partial, target / COMPLETE)
        _move_up(target, marker)
        return
    if not os.path.lexists(target) or is_vacant(target):
        os.rename(partial, target)
    elif not _exchange(partial, target):
        aside = hidden(target, OLD)
        os.rename(target, aside)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(aside, target)
            raise
        flush(target.parent)
        os.rename(aside, partial)  # a name that may be removed at any moment
    flush(target.parent)


def _move_up(target: Path, marker: str) -> None:
    complete = target / COMPLETE
    for path in sorted(complete.iterdir(), key=lambda path: (path.name == marker, path.name)):
        if path.name == marker:
            flush(target)
        os.rename(path, target / path.name)
    complete.rmdir()
    flush(target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the kernel or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_current_directory, exchange = -100, 2
    if renameat2(at_current_directory, os.fsencode(one), at_current_directory, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _flush_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        flush(path)
    flush(directory)
