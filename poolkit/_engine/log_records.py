"""Log records: the way of what tasks log to the loggers of this process.

    whoever reads a link    Logged reports -> Records.add; outcomes -> Records.defer, behind the records of their task
    the callback thread     hands a record to its logger, whose handlers and filters are the user's code;
                            publishes the outcomes behind it

So who sees the outcome of a task has seen what the task logged before, and a slow handler delays outcomes of tasks that
logged, callbacks and other records, nothing else. Where what runs on the callback thread waits for a task, outcomes
pass the records until it returns: they might be what it waits for. A worker of which MANY records are pending is not
read until half of them are handled: its tasks wait when the link is full, and those of no other worker.
"""

from __future__ import annotations

import contextlib
import logging
import marshal
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from poolkit._kinds.loggers import log
from poolkit._locks import RLock

if TYPE_CHECKING:
    from poolkit._core.workforce import AnyTask, Logged
    from poolkit._engine.callbacks import Callbacks
    from poolkit.exchange import Exchange
    from poolkit.outcome import Outcome

    Settled = list[tuple[AnyTask, Outcome]]

    class Pacer(Protocol):
        """What can have workers wait; see `Links`, whose methods these are."""

        def pause(self, worker_id: int, /) -> bool: ...
        def resume(self, worker_id: int, /) -> None: ...
        def let_talk(self) -> None: ...


MANY = 1000  # pending records of one worker


class Records:
    """What the workers of one pool have logged, until it is handled, and the outcomes that wait for that. Thread-safe.

    `publish` is called on the callback thread with outcomes, `wake` wakes the supervisor thread.
    Guarded by: `_lock`, inside which no other lock is taken. Anybody may look whether `pending` is empty.
    """

    def __init__(
        self,
        callbacks: Callbacks,
        pool_name: str,
        publish: Callable[[Settled], object],
        wake: Callable[[], None],
        links: Pacer | None,
    ) -> None:
        self._pool_name = pool_name
        self._callbacks = callbacks
        self._publish = publish
        self._wake = wake
        self._links = links
        self._lock = RLock()  # a finalizer that a collection runs in here may wait for the pool
        self.pending: Counter[int] = Counter()  # records that are not handled, by worker
        self._talking: Counter[int] = Counter()  # the same by task, or by `_key`; with messages for callbacks
        self.deferred: dict[int, Settled] = {}  # what waits in the queue of callbacks, by the ids of the lists
        self.paused: set[int] = set()  # workers that are not read
        self._seen: set[type] = set()  # what handlers have raised; owner: the callback thread

    def add(self, records: deque[Logged]) -> None:
        """Have records handled, and empty `records`. By whoever holds the reader's lock. Does not block."""
        pending, queue, handle = self.pending, self._callbacks.queue, self._handle
        with self._lock:
            worker_ids = {record.worker_id for record in records}
            while records:
                worker_id, task_id = records[0].worker_id, _key(records[0].task_id, records[0].worker_id)
                count, of_task = pending.get(worker_id, 0) + 1, self._talking.get(task_id, 0) + 1
                pending[worker_id] = count
                self._talking[task_id] = of_task
                queue += ((handle, records[0]),)
                records.popleft()  # since the look at `pending` no exception could come
            if not self._callbacks.has_waited and self._links is not None:
                self._pause(worker_ids, self._links)

    def add_call(self, exchange: Exchange, entry: Any) -> None:
        """Have the callback of a task called with a message, before its outcome is seen. Does not block."""
        with self._lock:
            worker_id, task_id = exchange.worker_id, exchange.task_id
            count, of_task = self.pending.get(worker_id, 0) + 1, self._talking.get(task_id, 0) + 1
            self.pending[worker_id] = count
            self._talking[task_id] = of_task
            self._callbacks.queue += ((self._call, (worker_id, exchange, entry)),)
        if not self._callbacks.thread.wake():
            self._wake()

    def _call(self, called: tuple[int, Exchange, Any]) -> None:
        """Hand a message to the callback. On the callback thread."""
        worker_id, exchange, entry = called
        try:
            exchange.call_back(entry)
        except Exception:
            log.exception("a callback for messages of a task of pool %s raised", self._pool_name)
        finally:
            self._handled(worker_id, exchange.task_id)

    def _pause(self, worker_ids: set[int], links: Pacer) -> None:
        """Leave those alone that have logged too much. Under the lock; apart, see the rule for loops in `_locks.py`."""
        for worker_id in worker_ids:
            if self.pending[worker_id] > MANY and links.pause(worker_id):
                self.paused.add(worker_id)

    def defer(self, settled: Settled) -> Settled:
        """Put outcomes behind the records that their workers logged before; returns those that need not wait."""
        with self._lock:
            if self._callbacks.has_waited:
                return settled
            talking = self._talking
            ready: Settled = []
            behind: Settled = []
            for each in settled:
                task = each[0]
                waits = task.id in talking or -(task.worker_id or 0) in talking or task.attempts > 1
                (behind if waits else ready).append(each)
            if behind:
                self.deferred[id(behind)] = behind
                self._callbacks.queue.append((self._publish_behind, behind))
            return ready

    def step_aside(self) -> None:
        """On the callback thread, before a wait: until what runs there returns, nothing waits for records."""
        with self._lock:
            self._callbacks.has_waited = True
            settled = [each for behind in self.deferred.values() for each in behind]
            for behind in self.deferred.values():
                behind.clear()
            self._resume(list(self.paused))
        if self._links is not None:
            self._links.let_talk()
        if settled:
            self._publish(settled)

    def _publish_behind(self, behind: Settled) -> None:
        with self._lock:
            settled = [*behind]
            self.deferred.pop(id(behind), None)
        if settled:
            self._publish(settled)

    def _resume(self, worker_ids: Iterable[int]) -> None:
        """Have workers read again. Under the lock."""
        for worker_id in worker_ids:
            if worker_id in self.paused and self._links is not None:
                self.paused.discard(worker_id)
                self._links.resume(worker_id)
                self._wake()

    def _handle(self, logged: Logged) -> None:
        """Hand a record to its logger. On the callback thread."""
        worker_id = logged.worker_id
        try:
            record = logging.makeLogRecord(marshal.loads(logged.payload))  # noqa: S302 -- as trusted as a result
            record.poolkit_worker, record.poolkit_task = worker_id, logged.task_id or None
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        except BaseException as exc:
            if type(exc) not in self._seen:
                self._seen.add(type(exc))
                with contextlib.suppress(BaseException):  # it may go to the same handler
                    log.exception(
                        "pool %s could not hand on what worker %d logged in task %d; said once for each type of error",
                        self._pool_name,
                        worker_id,
                        logged.task_id,
                    )
        finally:
            self._handled(worker_id, _key(logged.task_id, worker_id))

    def _handled(self, worker_id: int, task_id: int) -> None:
        with self._lock:
            self._talking[task_id] -= 1
            if not self._talking[task_id]:
                del self._talking[task_id]
            self.pending[worker_id] -= 1
            if self.pending[worker_id] <= MANY // 2:
                self._resume([worker_id])
            if not self.pending[worker_id]:
                del self.pending[worker_id]


def _key(task_id: int, worker_id: int) -> int:
    """What stands for a task in `Records`; for those of a worker, what is logged in no task: a task's own threads."""
    return task_id or -worker_id
