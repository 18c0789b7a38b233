"""The one thread that owns the session store of an HTTP server, and the bounded queue before it.

The thread answers all requests that have come in while it was busy as one batch: a few users' events cost one decode.
A user who is not in memory is loaded after the others have been answered, a few at a time, so that a long history does
not delay them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from python_model.serving.answering import Answer, Checked, answer_checked, refused
from python_model.serving.requests import Request
from python_model.serving.store import SessionStore

GATHER_SECONDS = 0.0003
"""How long an idle server waits for further requests after the first."""
LOADING_SECONDS = 0.02
"""Time for loading users between two batches; one user is loaded in any case."""

logger = logging.getLogger(__name__)


class Full(Exception):
    """The queue is full."""


class Stopping(Exception):
    """The server stops and takes no more requests."""


class Late(Exception):
    """A request was not begun within its time, and has changed nothing."""


class Job:
    """A request in the queue, and the future of its answer, which belongs to the event loop."""

    __slots__ = ("future", "is_begun", "request", "timer", "user")

    def __init__(self, request: Checked, future: asyncio.Future[Answer]) -> None:
        self.request, self.user, self.future = request, request.user, future
        self.is_begun = False
        self.timer: asyncio.TimerHandle | None = None


class Worker:
    """Answers requests in a thread of its own until `stop`, which answers those that wait.

    capacity: requests that may wait. most: requests of one batch. timeout: seconds within which a request must be
    begun. observe: called with the number of requests of every batch.
    """

    def __init__(
        self, store: SessionStore, *, capacity: int, most: int, timeout: float,
        observe: Callable[[int], object] = lambda requests: None,
    ) -> None:  # fmt: skip
        self._store, self._capacity, self._most, self._timeout = store, capacity, most, timeout
        self._observe, self._most_loaded = observe, min(most, store.most_resident)
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._loading: deque[Job] = deque()
        self._loading_users: Counter[Any] = Counter()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="argus-sessions")

    def start(self) -> None:
        """Begins to answer; called in the event loop that submits requests."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue) + len(self._loading)

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; Full, Stopping or Late, and nothing has changed, where it was not begun.

        An invalid request does not wait, and loads no user.
        """
        assert self._loop is not None
        try:
            checked = Checked.of(self._store, request)
        except ValueError as error:
            return refused(error)
        job = Job(checked, self._loop.create_future())
        with self._changed:
            if self._is_stopping:
                raise Stopping
            if self.waiting >= self._capacity:
                raise Full
            self._queue.append(job)
            self._changed.notify()
        job.timer = self._loop.call_later(self._timeout, self._give_up, job)
        return await job.future

    def _give_up(self, job: Job) -> None:
        with self._changed:
            if job.is_begun:
                return
            job.is_begun = True
            if job in self._queue:
                self._queue.remove(job)
            else:
                self._loading.remove(job)
                self._loaded(job)
        if not job.future.done():
            job.future.set_exception(Late())

    async def stop(self) -> None:
        """Takes no more requests, answers those that wait, and ends the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        while True:
            if not self.waiting:
                with self._changed:
                    self._changed.wait_for(lambda: self.waiting or self._is_stopping)
                # Others that come within a moment join the first.
                time.sleep(GATHER_SECONDS)
            with self._changed:
                if not (self._queue or self._loading):
                    return
                batch = self._of_residents()
            self._answer(batch)
            self._answer(self._of_loaded())

    def _of_residents(self) -> list[Job]:
        """The next requests of users in memory; those of others, and what comes after them, wait to be loaded."""
        batch: list[Job] = []
        while self._queue and len(batch) < self._most:
            job = self._queue.popleft()
            if self._loading_users[job.user] or not self._store.is_resident(job.user):
                self._loading.append(job)
                self._loading_users[job.user] += 1
            else:
                job.is_begun = True
                batch.append(job)
        return batch

    def _of_loaded(self) -> list[Job]:
        """The next requests of other users, who are loaded until LOADING_SECONDS are over."""
        batch: list[Job] = []
        began = time.monotonic()
        while len(batch) < self._most_loaded and (not batch or time.monotonic() - began < LOADING_SECONDS):
            with self._changed:
                if not self._loading:
                    break
                job = self._loading.popleft()
                self._loaded(job)
                job.is_begun = True
            batch.append(job)
            # What is wrong with a user's file is said in the answer.
            with contextlib.suppress(Exception):
                self._store.totals([job.user])
        return batch

    def _loaded(self, job: Job) -> None:
        """Counts a request out of those that wait for their user to be loaded."""
        self._loading_users[job.user] -= 1
        if not self._loading_users[job.user]:
            del self._loading_users[job.user]

    def _answer(self, batch: Sequence[Job]) -> None:
        if not batch:
            return
        try:
            answers = answer_checked(self._store, [job.request for job in batch])
        except BaseException as error:
            logger.exception("a batch of %d requests failed within", len(batch))
            answers = [refused(RuntimeError(str(error)))] * len(batch)
        self._observe(len(batch))
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_deliver, list(zip(batch, answers, strict=True)))


def _deliver(answered: Sequence[tuple[Job, Answer]]) -> None:
    for job, found in answered:
        if job.timer is not None:
            job.timer.cancel()
        if not job.future.done():
            job.future.set_result(found)
