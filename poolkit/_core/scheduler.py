"""Scheduler: every rule of the pool. Events and `now` come in, orders go out through the Workforce protocol.

Guarantees: every accepted task is in exactly one place (queued, waiting, sent, settled) and is settled exactly once;
a task that was begun is begun again only by a retry that was asked for; a kill is aimed at (worker, task).
Guarded by: the pool's one lock. Nothing in here blocks, logs, reads a clock or calls user code.
What it decides is collected in `settled` and `events`; whoever held the lock publishes both after letting go of it.

States of the pool, in order; it only moves forward
  OPEN      tasks are accepted
  SHUTTING  no new tasks; the accepted ones are finished (or were cancelled)
  CLOSING   all tasks are settled; the workers are leaving
  CLOSED    no worker is left
"""

from __future__ import annotations

import enum
import random
from typing import Any

from poolkit._core import failures, policy
from poolkit._core.batch import BATCH_SECONDS, RunTimes, take_batch
from poolkit._core.options import PoolLimits
from poolkit._core.queue import AnyTask, TaskQueue
from poolkit._core.roster import Roster
from poolkit._core.stats import Counters
from poolkit._core.timers import Timers
from poolkit._core.workforce import (
    Begun,
    BootFailed,
    Died,
    Drained,
    Finished,
    PoolEvent,
    Ready,
    Report,
    Sentence,
    TaskDone,
    TaskRetried,
    TaskStarted,
    Worker,
    WorkerExited,
    Workforce,
    WorkerStarted,
    WorkerState,
)
from poolkit.errors import DeadlineExceeded, InitializerFailed, PoolClosed, QueueFull, QueueTimeout, TaskTimeout
from poolkit.task import CANCELLED, Outcome, TaskPhase

STEAL_AFTER = BATCH_SECONDS  # a task that runs longer than a batch should loses what is sent behind it to idle workers


class PoolPhase(enum.IntEnum):
    """See the file's header."""

    OPEN = 0
    SHUTTING = 1
    CLOSING = 2
    CLOSED = 3


