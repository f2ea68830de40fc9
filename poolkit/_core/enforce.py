"""Enforcer: cancels, limits on run time and memory, queue limits and deadlines; who is killed, and for which task.

Guarantees: a task that has not begun is taken back and never begins; one that runs is ended with its worker, and only
if the worker runs it still; one that has finished is left alone, and so is its worker. A kill is aimed at (worker,
task): what else the worker was sent is taken back first, and it gets nothing more.
Owner of: the timers of queue limits and deadlines; those of run time and memory are the dispatcher's.
Guarded by: the pool's one lock; nothing here blocks, logs or calls user code.

Ending a task that was sent, told in steps
  1. reclaim: each unclaimed task goes to exactly one side, so from here on the worker begins nothing more;
  2. the task is queued again: it never began, and is settled;
  3. or it is the last one the worker claimed, and the board does not say that it is done: the worker is killed; where
     the board says that a coroutine runs, that is told to end first, and its worker killed COROUTINE_GRACE later;
  4. or it is done, and its outcome is on the way: nothing to stop.
"""

from __future__ import annotations

import functools
import inspect
import math

from poolkit._core import failures, policy
from poolkit._core.dispatch import Dispatcher
from poolkit._core.outcomes import Ending, Outcomes
from poolkit._core.queue import AnyTask
from poolkit._core.roster import Roster
from poolkit._core.timers import Timers
from poolkit._core.workforce import Died, KillReason, Progressed, Status, Worker, Workforce
from poolkit.outcome import CANCELLED, Outcome
from poolkit.task import QUEUED, SENT, SETTLED

UNREAD_FOR = 1.0  # seconds; a stream of which nobody takes an item for so long keeps no pool from its end


