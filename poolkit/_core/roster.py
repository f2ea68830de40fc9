"""Roster: which workers exist, what each one is doing, and how many there should be.

Guarantees: never more than `size` workers are busy, nor more than `size` that count (one that is leaving, stopping,
dying, stalled or lent does not; a program does until it is gone), but for streams that go on after another task had
their place; nor are more started than make twice the size in all; a worker gets no more tasks than its limit; a crash
loop at boot backs off and is told.
Owner of: each worker's `state`, `leave`, `replaced`, `counted`, `limit`, `tasks_done`, `kill_reason`.
Guarded by: the pool's one lock; nothing here blocks, logs or calls user code.

How a worker is recycled, so that nobody waits for a boot
  1. near its last task (or above its memory limit) it is marked: it counts no more, so that a replacement may start;
  2. it goes on taking tasks while the replacement boots, up to its limit;
  3. the replacement is ready: the old worker takes nothing more and leaves when it has finished what it claimed;
  4. the replacement gets its first task only when fewer than `size` workers are busy.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable, Iterator

from poolkit._core import policy
from poolkit._core.options import PoolLimits
from poolkit._core.timers import Timers
from poolkit._core.workforce import (
    BUSY,
    DYING,
    IDLE,
    LENT,
    STALLED,
    STARTING,
    STOPPING,
    KillReason,
    Worker,
    WorkerState,
    Workforce,
)


class Hiring(enum.IntEnum):
    """When workers are started, in order; it only moves forward.

    FULL    for queued tasks, and in the place of those that died
    DEMAND  for queued tasks alone: the pool is shutting, or is of dedicated workers
    NONE    never again
    """

    FULL = 0
    DEMAND = 1
    NONE = 2


class IdleSlots(dict[Worker, None]):
    """Idle workers, of which the spare ones are the last to be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.spare: dict[Worker, None] = {}

    def __len__(self) -> int:
        return super().__len__() + len(self.spare)

    def __iter__(self) -> Iterator[Worker]:
        return itertools.chain(self.spare, super().__iter__())

    def __setitem__(self, worker: Worker, value: None) -> None:
        if worker.is_spare:
            self.spare[worker] = value
        else:
            super().__setitem__(worker, value)

    def __delitem__(self, worker: Worker) -> None:
        if worker.is_spare:
            del self.spare[worker]
        else:
            super().__delitem__(worker)

    def popitem(self) -> tuple[Worker, None]:
        """Take the warmest that is not spare; else the warmest that is."""
        return super().popitem() if super().__len__() else self.spare.popitem()

    def clear(self) -> None:
        """Take all out."""
        super().clear()
        self.spare.clear()


