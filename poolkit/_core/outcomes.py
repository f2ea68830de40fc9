"""Outcomes: which tasks were accepted, how each one ends, and what is told of it.

Guarantees: every accepted task is settled exactly once; a task that failed runs again only if its options ask for it,
after a back-off, before its deadline; an outcome is decided here and published by whoever held the lock.
Owner of: the counters, the tasks that wait for a retry, the decided outcomes and the events.
Guarded by: the pool's one lock; nothing here blocks, logs or calls user code.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

from poolkit._core import policy
from poolkit._core.counters import Counters
from poolkit._core.queue import AnyTask, TaskQueue
from poolkit._core.timers import Timers
from poolkit._core.workforce import Died, Finished, PoolEvent, Recorder, Status, TaskDone, TaskRetried
from poolkit.errors import DeadlineExceeded, QueueTimeout, TaskCancelled, TaskTimeout
from poolkit.outcome import CANCELLED, Outcome
from poolkit.task import QUEUED, SENT, SETTLED, WAITING

# How it is to be told that a task has ended as it was told to. What makes the error is called with how its worker died,
# or with where it was.
Ending = Outcome | Callable[[Died], BaseException]

FOLD = 0xFFF  # once in so many tasks, the times taken down are folded


class Outcomes:
    """The accepted tasks of one pool and their ends. Not thread-safe: the pool's lock guards it."""

    def __init__(self, queue: TaskQueue, timers: Timers, rng: random.Random) -> None:
        self.queue = queue
        self.timers = timers
        self.rng = rng
        self.counters = Counters()
        # Every accepted task until it is published, in the order of acceptance, with the outcome that was decided: what
        # `Scheduler.repair` goes by. Entries are taken out without the lock.
        self.accepted: dict[AnyTask, Outcome | None] = {}
        self.unsettled = 0  # accepted and not settled
        self.waiting: dict[AnyTask, None] = {}  # failed, to be retried after their back-off; in the order of failing
        self.unread: dict[
            AnyTask, Outcome
        ] = {}  # of those: failures that are to be unpickled first, to know their type
        self.ending: dict[AnyTask, Ending] = {}  # tasks that were told to end by themselves
        self.retries = True  # whether what failed may run again
        self.settled: list[tuple[AnyTask, Outcome]] = []  # decided, to be published
        self.events: list[PoolEvent] = []  # to be told to listeners
        self.listened: frozenset[type] = frozenset()  # the events that somebody listens to
        self.recorder: Recorder | None = None  # takes down every run that ends, while somebody traces the pool
        self.numbers = itertools.count(1)  # ids of tasks; to be taken by anybody

    def accept(self, task: AnyTask, now: float) -> None:
        """Count a task in, and number it if that was not done when it was posted."""
        if not task.id:
            task.id = next(self.numbers)
        task.submitted_at = now
        self.accepted[task] = None
        self.unsettled += 1
        self.counters.submitted += 1

    def accept_many(self, tasks: list[AnyTask]) -> None:
        """Count tasks in that were numbered when they were posted."""
        self.accepted.update(dict.fromkeys(tasks))
        self.unsettled += len(tasks)
        self.counters.submitted += len(tasks)

    # ===== a run ended =====

    def finished(self, task: AnyTask, report: Finished, now: float) -> None:
        """A run ended by itself: the task is settled, or waits for its retry."""
        task.attempts = task.attempt  # a store, as an interrupted step may be done again
        task.started_at, task.ended_at = report.started, report.ended
        counters = self.counters
        counters.wait_time.add(report.started - task.submitted_at)
        options = task.options
        if options.window is None:
            counters.run_time.add(report.ended - report.started)
        if not task.id & FOLD:
            counters.wait_time.fold()
            counters.run_time.fold()
        if not report.ok:
            self.conclude(task, report, now)
            return
        if self.recorder is not None:
            times = task.submitted_at, report.started, report.ended
            self.recorder((task.worker_id, task.id, task.name, task.attempts, *times, None))
        # As `settle` does it; most tasks end here.
        self.accepted[task] = report
        task.phase = SETTLED
        self.unsettled -= 1
        counters.succeeded += 1
        if options.queue_timeout is not None or options.deadline is not None:
            self._let_timers_go(task)
        self.settled.append((task, report))
        if self.ending:
            self.ending.pop(task, None)
        if self.listened:
            self.tell(TaskDone(task))

    def crashed(self, task: AnyTask, error: BaseException, now: float) -> None:
        """A run ended with its worker."""
        self.counters.crashed += 1
        self.conclude(task, Outcome.failure(error), now)

    @staticmethod
    def cut_short(task: AnyTask, status: Status, now: float) -> None:
        """Note that a run was ended by force, or by a crash; call this before the error that says so is made."""
        task.attempts = task.attempt
        task.started_at, task.ended_at = status.running_since(task.id, now), now

    def conclude(self, task: AnyTask, outcome: Outcome, now: float) -> None:
        """Settle a task whose run failed, or have it wait: for its retry, or for somebody who unpickles its failure."""
        ending = self.ending.get(task)
        if outcome.cancelled and callable(ending):
            outcome = Outcome.failure(ending(Died(task.worker_id or 0, stack=outcome.payload)))
        elif outcome.cancelled or isinstance(ending, Outcome):
            outcome = ending if isinstance(ending, Outcome) else CANCELLED
            self.record(task, outcome)
            self.settle(task, outcome)
            return
        self.record(task, outcome)
        if not self._may_run_again(task, now):
            self.settle(task, outcome)
            return
        if outcome.load is not None:
            self.ending.pop(task, None)
            task.phase = WAITING
            self.waiting[task] = None
            self.unread[task] = outcome
            return
        if not policy.counts_for_retry(task.options, outcome.payload):
            self.settle(task, outcome)
            return
        self.ending.pop(task, None)
        delay = policy.backoff(task.attempts, self.rng)
        self.counters.retried += 1
        if task.reported is not None:
            task.reported = None  # the next run begins with nothing
        task.phase = WAITING
        task.worker_id = None
        self.waiting[task] = None
        self.timers.add(now + delay, self._retry, task)
        self.tell(TaskRetried(task, outcome.payload, delay))

    def record(self, task: AnyTask, outcome: Outcome) -> None:
        """Have a run taken down that ended so, if somebody traces, before its task is moved on.

        One that left no sign of when it began has no length.
        """
        if self.recorder is None or task.phase is not SENT:  # a failure that was unpickled: its run is known
            return
        how: Any = None
        if outcome.cancelled:
            how = TaskCancelled
        elif not outcome.ok:
            how = outcome.payload if outcome.load is not None else type(outcome.payload)
        began = task.ended_at if task.started_at is None else task.started_at
        self.recorder((task.worker_id, task.id, task.name, task.attempts, task.submitted_at, began, task.ended_at, how))

    def _may_run_again(self, task: AnyTask, now: float) -> bool:
        options = task.options
        if (options.window is not None or options.grace is not None) and task.is_taken():
            return False  # what was taken cannot be taken back
        if not (options.retries and self.retries) or not policy.retries_left(options, task.attempts):
            return False
        # Else the timer of its deadline has fired, and will not again.
        return options.deadline is None or now < task.submitted_at + options.deadline

    def read(self, task: AnyTask, now: float) -> None:
        """Somebody has unpickled the failure of a task."""
        outcome = self.unread.get(task)
        if outcome is not None and task in self.waiting:  # else it was ended meanwhile
            self.conclude(task, outcome, now)
            if task.phase is SETTLED:
                del self.waiting[task]
        self.unread.pop(task, None)

    def _retry(self, task: AnyTask, _now: float) -> None:
        """The back-off is over. The tick that says so dispatches."""
        if task not in self.waiting:
            return
        del self.waiting[task]
        task.phase = QUEUED
        self.queue.put_back([task])

    # ===== a task ended =====

    def withdraw(self, task: AnyTask) -> bool:
        """Take a task out that no worker has, to be settled; False when one has it."""
        if task.phase is QUEUED:
            self.queue.remove(task)
        elif task.phase is WAITING:
            del self.waiting[task]
        else:
            return False
        return True

    def withdraw_all(self) -> list[AnyTask]:
        """Take all tasks out that no worker has, to be settled."""
        tasks = [*self.queue.clear(), *self.waiting]
        self.waiting.clear()
        return tasks

    def settle(self, task: AnyTask, outcome: Outcome) -> None:
        """Decide a task's outcome, for ever."""
        self.accepted[task] = outcome
        task.phase = SETTLED
        self.unsettled -= 1
        counters = self.counters
        if outcome.ok:
            counters.succeeded += 1
        elif outcome.cancelled:
            counters.cancelled += 1
        else:
            counters.failed += 1
            if isinstance(outcome.payload, (TaskTimeout, QueueTimeout, DeadlineExceeded)):
                counters.timed_out += 1
        self._let_timers_go(task)
        self.ending.pop(task, None)
        self.settled.append((task, outcome))
        self.tell(TaskDone(task))

    def _let_timers_go(self, task: AnyTask) -> None:
        options = task.options
        timers = (options.queue_timeout is not None) + (options.deadline is not None)
        if timers:
            self.timers.let_go(timers)

    def tell(self, event: PoolEvent) -> None:
        """Have listeners told."""
        if type(event) in self.listened:
            self.events.append(event)
