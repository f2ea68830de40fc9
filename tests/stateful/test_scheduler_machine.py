"""Orders of events that no real run would show, driven through the scheduler with a scripted workforce.

Each step is something that a caller, a worker or the clock could do next. After each step everything that the scheduler
says of itself must agree; at the end, with every worker behaving, all tasks are settled and the pool is closed.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker

from poolkit._core.policy import CHECK_MEMORY_FAR, DEATH_GRACE, LOOK_AGAIN
from poolkit._core.scheduler import PoolPhase
from poolkit._core.workforce import EVENT_NAMES, Finished, TaskDone, TaskStarted, WorkerState
from poolkit.errors import (
    DeadlineExceeded,
    InitializerFailed,
    MemoryLimitExceeded,
    PoolClosed,
    QueueFull,
    QueueTimeout,
    TaskTimeout,
    WorkerCrashed,
)
from poolkit.task import TaskPhase

RARELY = st.sampled_from([False] * 7 + [True])
MOVES = [
    *["boot", "boot", "boot", "boot", "boot unheard"],
    *["claim", "claim", "claim", "claim", "claim", "claim", "claim unstamped", "stamp"],
    *["finish", "finish", "finish", "finish unheard", "finish unheard unstamped", "finish grown"],
    *["fail", "fail unheard", "break", "swell", "swell", "shrink"],
    *["give", "give", "give", "give", "go on", "go on", "go on"],
    *["drain", "drain", "drain unheard", "deliver", "deliver", "deliver", "obey", "crash", "crash unheard"],
]
SECONDS = st.sampled_from([0.0004, 0.001, 0.01, 0.05, 0.1, 0.1, 0.2, 0.5, 1.0, 3.0])
LIMITS = st.sampled_from([None, None, None, None, None, 0.001, 0.1, 0.5, 2.0])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(-1, 2),
        "timeout": LIMITS,
        "queue_timeout": LIMITS,
        "deadline": LIMITS,
        "memory_limit": st.sampled_from([None, None, 100]),
        "retries": st.integers(0, 2),
        "is_stream": st.booleans(),
        "is_program": st.booleans(),
        "buffersize": st.integers(1, 3),
        "retry_on": st.sampled_from([(), (ValueError,), (TaskTimeout, ValueError), (TaskTimeout, MemoryLimitExceeded)]),
    },
)


class SchedulerMachine(RuleBasedStateMachine):
    """A pool, its callers, its workers and the clock."""

    @initialize(
        size=st.integers(1, 3),
        max_batch=st.sampled_from([1, 3, 64]),
        max_tasks_per_child=st.sampled_from([None, None, 1, 2, 5]),
        idle_timeout=st.sampled_from([None, None, 0.5]),
        max_queue=st.sampled_from([None, None, 2]),
        listening=st.booleans(),
        warm=st.booleans(),
        seed=st.integers(0, 3),
    )
    def make(self, listening: bool, warm: bool, **options: Any) -> None:
        self.pool = ScriptedPool(**options, max_memory_per_child=100)
        self.limits = self.pool.scheduler.limits
        if listening:
            self.pool.scheduler.listened = frozenset(EVENT_NAMES.values())
        self.listening = listening
        self.tasks: list[AnyTask] = []
        self.cancelled: set[AnyTask] = set()  # asked for, or closed
        self.crashed: set[AnyTask] = set()  # their worker died of itself while it ran them
        self.swollen: dict[AnyTask, float] = {}  # since when their worker has had 200 bytes, or that it ever had
        self.values: defaultdict[AnyTask, list[object]] = defaultdict(list)  # what its runs returned
        self.all_cancelled = False
        self.largest = self.limits.max_workers
        self.boots_broken = False
        if warm:
            self.pool.warm_up()

    # ===== callers =====

    @rule(count=st.integers(1, 6), name=st.sampled_from(["quick", "slow"]), options=OPTIONS)
    def submit(self, count: int, name: str, options: dict[str, Any]) -> None:
        for _ in range(count):
            self._submit_one(name, options)

    def _submit_one(self, name: str, options: dict[str, Any]) -> None:
        scheduler = self.pool.scheduler
        task = self.pool.task(name, **options)
        scheduler.make_room(self.pool.now)
        was_full, was_open = scheduler.is_full(), scheduler.phase is PoolPhase.OPEN
        try:
            scheduler.submit(task, self.pool.now)
        except QueueFull:
            assert was_full
        except (PoolClosed, InitializerFailed):
            assert not was_open
        else:
            assert was_open
            assert not was_full
            self.tasks.append(task)
        self.pool.collect()

    @precondition(lambda self: self.pool.scheduler.unsettled)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        task = self.tasks[-1 - pick % len(self.tasks)]
        was_settled = task.phase is TaskPhase.SETTLED
        assert self.pool.cancel(task) is not was_settled
        if not was_settled:
            self.cancelled.add(task)
            assert self.pool.outcomes[task].cancelled, "a cancelled task is settled at once"

    @precondition(lambda self: self._streams())
    @rule(pick=st.integers(0, 100), count=st.integers(1, 3), says_so=st.booleans())
    def take(self, pick: int, count: int, says_so: bool) -> None:
        """The reader of a stream takes some of it; its worker is told, or is told later."""
        streams = self._streams()
        incoming = (task := streams[pick % len(streams)]).incoming
        for _ in range(min(count, len(incoming.items))):
            incoming.items.popleft()
        if says_so:
            self.pool.scheduler.credit(task, incoming.handed_out(), self.pool.now)
            self.pool.collect()

    @precondition(lambda self: self._streams())
    @rule(pick=st.integers(0, 100), grace=st.sampled_from([0.01, 0.5]), really=RARELY)
    def close(self, pick: int, grace: float, really: bool) -> None:
        """Nobody reads a stream any more."""
        if really:
            streams = self._streams()
            self.cancelled.add(streams[pick % len(streams)])
            self.pool.close(streams[pick % len(streams)], grace)

    def _streams(self) -> list[AnyTask]:
        return [task for task in self.tasks if task.options.window is not None and task.phase is not TaskPhase.SETTLED]

    @rule(begun=st.booleans(), really=RARELY)
    def cancel_all(self, begun: bool, really: bool) -> None:
        if really:
            self.all_cancelled = True
            self.pool.cancel_all(begun=begun)

    @rule(size=st.integers(1, 4))
    def resize(self, size: int) -> None:
        self.largest = max(self.largest, size)
        self.pool.resize(size)

    @rule()
    def warm_up(self) -> None:
        if self.pool.scheduler.phase is PoolPhase.OPEN:
            self.pool.scheduler.warm_up(self.pool.now)

    @rule(cancel_queued=st.booleans(), kill=st.booleans(), kill_after=LIMITS, really=RARELY)
    def shutdown(self, cancel_queued: bool, kill: bool, kill_after: float | None, really: bool) -> None:
        if really:
            if cancel_queued or kill or kill_after is not None:
                self.all_cancelled = True
            self.pool.shutdown(cancel_queued=cancel_queued, kill=kill, kill_after=kill_after)

    # ===== workers =====

    @rule(moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 5)), min_size=1, max_size=8))
    def act(self, moves: list[tuple[str, int]]) -> None:
        """Workers do things, each a thing that it could do now; what cannot be done is passed over."""
        for move, pick in moves:
            able = [worker for worker in self.pool.workforce.workers.values() if self._is_able(worker, move)]
            if able:
                self._move(able[pick % len(able)], move)
                self.pool.check()

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 80))
    def bustle(self, seed: int, count: int) -> None:
        """Workers do very many things, and a little time passes: far more than could be drawn one by one."""
        rng = random.Random(seed)
        for _ in range(count):
            if rng.random() < 0.2:
                limits = {"memory_limit": rng.choice([None, 100]), "timeout": rng.choice([None, None, 0.1])}
                limits |= {"is_stream": rng.random() < 0.3, "buffersize": rng.randint(1, 3)}
                limits |= {"is_program": rng.random() < 0.3}
                self._submit_one("quick", limits | {"retries": 1, "retry_on": (MemoryLimitExceeded,)})
            if (streams := self._streams()) and rng.random() < 0.3:
                self.pool.take(rng.choice(streams))
            move = rng.choice(MOVES)
            able = [worker for worker in self.pool.workforce.workers.values() if self._is_able(worker, move)]
            if able and (not move.startswith("crash") or rng.random() < 0.2):
                self._move(rng.choice(able), move)
            if rng.random() < 0.1:
                self.pool.tick(rng.choice([0.0004, 0.001, 0.05, 0.1]))
                self._check_overdue()
            self.pool.check()

    def _is_able(self, worker: ScriptedWorker, move: str) -> bool:
        if worker.dead or move == "deliver":
            return bool(worker.pipe) and move == "deliver"
        free, waits = worker.running is None, self.pool.is_waiting(worker)
        streams = self.pool.is_stamped(worker) and self.pool.workforce.is_streaming(worker)
        return {
            "boot": not worker.up,
            "claim": free and bool(worker.unclaimed),
            "stamp": not free and not self.pool.is_stamped(worker),
            "drain": free and bool(worker.drops) and not worker.unclaimed,
            "obey": worker.killed or worker.stopped,
            "crash": True,
            "give": streams and not waits and not worker.told_to_end,
            "go": streams and waits and (worker.told_to_end or self.pool.has_room(worker)),
        }.get(move.split(maxsplit=1)[0], self.pool.is_stamped(worker) and not (waits and not worker.told_to_end))

    def _move(self, worker: ScriptedWorker, move: str) -> None:
        what, deliver = move.split(maxsplit=1)[0], "unheard" not in move
        if move == "deliver":
            self.pool.deliver(worker, 1)
        elif what == "boot":
            self.pool.boot(worker, deliver=deliver)
        elif what == "claim":
            self.pool.claim(worker, stamp="unstamped" not in move)
        elif what == "stamp":
            self.pool.stamp(worker)
        elif what == "drain":
            self.pool.drain(worker, deliver=deliver)
        elif what == "give":
            self.pool.give(worker)
        elif what == "go":
            self.pool.go_on(worker)
        elif what in {"crash", "obey"}:
            if what == "crash" and worker.running is not None:
                self.crashed.add(worker.running)
            self.pool.die(worker, deliver=deliver)
        else:
            self._go_on(worker, move, deliver=deliver)

    def _go_on(self, worker: ScriptedWorker, move: str, *, deliver: bool) -> None:
        task = worker.running
        assert task is not None
        if move == "swell":
            if not worker.memory:  # else it has swollen before, in this run
                self.swollen[task] = self.pool.now
            worker.memory = 200
        elif move == "shrink":
            worker.memory = 0
            if task in self.swollen:
                self.swollen[task] = math.inf
        else:
            self._finish(worker, move, deliver=deliver)

    def _finish(self, worker: ScriptedWorker, move: str, *, deliver: bool) -> None:
        assert worker.running is not None
        value, error = object(), ValueError() if "fail" in move else KeyError() if "break" in move else None
        if error is None:
            self.values[worker.running].append(value)
        rss = 200 if "grown" in move else 0
        self.pool.finish(worker, value, error=error, rss=rss, stamp="unstamped" not in move, deliver=deliver)

    @rule(really=RARELY, crash=st.booleans())
    def fail_to_boot(self, really: bool, crash: bool) -> None:
        """The initializer raises, or everybody who boots dies."""
        if really:
            for worker in self.pool.alive():
                if not worker.up and crash:
                    self.pool.die(worker)
                elif not worker.up:
                    self.boots_broken = True
                    self.pool.fail_boot(worker, OSError("no"))
                    break

    @rule(steps=st.integers(1, 6))
    def behave(self, steps: int) -> None:
        """Everybody does what good workers do, for a while."""
        for _ in range(steps):
            for worker in self.pool.workforce.workers.values():
                if worker.running is not None:
                    self.values[worker.running].append(None)
            self.pool.step()
            self.pool.check()

    # ===== the clock =====

    @rule(seconds=SECONDS)
    def tick(self, seconds: float) -> None:
        self.pool.tick(seconds)
        due = self.pool.scheduler.next_deadline()
        assert due is None or due > self.pool.now, "a timer that is due stayed"
        self._check_overdue()

    def _check_overdue(self) -> None:
        """Nothing that the scheduler can know of is beyond its limit."""
        now = self.pool.now
        for record in self.pool.scheduler.roster:
            worker = self.pool.worker(record.id)
            task = worker.running
            if task is None or task is not next(iter(record.sent), None) or not self.pool.is_stamped(worker):
                continue
            limit = task.options.timeout
            since = worker.status.limited_since(task.id, now)
            if limit is not None and since is not None and now >= since + max(limit, LOOK_AGAIN):
                assert record.state is WorkerState.DYING, "it ran beyond its limit"
            if task.options.memory_limit is not None and worker.memory:
                assert record.state is WorkerState.DYING or now < self.swollen[task] + CHECK_MEMORY_FAR, (
                    "it is too large"
                )
        for task in self.tasks:
            if task.phase is TaskPhase.SETTLED:
                continue
            deadline, queue_timeout = task.options.deadline, task.options.queue_timeout
            grace = task.options.grace or 0.0
            if deadline is not None and now >= task.submitted_at + deadline + grace + DEATH_GRACE:
                # It has been killed and given up, or it was done and its outcome is in the pipe.
                assert task.phase is TaskPhase.SENT
                assert any(
                    isinstance(each, Finished) and each.task_id == task.id for each in self.pool.runner(task).pipe
                )
            if queue_timeout is not None and now >= task.submitted_at + queue_timeout:
                assert self.pool.workforce.begun[task], "it waited for too long"

    # ===== what always holds =====

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        roster = self.pool.scheduler.roster
        serving = [
            record
            for record in roster
            if record.state < WorkerState.STOPPING and not record.gave_way and not record.is_program
        ]
        assert len(serving) <= 2 * self.largest, "more workers than places and their replacements"

    @invariant()
    def outcomes_are_deserved(self) -> None:  # noqa: C901 -- one branch for each
        if not hasattr(self, "pool"):
            return
        for task, outcome in self.pool.outcomes.items():
            error = outcome.payload
            if outcome.cancelled:
                assert task in self.cancelled or self.all_cancelled
            elif outcome.ok:
                assert any(error is value for value in self.values[task])
            elif isinstance(error, (TaskTimeout, MemoryLimitExceeded)):
                assert self.pool.workforce.begun[task]
                limit = task.options.timeout if isinstance(error, TaskTimeout) else task.options.memory_limit
                assert limit is not None
                assert isinstance(error, TaskTimeout) or task in self.swollen
            elif isinstance(error, QueueTimeout):
                assert task.options.queue_timeout is not None
                assert not self.pool.workforce.begun[task]
            elif isinstance(error, PoolClosed):
                assert task.options.window is not None
                assert self.pool.scheduler.phase is not PoolPhase.OPEN
            elif isinstance(error, DeadlineExceeded):
                assert task.options.deadline is not None
            elif isinstance(error, InitializerFailed):
                assert self.boots_broken
            elif isinstance(error, WorkerCrashed):
                assert task in self.crashed or self.pool.scheduler.boots_failed
            else:
                assert isinstance(error, (ValueError, KeyError))

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for worker in self.pool.workforce.workers.values():
            if worker.running is not None:
                self.values[worker.running].append(None)
        for task in self.tasks:
            self.values[task].append(None)
        self.pool.end()
        self.pool.tick(1000.0)
        self.outcomes_are_deserved()
        assert set(self.tasks) == set(self.pool.outcomes)
        assert not self.pool.workforce.workers
        if self.listening:
            done = [event.task for event in self.pool.events if isinstance(event, TaskDone)]
            assert len(done) == len(set(done)) == len(self.tasks)
            started = {event.task for event in self.pool.events if isinstance(event, TaskStarted)}
            assert {task for task, outcome in self.pool.outcomes.items() if outcome.ok} <= started


TestScheduler = pytest.mark.slow(SchedulerMachine.TestCase)
TestScheduler.settings = hypothesis.settings(hypothesis.settings.get_profile("stateful"))
