"""Two things happen at once: exactly one outcome, decided once, and never a hang."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

import poolkit
import support_functions as work
from chaos import faults
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow


def test_cancel_and_resubmit_harms_no_innocent(new_gate: Callable[[], Gate]) -> None:
    """A kill is for the task that it was meant for; what the worker's place gets next does not notice."""
    rng = faults.new_rng()
    arrived = new_gate()
    with faults.new_pool(2) as pool:
        for number in range(faults.scaled(300)):
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


def test_in_two_thousand_rounds_no_task_runs_that_was_sent_and_cancelled_before_it_began(
    journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """The worker claims them one after the other, while the owner takes them back: each goes to one of the two."""
    rng = faults.new_rng()
    kept: set[int] = set()
    taken_back: set[int] = set()
    sent = 0
    with faults.new_pool(1) as pool:
        for turn in range(faults.scaled(2000)):
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


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_cancel_that_races_with_the_end(kind: str, new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    outcomes: Counter[str] = Counter()
    calls: Counter[int] = Counter()
    with faults.new_pool(2, kind=kind) as pool:
        for number in range(faults.scaled(200)):
            seconds = rng.uniform(0, 0.003)
            task = pool.submit(faults.run_for, seconds, number)
            task.add_done_callback(lambda task: calls.update([task.id]))
            threading.Event().wait(rng.uniform(0, 0.006))
            if task.cancel():
                outcomes["cancelled"] += 1
                with pytest.raises(poolkit.TaskCancelled):
                    task.result()
            else:
                outcomes["done"] += 1
                assert task.result() == number
            assert pool.submit(work.identity, number).result() == number
        faults.check_serves(pool, new_gate)
    assert set(calls.values()) == {1}
    assert len(calls) == faults.scaled(200)


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_a_limit_that_races_with_the_end(kind: str, limit: str, new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    outcomes: Counter[str] = Counter()
    calls: Counter[int] = Counter()
    with faults.new_pool(2, kind=kind) as pool:
        for number in range(faults.scaled(100)):
            task = pool.options(**{limit: 0.01}).submit(faults.run_for, rng.uniform(0.005, 0.012), number)
            task.add_done_callback(lambda task: calls.update([task.id]))
            innocent = pool.submit(work.identity, number)
            error = task.exception()
            outcomes[type(error).__name__] += 1
            assert task.result() == number if error is None else isinstance(error, TimeoutError)
            assert innocent.result() == number
        faults.check_serves(pool, new_gate)
    assert set(calls.values()) == {1}
    assert len(calls) == faults.scaled(100)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_shutdown_at_any_moment_settles_every_task(kind: str) -> None:
    rng = faults.new_rng()
    for _ in range(faults.scaled(12)):
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
        threading.Event().wait(rng.uniform(0, 0.05))
        cancel, kill = rng.choice([(False, False), (True, False), (False, True), (True, True)])
        pool.shutdown(cancel_futures=cancel, kill=kill)
        thread.join()
        assert all(task.done() for task in accepted)
        for number, task in enumerate(accepted):
            assert task.cancelled() or task.result() == number
        assert cancel or kill or not any(task.cancelled() for task in accepted)


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
