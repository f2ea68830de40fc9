"""Scheduler: the one door to the rules of a pool. Events and `now` come in, orders go out through the Workforce.

Guarantees: every accepted task is in exactly one place (queued, waiting, sent, settled) and is settled exactly once;
a task that was begun is begun again only by a retry that was asked for; a kill is aimed at (worker, task); after a
shutdown the pool is closed as soon as its tasks are settled and its workers gone, and does not wait for ever for those.
Guarded by: the pool's one lock. Nothing in here blocks, logs, reads a clock or calls user code.
What it decides is collected in `settled` and `events`; whoever held the lock publishes both after letting go of it.

    Scheduler     the state of the pool; what callers ask and workers report
    Enforcer      limits, cancels, kills
    Dispatcher    the queue, what each worker was sent      Outcomes    counts, retries, what is to be published
    Roster        the workers, how many there are           Timers      what is due when

Each owns what its file says, and knows only those below it. This file is longer than most because the door has one
method for each event, and nothing of its own to give away.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from poolkit._core import failures, policy
from poolkit._core.dispatch import Dispatcher
from poolkit._core.enforce import Enforcer
from poolkit._core.options import PoolLimits
from poolkit._core.outcomes import Outcomes
from poolkit._core.queue import AnyTask
from poolkit._core.roster import Hiring, Roster
from poolkit._core.timers import Timers
from poolkit._core.workforce import (
    BUSY,
    DYING,
    STALLED,
    STARTING,
    STOPPING,
    Asked,
    Begun,
    BootFailed,
    Died,
    Drained,
    Finished,
    KillReason,
    Progressed,
    Ready,
    Recorder,
    Report,
    Returned,
    TaskStarted,
    Worker,
    WorkerExited,
    WorkerStarted,
    Workforce,
)
from poolkit.errors import PoolClosed, QueueFull, TaskCancelled
from poolkit.outcome import CANCELLED, Outcome
from poolkit.task import SENT, SETTLED, Task


class PoolPhase(enum.IntEnum):
    """How far the pool is on its way; it only moves forward.

    OPEN      tasks are accepted
    SHUTTING  no new tasks; the accepted ones are finished (or were cancelled)
    CLOSING   all tasks are settled; the workers are leaving
    CLOSED    no worker is left
    """

    OPEN = 0
    SHUTTING = 1
    CLOSING = 2
    CLOSED = 3


OPEN, SHUTTING, CLOSING, CLOSED = PoolPhase  # see `poolkit/task.py`


class Scheduler:
    """The rules of one pool. Not thread-safe: the pool's lock guards it."""

    def __init__(self, workforce: Workforce, limits: PoolLimits, rng: random.Random) -> None:
        self.workforce = workforce
        self.limits = limits
        self._sends_ahead = workforce.max_batch > 1  # by how long calls have taken
        self.timers = Timers(self._is_over)
        self.roster = Roster(workforce, limits, self.timers, rng)
        self._dispatcher = Dispatcher(workforce, self.roster, self.timers, self._check)
        self.queue = self._dispatcher.queue
        self._outcomes = Outcomes(self.queue, self.timers, rng)
        self._enforcer = Enforcer(workforce, self.roster, self._dispatcher, self._outcomes, self.timers)
        self.counters = self._outcomes.counters
        self.waiting = self._outcomes.waiting  # failed, to be retried after their back-off
        self.accepted = (
            self._outcomes.accepted
        )  # every task until it is published, with its outcome once that is decided
        self.unread = self._outcomes.unread  # failures to be unpickled, outside of the lock, and given to `read`
        self.settled = self._outcomes.settled  # outcomes that were decided: to be published, and cleared
        self.events = self._outcomes.events  # to be told to listeners, and cleared
        self.numbers = self._outcomes.numbers  # the ids for posted tasks; any thread may take the next
        self.is_changing = False  # a step is under way, or was interrupted: then `repair` comes first
        self.phase = OPEN
        self.lingers = False  # after a shutdown: the rest of maps is still accepted, and waited for
        self._cancels = self._kills = False  # what a shutdown asked for
        self.broken: BootFailed | None = None  # what the initializer raised
        self.why_closed = "the pool was shut down, by shutdown() or the end of its with block"  # when it is
        self.boots_failed = 0  # how often starting workers was given up, and why
        self.last_boot_error: BaseException | None = None

    @property
    def unsettled(self) -> int:
        """How many tasks were accepted and are not settled."""
        return self._outcomes.unsettled

    @property
    def listened(self) -> frozenset[type]:
        """The kinds of events that somebody listens to."""
        return self._outcomes.listened

    @listened.setter
    def listened(self, kinds: frozenset[type]) -> None:
        self._outcomes.listened = kinds
        self._dispatcher.announce = TaskStarted in kinds

    @property
    def recorder(self) -> Recorder | None:
        """What takes down what happens, while somebody traces the pool."""
        return self._outcomes.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._outcomes.recorder = recorder

    def tell_state(self, recorder: Recorder, now: float) -> None:
        """Have it taken down which workers are up, and how many tasks and workers have something to do."""
        for worker in self.roster:
            if worker.state is not STARTING and not worker.is_program:
                recorder((worker.ready_at, worker.id, "started", worker.pid))
        recorder((now, self._outcomes.unsettled, self.roster.busy))

    # ===== what callers ask =====

    def all_busy(self) -> bool:
        """Return True if a plain task submitted now could only be queued.

        Then every worker has something to do or is starting, and will report: that is when to take such tasks in.
        """
        roster = self.roster
        return (
            not roster.idle
            and roster.counted >= roster.size
            and self.phase is OPEN
            and self.limits.max_queue is None
            and not self._dispatcher.makes_way
            and not self._dispatcher.has_streams  # those that wait for their readers report nothing
        )

    def take_in(self, posted: deque[AnyTask]) -> None:
        """Accept the tasks that were posted while all were busy, emptying `posted`; none once the pool is not open."""
        if posted and self.phase is OPEN:
            self.is_changing = True
            tasks = list(posted)  # others may append meanwhile
            self._outcomes.accept_many(tasks)
            self.queue.push_many(tasks)
            for _ in tasks:
                posted.popleft()

    def room(self) -> int:
        """How many more tasks a bounded queue takes: one for every worker, and `max_queue` that wait.

        Streams that have given their places away are neither.
        """
        aside = self._dispatcher.has_streams and sum(worker.state is STALLED for worker in self.roster)
        return self.roster.size + (self.limits.max_queue or 0) + aside - self._outcomes.unsettled

    def is_full(self) -> bool:
        """Whether the bounded queue has no room."""
        return self.limits.max_queue is not None and self.room() <= 0

    def make_room(self, now: float) -> None:
        """Somebody waits for room in the bounded queue: have a stream give way that waits for its reader, now or later.

        Else all of them might wait for room, for their readers.
        """
        while self._dispatcher.has_streams and self.is_full():
            self.is_changing = True
            if not self._dispatcher.give_way(now):
                break

    def check_open(self, what: str) -> None:
        """Raise InitializerFailed or PoolClosed unless the pool accepts tasks; `what` is what cannot be done."""
        if self.broken is not None:
            raise failures.initializer_failed(self.broken.error, self.broken.text)
        if self.phase is not OPEN:
            left = f" ({self.unsettled} tasks are still to be settled)" if self.unsettled else ""
            msg = f"cannot {what}: {self.why_closed}{left}"
            raise PoolClosed(msg)

    def submit(self, task: AnyTask, now: float) -> None:
        """Accept a task.

        Raises:
            PoolClosed: after shutdown.
            InitializerFailed: the pool's initializer raised.
            QueueFull: the bounded queue has no room.
        """
        if self.phase is not OPEN:
            self._check_open_for(task)
        if self.limits.max_queue is not None and self.phase is OPEN and self.is_full():
            self.make_room(now)
        if self.limits.max_queue is not None and self.phase is OPEN and self.is_full():
            self.is_changing = False  # nothing is left of that
            msg = (
                f"cannot submit {task.name}: the queue is full "
                f"({self.unsettled} tasks accepted, max_workers={self.roster.size}, max_queue={self.limits.max_queue})"
                ", and block=False does not wait for room"
            )
            raise QueueFull(msg)
        self.is_changing = True
        self._outcomes.accept(task, now)
        options, roster = task.options, self.roster
        if options.queue_timeout is not None or options.deadline is not None:
            self._enforcer.watch(task, now)
        if not self.queue.size and not options.special and roster.idle and roster.busy < roster.size:
            worker, _ = roster.idle.popitem()  # as `Roster.take_idle` does it; nothing waits before the task
            worker.state = BUSY
            roster.busy += 1
            self._dispatcher.send(worker, [task], now)
        else:
            self._dispatcher.has_programs |= options.grace is not None
            self.queue.push(task)
            self._dispatcher.dispatch(now)

    def refuse(self, task: AnyTask, error: BaseException, now: float) -> None:
        """Accept a task that cannot be sent: it fails at once, with `error`."""
        self._check_open_for(task)
        self.is_changing = True
        self._outcomes.accept(task, now)
        self._outcomes.settle(task, Outcome.failure(error))

    def _check_open_for(self, task: AnyTask) -> None:
        if not (task.late and self.lingers):
            self.check_open(f"submit {task.name}")

    def cancel(self, task: AnyTask, now: float) -> bool:
        """Cancel a task: one that has not begun never will, one that runs is stopped. False when settled already."""
        if task.phase is SETTLED:
            return False
        self.is_changing = True
        self._enforcer.cancel(task, now)
        self._advance(now)
        return True

    def withdraw(self, task: AnyTask, now: float) -> bool:
        """Cancel a task, but not one that has begun: false."""
        if task.phase is SETTLED:
            return False
        self.is_changing = True
        withdrawn = self._enforcer.withdraw(task)
        self._advance(now)
        return withdrawn

    def credit(self, task: AnyTask, taken: int, now: float) -> None:
        """So many items of a stream were taken, in all."""
        if task.phase is SENT and task.worker_id is not None:
            self.is_changing = True
            self.roster.resume(self.roster.workers[task.worker_id])
            self.workforce.credit(task.worker_id, task.id, taken)
            self._advance(now)

    def mail(self, task: AnyTask) -> None:
        """Something was left for a task: it gets that if it has asked."""
        exchange = task.exchange
        if exchange.mail and task.phase is SENT and exchange.asked == task.attempt and task.worker_id is not None:
            exchange.asked = 0
            self.workforce.mail(task.worker_id, task.id, exchange.mail)

    def end(self, task: AnyTask, grace: float, now: float) -> None:
        """Have a stream end by itself, within `grace` seconds; then it is cancelled."""
        if task.phase is not SETTLED and task in self.accepted:  # else it was refused
            self.is_changing = True
            self._enforcer.end(task, grace, CANCELLED, now)
            self._advance(now)

    def finish(self, task: AnyTask, grace: float, now: float) -> None:
        """Have a command end, and deliver what it did; one that is queued is cancelled."""
        if task.phase is not SETTLED and not self._enforcer.finish(task, grace):
            self.cancel(task, now)

    def time_out(self, task: AnyTask, limit: float, now: float) -> None:
        """Stop a task as one that ran longer than so many seconds; cancel one that has not begun."""
        if task.phase is SETTLED:
            return
        self.is_changing = True
        task.options = task.options.changed(timeout=limit)
        if not self._enforcer.time_out(task, now):
            self._enforcer.cancel(task, now)
        self._advance(now)

    def cancel_all(self, *, begun: bool, now: float) -> None:
        """Cancel everything that has not begun, and with `begun` what runs too."""
        self.is_changing = True
        self._end_unbegun(lambda: None)
        if begun:
            for worker in list(self.roster):
                for task in list(worker.sent):
                    if task.phase is not SETTLED:
                        self._enforcer.cancel(task, now)
        self._advance(now)

    def fail_unbegun(self, make_error: Callable[[], BaseException], now: float) -> None:
        """Settle everything that has not begun, or waits for a retry, each task with an error of its own."""
        self.is_changing = True
        self._end_unbegun(make_error)
        self._advance(now)

    def shutdown(
        self, *, cancel_queued: bool, kill: bool, now: float, kill_after: float | None = None, lingers: bool = False
    ) -> None:
        """Accept nothing more; finish what was accepted, or cancel what has not begun and retry nothing, or stop all.

        With `kill_after`, what is left after so many seconds is stopped. `lingers`: late tasks are accepted, and waited
        for, until `end_lingering`.
        """
        self.is_changing = True
        self.lingers = lingers and (self.phase is OPEN or self.lingers) and not (cancel_queued or kill)
        if kill_after is not None:
            self.timers.add(now + kill_after, self._kill_rest, None)
        self._cancels |= cancel_queued
        self._kills |= kill
        self.phase = max(self.phase, SHUTTING)
        self.roster.hiring = max(self.roster.hiring, Hiring.NONE if kill else Hiring.DEMAND)
        if cancel_queued or kill:
            self._outcomes.retries = False
            self.cancel_all(begun=kill, now=now)
        if kill:
            for worker in list(self.roster):
                self.roster.kill(worker, KillReason(None, "shutdown"), want_stack=False)
        self._advance(now)

    def end_lingering(self, now: float) -> None:
        """No late task comes any more."""
        self.is_changing = True
        self.lingers = False
        self._advance(now)

    def _kill_rest(self, _: None, now: float) -> None:
        self.shutdown(cancel_queued=True, kill=True, now=now)

    def unsettled_tasks(self) -> list[AnyTask]:
        """What was accepted and is not settled, in the order of submission."""
        return [task for task, outcome in list(self._outcomes.accepted.items()) if outcome is None]

    def read(self, task: AnyTask, now: float) -> None:
        """A failure in `unread` was unpickled: see whether it is retried."""
        self.is_changing = True
        self._outcomes.read(task, now)
        self._advance(now)

    def give_up(self) -> list[AnyTask]:
        """Forget everything at once, ordering nothing; returns the tasks that were not settled."""
        left = self.unsettled_tasks()
        for task in left:
            task.phase = SETTLED
        self.queue.clear()
        self.waiting.clear()
        self.unread.clear()
        self.roster.forget_all()
        self._outcomes.accepted.clear()
        self._outcomes.unsettled = 0
        self.phase = CLOSED
        return left

    def resize(self, size: int, now: float) -> None:
        """Change the number of workers."""
        self.is_changing = True
        for worker in self.roster.resize(size, now):
            self._dispatcher.reclaim(worker)
        self._advance(now)

    def dismiss(self, worker_ids: Iterable[int], now: float) -> None:
        """Have these workers be sent nothing more; they leave when they have finished what they have begun."""
        self.is_changing = True
        for worker in filter(None, map(self.roster.workers.get, worker_ids)):
            if worker.state is STARTING:
                self.roster.kill(worker, KillReason(None, "shrunk"), want_stack=False)
            elif worker.state not in (STOPPING, DYING):
                self.roster.leave(worker, "shrunk", now)
                if worker.state is BUSY:
                    self._dispatcher.reclaim(worker)
        self._advance(now)

    def warm_up(self, now: float) -> None:
        """Start all workers."""
        self.is_changing = True
        self.roster.wanted = self.roster.size
        self.roster.grow(0, now)

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker is known to run this task."""
        return self._enforcer.has_begun(task)

    def note_progress(self, task: AnyTask) -> None:
        """Have `task.reported` be what it has reported last."""
        self._enforcer.note_progress(task)

    # ===== what workers report =====

    def handle_all(self, reports: deque[Report], now: float) -> None:  # noqa: C901, PLR0912 -- on the way of every task
        """Take reports of workers into account, in order, and empty `reports`.

        Those of workers that are gone are ignored.
        What workers get next is decided after a run of outcomes, not after each: one message, not many small ones.
        A report is taken out when it was taken into account: an interrupted one is handled again, which harms none.
        """
        self.is_changing = True
        free: dict[Worker, None] = {}
        roster = self.roster
        for _ in range(len(reports)):  # others may append meanwhile
            report = reports[0]
            worker = roster.workers.get(report.worker_id)
            if worker is None:
                reports.popleft()
            elif type(report) is Finished:
                # Not what it was sent: only a worker that was tampered with says so. What ended at the last moment: the
                # reason to kill its worker stands, and its death is waited for.
                task = worker.sent[0] if worker.sent else None
                kill_reason = worker.kill_reason
                if task is None or task.id != report.task_id or (kill_reason is not None and kill_reason.task is task):
                    reports.popleft()
                    continue
                if task.phase is not SETTLED:
                    if self._sends_ahead:
                        self._dispatcher.measured(worker, task, report.ended - report.started)
                    self._outcomes.finished(task, report, now)
                elif (recorder := self._outcomes.recorder) is not None and task.started_at != report.started:
                    times = task.submitted_at, report.started, report.ended  # it was over when it was cancelled
                    recorder((worker.id, task.id, task.name, task.attempts, *times, TaskCancelled))
                worker.sent.popleft()
                worker.tasks_done += 1
                roster.early_deaths = 0
                if report.rss:
                    roster.check_memory(worker, report.rss)
                free[worker] = None
                reports.popleft()
            elif type(report) is Progressed:
                self._enforcer.progressed(worker, report)
                reports.popleft()
            else:
                if isinstance(report, Died):
                    free.pop(worker, None)  # it is sent nothing more, so nothing more can be laid to its death
                if free:
                    self._go_on(free, now)
                self._handle(worker, report, now)
                reports.popleft()
                self._advance(now)
        if free:
            self._go_on(free, now)

    def _go_on(self, free: dict[Worker, None], now: float) -> None:
        """Let workers that finished something go on, and empty `free`."""
        for worker in free:
            if worker.sent or worker.draining:
                self._dispatcher.go_on(worker, now)
            elif not self._dispatcher.send_next(worker, now):
                self.roster.rest(worker, now)
        free.clear()
        # As `_advance` looks, without the call where it would find nothing.
        roster = self.roster
        if (
            self.queue.size
            or roster.busy
            or self.phase is not OPEN
            or roster.counted < roster.wanted
            or self._outcomes.recorder
        ):
            self._advance(now)

    def _handle(self, worker: Worker, report: Report, now: float) -> None:  # noqa: C901, PLR0912 -- one branch for each
        if isinstance(report, Drained):
            worker.draining = False
            self._dispatcher.go_on(worker, now)
        elif isinstance(report, Ready):
            if worker.state is STARTING:
                self._outcomes.tell(WorkerStarted(worker.id, report.pid))
                worker.is_spare = report.is_spare
                self.roster.ready(worker, report.pid, now)
                if self._outcomes.recorder is not None:
                    self._outcomes.recorder((now, worker.id, "started", report.pid))
        elif isinstance(report, Begun):
            for task in worker.sent:
                if task.id == report.task_id and task.phase is not SETTLED:
                    self._outcomes.tell(TaskStarted(task, worker.id))
        elif isinstance(report, Asked):
            asking = worker.sent[0] if worker.sent else None
            if asking is not None and asking.id == report.task_id:
                asking.open_exchange().asked = asking.attempt
                self.mail(asking)
        elif isinstance(report, Returned):
            if worker.state is BUSY and worker.sent and worker.sent[0].id == report.task_id:
                self._dispatcher.take_back(worker, 1)
                self._dispatcher.go_on(worker, now)
        elif isinstance(report, BootFailed):
            self._boot_failed(report, now)
        elif isinstance(report, Died):
            self._died(worker, report, now)

    def may_break(self, worker_id: int) -> bool:
        """Whether the death of this worker may be told as a crash."""
        worker = self.roster.workers.get(worker_id)
        return worker is not None and worker.kill_reason is None and (bool(worker.sent) or worker.state is STARTING)

    def _boot_failed(self, report: BootFailed, now: float) -> None:
        """The initializer raised: no worker would do better, so nothing is started any more."""
        if self.broken is None:
            self.broken = report
        self.phase = max(self.phase, SHUTTING)
        self.lingers = False
        self._outcomes.retries = False
        self._end_unbegun(lambda: failures.initializer_failed(report.error, report.text))
        self.roster.close(now)

    def _end_unbegun(self, make_error: Callable[[], BaseException | None]) -> None:
        """Settle what no worker has claimed, each task with an error of its own; None cancels it."""
        self._dispatcher.reclaim_all()
        for task in self._outcomes.withdraw_all():
            error = make_error()
            self._outcomes.settle(task, CANCELLED if error is None else Outcome.failure(error))

    def _died(self, worker: Worker, death: Died, now: float) -> None:
        first = worker.sent[0] if worker.sent else None
        if death.cause is not None and first is not None:
            self.roster.kill(worker, KillReason(first, death.cause), want_stack=False)  # as it was, by its workforce
        status = worker.workforce.status(worker.id)
        self._dispatcher.reclaim(worker)  # what it had not claimed touches no task
        if first is not None and not worker.sent and worker.kill_reason is None:
            self._enforcer.died_receiving(worker, first, death)
        for task in worker.sent:
            if task.phase is SENT:
                self._enforcer.died_running(worker, task, death, status, now)
        worker.workforce.forget(worker.id)
        hopeless = self.roster.remove(worker, begun=bool(worker.sent), now=now)
        worker.sent.clear()  # a timer may keep the worker for a while, but not its tasks
        self.counters.abandoned += death.abandoned
        if worker.kill_reason is not None:
            cause = worker.kill_reason.reason
        elif worker.state is STOPPING:
            cause = worker.leave or "stopped"
        else:
            cause = "crashed"
        if not worker.is_program:
            self._outcomes.tell(WorkerExited(worker.id, worker.pid or death.pid, death.exitcode, death.signal, cause))
        if self._outcomes.recorder is not None and not worker.is_program:
            self._outcomes.recorder((now, worker.id, cause, death.signal or death.exitcode))
        if hopeless:
            self.boots_failed += 1
            self.last_boot_error = failures.cannot_boot(death)
            self._end_unbegun(lambda: failures.cannot_boot(death))

    # ===== after an interrupted step =====

    def repair(self, posted: deque[AnyTask], now: float) -> None:
        """Make the state consistent again where an exception, such as a MemoryError, interrupted a step.

        What is accepted and what was decided is known (`accepted`), as is what each worker has. A task is at the worker
        that was sent it, waits for its retry, or else is queued; whoever moves one sees to it that it is never found in
        the queue when it may have begun.
        """
        self.is_changing = True
        outcomes, roster = self._outcomes, self.roster
        for worker in roster:
            self._dispatcher.complete(worker)
        roster.repair(now)
        elsewhere = {task: worker.id for worker in roster for task in worker.sent}
        published = {task for task, _ in self.settled}
        queued: list[AnyTask] = []
        unsettled = 0
        for task, outcome in list(outcomes.accepted.items()):
            if outcome is None:
                unsettled += 1
                if (worker_id := elsewhere.get(task)) is not None:
                    task.phase, task.worker_id = SENT, worker_id
                    self.waiting.pop(task, None)
                elif task not in self.waiting:
                    queued.append(task)
            else:
                task.phase = SETTLED
                self.waiting.pop(task, None)
                if task not in published:
                    self.settled.append((task, outcome))
        outcomes.unsettled = unsettled
        counters = self.counters
        counters.submitted = counters.succeeded + counters.failed + counters.cancelled + unsettled
        while posted and posted[0] in outcomes.accepted:
            posted.popleft()
        self._dispatcher.rebuild(queued, now)
        self._enforcer.repair(now)
        for worker in roster.resize(roster.size, now):
            self._dispatcher.reclaim(worker)
        if self.phase is SHUTTING:
            self.shutdown(cancel_queued=self._cancels, kill=self._kills, now=now, lingers=True)
        self.tick(now)

    # ===== time =====

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.is_changing = True
        self.timers.fire(now)
        self._advance(now)

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next; None when nothing is due."""
        return self.timers.next()

    def _is_over(self, subject: Any) -> bool:
        """Whether there is no need any more for a timer about this."""
        if isinstance(subject, Worker):
            return subject.id not in self.roster.workers
        return isinstance(subject, Task) and subject.phase is SETTLED

    def _check(self, worker: Worker, now: float) -> None:
        self._enforcer.check(worker, now)

    # ===== moving on =====

    def _advance(self, now: float) -> None:
        """After every event: send what can be sent, share what is stuck, and go on with a shutdown."""
        if self.queue.size or self.roster.busy:
            self._dispatcher.advance(now)
        if self.phase is OPEN:
            if self.roster.counted < self.roster.wanted:
                self.roster.grow(0, now)
        elif self.phase is SHUTTING and self._dispatcher.has_streams and self._outcomes.unsettled:
            self._enforcer.watch_streams(now)
        elif not self._outcomes.unsettled and not self.lingers and self.phase < CLOSED:
            if self.phase is SHUTTING:
                self.roster.close(now)
                graces = [worker.sent[0].options.grace or 0.0 for worker in self.roster if worker.sent]
                self.timers.add(now + policy.STOP_GRACE + max(graces, default=0.0), self._expel, None)
                self.phase = CLOSING
            if not self.roster.workers:
                self.phase = CLOSED
        if self._outcomes.recorder is not None:
            self._outcomes.recorder((now, self._outcomes.unsettled, self.roster.busy))

    def _expel(self, _: None, now: float) -> None:
        """Workers that have nothing to do and do not go are killed; those that do not die of it are given up."""
        for worker in list(self.roster):
            self.roster.kill(worker, KillReason(None, "unresponsive"), want_stack=False)
        self.timers.add(now + policy.STOP_GRACE, self._abandon, None)

    def _abandon(self, _: None, now: float) -> None:
        for worker in list(self.roster):
            self._died(worker, Died(worker.id, abandoned=True), now)
