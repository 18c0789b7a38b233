"""The folder of a store of sessions: who owns it, the users' files, and the journal of what came since they were saved.

What was answered outlives the process: an event is in the journal before it is answered, and leaves the journal only
when its user's file is whole on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from python_model.io.errors import DataError
from python_model.io.exclusive import own
from python_model.serving.events import EventLog, EventReader
from python_model.serving.journal import JOURNAL, Entry, Journal, replay
from python_model.serving.session_files import SavedSession, SessionFiles, require_folder_of_sessions

Histories = Callable[[int | str], EventLog | None]


class SessionArchive:
    """The folder, owned by this process until `close`; InUseError, which names the owner, where another one has it.

    histories: user → log of a user who was never saved; None where there is none.
    """

    def __init__(self, folder: Path, vocabulary: str, reader: EventReader, histories: Histories) -> None:
        require_folder_of_sessions(folder)
        self._reader, self._histories = reader, histories
        self._lock = own(folder)
        try:
            self.files = SessionFiles(folder, vocabulary, reader)
            self.journal = Journal(folder / JOURNAL)
            self._pending: dict[int | str, list[Entry]] = {}
            for entry in self.journal.entries(reader):
                self._pending.setdefault(entry.user, []).append(entry)
        except BaseException:
            self._lock.close()
            raise

    def log_of(self, user: int | str) -> tuple[EventLog, SavedSession | None]:
        """A user's events, those of the journal too, and the file they came from where the journal adds nothing.

        DataError where the user's file is damaged.
        """
        saved = self.files.load(user) if self.files.has(user) else None
        log = saved.log if saved is not None else self._histories(user) or EventLog.empty(self._reader.features)
        entries = self._pending.get(user, [])
        return log, None if replay(log, entries, self.journal, is_saved=saved is not None) else saved

    def is_pending(self, user: int | str) -> bool:
        """Whether the journal has events of a user that nobody asked for since the start."""
        return user in self._pending

    def taken(self, user: int | str) -> None:
        """Says that what the journal has of a user is in memory now, and is saved from there."""
        self._pending.pop(user, None)

    def settle(self, model: str) -> None:
        """Writes the files of the users whose events are in the journal alone, and empties it.

        What belongs to a user whose file is damaged stays in the journal, with a warning.
        """
        for user in list(self._pending):
            try:
                log, _ = self.log_of(user)
            except DataError as error:
                self.journal.warn("%s; %d lines of the journal wait for it", error, len(self._pending[user]))
                continue
            # Their events are put where they belong, the state can wait until somebody asks for them.
            self.files.save(user, SavedSession(log, model, None, None))
            del self._pending[user]
        self.journal.keep([one for entries in self._pending.values() for one in entries])

    def close(self) -> None:
        """Ends the journal and gives the folder back."""
        self.journal.close()
        self._lock.close()
