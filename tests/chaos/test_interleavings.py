"""Orders of events that seldom come by themselves: threads that take turns all the time, and primitives that lie."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import random
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import poolkit
import support
import support_functions as work
from chaos import faults
from poolkit._core.workforce import Finished
from support_gates import Gate

pytestmark = pytest.mark.slow

KINDS = pytest.mark.parametrize("kind", ["process", "thread"])
LIMITS: dict[str, dict[str, Any]] = {
    "timeout": {"timeout": 0.05},
    "deadline": {"deadline": 0.3},
    "memory": {"memory_limit": 1},
}
ERRORS = (poolkit.TaskTimeout, poolkit.DeadlineExceeded, poolkit.MemoryLimitExceeded)


def in_another_thread(call: Callable[[], object]) -> None:
    """Have another thread do something, and wait until it has."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


# ===== a hostile switch interval =====


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def use(pool: poolkit.Pool, seed: int, calls: Counter[int], tasks: list[poolkit.Task[Any]]) -> None:
    """Everything that a caller may do, at random; each result is the one that was asked for."""
    rng = random.Random(seed)
    for turn in range(faults.scaled(6)):
        numbers = range(turn * 100, turn * 100 + 20)
        limits = rng.choice([{}, {}, {"priority": 1}, {"deadline": 60}, {"timeout": 0.002}])
        mine = {pool.options(**limits).submit(work.identity, number): number for number in numbers}
        for task in mine:
            task.add_done_callback(lambda task: calls.update([id(task)]))
        tasks += mine
        for task in rng.sample(list(mine), 3):
            task.cancel()
        for task in concurrent.futures.as_completed(mine):
            if not task.cancelled() and task.exception() is None:
                assert task.result() == mine[task]
        assert list(pool.map(work.identity, numbers, chunksize=rng.choice([None, 1, 3]))) == list(numbers)


@KINDS
def test_callers_whose_threads_take_turns_all_the_time(kind: str, restless: None, new_gate: Callable[[], Gate]) -> None:
    del restless
    rng = faults.new_rng()
    calls: Counter[int] = Counter()
    tasks: list[poolkit.Task[Any]] = []
    with faults.new_pool(2, kind=kind) as pool:
        with concurrent.futures.ThreadPoolExecutor(6) as callers:
            for done in [callers.submit(use, pool, rng.randrange(2**32), calls, tasks) for _ in range(6)]:
                done.result()
        support.wait_until(lambda: len(calls) == len(tasks), "every callback")
        assert set(calls.values()) == {1}
        faults.check_serves(pool, new_gate)


@pytest.mark.long
def test_deaths_under_callers_whose_threads_take_turns_all_the_time(
    restless: None, new_gate: Callable[[], Gate]
) -> None:
    del restless
    rng = faults.new_rng()
    crashed = 0
    with faults.new_pool(2) as pool:
        with faults.Killer(pool, rng, "busy", every=0.01) as killer:
            turn = 0
            while turn < faults.scaled(10) or killer.kills < faults.scaled(5) or not crashed:  # its turns come seldom
                tasks = [pool.submit(faults.run_for, 0.001, turn + number) for number in range(50)]
                for number, task in enumerate(tasks):
                    error = task.exception()
                    crashed += error is not None
                    assert isinstance(error, poolkit.WorkerCrashed) or task.result() == turn + number
                turn += 1
        assert 0 < crashed <= killer.kills
        stats = pool.stats()
        assert (stats.failed, stats.crashed) == (crashed, crashed)
        faults.check_serves(pool, new_gate)


@KINDS
def test_a_shutdown_under_callers_whose_threads_take_turns_all_the_time(kind: str, restless: None) -> None:
    del restless
    rng = faults.new_rng()
    for _ in range(faults.scaled(4)):
        pool = faults.new_pool(2, kind=kind)
        accepted: list[poolkit.Task[int]] = []

        def submit(pool: poolkit.Pool = pool, accepted: list[poolkit.Task[int]] = accepted) -> None:
            with contextlib.suppress(poolkit.PoolClosed):
                while True:
                    accepted.append(pool.submit(work.identity, 1))

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(accepted) < 50:
            threading.Event().wait(0.001)
        ends = [threading.Thread(target=pool.shutdown, kwargs={"kill": rng.random() < 0.5}) for _ in range(3)]
        for thread in ends:
            thread.start()
        for thread in threads + ends:
            thread.join()
        assert all(task.done() for task in accepted)


