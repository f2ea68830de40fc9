"""Who waits for a fake pool: in which order, how long on its clock, from which thread, and how it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED

import pytest

import poolkit
import support_functions as work
from poolkit.testing import FakePool
from support import WATCHDOG

variable = contextvars.ContextVar("variable", default="unset")


def manual(max_workers: int = 1) -> FakePool:
    return FakePool("manual", max_workers=max_workers)


def pool_of_slower_and_faster_calls() -> FakePool:
    """Calls of `square` with 0, 1 and 2, at the same time, take 3, 2 and 1 seconds."""
    pool = manual(3)
    for number in range(3):
        pool.when(work.square, number).takes(3 - number)
    return pool


# ===== concurrent.futures =====


def test_wait_with_a_timeout_lasts_so_long_on_the_virtual_clock() -> None:
    pool = manual()
    pool.when(work.square).takes(10)
    task = pool.submit(work.square, 2)
    assert concurrent.futures.wait([task], timeout=1).not_done == {task}
    assert pool.now == 1
    assert concurrent.futures.wait([task], timeout=9).done == {task}
    assert pool.now == 10


def test_wait_for_the_first_leaves_the_others() -> None:
    pool = pool_of_slower_and_faster_calls()
    tasks = [pool.submit(work.square, number) for number in range(3)]
    assert concurrent.futures.wait(tasks, return_when=FIRST_COMPLETED).done == {tasks[2]}
    assert pool.now == 1


def test_as_completed_goes_by_the_virtual_clock() -> None:
    pool = pool_of_slower_and_faster_calls()
    tasks = [pool.submit(work.square, number) for number in range(3)]
    assert list(concurrent.futures.as_completed(tasks)) == tasks[::-1]
    tasks = [pool.submit(work.square, number) for number in range(3)]
    done = []
    with pytest.raises(TimeoutError):
        for task in concurrent.futures.as_completed(tasks, timeout=2.5):
            done.append(task)  # noqa: PERF402 -- what came before the error counts
    assert done == [tasks[2], tasks[1]]
    assert pool.now == 3 + 2.5


def test_real_time_that_passes_in_as_completed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    late, clock, begin = 0.0, time.monotonic, concurrent.futures._base._yield_finished_futures  # type: ignore[attr-defined]

    def begin_late(*args: object, **named: object) -> object:
        nonlocal late
        late += 0.3
        return begin(*args, **named)

    pool = pool_of_slower_and_faster_calls()
    tasks = [pool.submit(work.square, number) for number in range(3)]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late)
    monkeypatch.setattr(concurrent.futures._base, "_yield_finished_futures", begin_late)
    with pytest.raises(TimeoutError):
        list(concurrent.futures.as_completed(tasks, timeout=2.5))
    assert pool.now == 2.5


@pytest.mark.parametrize("how", [concurrent.futures.wait, lambda tasks: list(concurrent.futures.as_completed(tasks))])
def test_a_wait_for_a_task_that_hangs_is_an_error(how: object) -> None:
    pool = manual()
    pool.when(work.square).hangs()
    with pytest.raises(poolkit.PoolkitError, match=r"would never be done(.|\n)*begins on worker 1"):
        how([pool.submit(work.square, 2)])  # type: ignore[operator]


def test_tasks_of_two_pools_are_waited_for() -> None:
    pools = [manual(), manual()]
    tasks = [pool.submit(work.square, 2) for pool in pools]
    assert len(concurrent.futures.wait(tasks).done) == 2
    tasks = [pool.submit(work.square, 2) for pool in pools]
    assert len(list(concurrent.futures.as_completed(tasks))) == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_the_timeout_of_map_counts_on_the_virtual_clock(ordered: bool) -> None:
    pool = manual(2)
    pool.when(work.square).takes(3)
    with pytest.raises(TimeoutError):
        list(pool.map(work.square, range(5), timeout=5, ordered=ordered))
    assert pool.now == 5
    assert sorted(pool.map(work.square, range(4), timeout=7, ordered=ordered)) == [0, 1, 4, 9]


def test_map_without_order_yields_what_ends_first() -> None:
    pool = manual(3)
    for number in range(3):
        pool.when(work.square, number).takes(3 - number)
    assert list(pool.map(work.square, range(3), ordered=False)) == [4, 1, 0]


def test_results_that_are_dropped_are_pending_no_more() -> None:
    pool = manual()
    results = pool.map(work.square, range(10))
    assert next(results) == 0
    del results
    assert pool.pending == []


# ===== callbacks =====


@pytest.mark.parametrize("mode", ["eager", "manual"])
def test_a_long_chain_of_callbacks_is_no_recursion(mode: str) -> None:
    count = 0
    with FakePool(mode) as pool:

        def go_on(_task: object) -> None:
            nonlocal count
            count += 1
            if count < 1500:
                pool.submit(work.square, 1).add_done_callback(go_on)

        pool.submit(work.square, 1).add_done_callback(go_on)
        pool.run_all()
    assert count == 1500


def test_a_callback_that_hands_in_to_a_full_queue_is_refused() -> None:
    """As with a real pool, where it must not wait for room."""
    errors: list[str] = []
    pool = FakePool("manual", max_queue=1)

    def hand_in(_task: object) -> None:
        try:
            for number in range(9):
                pool.submit(work.square, number)
        except poolkit.QueueFull as exc:
            errors.append(str(exc))

    pool.submit(work.square, 1).add_done_callback(hand_in)
    pool.run_all()
    assert len(errors) == 1
    assert "a callback must not wait" in errors[0]


def test_an_interrupt_in_a_callback_leaves_the_others_to_be_called() -> None:
    pool = manual(2)
    tasks = [pool.submit(work.square, number) for number in range(3)]
    called: list[object] = []

    def interrupt(_task: object) -> None:
        raise KeyboardInterrupt

    for callback in (interrupt, called.append):
        for task in tasks[:2]:
            task.add_done_callback(callback)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pool.cancel_all()
    pool.advance(0)
    assert [task.cancelled() for task in tasks] == [True, True, True]
    assert called == tasks[:2]


# ===== in the middle of a step =====


Interrupted = Callable[[FakePool, Callable[[], object]], None]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    """Have something done, once, in the middle of a step of the scheduler, as by a signal handler or a finalizer."""

    def interrupt(pool: FakePool, action: Callable[[], object]) -> None:
        scheduler = pool._supervisor.scheduler

        def tick(now: float) -> None:
            monkeypatch.undo()
            action()
            scheduler.tick(now)

        monkeypatch.setattr(scheduler, "tick", tick)
        pool._supervisor.settle()

    return interrupt


def test_a_finalizer_may_drop_results_in_the_middle_of_a_step(interrupted: Interrupted) -> None:
    pool = manual(2)
    results = [pool.map(work.square, range(9), chunksize=1)]
    assert next(results[0]) == 0
    interrupted(pool, results.clear)
    assert pool.pending == []
    assert pool.stats().cancelled == 2


def test_what_needs_no_answer_is_done_after_the_step_that_it_interrupted(interrupted: Interrupted) -> None:
    pool = manual()
    tasks = [pool.submit(work.square, number) for number in range(3)]
    interrupted(pool, tasks[0].cancel)
    assert [task.cancelled() for task in tasks] == [True, False, False]
    interrupted(pool, pool.shutdown)
    assert "closed" in repr(pool)
    assert [task.result() for task in tasks[1:]] == [1, 4]
    assert pool.workers() == []


def test_what_needs_an_answer_is_refused_in_the_middle_of_a_step(interrupted: Interrupted) -> None:
    pool = manual()
    task = pool.submit(work.square, 3)
    for action in (lambda: pool.submit(work.square, 1), task.result, pool.run_all, pool.warm_up):
        with pytest.raises(poolkit.PoolkitError, match="a signal handler or finalizer interrupted the pool"):
            interrupted(pool, action)
    assert task.result() == 9
    assert pool.stats().submitted == 1


def test_a_step_that_was_torn_is_made_good(interrupted: Interrupted) -> None:
    def interrupt() -> None:
        pool._supervisor.scheduler.queue.clear()
        raise KeyboardInterrupt

    pool = manual()
    tasks = [pool.submit(work.square, number) for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        interrupted(pool, interrupt)
    assert [task.result() for task in tasks] == [0, 1, 4]


# ===== threads =====


def test_threads_take_turns() -> None:
    wrong: list[object] = []
    pool = FakePool(max_workers=2)

    def use() -> None:
        for number in range(30):
            task = pool.submit(work.square, number)
            if not task.done() or task.result() != number * number:
                wrong.append(task)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert not wrong
    assert len(pool.calls) == 120
    assert pool.pending == []


def test_another_thread_that_would_wait_for_ever_is_told() -> None:
    pool = manual()
    pool.when(work.square).hangs()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        error = thread.submit(lambda: pool.submit(work.square, 1).result()).exception(WATCHDOG)
    assert isinstance(error, poolkit.PoolkitError)


def test_another_thread_waits_on_the_virtual_clock() -> None:
    pool = manual()
    pool.when(work.square).takes(2)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        error = thread.submit(lambda: pool.submit(work.square, 1).result(timeout=1)).exception(WATCHDOG)
    assert isinstance(error, TimeoutError)
    assert pool.now == 1


@pytest.mark.parametrize("how", ["result", "await"])
def test_a_coroutine_that_is_a_task_may_use_the_pool(how: str) -> None:
    pool = FakePool(max_workers=2, check_pickle=False)

    async def inner() -> int:
        task = pool.submit(work.square, 3)
        return task.result() if how == "result" else await task

    async def main() -> int:
        return await pool.submit(inner)

    with pool:
        assert asyncio.run(main()) == 9
        assert pool.submit(inner).result() == 9


# ===== context variables =====


@pytest.mark.parametrize("check_pickle", [True, False], ids=["as a process", "as a thread"])
@pytest.mark.parametrize("mode", ["plain", "coroutine"])
def test_a_task_has_the_variables_of_its_submitter_where_it_has_his_objects(mode: str, check_pickle: bool) -> None:
    def look() -> str:
        return variable.get()

    def change() -> str:
        before = variable.get()
        variable.set("the task's")
        return before

    async def change_later() -> str:
        return change()

    async def main(pool: FakePool) -> str:
        return await pool.submit(change_later)

    with FakePool(check_pickle=check_pickle) as pool:
        token = variable.set("the caller's")
        seen = asyncio.run(main(pool)) if mode == "coroutine" else pool.submit(change).result()
        assert seen == ("unset" if check_pickle else "the caller's")
        if not check_pickle:
            assert pool.submit(look).result() == "the caller's"
            assert list(pool.map(lambda _: look(), range(2))) == ["the caller's"] * 2
        assert variable.get() == "the caller's"
        variable.reset(token)


# ===== the end =====


def test_leaving_an_async_block_with_a_task_that_hangs_is_an_error() -> None:
    async def main() -> None:
        async with FakePool() as pool:
            pool.when(work.square).hangs()
            pool.submit(work.square, 1)

    async def main_with_a_view() -> None:
        async with FakePool().options(name="view") as view:
            view._of.when(work.square).hangs()  # type: ignore[attr-defined]
            view.submit(work.square, 1)

    for coroutine in (main(), main_with_a_view()):
        with pytest.raises(poolkit.PoolkitError, match="would wait for ever"):
            asyncio.run(asyncio.wait_for(coroutine, WATCHDOG))


def test_a_task_that_hangs_does_not_hide_why_the_block_failed() -> None:
    with pytest.raises(AssertionError, match="why"), FakePool() as pool:
        pool.when(work.square).hangs()
        task = pool.submit(work.square, 1)
        raise AssertionError("why")
    assert task.cancelled()


# ===== what a pool is made with =====


def test_what_cannot_be_pickled_is_no_initializer() -> None:
    with pytest.raises(poolkit.SerializationError, match="initializer"):
        FakePool(initializer=work.none_of_it, initargs=(threading.Lock(),))
    pool = FakePool(initializer=work.none_of_it, initargs=(threading.Lock(),), check_pickle=False)
    assert pool.submit(work.square, 3).result() == 9


def test_a_fake_takes_the_settings_of_a_pool() -> None:
    pool = FakePool(
        "manual",
        3,
        kind="process",
        max_workers=None,
        preload=["json"],
        env={"A": "b"},
        start_method="spawn",
        max_memory_per_child=1,
        shm_threshold=None,
    )
    assert pool.submit(work.square, 3).result() == 9
    assert pool.max_workers == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "fibre"}, ValueError),
        ({"sizes": 2}, TypeError),
        ({"preload": "json"}, TypeError),
        ({"max_workers": 0}, ValueError),
        ({"max_memory_per_child": "1"}, TypeError),
    ],
)
def test_settings_that_a_pool_refuses_are_refused(settings: dict[str, object], expected: type[Exception]) -> None:
    with pytest.raises(expected):
        FakePool(**settings)
    with pytest.raises(expected):
        poolkit.Pool(**settings)  # type: ignore[arg-type]
