"""Fake pools and time: what runs when, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable

import pytest

import poolkit
import support_functions as work
from poolkit.testing import FakePool


def test_eager_pools_run_a_call_at_its_submission() -> None:
    with FakePool() as pool:
        assert pool.submit(work.square, 3).done()


def test_manual_pools_run_nothing_by_themselves() -> None:
    with FakePool("manual") as pool:
        tasks = [pool.submit(work.square, number) for number in range(3)]
        assert not any(task.done() for task in tasks)
        assert pool.pending == tasks
        assert pool.run_next()
        assert [task.done() for task in tasks] == [True, False, False]
        pool.run_all()
        assert pool.pending == []
        assert not pool.run_next()


def test_time_that_passes_lets_tasks_run_and_end() -> None:
    with FakePool("manual", max_workers=2) as pool:
        pool.when(work.square).takes(2)
        tasks = [pool.submit(work.square, number) for number in range(3)]
        pool.advance(1.9)
        assert [task.state for task in tasks] == ["running", "running", "queued"]
        pool.advance(0.1)
        assert [task.state for task in tasks] == ["succeeded", "succeeded", "running"]
        assert pool.now == 2.0
        pool.run_all()
        assert pool.now == 4.0
        assert [(task.wait_time, task.run_time) for task in tasks] == [(0.0, 2.0), (0.0, 2.0), (2.0, 2.0)]


def test_a_run_that_takes_time_is_begun_by_run_next_and_ended_by_a_later_one() -> None:
    with FakePool("manual", max_workers=2) as pool:
        pool.when(work.square).takes(2)
        tasks = [pool.submit(work.square, number) for number in range(2)]
        assert pool.run_next()
        assert pool.run_next()
        assert [task.state for task in tasks] == ["running", "running"]
        assert pool.now == 0
        assert pool.run_next()
        assert pool.now == 2.0


def test_run_until_stops_at_its_task() -> None:
    with FakePool("manual") as pool:
        pool.when(work.square).takes(1)
        tasks = [pool.submit(work.square, number) for number in range(3)]
        pool.run_until(tasks[1])
        assert [task.done() for task in tasks] == [True, True, False]
        assert pool.now == 2.0


def test_whoever_waits_in_the_one_thread_drives_the_pool() -> None:
    with FakePool("manual") as pool:
        first, second = pool.submit(work.square, 2), pool.submit(work.square, 3)
        assert first.result() == 4
        assert not second.done()
        assert list(concurrent.futures.as_completed([second])) == [second]
        assert list(pool.map(work.square, range(4))) == [0, 1, 4, 9]


def test_a_wait_with_a_timeout_lasts_so_long_on_the_virtual_clock() -> None:
    with FakePool("manual") as pool:
        pool.when(work.square).takes(10)
        task = pool.submit(work.square, 2)
        with pytest.raises(TimeoutError, match=r"not done after 4 s of virtual time"):
            task.result(timeout=4)
        assert pool.now == 4.0
        assert task.result(timeout=6) == 4


def test_a_wait_that_would_never_end_is_an_error_with_the_timeline() -> None:
    with FakePool() as pool:
        pool.when(work.square).hangs()
        task = pool.submit(work.square, 2)
        with pytest.raises(poolkit.PoolkitError, match=r"would never be done: it hangs(.|\n)*begins on worker 1"):
            task.result()
        with pytest.raises(poolkit.PoolkitError, match=r"shutdown\(\) would wait for ever"):
            pool.shutdown()
        pool.shutdown(kill=True)
        assert task.cancelled()


def test_a_task_waits_for_another_while_a_worker_is_free() -> None:
    pool = FakePool(max_workers=2, check_pickle=False)
    assert pool.submit(lambda: pool.submit(work.square, 3).result() + 1).result() == 10
    pool.shutdown()


def test_a_task_that_waits_for_another_on_the_last_worker_is_told() -> None:
    """A real pool would stand still here."""
    pool = FakePool(max_workers=1, check_pickle=False)
    task = pool.submit(lambda: pool.submit(work.square, 3).result())
    with pytest.raises(poolkit.PoolkitError, match="needs a worker, and a task that waits has the last one"):
        task.result()
    pool.shutdown()


def test_another_thread_waits_until_the_test_lets_it_run() -> None:
    results: list[int] = []
    with FakePool("manual") as pool:
        task = pool.submit(work.square, 3)
        waiting = threading.Thread(target=lambda: results.append(task.result()))
        waiting.start()
        pool.run_all()
        waiting.join()
    assert results == [9]


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_limits_fall_due_on_the_virtual_clock(limit: str) -> None:
    expected = {"timeout": poolkit.TaskTimeout, "deadline": poolkit.DeadlineExceeded}[limit]
    with FakePool("manual") as pool:
        pool.when(work.square).takes(3)
        task = pool.options(**{limit: 2}).submit(work.square, 3)
        after = pool.submit(work.pid)
        pool.advance(1.999)
        assert task.state == "running"
        pool.advance(0.001)
        assert isinstance(task.exception(), expected)
        assert after.result()
        assert pool.now == 2.0


def test_a_queue_timeout_counts_while_the_workers_are_busy() -> None:
    with FakePool("manual") as pool:
        pool.when(work.square).takes(3)
        pool.submit(work.square, 1)
        task = pool.options(queue_timeout=2).submit(work.square, 2)
        pool.advance(2)
        assert isinstance(task.exception(), poolkit.QueueTimeout)


def test_retries_wait_for_their_back_off_on_the_virtual_clock() -> None:
    with FakePool() as pool:
        pool.when(work.square).crashes().times(2).then.runs()
        task = pool.options(retries=2).submit(work.square, 3)
        assert task.result() == 9
        assert task.attempts == 3
        assert 0.05 < pool.now < 1


def test_priorities_are_kept() -> None:
    with FakePool("manual") as pool:
        pool.when(work.square).takes(1)
        tasks = [pool.options(priority=priority).submit(work.square, priority) for priority in (0, 2, 1)]
        pool.run_all()
        assert sorted(tasks, key=lambda task: task.started_at or 0) == [tasks[1], tasks[2], tasks[0]]


def test_the_seed_picks_among_the_orders_that_several_workers_could_show() -> None:
    def order(seed: int) -> tuple[int, ...]:
        seen: list[int] = []
        with FakePool("manual", max_workers=3, seed=seed, check_pickle=False) as pool:
            for number in range(3):
                pool.submit(seen.append, number)
        return tuple(seen)

    orders = [order(seed) for seed in range(40)]
    assert len(set(orders)) == 6
    assert orders == [order(seed) for seed in range(40)]


def test_a_full_queue_refuses_or_makes_room() -> None:
    with FakePool("manual", max_queue=1) as pool:
        pool.when(work.square).takes(1)
        pool.submit(work.square, 1)
        pool.run_next()
        pool.submit(work.square, 2)
        with pytest.raises(poolkit.QueueFull):
            pool.options(block=False).submit(work.square, 3)
        assert pool.now == 0.0
        task = pool.submit(work.square, 4)  # a real one would block until the first has ended
        assert pool.now == 1.0
        assert task.result() == 16


def test_a_coroutine_makes_room_in_a_full_queue_too() -> None:
    async def main(pool: FakePool) -> list[poolkit.Task[int]]:
        return [await pool.submit_async(work.square, number) for number in range(4)]

    with FakePool("manual", max_queue=1) as pool:
        pool.when(work.square).takes(1)
        tasks = asyncio.run(main(pool))
        assert [task.done() for task in tasks] == [True, True, False, False]
        assert pool.now == 2.0


@pytest.mark.parametrize("block", [True, False])
def test_a_queue_in_which_no_room_would_come_refuses(block: bool) -> None:
    pool = FakePool("manual", max_queue=1)
    pool.when(work.square).hangs()
    view = pool.options(block=block)
    for number in range(2):
        view.submit(work.square, number)
    with pytest.raises(poolkit.QueueFull, match="a real pool would stand still" if block else "block=False"):
        view.submit(work.square, 3)
    pool.shutdown(kill=True)
    with pytest.raises(poolkit.PoolClosed):
        view.submit(work.square, 3)


@pytest.mark.parametrize("mode", ["eager", "manual"])
def test_coroutines_await_tasks_and_coroutine_functions_run(mode: str) -> None:
    async def main() -> list[int]:
        async with FakePool(mode, max_workers=2) as pool:
            tasks = [await pool.submit_async(work.double_later, number) for number in range(3)]
            waiting = asyncio.gather(*tasks)
            pool.run_all()
            return await waiting

    assert asyncio.run(main()) == [0, 2, 4]


def test_cancel_stops_what_runs_and_what_waits() -> None:
    with FakePool("manual") as pool:
        pool.when(work.square).hangs()
        running, queued = pool.submit(work.square, 1), pool.submit(work.square, 2)
        pool.run_next()
        assert running.state == "running"
        assert queued.cancel()
        assert running.cancel()
        assert pool.submit(work.pid).result()
        assert pool.stats().cancelled == 2
        assert (running.attempts, queued.attempts) == (1, 0)


def test_a_task_may_cancel_itself() -> None:
    pool = FakePool("manual", check_pickle=False)
    tasks: list[poolkit.Task[object]] = []
    tasks.append(pool.submit(lambda: tasks[0].cancel()))
    pool.run_all()
    assert tasks[0].cancelled()
    assert pool.submit(work.square, 2).result() == 4
    pool.shutdown()


def test_shutdown_in_its_variants() -> None:
    def manual() -> tuple[FakePool, list[poolkit.Task[int]]]:
        pool = FakePool("manual")
        pool.when(work.square).takes(1)
        tasks = [pool.submit(work.square, number) for number in range(2)]
        pool.run_next()
        return pool, tasks

    pool, tasks = manual()
    pool.shutdown()
    assert [task.state for task in tasks] == ["succeeded", "succeeded"]
    pool, tasks = manual()
    pool.shutdown(cancel_futures=True)
    assert [task.state for task in tasks] == ["succeeded", "cancelled"]
    pool, tasks = manual()
    pool.shutdown(kill=True)
    assert [task.state for task in tasks] == ["cancelled", "cancelled"]
    pool, tasks = manual()
    pool.shutdown(timeout=0.5)
    assert [task.state for task in tasks] == ["cancelled", "cancelled"]
    assert pool.now >= 0.5
    with pytest.raises(poolkit.PoolClosed):
        pool.submit(work.pid)


def test_events_are_told(recorded: Callable[[FakePool], list[str]]) -> None:
    pool = FakePool()
    events = recorded(pool)
    pool.when(work.square).crashes("SIGSEGV").then.runs()
    assert pool.options(retries=1).submit(work.square, 3).result() == 9
    pool.shutdown()
    assert events == [
        "worker_started",
        "task_started",
        "task_retried",
        "worker_exited",
        "worker_started",
        "task_started",
        "task_done",
        "worker_exited",
    ]


@pytest.fixture
def recorded() -> Callable[[FakePool], list[str]]:
    def listen(pool: FakePool) -> list[str]:
        events: list[str] = []
        for name in ("worker_started", "worker_exited", "task_started", "task_done", "task_retried"):
            pool.on(name, lambda _event, name=name: events.append(name))
        return events

    return listen


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (float("inf"), ValueError)],
)
def test_times_without_sense_are_refused(seconds: float, expected: type[Exception]) -> None:
    with FakePool("manual") as pool, pytest.raises(expected, match="seconds"):
        pool.advance(seconds)


def test_settings_that_no_pool_has_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_wrokers'"):
        FakePool(max_wrokers=2)