async def read_maps(pool: poolkit.Pool, rng: random.Random, right: list[bool]) -> None:
    """Read maps in an event loop, several at once, until that raises; tells of each whether it gave what it should."""

    async def read_one() -> None:
        numbers = range(rng.randint(1, 30))
        came = pool.map(work.identity, numbers, buffersize=rng.choice([None, 1, 3]))
        right.append([number async for number in came] == list(numbers))

    while True:
        await asyncio.gather(*(read_one() for _ in range(3)))


@KINDS
def test_maps_that_wait_for_room_under_a_shutdown(kind: str, restless: None) -> None:
    del restless
    rng = faults.new_rng()
    right: list[bool] = []
    for _ in range(faults.scaled(20)):
        pool = faults.new_pool(rng.randint(1, 2), kind=kind, max_queue=1)

        def read(pool: poolkit.Pool = pool, seed: int = rng.randrange(2**32)) -> None:
            with contextlib.suppress(poolkit.PoolClosed):
                asyncio.run(read_maps(pool, random.Random(seed), right))

        def fill(pool: poolkit.Pool = pool) -> None:
            with contextlib.suppress(poolkit.PoolClosed):
                while True:
                    pool.submit(work.none_of_it)

        before = len(right)
        threads = [threading.Thread(target=target) for target in (read, read, fill)]
        for thread in threads:
            thread.start()
        support.wait_until(lambda before=before: len(right) > before, "the end of a map")
        pool.shutdown()
        for thread in threads:
            thread.join()
    assert all(right)


# ===== what a worker does between two looks of the owner =====


