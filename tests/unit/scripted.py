"""A scheduler with scripted workers and a clock, for tests of the scheduler."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from typing import Any

from unit.scripted_records import check_records
from unit.scripted_workforce import AnyTask, ScriptedWorker, ScriptedWorkforce

from poolkit._core.options import CallOptions, PoolLimits
from poolkit._core.roster import Hiring
from poolkit._core.scheduler import PoolPhase, Scheduler
from poolkit._core.workforce import Begun, BootFailed, Died, Drained, Finished, Ready, Status, WorkerState
from poolkit.incoming import Incoming
from poolkit.outcome import Outcome
from poolkit.task import Task, TaskPhase

PROGRAM_GRACE = 0.5  # seconds

__all__ = ["AnyTask", "ScriptedPool", "ScriptedWorker", "ScriptedWorkforce", "crash_once", "error_of", "running", "up"]


class ScriptedPool:
    """A scheduler, its scripted workers, and a clock that the test moves. Keeps what was decided."""

    def __init__(self, size: int = 1, *, max_batch: int = 64, seed: int = 0, **limits: Any) -> None:
        self.now = 100.0
        self.workforce = ScriptedWorkforce(max_batch)
        self.scheduler = Scheduler(self.workforce, PoolLimits(size, **limits), random.Random(seed))
        self.outcomes: dict[AnyTask, Outcome] = {}
        self.events: list[Any] = []
        self.records: list[tuple[Any, ...]] = []  # what a trace would be told
        self.scheduler.recorder = self.records.append
        self.is_interrupted = False  # by exceptions in the midst of a step
        self._attempts: dict[AnyTask, int] = {}
        self._doomed: set[int] = set()

    # ===== what callers do =====

    def task(self, name: str = "work", *, is_stream: bool = False, is_program: bool = False, **options: Any) -> AnyTask:
        asked = CallOptions(**options)
        if is_program:
            asked, is_stream = asked.for_program(PROGRAM_GRACE), False
        task: AnyTask = Task(None, name, object(), asked.for_stream() if is_stream else asked, 100)
        if is_stream:
            task.incoming = Incoming(None)
        return task

    def submit(self, name: str = "work", **options: Any) -> AnyTask:
        task = self.task(name, **options)
        self.scheduler.submit(task, self.now)
        self.collect()
        return task

    def cancel(self, task: AnyTask) -> bool:
        cancelled = self.scheduler.cancel(task, self.now)
        self.collect()
        return cancelled

    def take(self, task: AnyTask) -> None:
        """The reader of a stream takes what has come of it, and says so."""
        task.incoming.items.clear()
        self.scheduler.credit(task, task.incoming.handed_out(), self.now)
        self.collect()

    def close(self, task: AnyTask, grace: float = 1.0) -> None:
        """Nobody reads a stream any more."""
        self.scheduler.end(task, grace, self.now)
        self.collect()

    def cancel_all(self, *, begun: bool = True) -> None:
        self.scheduler.cancel_all(begun=begun, now=self.now)
        self.collect()

    def shutdown(self, *, cancel_queued: bool = False, kill: bool = False, kill_after: float | None = None) -> None:
        self.scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=self.now, kill_after=kill_after)
        self.collect()

    def resize(self, size: int) -> None:
        self.scheduler.resize(size, self.now)
        self.collect()

    def warm_up(self) -> None:
        self.scheduler.warm_up(self.now)
        for worker in self.alive():
            if not worker.up:
                self.boot(worker)

    def tick(self, seconds: float = 0.0) -> None:
        """Move the clock, stopping at whatever falls due on the way, as a supervisor would."""
        end = self.now + seconds
        while (due := self.scheduler.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.scheduler.tick(self.now)
            self.collect()
        self.now = end
        self.scheduler.tick(self.now)
        self.collect()

    def collect(self) -> None:
        """Take what was decided, as a supervisor does; no task is ever settled twice."""
        settled = [*self.scheduler.settled]
        self.scheduler.settled.clear()
        for task, outcome in settled:
            assert task not in self.outcomes, f"{task} was settled twice"
            assert task.phase is TaskPhase.SETTLED
            self.outcomes[task] = outcome
            self._attempts[task] = task.attempts
            self.scheduler.accepted.pop(task, None)
        self.events += self.scheduler.events
        self.scheduler.events.clear()

    # ===== what workers do =====

    def alive(self) -> list[ScriptedWorker]:
        return [worker for worker in self.workforce.workers.values() if not worker.dead]

    def worker(self, worker_id: int) -> ScriptedWorker:
        return self.workforce.workers[worker_id]

    def runner(self, task: AnyTask) -> ScriptedWorker:
        """The worker that a task was sent to."""
        assert task.worker_id is not None
        return self.workforce.workers[task.worker_id]

    def deliver(self, worker: ScriptedWorker, count: int | None = None) -> None:
        """Hand in the next `count` reports that a worker wrote, or all."""
        left = len(worker.pipe) if count is None else count
        while worker.pipe and left > 0:
            reports = deque([worker.pipe.popleft()])
            if worker.is_program and type(reports[0]) is Finished:
                reports.append(worker.pipe.popleft())  # its end, which comes at once
            left -= len(reports)
            self.scheduler.handle_all(reports, self.now)
            self.collect()

    def boot(self, worker: ScriptedWorker, *, deliver: bool = True) -> None:
        worker.up = True
        worker.pipe.append(Ready(worker.id, 1000 + worker.id))
        if deliver:
            self.deliver(worker)

    def fail_boot(self, worker: ScriptedWorker, error: BaseException, *, deliver: bool = True) -> None:
        worker.pipe.append(BootFailed(worker.id, error))
        self.die(worker, exitcode=1, deliver=deliver)

    def claim(self, worker: ScriptedWorker, *, stamp: bool = True) -> AnyTask:
        """The worker takes its next task; without `stamp` its board does not say so yet."""
        assert worker.up
        assert not worker.dead
        assert worker.running is None
        task, worker.announce = worker.unclaimed.popleft()
        assert task.phase is not TaskPhase.SETTLED, "what is settled must not begin"
        worker.running = task
        worker.told_to_end, worker.made, worker.credited = False, 0, 0
        worker.claims.append(task)
        self.workforce.begun[task] += 1
        if stamp:
            self.stamp(worker)
        return task

    def stamp(self, worker: ScriptedWorker) -> None:
        assert worker.running is not None
        worker.status = Status(worker.running.id, self.now, 0, self.now if worker.running.options.window else 0.0)
        if worker.announce:
            worker.pipe.append(Begun(worker.id, worker.running.id))

    def give(self, worker: ScriptedWorker) -> None:
        """The worker's stream gives an item, and waits if there is no room for another."""
        task = worker.running
        assert task is not None
        worker.made += 1
        task.incoming.items.append(worker.made)
        task.incoming.come += 1
        worker.status.made = self.now if self.has_room(worker) else math.inf

    def go_on(self, worker: ScriptedWorker) -> None:
        """There is room again, or its stream is to end, and the worker sees that."""
        assert self.has_room(worker) or worker.told_to_end
        worker.status.made = self.now

    @staticmethod
    def has_room(worker: ScriptedWorker) -> bool:
        """Whether the stream of a worker may make another item."""
        assert worker.running is not None
        window = worker.running.options.window
        return window is not None and worker.made - worker.credited < window[0]

    def is_waiting(self, worker: ScriptedWorker) -> bool:
        """Whether it runs a stream that waits for its reader."""
        return worker.running is not None and worker.status.is_stalled(worker.running.id)

    def is_stamped(self, worker: ScriptedWorker) -> bool:
        return worker.running is not None and worker.status.begun == worker.running.id and worker.status.done == 0

    def finish(
        self,
        worker: ScriptedWorker,
        value: object = None,
        *,
        error: BaseException | None = None,
        rss: int = 0,
        stamp: bool = True,
        deliver: bool = True,
    ) -> None:
        """The worker's task ends with `value` or `error`; without `stamp` its board does not say so yet."""
        task = worker.running
        assert task is not None
        how = (value, True) if error is None else (error, False)
        report = Finished(worker.id, task.id, worker.status.since, self.now, rss, *how)
        if worker.told_to_end and error is None:
            report.payload, report.ok, report.cancelled = None, False, True
        worker.pipe.append(report)
        worker.running = None
        if stamp:
            worker.status = Status(worker.status.begun, worker.status.since, task.id)
        if worker.is_program:
            self.die(worker, deliver=False, exitcode=0)
        if deliver:
            self.deliver(worker)

    def run(self, worker: ScriptedWorker, value: object = None, **how: Any) -> AnyTask:
        """Claim a task and finish it."""
        task = self.claim(worker)
        self.finish(worker, value, **how)
        return task

    def drain(self, worker: ScriptedWorker, *, deliver: bool = True) -> None:
        assert worker.drops
        assert worker.running is None
        if worker.is_program:  # there is nothing else that it could do
            self.die(worker, deliver=deliver)
            return
        worker.drops -= 1
        worker.pipe.append(Drained(worker.id))
        if deliver:
            self.deliver(worker)

    def die(self, worker: ScriptedWorker, *, deliver: bool = True, **how: Any) -> None:
        """The worker ends: as it was ordered to, or (by default with SIGSEGV) of itself."""
        worker.dead = True
        if not how:
            how = (
                {"signal": "SIGKILL"} if worker.killed else {"exitcode": 0} if worker.stopped else {"signal": "SIGSEGV"}
            )
        worker.pipe.append(Died(worker.id, pid=1000 + worker.id, **how))
        if deliver:
            self.deliver(worker)

    # ===== to the end =====

    def step(self) -> bool:
        """Let everyone do one thing that a good worker would; False when nobody has anything to do."""
        moved = False
        for worker in list(self.workforce.workers.values()):
            if worker.dead or worker.pipe:
                pass
            elif worker.killed or (worker.stopped and worker.running is None):
                self.die(worker, deliver=False)
            elif not worker.up:
                self.boot(worker, deliver=False)
            elif self.is_waiting(worker) and not worker.told_to_end:
                moved = self._read(worker) or moved
            elif worker.running is not None:
                if not self.is_stamped(worker):
                    self.stamp(worker)
                self.finish(worker, deliver=False)
            elif worker.drops and not worker.unclaimed:
                self.drain(worker, deliver=False)
            elif worker.unclaimed:
                self.claim(worker)
                moved = True
            moved = moved or bool(worker.pipe)
            self.deliver(worker)
        return moved

    def _read(self, worker: ScriptedWorker) -> bool:
        """The reader of a stream that waits takes what is there, and its worker goes on; False when neither is so."""
        assert worker.running is not None
        if worker.credited < worker.made:
            self.take(worker.running)
        if not self.has_room(worker):
            return False
        self.go_on(worker)
        return True

    def run_to_rest(self) -> None:
        """Let everyone do what a good worker would, and time pass for tasks that wait for a retry or a worker."""
        for _ in range(10_000):
            if self.step():
                continue
            due = self.scheduler.next_deadline()
            if due is None or not self.scheduler.unsettled:
                return
            self.tick(max(0.0, due - self.now))
        raise AssertionError("it does not come to rest")

    def end(self) -> None:
        """Shut down, and check that everything is settled and the pool is closed."""
        self.shutdown()
        self.run_to_rest()
        assert self.scheduler.phase is PoolPhase.CLOSED
        assert not self.scheduler.unsettled
        self.check()
        check_records(self)

    # ===== what always holds =====

    def check(self) -> None:
        """Check that everything the scheduler says of itself agrees, and with what its workers say."""
        scheduler, roster = self.scheduler, self.scheduler.roster
        sent = [task for worker in roster for task in worker.sent if task.phase is not TaskPhase.SETTLED]
        queued, waiting = list(scheduler.queue), list(scheduler.waiting)
        places = Counter([*sent, *queued, *waiting])
        assert all(count == 1 for count in places.values()), "a task is in two places"
        assert all(task.phase is TaskPhase.SENT and task.worker_id is not None for task in sent)
        assert all(task.phase is TaskPhase.QUEUED and task.worker_id is None for task in queued)
        assert all(task.phase is TaskPhase.WAITING for task in waiting)
        assert len(places) == scheduler.unsettled == len(scheduler.unsettled_tasks())
        assert not places.keys() & self.outcomes.keys()
        counters = scheduler.counters
        assert counters.submitted == scheduler.unsettled + counters.succeeded + counters.failed + counters.cancelled
        assert counters.succeeded + counters.failed + counters.cancelled == len(self.outcomes)
        for task, attempts in self._attempts.items():
            assert task.phase is TaskPhase.SETTLED
            assert task.attempts == attempts, "a settled task changed"

        for task in [*places, *self.outcomes]:
            assert self.workforce.begun[task] <= 1 + task.options.retries, "begun more often than asked for"
            if task in self.outcomes:
                assert task.attempts == self.workforce.begun[task], "attempts are the runs that began"

        states = Counter(worker.state.name for worker in roster)
        assert states["IDLE"] == len(roster.idle)
        self._check_programs(states["BUSY"])
        assert states["STARTING"] == roster.starting
        assert roster.counted == sum(worker.counted for worker in roster)
        resumed = [worker for worker in roster if worker.gave_way and worker.state is WorkerState.BUSY]
        assert roster.counted <= max(roster.size, sum(worker.is_program for worker in roster)) + len(resumed), [
            (w.id, w.state.name, w.is_program, w.counted, w.gave_way, w.lender and w.lender.id) for w in roster
        ]
        assert set(roster.workers) == set(self.workforce.workers)
        for record in roster:
            worker = self.workforce.workers[record.id]
            assert len(worker.claims) + len(worker.unclaimed) == record.sent_count
            assert record.limit is None or record.sent_count <= record.limit, "more tasks than its limit"
            if record.id not in self._doomed and record.kill_reason is not None and record.kill_reason.task is not None:
                self._doomed.add(record.id)
                condemned = record.kill_reason.task
                assert worker.claims[-1] is condemned, "a worker is killed for what it does not run"
                assert not worker.status.is_done(condemned), "a worker is killed for what is done"
            if record.state is WorkerState.STALLED:
                assert not record.counted
                assert [task.options.window is not None for task in record.sent] == [True]
            unclaimed = [task for task, _ in worker.unclaimed]
            assert unclaimed == list(record.sent)[len(record.sent) - len(unclaimed) :]
            assert record.draining == bool(worker.drops or any(isinstance(each, Drained) for each in worker.pipe))
            if queued and unclaimed:
                least = min(task.options.priority for task in unclaimed)
                assert least >= queued[0].options.priority, "something less urgent was sent ahead"
        if queued:
            self._check_queued(queued)
        assert (scheduler.phase is PoolPhase.CLOSED) == (
            scheduler.phase > PoolPhase.OPEN and not scheduler.unsettled and not roster.workers
        )

    def _check_programs(self, busy: int) -> None:
        """Each has one place, of its own or lent, until it is gone."""
        roster = self.scheduler.roster
        programs = [worker for worker in roster if worker.is_program]
        assert busy + sum(worker.state is WorkerState.DYING for worker in programs) == roster.busy
        lenders = [worker.lender for worker in programs if worker.lender is not None]
        lent = {worker for worker in roster if worker.state is WorkerState.LENT}
        assert lent == {worker for worker in lenders if worker.state is WorkerState.LENT}
        assert len(lenders) == len(set(lenders)), "a place was lent twice"
        assert roster.programs == sum(worker.counted and worker.lender is None for worker in programs)
        assert all(worker.counted for worker in programs), "a program's place was given away"

    def _check_queued(self, queued: list[AnyTask]) -> None:
        """Somebody will run what is queued, and nobody can now."""
        scheduler, roster = self.scheduler, self.scheduler.roster
        if queued[0].options.grace is not None:
            lenders = [worker for worker in roster.idle if worker.counted]
            assert roster.busy >= roster.size or (roster.counted >= roster.size and not lenders), "a place is free"
            assert roster.busy or roster.starting or self.now < roster.boot_at, "nobody will run what is queued"
            return
        assert roster.hiring is not Hiring.NONE
        limit = queued[0].options.memory_limit
        fits = [
            record
            for record in roster.idle
            if limit is None or not record.tasks_done or (self.workforce.memory(record.id) or 0) <= limit
        ]
        assert not (fits and roster.busy < roster.size), "a worker is idle and a task is queued"
        assert roster.busy or roster.starting or self.now < roster.boot_at, "nobody will run what is queued"
        waiting = [self.is_waiting(self.worker(record.id)) for record in roster if record.state is WorkerState.BUSY]
        is_ending = any(record.is_program and record.state is WorkerState.DYING for record in roster)
        if all(waiting) and not is_ending and not roster.starting and self.now >= roster.boot_at:
            assert scheduler._dispatcher._give_way_at is not None, "nobody will look for a place"


# ===== where many tests begin =====


def up(size: int = 1, **limits: Any) -> ScriptedPool:
    pool = ScriptedPool(size, **limits)
    pool.warm_up()
    return pool


def error_of(pool: ScriptedPool, task: AnyTask) -> Any:
    return pool.outcomes[task].payload


def running(pool: ScriptedPool, **options: Any) -> tuple[AnyTask, ScriptedWorker]:
    pool.warm_up()
    task = pool.submit(**options)
    worker = pool.runner(task)
    pool.claim(worker)
    return task, worker


def crash_once(pool: ScriptedPool, **options: Any) -> AnyTask:
    task = pool.submit(**options)
    worker = pool.runner(task)
    pool.claim(worker)
    pool.die(worker)
    return task
