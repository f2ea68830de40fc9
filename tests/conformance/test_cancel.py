"""Cancelling: what has not begun never does, what runs is stopped, and nobody else notices."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading

import pytest

import support_functions as work
from poolkit import TaskCancelled
from support import is_alive, wait_for_exit, wait_until

pytestmark = pytest.mark.one_start_method


def test_a_done_task_cannot_be_cancelled(pool):
    task = pool.submit(work.add, 1, 2)
    task.result()
    assert not task.cancel()
    assert not task.cancelled()
    assert task.result() == 3


@pytest.mark.needs("background")
def test_a_queued_task_that_is_cancelled_never_runs(pool, hold, journal):
    held = hold(pool)
    task = pool.submit(work.write_line, journal, "ran")
    assert task.cancel()
    assert (task.state, task.cancelled(), task.done(), task.attempts) == ("cancelled", True, True, 0)
    with pytest.raises(TaskCancelled, match=r"write_line.*before it began") as caught:
        task.result()
    assert isinstance(caught.value, concurrent.futures.CancelledError)
    with pytest.raises(TaskCancelled):
        task.exception()
    held.release()
    held.task.result()
    pool.submit(work.none_of_it).result()
    assert journal.lines() == []


@pytest.mark.needs("background")
def test_cancelling_again_says_the_same(pool, hold):
    held = hold(pool)
    task = pool.submit(work.none_of_it)
    assert [task.cancel(), task.cancel()] == [True, True]
    held.release()


@pytest.mark.needs("background")
def test_a_hundred_cancelled_tasks_leave_no_trace(pool, hold, journal):
    held = hold(pool)
    tasks = [pool.submit(work.write_line, journal, number) for number in range(100)]
    assert all(task.cancel() for task in tasks)
    held.release()
    pool.shutdown()
    assert journal.lines() == []


@pytest.mark.needs("background")
def test_a_task_that_was_sent_ahead_can_still_be_cancelled(pool, send_ahead, journal):
    tasks = []
    held = send_ahead(
        pool, lambda quick: tasks.extend(quick.submit(work.write_line, journal, number) for number in range(5))
    )
    assert tasks[1].cancel()
    assert tasks[3].cancel()
    held.release()
    pool.shutdown()
    assert journal.lines() == ["0", "2", "4"]
    assert [task.state for task in tasks[:2]] == ["succeeded", "cancelled"]


@pytest.mark.needs("kill_running")
def test_a_running_task_is_stopped(pool, new_gate):
    arrived = new_gate()
    task = pool.submit(work.spin, arrived)
    arrived.wait()
    assert task.cancel()
    assert (task.state, task.attempts) == ("cancelled", 1)
    with pytest.raises(TaskCancelled, match="in attempt 1"):
        task.result()
    assert pool.submit(work.add, 1, 2).result() == 3
    assert (pool.stats().cancelled, pool.stats().respawned, pool.stats().crashed) == (1, 0, 0)


@pytest.mark.needs("kill_running")
def test_others_do_not_notice_a_cancellation(make_pool, hold, new_gate):
    pool, arrived = make_pool(2), new_gate()
    held = hold(pool, "kept")
    stopped = pool.submit(work.spin, arrived)
    queued = [pool.submit(work.square, number) for number in range(20)]
    arrived.wait()
    assert stopped.cancel()
    assert [task.result() for task in queued] == [number**2 for number in range(20)]
    held.release()
    assert held.task.result() == "kept"


@pytest.mark.needs("kill_running")
def test_a_late_kill_never_hits_the_next_task(make_pool):
    pool = make_pool(2)
    for number in range(40):
        doomed, innocent = pool.submit(work.identity, "doomed"), pool.submit(work.square, number)
        doomed.cancel()
        assert innocent.result() == number**2


@pytest.mark.needs("process")
def test_programs_that_the_task_started_end_with_it(pool, new_gate, journal):
    arrived = new_gate()
    task = pool.submit(work.start_program, arrived, journal)
    arrived.wait()
    program = int(journal.lines()[0])
    assert is_alive(program)
    task.cancel()
    wait_for_exit(program)


@pytest.mark.needs("process")
def test_a_task_in_c_code_is_stopped(pool, new_gate):
    arrived = new_gate()
    task = pool.submit(work.hold_the_gil, arrived)
    arrived.wait()
    assert task.cancel()
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("by_reference")
def test_a_thread_is_asked_to_stop(pool, new_gate):
    arrived, noticed = new_gate(), new_gate()
    task = pool.submit(work.wait_for_cancelled, arrived, noticed)
    arrived.wait()
    assert task.cancel()
    noticed.wait()
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("by_reference")
@pytest.mark.slow
def test_a_thread_that_does_not_stop_is_given_up_and_replaced(pool, new_gate):
    arrived, lock = new_gate(), threading.Lock()
    lock.acquire()

    def wait_for_lock():
        told = False
        while True:
            with contextlib.suppress(BaseException):  # what stops it may come anywhere once it has arrived
                if not told:
                    told = True
                    arrived.signal()
                with lock:
                    return

    task = pool.submit(wait_for_lock)
    arrived.wait()
    assert task.cancel()
    assert pool.submit(work.add, 1, 2).result() == 3
    wait_until(lambda: pool.stats().abandoned == 1)
    lock.release()


@pytest.mark.needs("background")
def test_cancel_all_ends_everything(make_pool, new_gate, journal):
    pool, arrived = make_pool(2), new_gate()
    tasks = [pool.submit(work.spin, arrived), pool.submit(work.spin, arrived)]
    arrived.wait(2)
    tasks += [pool.submit(work.write_line, journal, number) for number in range(10)]
    pool.cancel_all()
    assert [task.state for task in tasks] == ["cancelled"] * 12
    assert pool.submit(work.add, 1, 2).result() == 3
    assert journal.lines() == []
    assert pool.stats().cancelled == 12


@pytest.mark.needs("background")
def test_a_task_that_waits_for_its_retry_can_be_cancelled(pool, recorder, journal):
    pool.on("task_retried", recorder)
    view = pool.options(retries=10**6, retry_on=ValueError)
    task = view.submit(work.write_and_raise, journal, "run", "no")
    event = recorder.next()
    assert event.task is task
    assert isinstance(event.error, ValueError)
    assert task.cancel()
    runs = len(journal.lines())
    pool.submit(work.none_of_it).result()
    assert len(journal.lines()) == runs
    assert task.cancelled()


@pytest.mark.needs("background")
def test_callbacks_hear_of_a_cancellation(pool, hold, recorder):
    held = hold(pool)
    queued = pool.submit(work.none_of_it)
    queued.add_done_callback(recorder)
    held.task.add_done_callback(recorder)
    queued.cancel()
    assert recorder.next() is queued
    held.task.cancel()
    assert recorder.next() is held.task
    assert held.task.cancelled()


@pytest.mark.needs("background")
def test_a_callback_may_cancel_others(pool, hold, recorder, new_gate):
    held = hold(pool)
    queued = [pool.submit(work.spin, new_gate()) for _ in range(3)]  # the first may have begun by then
    held.task.add_done_callback(lambda done: recorder([done.cancel(), *(task.cancel() for task in queued)]))
    held.release()
    assert recorder.next() == [False, True, True, True]


@pytest.mark.needs("background")
def test_threads_that_cancel_at_once_agree(pool, hold):
    held = hold(pool)
    tasks = [pool.submit(work.none_of_it) for _ in range(50)]
    threads = [threading.Thread(target=lambda: [task.cancel() for task in tasks]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held.release()
    held.task.result()
    assert pool.stats().cancelled == 50