class Scheduler:
    """The rules of one pool. Not thread-safe: the pool's lock guards it."""

    def __init__(self, workforce: Workforce, limits: PoolLimits, rng: random.Random) -> None:
        self.workforce = workforce
        self.limits = limits
        self.rng = rng
        self.timers = Timers()
        self.roster = Roster(workforce, limits, self.timers, rng)
        self.queue = TaskQueue()
        self.waiting: set[AnyTask] = set()  # failed, to be retried after their back-off
        self.times = RunTimes()
        self.counters = Counters()
        self.phase = PoolPhase.OPEN
        self.broken: BaseException | None = None  # what the initializer raised
        self.boots_failed = 0  # how often starting workers was given up, and why
        self.last_boot_error: BaseException | None = None
        self.unsettled = 0  # accepted and not settled
        self.settled: list[tuple[AnyTask, Outcome]] = []  # decided, to be published
        self.events: list[PoolEvent] = []  # to be told to listeners
        self.listened: frozenset[type] = frozenset()  # the events that somebody listens to
        self._next_id = 1
        self._least_priority = 0  # ever submitted: without a difference there is nothing to take back
        self._steal_at: float | None = None

    # ===== what callers ask =====

    def is_full(self) -> bool:
        """Whether the bounded queue has no room: every worker has a task, and `max_queue` more wait."""
        bound = self.limits.max_queue
        return bound is not None and self.unsettled >= self.roster.size + bound

    def check_open(self, what: str) -> None:
        """Raise InitializerFailed or PoolClosed unless the pool accepts tasks; `what` is what cannot be done."""
        if self.broken is not None:
            raise failures.initializer_failed(self.broken)
        if self.phase is not PoolPhase.OPEN:
            msg = f"cannot {what}: the pool was shut down ({self.unsettled} tasks are still to be settled)"
            raise PoolClosed(msg)

    def submit(self, task: AnyTask, now: float) -> None:
        """Accept a task.

        Raises:
            PoolClosed: after shutdown.
            InitializerFailed: the pool's initializer raised.
            QueueFull: the bounded queue has no room.
        """
        self.check_open(f"submit {task.name}")
        if self.is_full():
            msg = (
                f"cannot submit {task.name}: the queue is full "
                f"({self.unsettled} tasks accepted, max_workers={self.roster.size}, max_queue={self.limits.max_queue})"
            )
            raise QueueFull(msg)
        task.id = task.seq = self._next_id
        self._next_id += 1
        task.submitted_at = now
        self.unsettled += 1
        self.counters.submitted += 1
        self.queue.push(task)
        options = task.options
        if options.queue_timeout is not None:
            self.timers.add(now + options.queue_timeout, self._queue_timeout, task)
        if options.deadline is not None:
            self.timers.add(now + options.deadline, self._deadline, task)
        if options.priority != self._least_priority:
            self._make_way(task)
        self.dispatch(now)

    def refuse(self, task: AnyTask, error: BaseException, now: float) -> None:
        """Accept a task that cannot be sent: it fails at once, with `error`."""
        self.check_open(f"submit {task.name}")
        task.id = task.seq = self._next_id
        self._next_id += 1
        task.submitted_at = now
        self.unsettled += 1
        self.counters.submitted += 1
        self._settle(task, Outcome.failure(error))

    def cancel(self, task: AnyTask, now: float) -> bool:
        """Cancel a task: one that has not begun never will, one that runs is stopped. False when settled already."""
        if task.phase is TaskPhase.SETTLED:
            return False
        if task.phase is TaskPhase.QUEUED:
            self.queue.remove(task)
            self._settle(task, CANCELLED)
        elif task.phase is TaskPhase.WAITING:
            self.waiting.remove(task)
            self._settle(task, CANCELLED)
        else:
            self._stop_sent(task, CANCELLED, "cancelled", now)
        self._advance(now)
        return True

    def cancel_all(self, *, begun: bool, now: float) -> None:
        """Cancel everything that has not begun, and with `begun` what runs too."""
        for worker in list(self.roster):
            if worker.state is not WorkerState.DOOMED:
                self._reclaim(worker)
        for task in self.queue.clear():
            self._settle(task, CANCELLED)
        for task in list(self.waiting):
            self._settle(task, CANCELLED)
        self.waiting.clear()
        if begun:
            for worker in list(self.roster):
                for task in list(worker.sent):
                    if task.phase is TaskPhase.SENT:
                        self._stop_sent(task, CANCELLED, "cancelled", now)
        self._advance(now)

    def shutdown(self, *, cancel_queued: bool, kill: bool, now: float, kill_after: float | None = None) -> None:
        """Accept nothing more; finish what was accepted, or cancel what has not begun, or stop everything.

        With `kill_after`, what is left after so many seconds is stopped.
        """
        if kill_after is not None:
            self.timers.add(now + kill_after, self._kill_rest, None)
        self.phase = max(self.phase, PoolPhase.SHUTTING)
        self.roster.open = self.roster.open and not kill
        if cancel_queued or kill:
            self.cancel_all(begun=kill, now=now)
        if kill:
            for worker in list(self.roster):
                self.roster.doom(worker, Sentence(None, "shutdown"), want_stack=False, now=now)
        self._advance(now)

    def _kill_rest(self, _: None, now: float) -> None:
        self.shutdown(cancel_queued=True, kill=True, now=now)

    def unsettled_tasks(self) -> list[AnyTask]:
        """What was accepted and is not settled, in the order of submission."""
        tasks = {task for worker in self.roster for task in worker.sent}
        tasks |= {worker.sentence.task for worker in self.roster if worker.sentence and worker.sentence.task}
        tasks |= {*self.queue, *self.waiting}
        return sorted((task for task in tasks if task.phase is not TaskPhase.SETTLED), key=lambda task: task.id)

    def give_up(self) -> list[AnyTask]:
        """Forget everything at once, ordering nothing; returns the tasks that were not settled."""
        left = self.unsettled_tasks()
        for task in left:
            task.phase = TaskPhase.SETTLED
        self.queue.clear()
        self.waiting.clear()
        self.roster.workers.clear()
        self.unsettled = 0
        self.phase = PoolPhase.CLOSED
        return left

    def resize(self, size: int, now: float) -> None:
        """Change the number of workers."""
        self.roster.resize(size, now)
        for worker in self.roster:
            if worker.leave == "shrunk" and worker.sent:
                self._reclaim(worker)
        self._advance(now)

    def warm_up(self, now: float) -> None:
        """Start all workers."""
        self.roster.wanted = self.roster.size
        self.roster.grow(0, now)

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker is known to run this task."""
        if task.phase is not TaskPhase.SENT or task.worker_id is None:
            return False
        glance = self.workforce.glance(task.worker_id)
        return glance.begun == task.id and glance.done != task.id

    # ===== what workers report =====

    def handle(self, report: Report, now: float) -> None:
        """Take one report of a worker into account. Reports of workers that are gone are ignored."""
        worker = self.roster.workers.get(report.worker_id)
        if worker is None:
            return
        if isinstance(report, Finished):
            self._finished(worker, report, now)
        elif isinstance(report, Drained):
            worker.draining = False
            self._rest(worker, now)
        elif isinstance(report, Ready):
            if worker.state is WorkerState.STARTING:
                self._tell(WorkerStarted(worker.id, report.pid))
                self.roster.ready(worker, report.pid, now)
        elif isinstance(report, Begun):
            for task in worker.sent:
                if task.id == report.task_id and task.phase is TaskPhase.SENT:
                    self._tell(TaskStarted(task, worker.id))
        elif isinstance(report, BootFailed):
            self._boot_failed(report.error, now)
        else:
            self._died(worker, report, now)
        self._advance(now)

    def wants_error(self, worker_id: int, task_id: int) -> bool:
        """Whether a failure of this task has to be unpickled before it is handed in, to see if it is retried."""
        worker = self.roster.workers.get(worker_id)
        return worker is not None and any(task.id == task_id and task.options.retries for task in worker.sent)

    def _finished(self, worker: Worker, report: Finished, now: float) -> None:
        if not worker.sent or worker.sent[0].id != report.task_id:
            return  # not what it was sent: only a worker that was tampered with says so
        task = worker.sent.popleft()
        worker.tasks_done += 1
        worker.rss = report.rss
        self.roster.boot_failures = 0
        sentence = worker.sentence
        if task.phase is TaskPhase.SENT and (sentence is None or sentence.task is not task):
            task.attempts += 1
            task.started_at, task.ended_at = report.started, report.ended
            self.times.measured(task.name, report.ended - report.started)
            self.counters.wait_time.add(report.started - task.submitted_at)
            self.counters.run_time.add(report.ended - report.started)
            self._conclude(task, report.outcome, now)
        limit = self.limits.max_memory_per_child
        if limit is not None and report.rss > limit and worker.leave is None:
            self.roster.mark(worker, "recycled")  # it goes when its replacement is warm
            self.roster.grow(len(self.queue), now)
        self._rest(worker, now)
        if worker.sent and len(self.queue):
            self._top_up(worker, now)

    def _rest(self, worker: Worker, now: float) -> None:
        if not worker.sent and not worker.draining:
            self.roster.rest(worker, now)

    def _boot_failed(self, error: BaseException, now: float) -> None:
        """The initializer raised: no worker would do better, so nothing is started any more."""
        if self.broken is None:
            self.broken = error
            self.phase = max(self.phase, PoolPhase.SHUTTING)
        self._fail_unbegun(lambda: failures.initializer_failed(error))
        self.roster.close(now)

    def _fail_unbegun(self, make_error: Any) -> None:
        for worker in list(self.roster):
            if worker.state is not WorkerState.DOOMED:
                self._reclaim(worker)
        for task in [*self.queue.clear(), *self.waiting]:
            self._settle(task, Outcome.failure(make_error()))
        self.waiting.clear()

    def _died(self, worker: Worker, death: Died, now: float) -> None:
        self._reclaim(worker)  # what it had not claimed touches no task
        self.workforce.forget(worker.id)
        never_ready = self.roster.remove(worker, now)
        sentence = worker.sentence
        begun = [task for task in worker.sent if task.phase is TaskPhase.SENT]
        condemned = sentence.task if sentence is not None else None
        if condemned is not None and condemned.phase is TaskPhase.SENT and condemned not in begun:
            begun.append(condemned)  # it finished at the last moment; the sentence stands
        worker.sent.clear()
        for task in begun:
            task.attempts += 1
            task.ended_at = now
            if sentence is not None and sentence.task is task:
                self._execute(task, sentence, death, now)
            else:
                self.counters.crashed += 1
                self._conclude(task, Outcome.failure(failures.crashed(task, worker, death)), now)
        if death.abandoned:
            self.counters.abandoned += 1
        cause = sentence.reason if sentence else worker.leave or "crashed"
        if cause == "crashed" and worker.state is WorkerState.STOPPING:
            cause = "stopped"
        self._tell(WorkerExited(worker.id, worker.pid or death.pid, death.exitcode, death.signal, cause))
        if never_ready and self.roster.boot_failures >= policy.BOOT_FAILURES and not self.roster.ready_count():
            self.last_boot_error = failures.cannot_boot(death, policy.BOOT_FAILURES)
            self.boots_failed += 1
            self._fail_unbegun(lambda: failures.cannot_boot(death, policy.BOOT_FAILURES))
            self.roster.boot_failures = 0
            self.roster.wanted = 0

    def _execute(self, task: AnyTask, sentence: Sentence, death: Died, now: float) -> None:
        """Settle the task that its worker was killed for."""
        if sentence.reason == "timeout":
            self._conclude(task, Outcome.failure(failures.timed_out(task, death)), now)
        elif sentence.reason == "deadline":
            self._settle(task, Outcome.failure(failures.deadline_exceeded(task)))  # counts retries, so there is none
        else:
            self._settle(task, CANCELLED)

    # ===== outcomes =====

    def _conclude(self, task: AnyTask, outcome: Outcome, now: float) -> None:
        """Settle a task that was begun, or send it to wait for its retry."""
        options = task.options
        if not outcome.ok and options.retries and policy.retries_left(options, task.attempts):
            error = outcome.payload
            if outcome.load is None and policy.counts_for_retry(options, error) and self.broken is None:
                delay = policy.backoff(task.attempts, self.rng)
                self.counters.retried += 1
                task.phase = TaskPhase.WAITING
                task.worker_id = None
                self.waiting.add(task)
                self.timers.add(now + delay, self._retry, task)
                self._tell(TaskRetried(task, error, delay))
                return
        self._settle(task, outcome)

    def _retry(self, task: AnyTask, now: float) -> None:
        if task in self.waiting:
            self.waiting.remove(task)
            task.phase = TaskPhase.QUEUED
            self.queue.put_back([task])
            self.dispatch(now)

    def _settle(self, task: AnyTask, outcome: Outcome) -> None:
        task.phase = TaskPhase.SETTLED
        task.call = None  # arguments are not kept alive by a task that is done
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
        options = task.options
        timers = (options.queue_timeout is not None) + (options.deadline is not None)
        if timers:
            self.timers.let_go(_is_dead, entries=timers)
        self.settled.append((task, outcome))
        self._tell(TaskDone(task))

    def _tell(self, event: PoolEvent) -> None:
        if type(event) in self.listened:
            self.events.append(event)

    # ===== dispatch =====

    def dispatch(self, now: float) -> None:
        """Send what waits to whoever is idle; start workers if there are too few."""
        queue, roster = self.queue, self.roster
        while len(queue):
            worker = roster.take_idle()
            if worker is None:
                roster.grow(len(queue), now)
                return
            self._send(worker, now)

    def _send(self, worker: Worker, now: float, ahead: float = 0.0) -> None:
        most = self.workforce.max_batch
        if worker.limit is not None:
            most = min(most, worker.limit - worker.sent_count)
        workers = max(1, self.roster.ready_count() + self.roster.starting)
        batch = take_batch(self.queue, self.times, most=most, workers=workers, ahead=ahead)
        if not batch:
            return
        for task in batch:
            task.phase = TaskPhase.SENT
            task.worker_id = worker.id
            limit = task.options.timeout
            if limit is not None and (worker.check_at is None or now + limit < worker.check_at):
                worker.check_at = now + limit
                self.timers.add(worker.check_at, self._check_limits, worker)
        worker.sent.extend(batch)
        self.roster.sent(worker, len(batch))
        self.workforce.send(worker.id, batch, announce=TaskStarted in self.listened)
        if worker.leave is not None:
            self.roster.grow(len(self.queue), now)  # its replacement warms up meanwhile

    def _top_up(self, worker: Worker, now: float) -> None:
        """Send more to a worker before it has finished what it has, so that it need not wait for the next message."""
        if self.workforce.max_batch > 1 and self.roster.can_take(worker):
            ahead = len(worker.sent) * self.times.expected(worker.sent[-1].name)
            if ahead < BATCH_SECONDS / 2:
                self._send(worker, now, ahead)

    def _reclaim(self, worker: Worker) -> None:
        """Take back what a worker has not claimed; it is queued again in its old place."""
        count = self.workforce.reclaim(worker.id)
        if count:
            worker.draining = True
            back = [worker.sent.pop() for _ in range(min(count, len(worker.sent)))]
            worker.sent_count -= len(back)
            for task in back:
                task.phase = TaskPhase.QUEUED
                task.worker_id = None
            self.queue.put_back(back)

    def _make_way(self, task: AnyTask) -> None:
        """Priority is strict: take back what was sent ahead but is less urgent than `task`."""
        priority = task.options.priority
        self._least_priority = min(self._least_priority, priority)
        if self.roster.idle:
            return
        for worker in list(self.roster):
            if len(worker.sent) > 1 and not worker.draining and worker.state is WorkerState.BUSY:
                if any(sent.options.priority < priority for sent in worker.sent):
                    self._reclaim(worker)

    def _rebalance(self, now: float) -> None:
        """Somebody is idle and nothing is queued: what stands behind a slow task elsewhere is taken back."""
        for worker in list(self.roster):
            if len(worker.sent) < 2 or worker.draining or worker.state is not WorkerState.BUSY:  # noqa: PLR2004
                continue
            glance = self.workforce.glance(worker.id)
            since = glance.since if glance.begun == worker.sent[0].id else now
            if now - since >= STEAL_AFTER:
                self._reclaim(worker)
                self.dispatch(now)
                if not self.roster.idle:
                    return
            elif self._steal_at is None:
                self._steal_at = since + STEAL_AFTER
                self.timers.add(self._steal_at, self._steal, None)

    def _steal(self, _: None, now: float) -> None:
        self._steal_at = None
        self._advance(now)

    # ===== limits =====

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.timers.fire(now)
        self._advance(now)

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next; None when nothing is due."""
        return self.timers.next()

    def _queue_timeout(self, task: AnyTask, now: float) -> None:
        worker = self.roster.workers.get(task.worker_id or 0)
        if task.phase is TaskPhase.SENT and worker is not None and not self.has_begun(task):
            self._reclaim(worker)  # sent ahead is still queued, for who waits
        if task.phase is TaskPhase.QUEUED and task.attempts == 0:
            self.queue.remove(task)
            self._settle(task, Outcome.failure(failures.queued_too_long(task)))
        self.dispatch(now)

    def _deadline(self, task: AnyTask, now: float) -> None:
        outcome = Outcome.failure(failures.deadline_exceeded(task))
        if task.phase is TaskPhase.QUEUED:
            self.queue.remove(task)
            self._settle(task, outcome)
        elif task.phase is TaskPhase.WAITING:
            self.waiting.remove(task)
            self._settle(task, outcome)
        elif task.phase is TaskPhase.SENT:
            self._stop_sent(task, outcome, "deadline", now)

    def _stop_sent(self, task: AnyTask, outcome: Outcome, reason: str, now: float) -> None:
        """End a task that was sent. Not begun: it never will. Begun: its worker is killed, if it still runs it."""
        worker = self.roster.workers[task.worker_id or 0]
        if worker.state is not WorkerState.DOOMED:
            self._reclaim(worker)
        if task.phase is TaskPhase.QUEUED:
            self.queue.remove(task)
            self._settle(task, outcome)
            return
        if self._runs(worker, task):
            if reason == "cancelled":  # settled at once: no result of it will be delivered, whatever happens
                task.attempts += 1
                self._settle(task, outcome)
            self._doom(worker, Sentence(task, reason), now)
        elif worker.sentence is None or worker.sentence.task is not task:  # finished, and its outcome is on the way
            if reason == "cancelled":
                task.attempts += 1
                self._settle(task, outcome)
        elif reason == "cancelled":
            self._settle(task, outcome)

    def _runs(self, worker: Worker, task: AnyTask) -> bool:
        """After a reclaim: whether `task` is what the worker runs now. Only the last one it claimed can be."""
        if worker.state is WorkerState.DOOMED or not worker.sent or worker.sent[-1] is not task:
            return False
        return self.workforce.glance(worker.id).done != task.id

    def _check_limits(self, worker: Worker, now: float) -> None:
        """A run-time limit may have passed: look at the board, which knows when the task began."""
        if worker.check_at is None or now < worker.check_at or worker.state is not WorkerState.BUSY:
            return
        worker.check_at = None
        glance = self.workforce.glance(worker.id)
        upcoming: list[float] = []
        for task in worker.sent:
            limit = task.options.timeout
            if limit is None or task.phase is not TaskPhase.SENT:
                continue
            if glance.begun == task.id and glance.done != task.id:
                if now >= glance.since + limit:
                    self._reclaim(worker)
                    if self._runs(worker, task):
                        task.started_at = glance.since
                        self._doom(worker, Sentence(task, "timeout"), now)
                        return
                else:
                    upcoming.append(glance.since + limit)
            else:  # not begun, or done and its outcome on the way
                upcoming.append(now + limit)
        if upcoming:
            worker.check_at = min(upcoming)
            self.timers.add(worker.check_at, self._check_limits, worker)

    def _doom(self, worker: Worker, sentence: Sentence, now: float) -> None:
        self.roster.doom(worker, sentence, want_stack=sentence.reason in ("timeout", "deadline"), now=now)
        if sentence.task is not None and sentence.task.phase is TaskPhase.SENT:
            self.timers.add(now + policy.DEATH_GRACE, self._overdue, worker)
        self.roster.grow(len(self.queue), now)

    def _overdue(self, worker: Worker, now: float) -> None:
        """A killed worker will not die (it sits in the kernel): its task has waited long enough."""
        sentence = worker.sentence
        task = sentence.task if sentence is not None else None
        if worker.id not in self.roster.workers or task is None or task.phase is not TaskPhase.SENT:
            return
        task.attempts += 1
        task.ended_at = now
        error = failures.deadline_exceeded(task) if sentence.reason == "deadline" else failures.timed_out(task, None)
        self._settle(task, Outcome.failure(error))  # no retry: the first run has not ended

    # ===== moving on =====

    def _advance(self, now: float) -> None:
        """After every event: send what can be sent, share what is stuck, and go on with a shutdown."""
        if len(self.queue):
            self.dispatch(now)
        elif self.roster.idle and self._steal_at is None and len(self.roster.idle) < len(self.roster.workers):
            self._rebalance(now)
        if self.phase is PoolPhase.OPEN:
            self.roster.grow(0, now)
            return
        if self.unsettled == 0:
            self.phase = max(self.phase, PoolPhase.CLOSING)
            self.roster.close(now)
            if not self.roster.workers:
                self.phase = PoolPhase.CLOSED
        else:
            self.roster.grow(0, now)


def _is_dead(subject: Any) -> bool:
    return getattr(subject, "phase", None) is TaskPhase.SETTLED
