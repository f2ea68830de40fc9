"""Logs: the library's logger, and the way of what tasks log to the loggers of this process.

    whoever reads a link      Logged reports, and outcomes ──> Teller.hold: the outcomes are kept behind the records,
                              but for those of a worker that has no untold ones
    the teller's own thread   reads a record, hands it to its logger: handlers and filters are the user's code;
                              then publishes the outcomes behind it; their callbacks have a thread of their own
    the supervisor thread     publishes what has waited for too long

So who sees the outcome of a task has seen what the task logged before, and nobody else runs handlers or waits for them.
A handler may wait for tasks, and for locks of threads that wait for tasks. Outcomes go ahead of the records while one
record takes longer than STALL seconds, or its handler waits for a task itself; each goes when it has waited for
LONGEST_WAIT. A worker of which MANY records are untold is not read until half of them are: its tasks wait when the link
is full, and those of no other worker.

The logger is made when poolkit is imported, not when a pool is made, which is when most of the rest is imported: making
a logger takes a lock of `logging`, and a thread that holds that may be waiting for the pool.
"""

from __future__ import annotations

import contextlib
import logging
import marshal
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from poolkit._clock import monotonic
from poolkit.context import current_task

if TYPE_CHECKING:
    from poolkit._core.workforce import AnyTask, Logged
    from poolkit._workforce.links import Links
    from poolkit.outcome import Outcome

    Settled = list[tuple[AnyTask, Outcome]]

STALL = 1.0  # seconds
LONGEST_WAIT = 5.0  # seconds
LONGEST_END = 30.0  # seconds that the end of a pool waits for handlers that get on
MANY = 1000  # untold records of one worker

log = logging.getLogger("poolkit")
_marking: Callable[..., logging.LogRecord] | None = None


