"""Roster: which workers exist, what each one is doing, and how many there should be.

Guarantees: never more than `size` workers that count (a leaving or doomed one does not); a worker is idle, busy,
starting, stopping or doomed, and moves only by the methods here; a crash loop at boot backs off and is told.
Guarded by: the pool's one lock; nothing here blocks, logs or calls user code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from poolkit._core import policy
from poolkit._core.options import PoolLimits
from poolkit._core.timers import Timers
from poolkit._core.workforce import Sentence, Worker, Workforce, WorkerState


class Roster:
    """The workers of one pool. Not thread-safe: the pool's lock guards it."""

    def __init__(self, workforce: Workforce, limits: PoolLimits, timers: Timers, rng: random.Random) -> None:
        self.workforce = workforce
        self.limits = limits
        self.timers = timers
        self.rng = rng
        self.workers: dict[int, Worker] = {}
        self.idle: list[Worker] = []  # a stack: the worker that was busy last is the warmest
        self.size = limits.max_workers
        self.wanted = 0  # how many demand has called for; deaths are made good up to here
        self.counted = 0  # workers that are neither leaving nor doomed
        self.starting = 0
        self.open = True  # False: nothing is started any more
        self.boot_failures = 0  # in a row, without a task done in between
        self.boot_at = 0.0  # not to be started before
        self.respawned = 0
        self.recycled = 0
        self._next_id = 1
        self._idle_check_at: float | None = None

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers.values())

    def ready_count(self) -> int:
        """How many workers are up."""
        return sum(worker.state in (WorkerState.IDLE, WorkerState.BUSY) for worker in self)

    # ===== growing =====

    def grow(self, demand: int, now: float) -> None:
        """Start workers for `demand` queued tasks, and for those that are missing."""
        missing = self.size - self.counted
        if missing <= 0 or not self.open:
            return
        count = min(missing, max(demand - self.starting, self.wanted - self.counted))
        if count <= 0:
            return
        if now < self.boot_at:  # a timer is set for then
            return
        for _ in range(count):
            self._start(now)
        self.wanted = max(self.wanted, self.counted)

    def _start(self, now: float) -> None:
        worker = Worker(self._next_id, policy.recycle_after(self.limits.max_tasks_per_child, self.rng), now)
        self._next_id += 1
        self.workers[worker.id] = worker
        self.counted += 1
        self.starting += 1
        self.workforce.start(worker.id)

    def ready(self, worker: Worker, pid: int | None, now: float) -> None:
        """A worker is up: it may be given work, and a leaving one that waited for its replacement may go."""
        self.starting -= 1
        worker.pid = pid
        worker.state = WorkerState.BUSY
        self.rest(worker, now)
        for other in self.workers.values():
            if other.leave is not None and not other.replaced:
                other.replaced = True
                if other.state is WorkerState.IDLE:
                    self.stop(other, now)
                return

    # ===== idle and busy =====

    def take_idle(self) -> Worker | None:
        """The warmest idle worker, to be sent something now."""
        if not self.idle:
            return None
        worker = self.idle.pop()
        worker.state = WorkerState.BUSY
        return worker

    def can_take(self, worker: Worker) -> bool:
        """Whether more may be sent to this worker."""
        return worker.state is WorkerState.BUSY and not worker.draining and not self._must_leave(worker)

    @staticmethod
    def _must_leave(worker: Worker) -> bool:
        if worker.leave is None:
            return False
        return worker.replaced or (worker.limit is not None and worker.sent_count >= worker.limit)

    def rest(self, worker: Worker, now: float) -> None:
        """A worker has nothing to do: it becomes idle, or leaves."""
        if worker.state is not WorkerState.BUSY:
            return
        worker.state = WorkerState.IDLE
        worker.idle_since = now
        worker.check_at = None
        self.idle.append(worker)
        if not self.open or self._must_leave(worker):
            self.stop(worker, now)
        elif self.counted > self.size:
            self.leave(worker, "shrunk", now)
        elif self.limits.idle_timeout is not None and self._idle_check_at is None:
            self._idle_check_at = now + self.limits.idle_timeout
            self.timers.add(self._idle_check_at, self._check_idle, None)

    def _check_idle(self, _: None, now: float) -> None:
        """Let workers go that were idle for too long, down to `min_workers`; the longest idle first."""
        self._idle_check_at = None
        timeout = self.limits.idle_timeout
        if timeout is None:
            return
        for worker in sorted(self.idle, key=lambda worker: worker.idle_since):
            if worker.idle_since + timeout > now:
                self._idle_check_at = worker.idle_since + timeout
                self.timers.add(self._idle_check_at, self._check_idle, None)
                return
            if self.counted <= self.limits.min_workers:
                return
            self.leave(worker, "idle", now)
            self.wanted = min(self.wanted, self.counted)

    # ===== leaving =====

    def sent(self, worker: Worker, count: int) -> None:
        """Note that `count` tasks went out; near its last one a worker is marked to leave, so that a replacement warms."""
        worker.sent_count += count
        if worker.limit is not None and worker.leave is None:
            left = worker.limit - worker.sent_count
            if left <= policy.replace_ahead(worker.limit) and (worker.limit > 1 or left <= 0):
                self.mark(worker, "recycled")

    def mark(self, worker: Worker, why: str) -> None:
        """Let a worker leave when it has finished; it no longer counts, so that a replacement may start."""
        if worker.leave is None:
            worker.leave = why
            self._uncount(worker)
            if why == "recycled":
                self.recycled += 1

    def leave(self, worker: Worker, why: str, now: float) -> None:
        """Let a worker leave without a replacement: now if it is idle, else when it has finished."""
        self.mark(worker, why)
        worker.replaced = True
        if worker.state is WorkerState.IDLE:
            self.stop(worker, now)

    def stop(self, worker: Worker, now: float) -> None:
        """Ask an idle worker to go; one that does not is killed after a while."""
        self.idle.remove(worker)
        self._uncount(worker)
        worker.state = WorkerState.STOPPING
        self.workforce.stop(worker.id)
        self.timers.add(now + policy.STOP_GRACE, self._kill_unresponsive, worker)

    def _kill_unresponsive(self, worker: Worker, now: float) -> None:
        if self.workers.get(worker.id) is worker and worker.state is WorkerState.STOPPING:
            self.doom(worker, Sentence(None, "unresponsive"), want_stack=False, now=now)

    def doom(self, worker: Worker, sentence: Sentence, *, want_stack: bool, now: float) -> None:  # noqa: ARG002
        """Kill a worker, for one reason, once. It gets no more work and its place is free."""
        if worker.state is WorkerState.DOOMED:
            return
        if worker.state is WorkerState.IDLE:
            self.idle.remove(worker)
        elif worker.state is WorkerState.STARTING:
            self.starting -= 1
        worker.state = WorkerState.DOOMED
        worker.sentence = sentence
        self._uncount(worker)
        self.workforce.kill(worker.id, want_stack=want_stack)

    def remove(self, worker: Worker, now: float) -> bool:
        """A worker is gone. Returns whether it died of itself before it ever was ready."""
        del self.workers[worker.id]
        if worker.state is WorkerState.IDLE:
            self.idle.remove(worker)
        never_ready = worker.state is WorkerState.STARTING
        if never_ready:
            self.starting -= 1
        asked_for = worker.sentence is not None or worker.leave is not None or worker.state is WorkerState.STOPPING
        self._uncount(worker)
        if not asked_for:
            self.respawned += 1
            if worker.tasks_done == 0 and worker.state is not WorkerState.BUSY:
                self._back_off(now)
        return never_ready and not asked_for

    def _back_off(self, now: float) -> None:
        self.boot_failures += 1
        delay = policy.backoff(self.boot_failures, self.rng, base=policy.BOOT_BASE, cap=policy.BOOT_CAP)
        self.boot_at = now + delay
        self.timers.add(self.boot_at, self._grow_again, None)

    def _grow_again(self, _: None, now: float) -> None:
        self.grow(0, now)

    def _uncount(self, worker: Worker) -> None:
        if worker.counted:
            worker.counted = False
            self.counted -= 1

    # ===== size =====

    def resize(self, size: int, now: float) -> None:
        """Change how many workers there may be; surplus ones leave, idle ones first, busy ones when they finish."""
        self.size = size
        self.wanted = min(self.wanted, size)
        candidates = [worker for worker in self.workers.values() if worker.counted]
        candidates.sort(key=lambda worker: (worker.state is WorkerState.BUSY, worker.state, worker.id))
        for worker in candidates:
            if self.counted <= size:
                break
            if worker.state is WorkerState.STARTING:
                self.doom(worker, Sentence(None, "shrunk"), want_stack=False, now=now)
            else:
                self.leave(worker, "shrunk", now)

    def close(self, now: float) -> None:
        """Let every worker go that has nothing to do; start none any more."""
        self.open = False
        for worker in list(self.workers.values()):
            if worker.state is WorkerState.IDLE:
                self.stop(worker, now)
            elif worker.state is WorkerState.STARTING:
                self.doom(worker, Sentence(None, "shutdown"), want_stack=False, now=now)
