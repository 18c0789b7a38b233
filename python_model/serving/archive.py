"""The folder of a session store: its lock, the users' files, and the journal of events since they were saved.

Answered events survive the process: an event is in the journal before it is answered, and it leaves the journal only
when its user's file is complete on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from python_model.io.errors import DataError
from python_model.io.exclusive import own
from python_model.serving.events import EventLog, EventReader
from python_model.serving.journal import JOURNAL, Entry, Journal, replay
from python_model.serving.session_files import SavedSession, SessionFiles, require_folder_of_sessions

Histories = Callable[[int | str], EventLog | None]


class SessionArchive:
    """The folder, owned by this process until `close`; InUseError, naming the owner, where another process owns it.

    histories: user → log of a user who was never saved; None where there is none. fsync: see `Journal`.
    """

    def __init__(
        self, folder: Path, vocabulary: str, reader: EventReader, histories: Histories, *, fsync: bool = False
    ) -> None:  # fmt: skip
        require_folder_of_sessions(folder)
        self._reader, self._histories = reader, histories
        self._lock = own(folder)
        try:
            self.files = SessionFiles(folder, vocabulary, reader)
            self.journal = Journal(folder / JOURNAL, fsync=fsync)
            self._pending: dict[int | str, list[Entry]] = {}
            for entry in self.journal.entries(reader):
                self._pending.setdefault(entry.user, []).append(entry)
        except BaseException:
            self._lock.close()
            raise

    def log_of(self, user: int | str) -> tuple[EventLog, SavedSession | None]:
        """A user's events, including the journal's, and their saved file where the journal adds nothing to it.

        DataError where the user's file is damaged.
        """
        saved = self.files.load(user) if self.files.has(user) else None
        log = saved.log if saved is not None else self._histories(user) or EventLog.empty(self._reader.features)
        entries = self._pending.get(user, [])
        return log, None if replay(log, entries, self.journal, is_saved=saved is not None) else saved

    def is_pending(self, user: int | str) -> bool:
        """Whether the journal has events of a user who has not been loaded since the start."""
        return user in self._pending

    def taken(self, user: int | str) -> None:
        """Marks the journal's events of a user as loaded: they are now saved from memory."""
        self._pending.pop(user, None)

    def settle(self, model: str) -> None:
        """Writes the files of the users whose events are only in the journal, and empties the journal.

        Entries of a user whose file is damaged stay in the journal, with a warning.
        """
        for user in self.files.save_all(self._to_settle(model)):
            del self._pending[user]
        self.journal.keep([one for entries in self._pending.values() for one in entries])

    def _to_settle(self, model: str) -> Iterator[tuple[int | str, SavedSession]]:
        """The users whose events are only in the journal. Their states are computed when they are next requested."""
        for user, entries in list(self._pending.items()):
            try:
                log, _ = self.log_of(user)
            except DataError as error:
                self.journal.warn("%s; %d lines of the journal wait for it", error, len(entries))
            else:
                yield user, SavedSession(log, model, None, None)

    def close(self) -> None:
        """Closes the journal and releases the folder."""
        self.journal.close()
        self._lock.close()
