"""Shutdown: every way to end a pool, from everywhere, leaves no task unsettled and nothing behind."""

from __future__ import annotations

import threading

import pytest

import support_functions as work
from poolkit import PoolClosed


def test_shutdown_finishes_what_was_accepted(make_pool):
    pool = make_pool(2)
    tasks = [pool.submit(work.square, number) for number in range(20)]
    pool.shutdown()
    assert all(task.done() for task in tasks)
    assert [task.result() for task in tasks] == [number**2 for number in range(20)]
    assert pool.workers() == []


def test_a_pool_that_was_never_used_ends(make_pool):
    pool = make_pool()
    pool.shutdown()
    assert pool.stats().submitted == 0


@pytest.mark.one_start_method
def test_a_closed_pool_refuses_work(make_pool):
    pool = make_pool()
    task = pool.submit(work.add, 1, 2)
    pool.shutdown()
    for call in (lambda: pool.submit(work.none_of_it), lambda: pool.resize(2), pool.warm_up):
        with pytest.raises(PoolClosed, match="shut down"):
            call()
    assert task.result() == 3
    assert pool.stats().succeeded == 1


@pytest.mark.one_start_method
def test_shutdown_can_be_repeated(make_pool):
    pool = make_pool()
    pool.submit(work.none_of_it)
    for arguments in ({}, {"wait": False}, {"kill": True}, {"cancel_futures": True}, {"timeout": 1}):
        pool.shutdown(**arguments)


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_shutdown_need_not_wait(make_pool, hold):
    pool = make_pool()
    held = hold(pool, "kept")
    queued = pool.submit(work.add, 1, 2)
    pool.shutdown(wait=False)
    with pytest.raises(PoolClosed):
        pool.submit(work.none_of_it)
    assert not held.task.done()
    held.release()
    assert (held.task.result(), queued.result()) == ("kept", 3)


@pytest.mark.needs("kill_running")
def test_shutdown_can_stop_what_runs(make_pool, new_gate):
    pool, arrived = make_pool(2), new_gate()
    tasks = [pool.submit(work.spin, arrived) for _ in range(2)] + [pool.submit(work.none_of_it) for _ in range(5)]
    arrived.wait(2)
    pool.shutdown(kill=True)
    assert [task.state for task in tasks] == ["cancelled"] * 7
    assert pool.workers() == []


@pytest.mark.needs("kill_running", "real_time")
@pytest.mark.one_start_method
def test_shutdown_can_lose_patience(make_pool, new_gate):
    pool, arrived = make_pool(), new_gate()
    stuck, queued = pool.submit(work.spin, arrived), pool.submit(work.none_of_it)
    arrived.wait()
    pool.shutdown(timeout=0.05)
    assert (stuck.state, queued.state) == ("cancelled", "cancelled")


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_shutdown_in_time_stops_nothing(make_pool):
    pool = make_pool()
    task = pool.submit(work.add, 1, 2)
    pool.shutdown(timeout=1000)
    assert task.result() == 3


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_a_patient_shutdown_can_be_overtaken_by_an_impatient_one(make_pool, new_gate):
    pool, arrived = make_pool(), new_gate()
    task = pool.submit(work.spin, arrived)
    arrived.wait()
    patient = threading.Thread(target=pool.shutdown)
    patient.start()
    pool.shutdown(kill=True)
    patient.join()
    assert task.cancelled()


@pytest.mark.one_start_method
@pytest.mark.needs("background")
@pytest.mark.parametrize("arguments", [{}, {"kill": True}, {"cancel_futures": True}], ids=str)
def test_shutdown_in_a_callback_does_not_wait_for_itself(make_pool, hold, recorder, arguments):
    pool = make_pool()
    held = hold(pool)

    def close(_done):
        pool.shutdown(**arguments)
        recorder("returned")

    held.task.add_done_callback(close)
    held.release()
    assert recorder.next() == "returned"
    pool.shutdown()
    assert pool.workers() == []


@pytest.mark.one_start_method
@pytest.mark.needs("background")
def test_shutdown_in_a_listener_does_not_wait_for_itself(pool, recorder):
    def close(_event):
        pool.shutdown()
        recorder("returned")

    pool.on("task_done", close)
    pool.submit(work.none_of_it).result()
    assert recorder.next() == "returned"


@pytest.mark.one_start_method
@pytest.mark.needs("background")
def test_threads_that_shut_down_at_once_all_return(make_pool, hold):
    pool = make_pool()
    held = hold(pool, "kept")
    threads = [
        threading.Thread(target=pool.shutdown, kwargs=arguments)
        for arguments in ({}, {"cancel_futures": True}, {"wait": False}, {})
    ]
    for thread in threads:
        thread.start()
    held.release()
    for thread in threads:
        thread.join()
    assert held.task.result() == "kept"
    assert pool.workers() == []


@pytest.mark.one_start_method
def test_the_body_of_with_may_raise_and_the_work_is_finished(make_pool):
    with pytest.raises(LookupError, match="mine"), make_pool() as pool:
        task = pool.submit(work.add, 1, 2)
        raise LookupError("mine")
    assert task.result() == 3


@pytest.mark.needs("kill_running")
@pytest.mark.one_start_method
def test_an_interrupted_body_of_with_stops_the_work(make_pool, new_gate):
    arrived = new_gate()
    with pytest.raises(KeyboardInterrupt), make_pool() as pool:
        tasks = [pool.submit(work.spin, arrived), pool.submit(work.none_of_it)]
        arrived.wait()
        raise KeyboardInterrupt
    assert [task.state for task in tasks] == ["cancelled", "cancelled"]


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_shutdown_finishes_retries_that_wait(make_pool, recorder, journal):
    pool = make_pool()
    pool.on("task_retried", recorder)
    view = pool.options(retries=1, retry_on=ConnectionError)
    task = view.submit(work.raise_first_times, journal, 1, "value")
    recorder.next()
    pool.shutdown()
    assert task.result() == "value"


@pytest.mark.needs("by_reference")
def test_a_task_may_shut_its_own_pool_down(make_pool):
    pool = make_pool()
    task = pool.submit(pool.shutdown, wait=False)
    assert task.result() is None
    pool.shutdown()