def log_levels() -> dict[str, int]:
    """The levels that were set in this process, by the names of the loggers; "" is the root logger."""
    levels = {"": int(logging.root.level)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[str(name)] = int(logger.level)
    return levels


def mark_records() -> None:
    """Have records that tasks in this process make say which worker and task made them.

    Done anew where somebody has set another factory since; one that wraps ours marks them twice, with the same marks.
    """
    global _marking  # noqa: PLW0603 -- a process has one factory
    make = logging.getLogRecordFactory()
    if make is _marking:
        return

    def make_marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        task = current_task()
        if task is not None and task.worker_id:
            record.poolkit_worker, record.poolkit_task = task.worker_id, task.id
        return record

    _marking = make_marked
    logging.setLogRecordFactory(make_marked)


class TellerThread(threading.Thread):
    """A teller's thread; its own class, so that poolkit knows its own."""


class Teller:
    """Tells what the workers of one pool log. Thread-safe.

    `publish` is what the thread does with outcomes, `wake` wakes the supervisor thread.
    Guarded by: `_changed`, inside which no other lock is taken. Anybody may look whether `untold` is empty.
    """

    def __init__(
        self, pool_name: str, publish: Callable[[Settled], object], wake: Callable[[], None], links: Links | None
    ) -> None:
        self._pool_name = pool_name
        self._publish = publish
        self._wake = wake
        self._links = links
        self._changed = threading.Condition()
        self.untold: deque[Logged] = deque()  # the first is being told
        self._told = 0.0  # records in all; inf: the outcomes do not wait any more
        self._held: deque[tuple[float, float, Settled]] = deque()  # how many are to be told before, since when, what
        self._moved = 0.0  # when a record was told last, or one came after all were told; -inf: outcomes go ahead
        self._look_at = math.inf  # when the supervisor thread looks by itself
        self._counts: Counter[int] = Counter()  # untold records by worker
        self._paused: set[int] = set()  # workers that are not read
        self._publishing = False
        self._closing = False
        self._thread: threading.Thread | None = None  # starts with the first record; by whoever holds the reader's lock
        self._seen: set[type] = set()  # what handlers have raised; owner: the thread

    def hold(self, records: Sequence[Logged], settled: Settled) -> Settled:
        """Take records, and outcomes that were read with or after them; returns what is to be published now.

        By whoever holds the reader's lock. Does not block.
        """
        is_told = self._thread is not None or self._start()
        now = monotonic()
        with self._changed:
            if not self.untold:
                self._moved = now
            self.untold.extend(records)
            for record in records:
                self._counts[record.worker_id] += 1
            if settled and self.untold:
                ready: Settled = []
                behind: Settled = []
                for each in settled:
                    (behind if each[0].worker_id in self._counts or each[0].attempts > 1 else ready).append(each)
                settled = ready
                if behind:
                    self._held.append((self._told + len(self.untold), now, behind))
            if not is_told:  # they are told at the end
                self._moved = -math.inf
            elif self._moved != -math.inf:
                self._pause({record.worker_id for record in records})
            settled = self._due(now) + settled
            self._changed.notify_all()
            wakes = bool(self._held) and self._look_at > now + STALL
            if wakes:
                self._look_at = now + STALL
        if wakes:
            self._wake()
        return settled

    def take_due(self) -> Settled:
        """The outcomes that have waited for too long."""
        with self._changed:
            return self._due(monotonic())

    def _due(self, now: float) -> Settled:
        """The outcomes that need not wait any more. Under the lock."""
        due: Settled = []
        while (held := self._held) and (held[0][0] <= self._told or now >= self._due_at()):
            due += held.popleft()[2]
        return due

    def _due_at(self) -> float:
        return min(self._moved + STALL, self._held[0][1] + LONGEST_WAIT)

    def patience(self) -> float:
        """For how many seconds the supervisor thread, which is this one, may sleep before it looks what is due."""
        with self._changed:
            now = monotonic()
            if self._held:
                self._look_at = self._due_at()
            elif self._look_at <= now:  # else it is not woken again for the next that is held
                self._look_at = math.inf
            return max(0.0, self._look_at - now)

    def _pause(self, worker_ids: set[int]) -> None:
        """Have workers that log too much not read. Under both locks."""
        for worker_id in worker_ids:
            if self._links is not None and self._counts[worker_id] > MANY and self._links.pause(worker_id):
                self._paused.add(worker_id)

    def _resume(self, worker_ids: Iterable[int]) -> None:
        """Have workers read again. Under the lock."""
        for worker_id in worker_ids:
            if worker_id in self._paused and self._links is not None:
                self._paused.discard(worker_id)
                self._links.resume(worker_id)
                self._wake()

    def step_aside(self) -> None:
        """If this is a handler, which is about to wait for the pool, nothing waits until its record is told."""
        if self.is_here():
            with self._changed:
                self._moved = -math.inf
                self._resume(list(self._paused))
            self._wake()

    def is_here(self) -> bool:
        """Whether this is the teller's thread."""
        return threading.current_thread() is self._thread

    def _start(self) -> bool:
        """Start the thread; False when there is none to be had, as at the end of the interpreter."""
        thread = TellerThread(target=self._run, name=f"poolkit-{self._pool_name}-logs", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def close(self, seconds: float) -> None:
        """Tell what is left, and end the thread. Afterwards no outcome is held, whatever is told.

        Blocks for at most so many seconds, and not for a handler that hangs.
        """
        give_up = monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        told = -1.0
        while (left := give_up - monotonic()) > 0.0 and self.untold and told != self._told:
            told = self._told
            if self._thread is None:
                self._tell_next()
            else:
                self._thread.join(min(STALL, left))
            self._publish(self.take_due())
        with self._changed:
            self._changed.wait_for(lambda: not self._publishing)
            self._told = math.inf  # nothing waits for what is told from now on
        self._publish(self.take_due())

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self.untold:
                    if self._closing:
                        return
                    self._changed.wait()
            self._tell_next()

    def _tell_next(self) -> None:
        record = self.untold[0]
        self._tell(record)
        with self._changed:
            self.untold.popleft()
            self._told += 1
            self._moved = monotonic()
            count = self._counts[record.worker_id] = self._counts[record.worker_id] - 1
            if count <= MANY // 2:
                self._resume([record.worker_id])
            if not count:
                del self._counts[record.worker_id]
            due = self._due(self._moved)
            self._publishing = bool(due)
        if due:
            try:
                self._publish(due)
            finally:
                with self._changed:
                    self._publishing = False
                    self._changed.notify_all()

    def _tell(self, logged: Logged) -> None:
        try:
            record = logging.makeLogRecord(marshal.loads(logged.payload))  # noqa: S302 -- as trusted as a result
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
