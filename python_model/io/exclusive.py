"""A process owns a directory that it changes in place; a second process is refused with an error that names the first.

The lock is the kernel's (`flock`): it is released when its process ends for any reason. The lock file names the owner,
for the error message of another process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from python_model.io.disk import followed, refuse_links, require_parent, writing
from python_model.io.json_text import parse
from python_model.io.names import hidden

LOCK = ".lock"
"""Name of the lock file in a directory that is changed in place."""


class InUseError(ValueError):
    """Another process owns a directory; the message names it."""


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Own a directory during a block, creating it where it is missing; see `own`.

    A directory that was created here and stayed empty is removed again.
    """
    made = not os.path.lexists(directory)
    lock = own(directory)
    try:
        yield
    finally:
        if made and [path.name for path in directory.iterdir()] == [LOCK]:
            with contextlib.suppress(OSError):
                (directory / LOCK).unlink()
                directory.rmdir()
        # Without an owner, the lock file must not name the last one.
        with contextlib.suppress(OSError):
            os.ftruncate(lock.fileno(), 0)
        lock.close()


def own(directory: Path) -> IO[str]:
    """Own a directory until the returned file is closed, or until this process ends.

    Raises InUseError naming process, command and start where another process owns it, or this one already does;
    FileExistsError where it is not a directory, WriteError where it cannot be created or contains a link.
    """
    target = followed(directory)
    if os.path.lexists(target) and not target.is_dir():
        raise FileExistsError(f"{directory} is a file, expected a directory")
    if not target.is_dir():
        require_parent(directory, target, make=True)
    refuse_links(directory)
    return _hold_current(target / LOCK, directory)


@contextlib.contextmanager
def replacing(out: Path, named: Path | None = None) -> Iterator[None]:
    """Own the name `out`, which will be created or replaced as a whole, during a block; see `own`.

    The lock lies beside `out` under a hidden name and is removed when the block ends. named: the name of `out` in
    messages.
    """
    file = hidden(out, LOCK)
    lock = _hold_current(file, named or out)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.close()


def _hold_current(file: Path, what: Path) -> IO[str]:
    """Lock the file that has the name now: its last owner may have removed the file that was opened here."""
    while True:
        with writing(what):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = _hold(file, what)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                return lock
        lock.close()


def _hold(file: Path, what: Path) -> IO[str]:
    # Links are not followed: a directory from somebody else must not choose which file is written.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    lock = os.fdopen(descriptor, "r+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = _owner(lock)
        lock.close()
        raise InUseError(f"{what} is in use by {owner}: wait until it ends or choose another directory") from error
    except BaseException:
        lock.close()
        raise
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    command = " ".join(sys.argv)
    said = {"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": started}
    # On a full disk the owner's name cannot be written, but the lock holds.
    with contextlib.suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), json.dumps(said).encode())
    return lock


def _owner(lock: IO[str]) -> str:
    """The owner named in a lock file, in words."""
    lock.seek(0)
    try:
        said = parse(lock.read())
        return f"process {said['process']} on {said['host']} ({said['command']}, since {said['since']})"
    except (ValueError, KeyError, TypeError):
        # The owner has the lock and has not written its name yet.
        return "another process"
