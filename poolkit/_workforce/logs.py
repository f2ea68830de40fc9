"""Logs: the library's logger, and the way of what tasks log to the loggers of this process.

    whoever reads a link      Logged reports, and outcomes ──> Teller.hold: the outcomes are kept behind the records
    the teller's own thread   unpickles a record, hands it to its logger: handlers and filters are the user's code
    whoever has read          waits until the records are told, then publishes the outcomes; see `Desk._release`
    the supervisor thread     does not wait: it is woken, and publishes what is left

So who sees the outcome of a task has seen what the task logged before. A handler may wait for tasks, and for locks of
threads that wait for tasks: the thread is nobody's but the teller's, and outcomes do not wait for a handler that takes
longer than STALL seconds, or for records that take LONGEST_WAIT in all, until all records are told again.

The logger is made when poolkit is imported, not when a pool is made, which is when most of the rest is imported: making
a logger takes a lock of `logging`, and a thread that holds that may be waiting for the pool.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from poolkit.context import current_task

if TYPE_CHECKING:
    from poolkit._core.workforce import AnyTask, Logged
    from poolkit.outcome import Outcome

    Settled = list[tuple[AnyTask, Outcome]]

STALL = 1.0  # seconds
LONGEST_WAIT = 5.0  # seconds
MANY = 1000  # untold records; who reads more waits until they are told

log = logging.getLogger("poolkit")


def log_levels() -> dict[str, int]:
    """The levels that were set in this process, by the names of the loggers; "" is the root logger."""
    levels = {"": int(logging.root.level)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[str(name)] = int(logger.level)
    return levels


@functools.cache
def mark_records() -> None:
    """Have records that tasks in this process make say which worker and task made them."""
    make = logging.getLogRecordFactory()

    def make_marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        task = current_task()
        if task is not None and task.worker_id:
            record.poolkit_worker, record.poolkit_task = task.worker_id, task.id
        return record

    logging.setLogRecordFactory(make_marked)


class TellerThread(threading.Thread):
    """A teller's thread; its own class, so that poolkit knows its own."""


class Teller:
    """Tells what the workers of one pool log. Thread-safe.

    Guarded by: `_changed`, inside which no other lock is taken. Anybody may look whether `untold` and `held` are empty.
    """

    def __init__(self, pool_name: str, wake: Callable[[], None]) -> None:
        self._pool_name = pool_name
        self._wake = wake  # wakes the supervisor thread
        self._has_left = False  # which has left outcomes here
        self._stirred = 0.0  # when a record was told last, or one came after all were told
        self._held_at = 0.0  # when the first of what is held came
        self._changed = threading.Condition()
        self.untold: deque[Logged] = deque()  # the first is being told
        self._told = 0  # records in all
        self.held: deque[tuple[int, Settled]] = deque()  # outcomes, and how many records are to be told before
        self._passing = False  # outcomes go ahead until all is told
        self._closing = False
        self._thread: threading.Thread | None = None  # starts with the first record
        self._seen: set[type] = set()  # what handlers have raised; owner: the thread

    def hold(self, records: Sequence[Logged], settled: Settled) -> Settled:
        """Take records, and outcomes that were read with or after them; returns those that need not wait.

        By whoever holds the reader's lock. The others are published by `Desk._release`.
        """
        with self._changed:
            if not self.untold:
                self._stirred = time.monotonic()
            self.untold.extend(records)
            if not self.untold or (self._passing and self._thread is not None):
                return settled
            if settled or self._thread is None or len(self.untold) > MANY:
                self._held_at = self._held_at if self.held else time.monotonic()
                self.held.append((self._told + len(self.untold), settled))
            self._changed.notify_all()
            return []

    def take_held(self) -> Settled:
        """The outcomes that need not wait any more."""
        ready: Settled = []
        with self._changed:
            while self.held and (self._passing or self.held[0][0] <= self._told):
                ready += self.held.popleft()[1]
        return ready

    def wait(self) -> None:
        """Wait until all that is held may be taken. Blocks, but not for long."""
        if self.is_here():
            self.let_pass()
        with self._changed:
            behind = self.held[-1][0] if self.held else 0
            while self._told < behind and not self._passing:
                self._changed.wait(STALL)
                self._look()

    def leave(self) -> None:
        """Have the supervisor thread, which is this one, woken when some of what is held may be taken."""
        with self._changed:
            self._has_left = True
            self._look()

    def _look(self) -> None:
        """Let outcomes pass where they have waited long enough. Under the lock."""
        if self.held and time.monotonic() >= min(self._stirred + STALL, self._held_at + LONGEST_WAIT):
            self.let_pass()

    def let_pass(self) -> None:
        """Let outcomes go ahead of what is untold."""
        with self._changed:
            self._passing = bool(self.untold)
            self._changed.notify_all()
            self._wake()

    def is_here(self) -> bool:
        """Whether this is the teller's thread."""
        return threading.current_thread() is self._thread

    def attend(self) -> None:
        """Start the thread, unless it runs. At the end of the interpreter there is none to be had: then tell here."""
        with self._changed:
            if self._thread is not None or not self.untold:
                return
            self._thread = TellerThread(target=self._run, name=f"poolkit-{self._pool_name}-logs", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = threading.current_thread()
            while self.untold:
                self._tell_next()
            self._thread = None

    def close(self) -> None:
        """Tell what is left, and end the thread. Blocks, but not for a handler that hangs."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        told = -1
        while self._thread is not None and not self.is_here() and self._thread.is_alive() and told != self._told:
            told = self._told
            self._thread.join(STALL)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self.untold:
                    if self._closing:
                        return
                    self._changed.wait()
            self._tell_next()

    def _tell_next(self) -> None:
        self._tell(self.untold[0])
        with self._changed:
            self.untold.popleft()
            self._told += 1
            self._stirred = time.monotonic()
            if not self.untold:
                self._passing = False
            if self.held and self.held[0][0] <= self._told:
                self._changed.notify_all()
                if self._has_left:
                    self._has_left = False
                    self._wake()

    def _tell(self, logged: Logged) -> None:
        try:
            record = logging.makeLogRecord(pickle.loads(logged.payload))
            record.poolkit_worker, record.poolkit_task = logged.worker_id, logged.task_id or None
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        except BaseException as exc:
            if type(exc) in self._seen:
                return
            self._seen.add(type(exc))
            with contextlib.suppress(BaseException):  # it may go to the same handler
                log.exception(
                    "pool %s could not hand on what worker %d logged in task %d; said once for each type of error",
                    self._pool_name,
                    logged.worker_id,
                    logged.task_id,
                )
