"""Two things happen at once: exactly one outcome, decided once, and never a hang."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest

import poolkit
import support
import support_functions as work
from chaos import faults
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

KINDS = pytest.mark.parametrize("kind", ["process", "thread"])


def test_cancel_and_resubmit_harms_no_innocent(new_gate: Callable[[], Gate]) -> None:
    """A kill is for the task that it was meant for; what the worker's place gets next does not notice."""
    rng = faults.new_rng()
    arrived = new_gate()
    with faults.new_pool(2) as pool:
        for number in range(faults.scaled(100)):
            guilty = pool.submit(faults.sleep_forever, arrived)
            before = [pool.submit(work.identity, number) for _ in range(rng.randint(0, 3))]
            if rng.random() < 0.8:
                arrived.wait()
            assert guilty.cancel()
            after = [pool.submit(work.identity, number) for _ in range(rng.randint(0, 3))]
            assert [task.result() for task in before + after] == [number] * len(before + after)
            assert guilty.cancelled()
        faults.check_serves(pool, new_gate)


def test_cancelled_tasks_that_were_sent_never_run(journal: Journal, new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    with faults.new_pool(1) as pool:
        for _ in range(200):  # so short that the next ones are sent ahead
            pool.submit(work.none_of_it).result()
        held = pool.submit(work.arrive_and_wait, arrived, release, "held")
        arrived.wait()
        tasks = [pool.submit(work.write_line, journal, number) for number in range(500)]
        assert all(task.cancel() for task in tasks)
        release.signal()
        assert held.result() == "held"
        faults.check_serves(pool, new_gate)
    assert journal.lines() == []


def test_no_task_runs_that_was_sent_and_cancelled_before_it_began(
    journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """The worker claims them one after the other, while the owner takes them back: each goes to one of the two."""
    rng = faults.new_rng()
    kept: set[int] = set()
    taken_back: set[int] = set()
    sent = 0
    with faults.new_pool(1) as pool:
        for turn in range(faults.scaled(1000)):
            mine = range(turn * 6, turn * 6 + 6)
            tasks = [pool.submit(work.write_line, journal, number) for number in mine]
            tasks[0].result()  # whoever reads it has sent the others ahead
            first = rng.randint(1, 5)
            sent += sum(task.worker_id is not None for task in tasks[first:])
            for task in reversed(tasks[first:]):
                task.cancel()
            for number, task in zip(mine, tasks, strict=True):
                if not task.cancelled():
                    kept.add(number)
                    task.result()
                elif not task.attempts:
                    taken_back.add(number)
        faults.check_serves(pool, new_gate)
    written = faults.check_ran_once(journal)
    assert kept <= written
    assert not written & taken_back
    assert sent
    assert taken_back


def test_tasks_cancelled_while_their_batch_is_run(journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """Who was cancelled before it began has not run; who delivered a result has, once."""
    rng = faults.new_rng()
    cancelled: list[poolkit.Task[object]] = []
    delivered: set[object] = set()
    numbers: dict[poolkit.Task[object], int] = {}
    with faults.new_pool(2) as pool:
        for turn in range(faults.scaled(60)):
            mine = range(turn * 100, turn * 100 + 50)
            tasks = [pool.submit(work.write_line, journal, number) for number in mine]
            numbers.update(zip(tasks, mine, strict=True))
            for task in rng.sample(tasks, 10):
                if task.cancel():
                    cancelled.append(task)
            for task in tasks:
                if not task.cancelled():
                    delivered.add(task.result())
        faults.check_serves(pool, new_gate)
    written = faults.check_ran_once(journal)
    assert all(task.cancelled() for task in cancelled)
    assert delivered == set(numbers.values()) - {numbers[task] for task in cancelled}
    assert delivered <= written
    assert not written & {numbers[task] for task in cancelled if task.attempts == 0}


class Outcomes:
    """How the tasks of many rounds ended: each with one outcome, which its callback was told once."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._calls: Counter[int] = Counter()
        self._tasks: list[poolkit.Task[object]] = []

    def watch(self, task: poolkit.Task[object]) -> None:
        self._tasks.append(task)
        task.add_done_callback(lambda task: self._calls.update([id(task)]))

    def end(self, task: poolkit.Task[object], value: object, *errors: type[BaseException]) -> None:
        """Wait for a task that gives `value`, or raises one of these."""
        try:
            assert task.result() == value
            self.kinds["value"] += 1
        except errors as exc:
            self.kinds[type(exc).__name__] += 1

    def check(self, pool: poolkit.Pool, others: int, *, error: str) -> None:
        """`others`: tasks of the pool that were not watched, each of which gave a value; `error`: how others ended.

        A race that one side always wins shows nothing: both must have won one round in twenty, at the least.
        """
        print(dict(self.kinds))
        assert set(self.kinds) <= {"value", error}
        assert min(self.kinds["value"], self.kinds[error]) >= len(self._tasks) // 20, self.kinds
        # The last calls may still be under way.
        support.wait_until(lambda: len(self._calls) == len(self._tasks), "every callback")
        assert set(self._calls.values()) == {1}
        stats = pool.stats()
        assert stats.submitted == len(self._tasks) + others
        assert stats.succeeded == self.kinds["value"] + others
        assert stats.cancelled == self.kinds["TaskCancelled"]
        assert (stats.queued, stats.running) == (0, 0)


def rounds(kind: str, of_processes: int) -> range:
    """By default a part of them, as each may cost a worker: scaled by 20, they are 2,000 and more."""
    return range(faults.scaled(of_processes if kind == "process" else 200))


class Aim:
    """Seconds after which something is to happen, so that it comes now before another thing and now after it.

    They follow what was seen: on a busy machine that other thing takes longer.
    """

    def __init__(self, seconds: float, rng: random.Random) -> None:
        self._seconds = seconds
        self._rng = rng

    def take(self) -> float:
        """How long it is to be this time."""
        return self._seconds * self._rng.uniform(0.5, 1.5)

    def was(self, *, early: bool) -> None:
        """How it went."""
        self._seconds = min(0.05, max(1e-5, self._seconds * (1.05 if early else 1 / 1.05)))


def pause(seconds: float) -> None:
    """Wait for about so long; other threads may run meanwhile."""
    threading.Event().wait(seconds)


@KINDS
def test_two_thousand_rounds_of_cancel_against_completion(kind: str, new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    outcomes = Outcomes()
    numbers = rounds(kind, 100)
    with faults.new_pool(2, kind=kind) as pool:
        aim = Aim(0.001, rng)
        for number in numbers:
            pool.warm_up()  # the first task of a worker takes longer than others
            assert pool.submit(work.identity, number).result() == number
            task = pool.submit(faults.run_for, 0.0005, number)
            outcomes.watch(task)
            pause(aim.take())
            cancelled = task.cancel()
            assert cancelled == task.cancelled()
            outcomes.end(task, number, poolkit.TaskCancelled)
            aim.was(early=cancelled)
        outcomes.check(pool, len(numbers), error="TaskCancelled")
        faults.check_serves(pool, new_gate)


@pytest.mark.long
@KINDS
@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_two_thousand_rounds_of_timeout_against_completion(kind: str, limit: str, new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    outcomes = Outcomes()
    numbers = rounds(kind, 100)
    with faults.new_pool(2, kind=kind) as pool:
        view = pool.options(**{limit: 0.002 if kind == "thread" else 0.01})
        aim = Aim(0.001 if kind == "thread" else 0.008, rng)
        for number in numbers:
            task = view.submit(faults.run_for, aim.take(), number)
            outcomes.watch(task)
            innocent = pool.submit(work.identity, number)
            outcomes.end(task, number, poolkit.TaskTimeout, poolkit.DeadlineExceeded)
            aim.was(early=task.exception() is None)
            assert innocent.result() == number
        outcomes.check(pool, len(numbers), error="TaskTimeout" if limit == "timeout" else "DeadlineExceeded")
        faults.check_serves(pool, new_gate)


@pytest.mark.long
def test_two_thousand_rounds_of_death_against_completion(journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """A task whose outcome was sent has it, whatever happens to its worker then; else it crashed. None runs twice."""
    rng = faults.new_rng()
    outcomes = Outcomes()
    numbers = rounds("process", 100)
    with faults.new_pool(1) as pool:
        aim = Aim(0.001, rng)
        for number in numbers:
            assert pool.submit(work.identity, number).result() == number
            (pid,) = faults.worker_pids(pool, tasks_done=1)  # one that has done nothing is not killed twice in a row
            tasks = [pool.submit(faults.run_and_write, 0.0005, journal, 2 * number + index) for index in range(2)]
            for task in tasks:
                outcomes.watch(task)
            pause(aim.take())
            assert faults.kill_worker(pool, pid)
            for index, task in enumerate(tasks):
                outcomes.end(task, 2 * number + index, poolkit.WorkerCrashed)
            aim.was(early=tasks[0].exception() is not None)
        outcomes.check(pool, len(numbers), error="WorkerCrashed")
        faults.check_serves(pool, new_gate)
        assert pool.stats().respawned == len(numbers)
    assert len(faults.check_ran_once(journal)) >= outcomes.kinds["value"]


@pytest.mark.long
@KINDS
def test_two_thousand_rounds_of_shutdown_against_submit(kind: str) -> None:
    """Each call is refused, or its task is settled when the shutdown has ended."""
    rng = faults.new_rng()
    kinds: Counter[str] = Counter()
    for _ in range(faults.scaled({"process": 20, "thread": 100}[kind])):
        pool = faults.new_pool(2, kind=kind)
        accepted: list[poolkit.Task[object]] = []

        def submit(pool: poolkit.Pool = pool, accepted: list[poolkit.Task[object]] = accepted) -> None:
            try:
                while True:
                    accepted.append(pool.submit(work.identity, len(accepted)))
            except poolkit.PoolClosed:
                pass

        thread = threading.Thread(target=submit)
        thread.start()
        pause(rng.uniform(0, 0.002 if kind == "thread" else 0.03))
        cancel, kill = rng.choice([(False, False), (True, False), (False, True), (True, True)])
        pool.shutdown(cancel_futures=cancel, kill=kill)
        thread.join()
        assert all(task.done() for task in accepted)
        for number, task in enumerate(accepted):
            assert task.cancelled() or task.result() == number
        assert cancel or kill or not any(task.cancelled() for task in accepted)
        cancelled = sum(task.cancelled() for task in accepted)
        kinds["TaskCancelled"] += cancelled
        kinds["value"] += len(accepted) - cancelled
    print(dict(kinds))
    assert min(kinds.values()) > 0, kinds


def test_many_threads_submit_cancel_and_wait(new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    failures: list[BaseException] = []
    with faults.new_pool(2) as pool:

        def use(seed: int) -> None:
            own = type(rng)(seed)
            try:
                for _ in range(faults.scaled(10)):
                    tasks = [
                        pool.options(priority=own.randint(0, 2)).submit(work.identity, number) for number in range(50)
                    ]
                    cancelled = {number for number in range(50) if own.random() < 0.2 and tasks[number].cancel()}
                    for number, task in enumerate(tasks):
                        assert task.cancelled() if number in cancelled else task.result() == number
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=use, args=(rng.randrange(2**32),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        faults.check_serves(pool, new_gate)