class Between:
    """Has something happen after the pool took back what a worker had not claimed, and before it looks at the board."""

    def __init__(self, pool: poolkit.Pool, monkeypatch: pytest.MonkeyPatch, arrived: Gate) -> None:
        self._workforce: Any = pool._supervisor.workforce
        self._reclaim = self._workforce.reclaim
        self._arrived = arrived
        self.event: Callable[[int], object] | None = None
        monkeypatch.setattr(self._workforce, "reclaim", self._lie)

    def _lie(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        event, self.event = self.event, None
        if event is not None:
            self._arrived.wait()
        self._reclaim(worker_id, taken, told)
        if event is not None:
            event(worker_id)

    def end_the_task(self, release: Gate) -> Callable[[int], object]:
        """Its outcome is sent, and its board says so."""

        def event(worker_id: int) -> None:
            release.signal()
            support.wait_until(lambda: self._workforce.status(worker_id).done, "the end of the task")

        return event

    def kill_the_worker(self, worker_id: int) -> None:
        """Its process is gone, and nobody has told the pool."""
        pid = self._workforce._workers[worker_id].pid
        os.kill(pid, signal.SIGKILL)
        support.wait_for_exit(pid)


@pytest.mark.parametrize("event", ["completion", "death"])
@pytest.mark.parametrize("decision", ["cancel", "shutdown", *LIMITS])
def test_a_task_that_ends_between_reclaim_and_glance(
    decision: str, event: str, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees it end has the last word: a limit does not punish what ended in time, nor blame a crash twice."""
    arrived, release = new_gate(), new_gate()
    pool = faults.new_pool(1)
    with faults.closed_by_force(pool):
        pool.warm_up()
        between = Between(pool, monkeypatch, arrived)
        task_of = pool.options(**LIMITS.get(decision, {})).submit
        # Set before the submit, as a limit may be looked at any time after that.
        between.event = between.end_the_task(release) if event == "completion" else between.kill_the_worker
        task = task_of(work.arrive_and_wait, arrived, release, "value")
        if decision == "cancel":
            assert task.cancel()
        elif decision == "shutdown":
            pool.shutdown(kill=True)
        if decision in {"cancel", "shutdown"}:
            assert task.cancelled()
        elif event == "completion":
            assert task.result() == "value"
        else:
            assert isinstance(task.exception(), (*ERRORS, poolkit.WorkerCrashed))
        assert between.event is None, "nobody took anything back"
        stats = pool.stats()
        assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled == 1
        if decision != "shutdown":
            faults.check_serves(pool, new_gate)


# ===== what callers do between a report and the decision =====


@KINDS
@pytest.mark.parametrize("second", ["cancel", "cancel_all", "shutdown", "kill", "resize"])
@pytest.mark.parametrize("first", ["completion", "failure"])
def test_a_caller_who_comes_between_an_outcome_and_the_decision(
    kind: str, first: str, second: str, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome was read and not yet handed in: whoever is first in the lock decides, once."""
    pool = faults.new_pool(1, kind=kind)
    acts: dict[str, Callable[[], object]] = {
        "cancel": lambda: task.cancel(),
        "cancel_all": pool.cancel_all,
        "shutdown": lambda: pool.shutdown(wait=False),
        "kill": lambda: pool.shutdown(wait=False, kill=True),
        "resize": lambda: pool.resize(2),
    }
    came: list[str] = []
    engine: Any = pool._supervisor

    def lie(handle: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Whoever has the report comes to the lock a little later."""

        def handle_late(reports: Any = None) -> Any:
            found = [reports] if type(reports) is Finished else reports or []
            if not came and any(type(report) is Finished for report in found):
                came.append(second)
                in_another_thread(acts[second])
            return handle(reports)

        return handle_late

    with faults.closed_by_force(pool):
        pool.warm_up()
        if kind == "process":
            monkeypatch.setattr(engine, "_handle", lie(engine._handle))
        else:
            monkeypatch.setattr(engine.workforce, "post", lie(engine.workforce.post))
        release = new_gate()
        arrived = new_gate()
        call = work.arrive_and_wait if first == "completion" else work.arrive_and_raise
        task: poolkit.Task[Any] = pool.submit(call, arrived, release, "text")
        arrived.wait()
        calls: list[Any] = []
        told = threading.Event()
        task.add_done_callback(lambda task: (calls.append(task), told.set()))
        release.signal()
        assert told.wait(support.WATCHDOG)
        assert came == [second]
        if second in {"cancel", "cancel_all", "kill"}:
            assert task.cancelled()
        elif first == "completion":
            assert task.result() == "text"
        else:
            assert isinstance(task.exception(), ValueError)
        if second in {"cancel", "cancel_all", "resize"}:
            faults.check_serves(pool, new_gate)
        else:
            pool.shutdown()
        stats = pool.stats()
        assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled
        assert calls == [task]


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_death_that_is_noticed_before_the_outcome_is_read(
    how: str, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the worker wrote before it died is its word."""
    arrived, release = new_gate(), new_gate()
    with faults.new_pool(1) as pool:
        workforce: Any = pool._supervisor.workforce
        pool.warm_up()
        read = workforce.links.read
        task = pool.submit(faults.leave_thread_behind, release, how)
        deaf = threading.Event()
        monkeypatch.setattr(workforce.links, "read", lambda ready=None: [] if deaf.is_set() else read(ready))
        pid = task.result()
        deaf.set()
        done = pool.submit(work.arrive, arrived)
        (worker_id,) = workforce._workers
        support.wait_until(lambda: workforce.status(worker_id).done == done.id, "the end of the task")
        release.signal()
        support.wait_for_exit(pid)
        assert done.result() is None
        deaf.clear()
        faults.check_serves(pool, new_gate)


# ===== threads =====


@pytest.mark.parametrize("second", ["cancel", "kill"])
def test_a_thread_whose_task_is_ended_between_its_claim_and_its_beginning(
    second: str, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was claimed, so it counts as begun; the thread finds nothing to run, and ends without a word."""
    pool = faults.new_pool(1, kind="thread")
    tasks: list[poolkit.Task[Any]] = []

    class Claims(deque[Any]):
        def popleft(self) -> Any:
            claim = super().popleft()
            if not tasks:
                tasks.append(claim[0])
                in_another_thread(claim[0].cancel if second == "cancel" else lambda: pool.shutdown(False, kill=True))
            return claim

    workforce: Any = pool._supervisor.workforce
    start = workforce.start

    def start_lying(worker_id: int) -> None:
        start(worker_id)
        workforce._workers[worker_id].claims = Claims()

    with faults.closed_by_force(pool):
        monkeypatch.setattr(workforce, "start", start_lying)
        task = pool.submit(work.identity, 1)
        with pytest.raises(poolkit.TaskCancelled):
            task.result()
        assert tasks == [task]
        if second == "cancel":
            faults.check_serves(pool, new_gate)
