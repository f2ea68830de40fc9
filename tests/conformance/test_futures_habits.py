"""What users of `concurrent.futures` are used to works here in the same way, on pools and on views of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, as_completed, wait

import pytest

import support_functions as work
import support_objects as objects
from poolkit import PoolClosed
from support import WATCHDOG, wait_until

pytestmark = pytest.mark.one_start_method


@pytest.fixture(params=["pool", "view"])
def executor(request, make_pool):
    pool = make_pool(2)
    return pool if request.param == "pool" else pool.options(priority=1)


def test_it_is_an_executor_with_futures(executor):
    assert isinstance(executor, concurrent.futures.Executor)
    task = executor.submit(work.add, 1, 2)
    assert isinstance(task, concurrent.futures.Future)
    assert task.result(timeout=WATCHDOG) == 3


def test_wait_for_all(executor):
    tasks = [executor.submit(work.square, number) for number in range(10)]
    done, not_done = wait(tasks, timeout=WATCHDOG, return_when=ALL_COMPLETED)
    assert done == set(tasks)
    assert not_done == set()


@pytest.mark.needs("background")
def test_wait_for_the_first(executor, hold):
    held = hold(executor)
    quick = executor.submit(work.none_of_it)
    assert wait([held.task, quick], timeout=WATCHDOG, return_when=FIRST_COMPLETED) == ({quick}, {held.task})
    held.release()
    assert wait([held.task, quick], timeout=WATCHDOG).not_done == set()


@pytest.mark.needs("background")
def test_wait_for_the_first_exception(executor, hold):
    held = hold(executor)
    fine, failing = executor.submit(work.none_of_it), executor.submit(work.raise_value_error, "no")
    done, not_done = wait([held.task, fine, failing], timeout=WATCHDOG, return_when=FIRST_EXCEPTION)
    assert failing in done
    assert not_done == {held.task}
    held.release()


@pytest.mark.needs("background")
def test_wait_times_out(executor, hold):
    held = hold(executor)
    assert wait([held.task], timeout=0.01).not_done == {held.task}
    held.release()


def test_as_completed_yields_every_task_once(executor):
    tasks = [executor.submit(work.square, number) for number in range(20)]
    tasks.append(executor.submit(work.raise_value_error, "no"))
    assert set(as_completed(tasks, timeout=WATCHDOG)) == set(tasks)


@pytest.mark.needs("background")
def test_as_completed_yields_in_the_order_of_completion(executor, hold):
    held = hold(executor)
    quick = executor.submit(work.none_of_it)
    completed = as_completed([held.task, quick], timeout=WATCHDOG)
    assert next(completed) is quick
    held.release()
    assert next(completed) is held.task


@pytest.mark.needs("background")
@pytest.mark.parametrize("how", ["wait", "as_completed"])
def test_waiters_hear_of_cancellation_by_shutdown(make_pool, hold, how):
    pool = make_pool()
    held = hold(pool)
    queued = [pool.submit(work.none_of_it) for _ in range(5)]
    found = []

    def watch():
        found.extend(wait(queued).done if how == "wait" else as_completed(queued))

    watcher = threading.Thread(target=watch)
    watcher.start()
    pool.shutdown(wait=False, cancel_futures=True)
    watcher.join(WATCHDOG)
    assert set(found) == set(queued)
    assert all(task.cancelled() for task in queued)
    held.release()
    held.task.result()


def test_callbacks_run_in_order_with_the_task(executor):
    seen = []
    task = executor.submit(work.add, 1, 2)
    task.add_done_callback(lambda done: seen.append((1, done)))
    task.add_done_callback(lambda done: seen.append((2, done)))
    task.result()
    wait_until(lambda: len(seen) == 2)
    assert seen == [(1, task), (2, task)]


def test_a_callback_added_late_runs_at_once_in_this_thread(executor):
    task = executor.submit(work.none_of_it)
    task.result()
    seen = []
    task.add_done_callback(lambda done: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()]


@pytest.mark.needs("background")
def test_a_raising_callback_is_logged_and_harms_nothing(executor, hold, recorder, caplog):
    held = hold(executor)
    held.task.add_done_callback(lambda done: 1 / 0)
    held.task.add_done_callback(recorder)
    held.release()
    assert recorder.next() is held.task
    assert executor.submit(work.add, 1, 2).result() == 3
    assert [record.exc_info[0] for record in caplog.records if record.levelno == logging.ERROR] == [ZeroDivisionError]


@pytest.mark.needs("background")
def test_submitting_in_a_callback_works(executor, hold, recorder):
    held = hold(executor)
    held.task.add_done_callback(lambda done: recorder(executor.submit(work.add, 1, 2)))
    held.release()
    assert recorder.next().result() == 3


def test_map_takes_chunksize_and_timeout_by_name(executor):
    results = executor.map(work.add, [1, 2], [3, 4], timeout=WATCHDOG, chunksize=2)
    assert isinstance(results, Iterator)
    assert list(results) == [4, 6]


def test_map_of_an_endless_iterable_is_lazy(executor):
    results = executor.map(work.square, itertools.count())
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    results.close()


def test_map_raises_what_the_function_raised(executor):
    with pytest.raises(ValueError, match="-1"):
        list(executor.map(work.raise_if_negative, [1, -1, 2]))


def test_with_waits_for_the_accepted_work(make_pool):
    with make_pool(2) as pool:
        tasks = [pool.submit(work.square, number) for number in range(20)]
    assert all(task.done() for task in tasks)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(work.none_of_it)


def test_map_after_shutdown_is_refused(make_pool):
    pool = make_pool()
    pool.shutdown()
    with pytest.raises(PoolClosed):
        pool.map(work.square, [1])


@pytest.mark.needs("background")
def test_shutdown_with_cancel_futures_finishes_what_runs(make_pool, hold):
    pool = make_pool()
    held = hold(pool, "kept")
    queued = [pool.submit(work.none_of_it) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(task.cancelled() for task in queued)
    with pytest.raises(CancelledError):
        queued[0].result()
    held.release()
    assert held.task.result() == "kept"


@pytest.mark.needs("unattended")
def test_wrap_future_awaits_a_task(executor):
    async def main():
        return await asyncio.wrap_future(executor.submit(work.add, 1, 2))

    assert asyncio.run(main()) == 3


@pytest.mark.needs("unattended")
def test_run_in_executor(executor):
    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, work.square, number) for number in range(5)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


# ===== what is kept alive =====


@pytest.fixture
def without_gc():
    """Only reference counts free anything: what needs the collector is a cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_gc")