class Roster:
    """The workers of one pool. Not thread-safe: the pool's lock guards it."""

    def __init__(self, workforce: Workforce, limits: PoolLimits, timers: Timers, rng: random.Random) -> None:
        self.workforce = workforce
        self.limits = limits
        self.timers = timers
        self.rng = rng
        self.workers: dict[int, Worker] = {}
        # A stack: the worker that was busy last is the warmest.
        self.idle: dict[Worker, None] = IdleSlots() if workforce.keeps_limits else {}
        self._to_replace: dict[Worker, None] = {}  # leaving, not `replaced`: they wait for that, or are stopping
        self.size = limits.max_workers
        self.wanted = 0  # how many demand has called for; deaths are made good up to here
        self.counted = 0  # workers that are neither leaving nor dying
        self.starting = 0  # workers in that state
        self.busy = 0  # workers in that state, and programs that are dying
        self.programs = 0  # those that have a place of their own; they count, and are busy
        self.hiring = Hiring.DEMAND if limits.on_demand else Hiring.FULL
        self.boot_failures = 0  # deaths before they were ready, in a row, since waiting tasks were last told of them
        self.boot_deaths = 0  # deaths before they were ready, in a row: for the back-off
        self.early_deaths = 0  # deaths soon after they were ready, in a row, with no task begun or done in between
        self.died_early_at = 0.0  # when the last of either was noticed
        self.boot_at = 0.0  # not to be started before
        self.stalled = 0  # workers in that state, when a stream waited last
        self.warming = 0  # callers that wait until every worker is up
        self.respawned = 0
        self.recycled = 0
        self._next_id = 1
        self._idle_check_at: float | None = None

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers.values())

    def ready_count(self) -> int:
        """How many workers are up."""
        return len(self.idle) + self.busy - self.programs

    # ===== growing =====

    def grow(self, demand: int, now: float) -> None:
        """Start workers for `demand` queued tasks, and for those that are missing."""
        missing = self._missing()
        if missing <= 0 or self.hiring is Hiring.NONE:
            return
        count = demand - self.starting - len(self.idle)
        if self.hiring is Hiring.FULL:
            count = max(count, self.wanted - self.counted)
        if count <= 0 or now < self.boot_at:  # a timer is set for then
            return
        for _ in range(min(count, missing)):
            self._start(now)
        self.wanted = max(self.wanted, self.counted - self.programs)

    def _missing(self) -> int:
        """How many workers may be started: up to the size, and never more in all than places and as many again."""
        return min(self.size - self.counted, 2 * self.size - self.starting - len(self.idle) - self.busy)

    def _start(self, now: float) -> None:
        limit = policy.recycle_after(self.limits.max_tasks_per_child, self.rng)
        worker = self._new(Worker(self._next_id, limit, now, self.workforce))
        self.starting += 1
        self.workforce.start(worker.id)

    def _new(self, worker: Worker) -> Worker:
        self._next_id += 1
        self.workers[worker.id] = worker
        self.counted += 1
        return worker

    def ready(self, worker: Worker, pid: int | None, now: float) -> None:
        """A worker is up: it may be given work, and a leaving one that waited for its replacement may go."""
        worker.pid = pid
        worker.ready_at = now
        self.boot_failures = self.boot_deaths = 0
        self.starting -= 1
        self.rest(worker, now)
        self._let_replaced_go(now)

    def _let_replaced_go(self, now: float) -> None:
        """Let those leave that waited for a replacement, as far as enough workers are up without them."""
        if self._to_replace:
            surplus = self.counted - self.starting + len(self._to_replace) - self.wanted
            for worker in sorted(self._to_replace, key=lambda worker: worker.id)[: max(0, surplus)]:
                self.leave(worker, "recycled", now)

    # ===== idle and busy =====

    def has_room(self, now: float) -> bool:
        """Whether something that is queued could be sent to a worker now, or to one that is started for it."""
        if self.idle:
            return self.busy < self.size
        return self._missing() > 0 and self.hiring is not Hiring.NONE and now >= self.boot_at

    def take_idle(self, fits: Callable[[Worker], bool] | None = None) -> Worker | None:
        """The warmest idle worker, to be sent something now; None when none fits, or `size` workers are busy."""
        if not self.idle or self.busy >= self.size:
            return None
        if fits is None:
            worker, _ = self.idle.popitem()
        else:
            found = next(filter(fits, reversed(self.idle)), None)
            if found is None:
                return None
            worker = found
            del self.idle[worker]
        worker.state = BUSY
        self.busy += 1
        return worker

    def seat(self, now: float) -> Worker | None:
        """Make a record for a program, to be sent its task now, in a free place or that of an idle worker; None: none.

        That worker stays warm, and gets its place back.
        """
        lender = None
        if self.counted >= self.size:
            lender = next((worker for worker in self.idle if worker.counted), None)  # the coldest
            if lender is None:
                return None
        if self.busy >= self.size:
            return None
        assert self.workforce.programs is not None  # noqa: S101 -- it is there before such a task is submitted
        program = Worker(self._next_id, None, now, self.workforce.programs)
        program.is_program = program.replaced = True  # it takes nothing more
        program.state = BUSY
        if lender is not None:
            program.lender = lender
            del self.idle[lender]
            lender.state = LENT
            lender.gave_way = True
            self._uncount(lender)
        else:
            self.programs += 1
        self.busy += 1
        return self._new(program)

    def can_take(self, worker: Worker) -> bool:
        """Whether more may be sent to this worker before it has finished what it has."""
        return worker.state is BUSY and not worker.draining and not self._must_leave(worker)

    @staticmethod
    def _must_leave(worker: Worker) -> bool:
        return worker.replaced or (worker.limit is not None and worker.sent_count >= worker.limit)

    def near_its_limit(self, worker: Worker) -> None:
        """Mark a worker that was sent nearly as many tasks as it may have, so that a replacement warms up."""
        limit = worker.limit
        if limit is not None and worker.leave is None and limit - worker.sent_count <= policy.replace_ahead(limit):
            self._recycle(worker)

    def check_memory(self, worker: Worker, rss: int) -> None:
        """Take into account that a worker used `rss` bytes of memory after a task."""
        most = self.limits.max_memory_per_child
        if most is not None and rss > most and worker.leave is None and worker.state is BUSY:
            self._recycle(worker)

    def rest(self, worker: Worker, now: float) -> None:
        """A worker that was busy has nothing more to do, or one has come up: it becomes idle, or leaves."""
        if worker.state is BUSY:
            self.busy -= 1
        elif worker.state in (STALLED, LENT):
            self._recount(worker)
        elif worker.state is not STARTING:
            return
        worker.state = IDLE
        self.idle[worker] = None
        worker.idle_since = now
        if self.hiring is Hiring.NONE or worker.replaced or (worker.limit is not None and self._must_leave(worker)):
            self.stop(worker, now)
        elif worker.gave_way and self.counted > self.size:  # whoever was started in its place stays
            self.leave(worker, "shrunk", now)
        elif self.limits.idle_timeout is not None and self._idle_check_at is None:
            self._check_idle_at(now + self.limits.idle_timeout)

    def stall(self, worker: Worker) -> None:
        """The stream of a busy worker waits for its reader: another task may have its place."""
        worker.gave_way = True
        self._leave_state(worker)
        worker.state = STALLED
        self._uncount(worker)

    def resume(self, worker: Worker) -> None:
        """The stream of a worker goes on. For a while, more than `size` may be busy."""
        if worker.state is STALLED:
            worker.state = BUSY
            self.busy += 1
            self._recount(worker)

    def _recount(self, worker: Worker) -> None:
        if worker.leave is None and not worker.counted:
            worker.counted = True
            self.counted += 1

    def _check_idle(self, _: None, now: float) -> None:
        """Let workers go that were idle for too long, down to `min_workers`; the longest idle first."""
        self._idle_check_at = None
        timeout = self.limits.idle_timeout or 0.0
        if self.warming:  # somebody waits until all are up; an early one must not leave before a late one comes
            self._check_idle_at(now + timeout)
            return
        least = self.limits.min_workers + self.programs
        for worker in [*itertools.takewhile(lambda worker: worker.idle_since + timeout <= now, self.idle)]:
            if self.counted <= least:
                return
            self.leave(worker, "idle", now)
            self.wanted = min(self.wanted, self.counted - self.programs)
        if self.idle and self.counted > least:
            self._check_idle_at(next(iter(self.idle)).idle_since + timeout)

    def _check_idle_at(self, when: float) -> None:
        self.timers.add(when, self._check_idle, None)
        self._idle_check_at = when

    # ===== leaving =====

    def _recycle(self, worker: Worker) -> None:
        worker.leave = "recycled"
        if worker.workforce.keeps_limits:
            worker.replaced = True  # its place is to be free first
        else:
            self._to_replace[worker] = None
        self._uncount(worker)
        self.recycled += 1

    def exchange(self, worker: Worker, now: float) -> None:
        """Let an idle worker go, to make room for a new one."""
        self._recycle(worker)
        self.leave(worker, "recycled", now)

    def leave(self, worker: Worker, why: str, now: float) -> None:
        """Let a worker leave without waiting for a replacement: now if it is idle, else when it has finished."""
        worker.leave = worker.leave or why
        worker.replaced = True
        self._to_replace.pop(worker, None)
        self._uncount(worker)
        if worker.state is IDLE:
            self.stop(worker, now)

    def stop(self, worker: Worker, now: float) -> None:
        """Ask an idle worker to go; one that does not is killed after a while."""
        self._move(worker, STOPPING)
        self._uncount(worker)
        worker.workforce.stop(worker.id)
        self.timers.add(now + policy.STOP_GRACE, self._kill_unresponsive, worker)

    def _kill_unresponsive(self, worker: Worker, _now: float) -> None:
        self.kill(worker, KillReason(None, "unresponsive"), want_stack=False)

    def kill(self, worker: Worker, kill_reason: KillReason, *, want_stack: bool) -> None:
        """Kill a worker, for one reason, once. It gets no more work; its place is free, a program's once it is gone."""
        if worker.state is DYING:
            return
        worker.kill_reason = kill_reason
        if worker.is_program and worker.state is BUSY:
            worker.state = DYING
        else:
            self._move(worker, DYING)
            self._uncount(worker)
        worker.workforce.kill(worker.id, want_stack=want_stack)

    def remove(self, worker: Worker, *, begun: bool, now: float) -> bool:
        """Strike out a worker that is gone; `begun`: it died while it ran a task.

        Returns:
            Whether it was one too many that died of itself before it was ready, and none is up.
        """
        state = worker.state
        self._leave_state(worker)
        del self.workers[worker.id]
        self._to_replace.pop(worker, None)
        if worker.is_program or state is LENT:
            self._unseat(worker, now)
        if worker.is_program or state in (STOPPING, DYING, LENT):
            return False
        if worker.counted:
            self.respawned += 1
            self._uncount(worker)
        if state is not STARTING and (begun or worker.tasks_done or now > worker.ready_at + policy.EARLY):
            self.early_deaths = 0
            return False  # the worker did come up: its replacement will, too
        if worker.since < self.died_early_at:
            return False  # not one more early death: whatever caused the last one may have ended all that were there
        self.died_early_at = now
        if state is STARTING:
            self.boot_deaths += 1
            self._back_off(self.boot_deaths, now)
        else:
            self.early_deaths += 1
            if self.early_deaths > policy.EARLY_DEATHS:
                self._back_off(self.early_deaths - policy.EARLY_DEATHS, now)
            return False
        self.boot_failures += 1
        if self.boot_failures < policy.BOOT_FAILURES or self.ready_count():
            return False
        self.boot_failures = 0
        self.wanted = 0
        return True

    def _unseat(self, gone: Worker, now: float) -> None:
        """A program is gone: its place is free, or its lender's again. Or that is gone: the place is the program's."""
        self._uncount(gone)
        lender, gone.lender = gone.lender, None
        if lender is not None and lender.state is LENT:
            self.rest(lender, now)
        for program in () if gone.is_program else self:
            if program.lender is gone:
                program.lender = None
                self.programs += program.counted

    def _back_off(self, failures: int, now: float) -> None:
        when = now + policy.backoff(failures, self.rng, base=policy.BOOT_BASE, cap=policy.BOOT_CAP)
        self.timers.add(when, self._grow_again, None)
        self.boot_at = when

    def _grow_again(self, _: None, now: float) -> None:
        self.grow(0, now)

    # ===== size =====

    def resize(self, size: int, now: float) -> list[Worker]:
        """Change how many workers there may be; surplus ones leave, idle ones first, busy ones when they finish.

        Returns:
            The busy ones that are to leave.
        """
        self.size = size
        self.wanted = min(self.wanted, size)
        busy = []
        surplus = max(0, self.counted - size)
        counted = [worker for worker in self if worker.counted and not worker.is_program] if surplus else []
        counted.sort(key=lambda worker: (worker.state, worker.id))
        for worker in counted[:surplus]:
            if worker.state is STARTING:
                self.kill(worker, KillReason(None, "shrunk"), want_stack=False)
            else:
                if worker.state is BUSY:
                    busy.append(worker)
                self.leave(worker, "shrunk", now)
        self._let_replaced_go(now)
        return busy

    def close(self, now: float) -> None:
        """Let every worker go that has nothing to do; start none any more."""
        self.hiring = Hiring.NONE
        for worker in list(self):
            if worker.state is IDLE:
                self.stop(worker, now)
            elif worker.state is STARTING:
                self.kill(worker, KillReason(None, "shutdown"), want_stack=False)

    def forget_all(self) -> None:
        """Strike everybody out, ordering nothing; start none any more."""
        self.hiring = Hiring.NONE
        self.workers.clear()
        self.idle.clear()
        self._to_replace.clear()
        self.counted = self.starting = self.busy = self.programs = 0

    # ===== after an interrupted step =====

    def repair(self, now: float) -> None:
        """Count anew, and give the orders again that may be missing."""
        workers = list(self)
        lenders = {worker.lender for worker in workers}
        for worker in workers:
            if worker.state is LENT and worker not in lenders:
                worker.state = IDLE
            is_seated = worker.is_program and worker.state is DYING
            worker.counted = worker.leave is None and (is_seated or worker.state in (STARTING, IDLE, BUSY))
        self.counted = sum(worker.counted for worker in workers)
        self.starting = sum(worker.state is STARTING for worker in workers)
        self.busy = sum(worker.state is BUSY or (worker.is_program and worker.state is DYING) for worker in workers)
        self.programs = sum(worker.is_program and worker.lender is None and worker.counted for worker in workers)
        idle = sorted((each for each in workers if each.state is IDLE), key=lambda each: each.idle_since)
        self.idle.clear()
        for each in idle:
            self.idle[each] = None
        self._to_replace = {each: None for each in workers if each.leave is not None and not each.replaced}
        for worker in workers:
            if worker.state is STARTING:
                self.workforce.start(worker.id)
            elif worker.state is STOPPING:
                self.timers.add(now + policy.STOP_GRACE, self._kill_unresponsive, worker)
            elif worker.state is DYING:
                worker.workforce.kill(worker.id, want_stack=False)
            worker.sent_count = worker.tasks_done + len(worker.sent)
            if worker.kill_reason is not None:
                self.kill(worker, worker.kill_reason, want_stack=False)
            elif worker.state is IDLE and (self.hiring is Hiring.NONE or self._must_leave(worker)):
                self.stop(worker, now)

    # ===== the counts =====

    def _move(self, worker: Worker, state: WorkerState) -> None:
        """Move a worker that goes into STOPPING or DYING."""
        self._leave_state(worker)
        worker.state = state

    def _leave_state(self, worker: Worker) -> None:
        state = worker.state
        if state is BUSY or (worker.is_program and state is DYING):
            self.busy -= 1
        elif state is STARTING:
            self.starting -= 1
        elif state is IDLE:
            del self.idle[worker]

    def _uncount(self, worker: Worker) -> None:
        if worker.counted:
            worker.counted = False
            self.counted -= 1
            self.programs -= worker.is_program and worker.lender is None