class Enforcer:
    """Ends what is to end. Not thread-safe: the pool's lock guards it."""

    def __init__(
        self, workforce: Workforce, roster: Roster, dispatcher: Dispatcher, outcomes: Outcomes, timers: Timers
    ) -> None:
        self.workforce = workforce
        self.roster = roster
        self.dispatcher = dispatcher
        self.outcomes = outcomes
        self.timers = timers
        self._look_at: float | None = None  # a timer is set for then, to look who reads the streams
        self._read: dict[AnyTask, tuple[int, float]] = {}  # how many items of those that wait were taken, since when

    def watch(self, task: AnyTask, now: float) -> None:
        """Set the timers of a task that is being submitted."""
        options = task.options
        if options.queue_timeout is not None:
            self.timers.add(now + options.queue_timeout, self._queue_timeout, task)
        if options.deadline is not None:
            self.timers.add(now + options.deadline, self._deadline, task)

    # ===== the ways to end =====

    def cancel(self, task: AnyTask, now: float) -> None:
        """Cancel a task that is not settled. It is settled at once: nothing of it will be delivered any more."""
        worker = self._recall(task)
        if self.outcomes.withdraw(task) or worker is None:
            self.outcomes.settle(task, CANCELLED)
            return
        running = self.dispatcher.is_running(worker, task)
        if running and self._is_coroutine(worker, task):
            running = False
            self._end_within(policy.COROUTINE_GRACE, worker, KillReason(task, "cancelled"), CANCELLED, now)
        if running:
            worker.kill_reason = KillReason(task, "cancelled")  # what `Roster.repair` goes on with
        self._cut_short(task, worker.workforce.status(worker.id), now)
        if running or task.started_at is not None:  # else its outcome is on the way, and says when it ran
            self.outcomes.record(task, CANCELLED)
        self.outcomes.settle(task, CANCELLED)
        if running:
            self._doom(worker, KillReason(task, "cancelled"), now)

    def withdraw(self, task: AnyTask) -> bool:
        """Cancel a task that has not begun, and leave alone one that has: false."""
        self._recall(task)
        if not self.outcomes.withdraw(task):
            return False
        self.outcomes.settle(task, CANCELLED)
        return True

    def end(self, task: AnyTask, grace: float, outcome: Outcome, now: float) -> None:
        """Have a stream end by itself, as `outcome`; after `grace` seconds its worker is killed."""
        worker = self._recall(task)
        if self.outcomes.withdraw(task) or worker is None:
            self.outcomes.settle(task, outcome)
        elif self.dispatcher.is_running(worker, task):
            self._end_within(grace, worker, KillReason(task, "cancelled"), outcome, now)

    def finish(self, task: AnyTask, grace: float) -> bool:
        """Have a command end that was begun, as what it did; False where none was."""
        worker = self._recall(task)  # what is not begun might be taken back later, and forget that it is to end
        if worker is None or task.phase is not SENT:
            return False
        worker.workforce.finish(worker.id, grace)
        return True

    def time_out(self, task: AnyTask, now: float) -> bool:
        """Stop a task that a worker runs, as one that was too slow; False where none does."""
        worker = self._recall(task)
        if worker is None or not self.has_begun(task) or not self.dispatcher.is_running(worker, task):
            return False
        self._stop(worker, KillReason(task, "timeout"), now)
        return True

    def _end_within(self, grace: float, worker: Worker, kill_reason: KillReason, ending: Ending, now: float) -> None:
        """Tell a worker that what it runs is to end by itself, and kill it if that has not ended after a while."""
        task = kill_reason.task
        assert task is not None  # noqa: S101 -- it is killed for it
        self.timers.add(now + grace, self._end_now, (worker, kill_reason, task.attempt))
        self.outcomes.ending[task] = ending
        worker.workforce.end(worker.id, task)

    def _end_now(self, subject: tuple[Worker, KillReason, int], now: float) -> None:
        """A task has perhaps not ended by itself."""
        worker, kill_reason, attempt = subject
        task = kill_reason.task
        assert task is not None  # noqa: S101 -- see above
        if self.roster.workers.get(worker.id) is not worker or task.attempt != attempt:
            return
        self.dispatcher.reclaim(worker)  # what it was sent since
        if not self.dispatcher.is_running(worker, task):
            return
        ending = self.outcomes.ending.get(task)
        self._doom(worker, kill_reason, now)
        if isinstance(ending, Outcome):
            self.outcomes.cut_short(task, worker.workforce.status(worker.id), now)
            self.outcomes.record(task, ending)
            self.outcomes.settle(task, ending)

    def _stop(self, worker: Worker, kill_reason: KillReason, now: float) -> None:
        """Have what a worker runs end, for what it is to be told as: a coroutine by itself, all else by a kill."""
        task = kill_reason.task
        assert task is not None  # noqa: S101 -- see above
        if not self._is_coroutine(worker, task):
            self._doom(worker, kill_reason, now)
        elif task not in self.outcomes.ending:
            error = functools.partial(failures.killed_for, task, worker, kill_reason)
            self._end_within(policy.COROUTINE_GRACE, worker, kill_reason, error, now)

    def _is_coroutine(self, worker: Worker, task: AnyTask) -> bool:
        """Whether what a worker runs can be told to end: as its board says, or its code, where it has just begun."""
        if not worker.workforce.ends_coroutines or task.options.window is not None:
            return False
        is_one = getattr(task.code, "co_flags", 0) & inspect.CO_COROUTINE
        return bool(is_one) or worker.workforce.status(worker.id).ends_by_itself(task.id)

    def repair(self, now: float) -> None:
        """Tell those streams again to end to which that may not have been told."""
        ending = self.outcomes.ending
        for task, outcome in list(ending.items()):
            if task.phase is SETTLED:
                del ending[task]
            elif isinstance(outcome, Outcome):
                self.end(task, policy.STREAM_GRACE, outcome, now)

    def watch_streams(self, now: float) -> None:
        """The pool is shut down gracefully: see to it that streams that nobody reads any more are closed."""
        if self._look_at is None:
            self.timers.add(now + UNREAD_FOR / 4, self._look_at_streams, None)
            self._look_at = now + UNREAD_FOR / 4

    def _look_at_streams(self, _: None, now: float) -> None:
        self._look_at = None
        read, self._read = self._read, {}
        for worker in list(self.roster):
            task = worker.sent[0] if worker.sent else None
            if task is None or task.options.window is None or task.phase is SETTLED:
                continue
            if not worker.workforce.status(worker.id).is_stalled(task.id):
                continue
            count = task.incoming.handed_out()
            known, since = read.get(task, (-1, now))
            self._read[task] = (count, since if known == count else now)
            if known == count and now >= since + UNREAD_FOR and task not in self.outcomes.ending:
                self.end(task, policy.STREAM_GRACE, Outcome.failure(failures.unread_stream(task)), now)
        # The step that this is a part of looks whether there are more.

    def _deadline(self, task: AnyTask, now: float) -> None:
        worker = self._recall(task)
        if self.outcomes.withdraw(task) or worker is None:
            self.outcomes.settle(task, Outcome.failure(failures.deadline_exceeded(task)))
        elif self.dispatcher.is_running(worker, task):
            self._stop(worker, KillReason(task, "deadline"), now)

    def _queue_timeout(self, task: AnyTask, _now: float) -> None:
        if task.attempts:
            return  # it has begun once; what it waits for now is a retry
        if not self.has_begun(task):
            self._recall(task)  # sent ahead is still queued, for who waits
        if task.phase is QUEUED:
            self.outcomes.withdraw(task)
            self.outcomes.settle(task, Outcome.failure(failures.queued_too_long(task)))

    def check(self, worker: Worker, now: float) -> None:
        """Look whether the first task of a worker has run for too long, or made it too large.

        The board knows when it began. A worker whose memory cannot be read just now is looked at again. Of those that
        keep limits themselves, none is ever looked at.
        """
        task = worker.sent[0]
        limit, most = task.options.timeout, task.options.memory_limit
        status = worker.workforce.status(worker.id)
        if task.phase is SETTLED or status.is_done(task):
            return  # what comes after it is watched when its outcome is here
        since = status.limited_since(task.id, now)  # None: not begun, so nothing counts yet
        kill_reason: KillReason | None = None
        look_at = math.inf
        if limit is not None:
            look_at = now + max(limit, policy.LOOK_AGAIN) if since is None else since + limit
            if look_at <= now:
                kill_reason = KillReason(task, "timeout")
        if most is not None and kill_reason is None:
            used = worker.workforce.memory(worker.id) or 0
            look_at = min(look_at, now + policy.check_memory_in(most - used))
            if since is not None and used > most:
                kill_reason = KillReason(task, "memory", used)
        if kill_reason is not None:
            self.dispatcher.reclaim(worker)
            if self.dispatcher.is_running(worker, task):
                (self._doom if kill_reason.reason == "memory" else self._stop)(worker, kill_reason, now)
        elif look_at < math.inf:
            self.dispatcher.look_again(worker, look_at)

    # ===== what helps =====

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker is known to run this task."""
        if task.phase is not SENT or task.worker_id is None:
            return False
        status = self.roster.workers[task.worker_id].workforce.status(task.worker_id)
        return status.begun == task.id and status.done != task.id

    def note_progress(self, task: AnyTask) -> None:
        """Note what a task has reported so far; one whose outcome is on the way keeps what was noted before."""
        if task.phase is SENT and task.worker_id is not None:
            progress = self.roster.workers[task.worker_id].workforce.progress(task.worker_id, task)
            if progress is not None:
                task.reported = progress

    @staticmethod
    def progressed(worker: Worker, report: Progressed) -> None:
        """Note what the task has reported that a worker is about to finish."""
        if worker.sent and worker.sent[0].id == report.task_id and worker.sent[0].phase is not SETTLED:
            worker.sent[0].reported = report.progress

    def _cut_short(self, task: AnyTask, status: Status, now: float) -> None:
        self.note_progress(task)
        self.outcomes.cut_short(task, status, now)

    def _recall(self, task: AnyTask) -> Worker | None:
        """Take back what the worker of `task` has not claimed; that worker, if the task was sent to one."""
        if task.phase is not SENT or task.worker_id is None:
            return None
        worker = self.roster.workers[task.worker_id]
        self.dispatcher.reclaim(worker)
        return worker

    def _doom(self, worker: Worker, kill_reason: KillReason, now: float) -> None:
        wants_outcome = kill_reason.task is not None and kill_reason.task.phase is SENT
        # What grows is not given the time to write its stack.
        self.roster.kill(worker, kill_reason, want_stack=wants_outcome and kill_reason.reason != "memory")
        if wants_outcome:
            grace = worker.sent[0].options.grace or 0.0  # which a program has
            self.timers.add(now + grace + policy.DEATH_GRACE, self._overdue, worker)
        self.roster.grow(self.dispatcher.queue.size, now)

    def _overdue(self, worker: Worker, now: float) -> None:
        """A killed worker will not die (it sits in the kernel): its task has waited long enough.

        It is not retried: its run has not ended.
        """
        kill_reason = worker.kill_reason
        if kill_reason is None or kill_reason.task is None or kill_reason.task.phase is SETTLED:
            return
        task = kill_reason.task
        self._cut_short(task, worker.workforce.status(worker.id), now)
        outcome = Outcome.failure(failures.killed_for(task, worker, kill_reason, None))
        self.outcomes.record(task, outcome)
        self.outcomes.settle(task, outcome)

    def died_receiving(self, worker: Worker, task: AnyTask, death: Died) -> None:
        """A worker died that was to begin `task` next, and ran nothing. A large call may be what it died of.

        Most often it was not, and the task runs elsewhere. Again and again, it was: it would end every worker.
        """
        if task.nbytes > policy.LARGE_CALL and task.phase is QUEUED:
            task.deaths += 1
            if task.deaths >= policy.RECEIVE_FAILURES:
                self.outcomes.withdraw(task)
                self.outcomes.counters.crashed += 1
                self.outcomes.settle(task, Outcome.failure(failures.cannot_receive(task, worker, death)))

    def died_running(self, worker: Worker, task: AnyTask, death: Died, status: Status, now: float) -> None:
        """End a task whose worker died while it ran it: killed for it, or in a crash."""
        self._cut_short(task, status, now)
        kill_reason = worker.kill_reason
        ending = self.outcomes.ending.get(task)
        if isinstance(ending, Outcome):
            self.outcomes.record(task, ending)
            self.outcomes.settle(task, ending)
        elif ending is not None:
            self.outcomes.conclude(task, Outcome.failure(ending(death)), now)
        elif kill_reason is None or kill_reason.task is not task:
            error = failures.crashed(task, worker, death) if death.error is None else death.error
            self.outcomes.crashed(task, error, now)
        elif kill_reason.reason == "cancelled":  # which an exception interrupted: else it was settled then
            self.outcomes.record(task, CANCELLED)
            self.outcomes.settle(task, CANCELLED)
        else:
            told = None if kill_reason.reason == "deadline" else death.error
            outcome = Outcome.failure(told or failures.killed_for(task, worker, kill_reason, death))
            if kill_reason.reason == "deadline":  # it counts retries, so there is none
                self.outcomes.record(task, outcome)
                self.outcomes.settle(task, outcome)
            else:
                self.outcomes.conclude(task, outcome, now)