def test_a_result_lives_as_long_as_its_task_only(pool):
    task = pool.submit(objects.make_payload)
    reference = weakref.ref(task.result())
    assert reference() is not None
    del task
    wait_until(lambda: reference() is None, "the result is gone")


@pytest.mark.usefixtures("without_gc")
def test_a_done_task_is_not_kept_by_its_pool(pool):
    task = pool.submit(work.none_of_it)
    task.result()
    reference = weakref.ref(task)
    del task
    wait_until(lambda: reference() is None, "the task is gone")


@pytest.mark.usefixtures("without_gc")
def test_an_exception_that_was_met_is_in_no_cycle(pool):
    def meet():
        try:
            pool.submit(work.raise_attributed, "no", 1).result()
        except work.AttributedError as exc:
            return weakref.ref(exc)

    reference = meet()
    wait_until(lambda: reference() is None, "the exception is gone")


@pytest.mark.usefixtures("without_gc")
def test_an_exception_that_was_asked_for_is_in_no_cycle(pool):
    reference = weakref.ref(pool.submit(work.raise_attributed, "no", 1).exception())
    wait_until(lambda: reference() is None, "the exception is gone")


@pytest.mark.needs("background")
@pytest.mark.usefixtures("without_gc")
def test_a_cancelled_task_keeps_nothing(pool, hold):
    held = hold(pool)
    task = pool.submit(objects.value_of, objects.Payload())
    task.cancel()
    reference = weakref.ref(task)
    del task
    wait_until(lambda: reference() is None, "the task is gone")
    held.release()


@pytest.mark.needs("by_reference")
@pytest.mark.usefixtures("without_gc")
def test_an_argument_is_dropped_when_its_task_is_done(pool):
    payload = objects.Payload(1)
    reference = weakref.ref(payload)
    task = pool.submit(objects.value_of, payload)
    del payload
    assert task.result() == 1
    wait_until(lambda: reference() is None, "the argument is gone")


@pytest.mark.usefixtures("without_gc")
def test_a_worker_keeps_neither_argument_nor_result(pool):
    assert pool.submit(objects.remember, objects.Payload(), "argument").result() is not None
    assert pool.submit(objects.is_forgotten, "argument").result()
    assert pool.submit(objects.is_forgotten, "result").result()


@pytest.mark.usefixtures("without_gc")
def test_a_worker_keeps_no_exception(pool):
    def meet():
        assert isinstance(pool.submit(objects.remember_exception, "text").exception(), work.AttributedError)

    meet()
    assert pool.submit(objects.is_forgotten, "exception").result()
