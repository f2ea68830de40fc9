"""Dispatcher: which task goes to which worker, how many at once, and what is taken back.

Guarantees: a task is queued or sent, never both; what was sent and not claimed can be taken back, and takes its old
place in the queue; whatever waits unclaimed at a worker is at least as urgent as whatever is queued.
Owner of: the queue, each worker's `sent`, `sent_count`, `draining` and `check_at`, the measured run times.
Guarded by: the pool's one lock; nothing here blocks, logs or calls user code.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from poolkit._core import policy
from poolkit._core.batch import BATCH_SECONDS, RunTimes, take_batch
from poolkit._core.queue import AnyTask, TaskQueue
from poolkit._core.roster import Roster
from poolkit._core.timers import Action, Timers
from poolkit._core.workforce import BUSY, DYING, STALLED, KillReason, Worker, Workforce
from poolkit.task import QUEUED, SENT, SETTLED

STEAL_AFTER = BATCH_SECONDS  # a task that runs longer than a batch should loses what is sent behind it to who is idle
UNBLOCK_AFTER = 0.01  # seconds; and after that to whoever comes next: it is older than what is queued
GIVE_WAY_EVERY = 0.05  # seconds between two looks whether a stream waits for its reader, while something is queued
LOOK_EVERY = 0.005  # seconds between two looks at who is slow while something is queued
BEGIN_WITHIN = 0.5  # seconds; what is found unbegun twice, so far apart, is taken back: its worker is stopped, or stuck
DRAIN_WITHIN = 5.0  # seconds; a worker that has nothing and did not say so since then is killed


class Dispatcher:
    """The queue of one pool, and what its workers have been sent. Not thread-safe: the pool's lock guards it.

    `check(worker, now)` is called when a limit of the first task at a worker, on time or memory, may have passed.
    """

    def __init__(self, workforce: Workforce, roster: Roster, timers: Timers, check: Action) -> None:
        self.workforce = workforce
        self.roster = roster
        self.timers = timers
        self.queue = TaskQueue()
        self.times = RunTimes()
        self.announce = False  # whether somebody listens to the beginnings of tasks
        self._check = check
        self.has_streams = False  # whether some worker may run a stream
        self.has_programs = False  # whether some task may be a program
        self._give_way_at: float | None = None  # a timer is set for then, to look which streams wait for their readers
        self._least_sent = math.inf  # no task that is sent and not claimed is less urgent than this
        self._steal_at: float | None = None  # a timer is set for then, to look at who is stuck
        # Not before then, while something is queued; never where nothing can stand behind what runs.
        self._look_at = 0.0 if workforce.max_batch > 1 else math.inf
        # Whether a timer is set to look for what does not begin; True for ever where nothing is sent ahead.
        self._is_looking = workforce.max_batch <= 1

    @property
    def makes_way(self) -> bool:
        """Whether a task of the usual priority would have what was sent ahead taken back."""
        return self._least_sent < 0

    # ===== out =====

    def advance(self, now: float) -> None:
        """After any event: send what can be sent; when nothing is queued, share what stands behind slow tasks."""
        if self.queue.size:
            if now >= self._look_at:
                self._unblock(now)
            self.dispatch(now)
        elif self.roster.busy and self._steal_at is None and self.workforce.max_batch > 1 and self.roster.has_room(now):
            self._rebalance(now)

    def dispatch(self, now: float) -> None:
        """Send what waits to whoever is idle; start workers if there are too few."""
        queue, roster = self.queue, self.roster
        while queue.size:
            worker = None
            if self.has_programs and queue.peek().options.grace is not None:
                worker = roster.seat(now)
                if worker is not None:
                    self.send(worker, [queue.pop()], now)
                    continue
            elif roster.idle:
                limit = queue.peek().options.memory_limit
                worker = roster.take_idle() if limit is None else self._take_light(limit, now)
            if worker is None and self.has_streams and self.give_way(now):
                continue
            if worker is None:
                if queue.urgency() > self._least_sent:
                    self._make_way()
                if roster.counted < roster.size:
                    roster.grow(self._demand(), now)
                return
            self._send(worker, now)

    def _demand(self) -> int:
        """How many queued tasks want a worker: no program does."""
        if not self.has_programs:
            return self.queue.size
        return sum(task.options.grace is None for task in self.queue)

    def give_way(self, now: float) -> bool:
        """Give the place of a stream that waits for its reader to what is queued; false when there is none now."""
        roster = self.roster
        if roster.starting or (roster.counted < roster.size and roster.busy < roster.size):
            return False  # a place is there, or on its way
        self.has_streams = False
        for worker in roster:
            if worker.sent and worker.sent[0].options.window is not None:
                self.has_streams = True
                if worker.state is BUSY and worker.workforce.status(worker.id).is_stalled(worker.sent[0].id):
                    roster.stall(worker)
                    roster.stalled = sum(each.state is STALLED for each in roster)
                    if roster.stalled == policy.MANY_STALLED:
                        self.timers.add(now, self._look_at_streams, None)  # wakes who is to warn
                    return True
        if self.has_streams and self._give_way_at is None:
            self.timers.add(now + GIVE_WAY_EVERY, self._look_at_streams, None)
            self._give_way_at = now + GIVE_WAY_EVERY
        return False

    def _look_at_streams(self, _: None, now: float) -> None:
        self._give_way_at = None
        self.advance(now)

    def _take_light(self, limit: int, now: float) -> Worker | None:
        """The warmest idle worker that other tasks did not leave beyond the limit: the next is not to pay for them.

        When there is none, one of them is exchanged, unless another is on its way or there is a place for one.
        """

        def fits(worker: Worker) -> bool:
            worker.rss_before = worker.workforce.memory(worker.id) or 0
            return worker.rss_before <= limit or not worker.tasks_done

        roster = self.roster
        worker = roster.take_idle(None if self.workforce.keeps_limits else fits)
        if worker is None and roster.idle and roster.busy < roster.size and not roster.starting:
            if roster.counted >= roster.size:
                roster.exchange(next(worker for worker in roster.idle if worker.counted), now)
            roster.grow(self.queue.size + len(roster.idle), now)
        return worker

    def _send(self, worker: Worker, now: float, ahead: float = 0.0) -> None:
        most = self.workforce.max_batch
        if worker.limit is not None:
            most = min(most, worker.limit - worker.sent_count)
        if most == 1 and not ahead:
            batch = [self.queue.pop()]
        else:
            workers = max(1, self.roster.ready_count() + self.roster.starting)
            batch = take_batch(self.queue, self.times, most=most, workers=workers, ahead=ahead)
        if batch:
            self.send(worker, batch, now)

    def send(self, worker: Worker, batch: list[AnyTask], now: float) -> None:
        """Send tasks that are in no other place to a busy worker that can take them."""
        worker_id, sent = worker.id, SENT
        for task in batch:
            task.phase = sent
            task.worker_id = worker_id
            task.attempt = task.attempts + 1
        priority = batch[-1].options.priority
        if priority < self._least_sent and not worker.workforce.keeps_limits:
            self._least_sent = priority
        worker.sent_count += len(batch)
        if worker.limit is not None:
            self.roster.near_its_limit(worker)
        written: list[Any] = []
        worker.sending = batch, written
        worker.sent.extend(batch)
        worker.workforce.send(worker_id, batch, written, announce=self.announce)
        worker.sending = None
        if not self._is_looking:
            self._look_later(now)
        options = worker.sent[0].options
        if options.timeout is not None or options.memory_limit is not None:
            self._watch(worker, now)
        if options.window is not None:
            self.has_streams = True
        if worker.leave is not None:
            self.roster.grow(self.queue.size, now)  # its replacement warms up meanwhile

    def send_next(self, worker: Worker, now: float) -> bool:
        """Send what is first in the queue to a worker that has nothing left; False if it has to rest first.

        As if it had rested and been taken again, since the last one to rest is the first to be taken.
        """
        queue, roster = self.queue, self.roster
        if (
            not queue.size
            or now >= self._look_at  # what is stuck behind slow tasks may be older
            or worker.limit is not None
            or worker.replaced
            or worker.state is not BUSY
            or roster.busy > roster.size
            or queue.peek().options.special
        ):
            return False
        self._send(worker, now)
        return True

    def measured(self, worker: Worker, task: AnyTask, seconds: float) -> None:
        """Take the time of a run into account, unless it is the worker's first of that function: it may have imported.

        A longer run counts at once, shorter ones slowly: a batch too small costs less.
        """
        function, times = id(task.code) ^ hash(task.name), self.times.seconds  # as `Task.function` has it
        if function not in worker.has_run:
            worker.runs_first(function)
            return
        known = times.get(function)
        if known is not None and 0.0 <= seconds <= known:  # nearly always
            times[function] = known + (seconds - known) / 8
        else:
            self.times.measured(function, seconds)

    def go_on(self, worker: Worker, now: float) -> None:
        """A worker finished or dropped something: it rests, or goes on with what it has, and maybe gets more."""
        if not worker.sent:
            if not worker.draining:
                self.roster.rest(worker, now)
        elif worker.state is BUSY:
            self._look_later(now)
            self._watch(worker, now)
            if self.queue.size and self.workforce.max_batch > 1 and self.roster.can_take(worker):
                # Send more before it has finished, so that it need not wait for the next message.
                ahead = len(worker.sent) * self.times.expected(worker.sent[-1].function)
                if ahead < BATCH_SECONDS / 2 and len(worker.sent) <= self.workforce.max_batch // 2:
                    self._send(worker, now, max(ahead, 1e-9))

    # ===== back =====

    def reclaim(self, worker: Worker) -> None:
        """Take back what a worker has not claimed; it is queued again in its old place."""
        if worker.state is DYING:
            return  # it was taken back before
        worker.reclaiming = [], [], len(worker.sent)
        self._reclaim(worker, *worker.reclaiming)

    def _reclaim(self, worker: Worker, taken: list[Any], told: list[Any], before: int) -> None:
        worker.workforce.reclaim(worker.id, taken, told)
        if taken:
            worker.draining = True
            self.take_back(worker, len(worker.sent) - max(0, before - len(taken)))
        worker.reclaiming = None

    def take_back(self, worker: Worker, count: int) -> None:
        """Queue the last tasks that a worker was sent again, but for those that were cancelled since."""
        back = [task for task in (worker.sent.pop() for _ in range(count)) if task.phase is not SETTLED]
        worker.sent_count -= count
        for task in back:
            task.phase = QUEUED
            task.worker_id = None
        self.queue.put_back(back)

    def reclaim_all(self) -> None:
        """Take back everything that no worker has claimed."""
        for worker in self.roster:
            self.reclaim(worker)

    def is_running(self, worker: Worker, task: AnyTask) -> bool:
        """After a reclaim: whether `task` is what the worker runs now. Only the last one it claimed can be."""
        if worker.state is DYING or not worker.sent or worker.sent[-1] is not task:
            return False
        return not worker.workforce.status(worker.id).is_done(task)

    def _make_way(self) -> None:
        """Priority is strict: take back what was sent ahead but is less urgent than the first in the queue.

        `_least_sent` keeps this cheap: there is nothing to look for while it is no less than what is queued.
        """
        priority = self.queue.peek().options.priority
        if priority <= self._least_sent:
            return
        self._least_sent = priority
        for worker in self.roster:
            if not worker.draining and any(sent.options.priority < priority for sent in worker.sent):
                self.reclaim(worker)

    def _rebalance(self, now: float) -> None:
        """Somebody could work and nothing is queued: what stands behind a slow task elsewhere is taken back."""
        for worker, since in self._with_some_behind(now):
            look_at = since + STEAL_AFTER
            if now >= look_at:
                self.reclaim(worker)
                self.dispatch(now)
                if not self.roster.has_room(now):
                    return
            elif self._steal_at is None:
                self.timers.add(look_at, self._steal, None)
                self._steal_at = look_at

    def _unblock(self, now: float) -> None:
        """What stands behind a slow task came before what is queued, so it takes its old place there."""
        self._look_at = now + LOOK_EVERY
        for worker, since in self._with_some_behind(now):
            if now >= since + UNBLOCK_AFTER:
                self.reclaim(worker)

    def _with_some_behind(self, now: float) -> list[tuple[Worker, float]]:
        """The workers with something behind what they run, and since when they run that."""
        found = []
        for worker in self.roster:
            if len(worker.sent) > 1 and not worker.draining and worker.state is BUSY:
                task = worker.sent[0]
                since = worker.workforce.status(worker.id).running_since(task.id, now)
                if since is not None or worker.unbegun != task.id:  # else `_look_for_unbegun` sees to it
                    found.append((worker, now if since is None else since))
        return found

    def _steal(self, _: None, now: float) -> None:
        self._steal_at = None
        self.advance(now)

    def _look_for_unbegun(self, _: None, now: float) -> None:
        """A worker that was stopped while idle, or is held up by a thread that a task left, begins nothing."""
        self._is_looking = False
        for worker in self.roster:
            if worker.state is not BUSY or worker.draining or not worker.sent or worker.is_program:
                continue
            task, status = worker.sent[0], worker.workforce.status(worker.id)
            if status.running_since(task.id, now) is not None or status.is_done(task):
                continue
            if task.nbytes > policy.LARGE_CALL:
                continue  # it may need as long to arrive, everywhere
            if worker.unbegun == task.id and self.roster.has_room(now):
                self.reclaim(worker)
                self.timers.add(now + DRAIN_WITHIN, self._give_up, worker)
            else:
                worker.unbegun = task.id
                self._look_later(now)

    def _give_up(self, worker: Worker, now: float) -> None:
        """What a worker did not begin was taken back from it, and it does not answer: it is stopped, or stuck.

        At worst it did answer, and has just been found so again: it has no task, so nobody suffers.
        """
        if worker.draining and not worker.sent:
            self.roster.kill(worker, KillReason(None, "unresponsive"), want_stack=False)
            self.roster.grow(self.queue.size, now)

    def _look_later(self, now: float) -> None:
        if not self._is_looking and self.roster.size > 1:
            self.timers.add(now + BEGIN_WITHIN, self._look_for_unbegun, None)
            self._is_looking = True

    # ===== limits of what runs =====

    def _watch(self, worker: Worker, now: float) -> None:
        """See to it that a worker is looked at when a limit of its first task may have passed.

        A timer that is set already, for an earlier task, does as well: it looks at what runs then, and sets the next.
        So a burst of tasks with limits costs one timer in all, not one each.
        """
        if worker.workforce.keeps_limits:
            return
        task = worker.sent[0]
        limit = task.options.timeout
        if task.options.memory_limit is not None:
            limit = policy.CHECK_MEMORY_NEAR if limit is None else min(limit, policy.CHECK_MEMORY_NEAR)
        if limit is None or (worker.check_at is not None and worker.check_at <= now + limit):
            return
        since = worker.workforce.status(worker.id).running_since(task.id, now)
        self.look_again(worker, (now if since is None else since) + limit)

    def look_again(self, worker: Worker, when: float) -> None:
        """Have `check` called for this worker at `when`, and not before."""
        self.timers.add(when, self._look, worker)
        worker.check_at = when

    def _look(self, worker: Worker, now: float) -> None:
        if worker.check_at is not None and worker.check_at <= now:  # else an earlier one has taken over
            worker.check_at = None
            if worker.state in (BUSY, STALLED) and worker.sent:
                self._check(worker, now)

    # ===== after an interrupted step =====

    def complete(self, worker: Worker) -> None:
        """Undo what a worker was to be sent and was not; go on with what it was sent, and with what is taken back."""
        if worker.sending is not None:
            batch, written = worker.sending
            if written:
                worker.workforce.send(worker.id, (), [], announce=False)
            else:
                worker.sent = deque(task for task in worker.sent if task not in batch)
            worker.sending = None
        if worker.reclaiming is not None:
            self._reclaim(worker, *worker.reclaiming)

    def rebuild(self, tasks: list[AnyTask], now: float) -> None:
        """Queue these tasks, in the order of their submission, and no others. All workers are known to be right."""
        self.queue.clear()
        for task in tasks:
            task.phase = QUEUED
            task.worker_id = None
        self.queue.push_many(tasks)
        told = (worker.sent for worker in self.roster if not worker.workforce.keeps_limits)
        self._least_sent = min((task.options.priority for sent in told for task in sent), default=math.inf)
        self.has_streams = True  # perhaps
        for worker in self.roster:
            if worker.state not in (BUSY, STALLED):
                continue
            if worker.sent:
                self._watch(worker, now)
            elif not worker.draining:
                self.roster.rest(worker, now)
