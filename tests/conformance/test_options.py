"""Options of a call: limits, priority, retries, and how a full queue answers."""

from __future__ import annotations

import os
import threading

import pytest

import support_functions as work
from poolkit import DeadlineExceeded, QueueFull, QueueTimeout, TaskTimeout, WorkerCrashed

pytestmark = pytest.mark.one_start_method


# ===== views =====


def test_views_chain_and_leave_their_origin_alone(pool):
    first = pool.options(timeout=100)
    second = first.options(name="mine")
    third = second.options(timeout=None)
    seen = [one.submit(work.context_facts).result() for one in (pool, first, second, third)]
    assert [name for _, name, *_ in seen] == ["context_facts", "context_facts", "mine", "mine"]
    assert [left is None for *_, left in seen] == [True, False, False, True]


def test_a_view_overrides_the_pools_defaults(make_pool):
    pool = make_pool(timeout=100)
    assert pool.submit(work.context_facts).result()[-1] is not None
    assert pool.options(timeout=None).submit(work.context_facts).result()[-1] is None
    assert pool.options(timeout=float("inf")).submit(work.context_facts).result()[-1] is None


def test_a_view_tells_what_it_changes(pool):
    view = pool.options(timeout=2, priority=10)
    assert repr(view) == f"<poolkit.PoolView of {pool.name!r} timeout=2.0 priority=10>"


def test_shutting_a_view_down_shuts_its_pool_down(pool):
    with pool.options(priority=1) as view:
        task = view.submit(work.add, 1, 2)
    assert task.result() == 3
    with pytest.raises(RuntimeError):
        pool.submit(work.none_of_it)


def test_name_is_the_tasks_name(pool):
    task = pool.options(name="thumbnail").submit(work.context_facts)
    assert task.name == task.result()[1] == "thumbnail"


# ===== limits =====


@pytest.mark.needs("real_time", "kill_running")
def test_a_task_over_its_time_limit_is_stopped(make_pool):
    pool = make_pool(timeout=0.1)
    with pytest.raises(TaskTimeout, match=r"spin.*0\.1 s") as caught:
        pool.submit(work.spin).result()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.timeout == 0.1
    assert pool.options(timeout=None).submit(work.add, 1, 2).result() == 3
    assert (pool.stats().timed_out, pool.stats().failed) == (1, 1)


@pytest.mark.needs("real_time", "kill_running")
@pytest.mark.slow
def test_the_time_limit_does_not_count_the_time_in_the_queue(pool, hold):
    held = hold(pool)
    waiting = pool.options(timeout=0.5).submit(work.add, 1, 2)
    clock = pool.options(queue_timeout=0.6).submit(work.none_of_it)
    with pytest.raises(QueueTimeout):
        clock.result()
    held.release()
    assert waiting.result() == 3


@pytest.mark.needs("real_time")
def test_a_task_that_waits_too_long_never_runs(pool, hold, journal):
    held = hold(pool)
    task = pool.options(queue_timeout=0.05).submit(work.write_line, journal, "ran")
    with pytest.raises(QueueTimeout, match=r"waited in the queue for 0\.05 s"):
        task.result()
    held.release()
    held.task.result()
    assert pool.submit(work.add, 1, 2).result() == 3
    assert (journal.lines(), task.attempts, task.state) == ([], 0, "failed")


@pytest.mark.needs("real_time")
@pytest.mark.slow
def test_queue_timeout_is_over_once_the_task_begins(pool, hold):
    pool.warm_up()
    held = hold(pool.options(queue_timeout=1.0), "kept")
    clock = pool.options(queue_timeout=1.1).submit(work.none_of_it)
    with pytest.raises(QueueTimeout):
        clock.result()
    held.release()
    assert held.task.result() == "kept"


@pytest.mark.needs("real_time")
def test_the_deadline_counts_in_the_queue(pool, hold, journal):
    held = hold(pool)
    task = pool.options(deadline=0.05).submit(work.write_line, journal, "ran")
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        task.result()
    held.release()
    held.task.result()
    pool.submit(work.none_of_it).result()
    assert journal.lines() == []


@pytest.mark.needs("real_time", "kill_running")
def test_the_deadline_stops_a_running_task(pool):
    with pytest.raises(DeadlineExceeded):
        pool.options(deadline=0.2).submit(work.spin).result()
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("real_time")
@pytest.mark.slow
def test_the_deadline_counts_retries(pool, journal):
    pool.warm_up()
    view = pool.options(deadline=0.5, retries=10**6, retry_on=ValueError)
    with pytest.raises(DeadlineExceeded):
        view.submit(work.write_and_raise, journal, "run", "no").result()
    runs = len(journal.lines())
    assert runs >= 1
    pool.submit(work.none_of_it).result()
    assert len(journal.lines()) == runs


# ===== priority =====


@pytest.mark.needs("background")
def test_more_urgent_tasks_run_first_and_equals_in_order(pool, hold, journal):
    held = hold(pool)
    for number, priority in enumerate([0, 5, -1, 5, 0, 9]):
        pool.options(priority=priority).submit(work.write_line, journal, number)
    held.release()
    pool.shutdown()
    assert journal.lines() == ["5", "1", "3", "0", "4", "2"]


@pytest.mark.needs("background")
def test_an_urgent_task_overtakes_what_was_sent_ahead(pool, send_ahead, journal):
    held = send_ahead(pool, lambda quick: [quick.submit(work.write_line, journal, number) for number in range(5)])
    urgent = pool.options(priority=1).submit(work.write_line, journal, "urgent")
    held.release()
    assert urgent.result() == "urgent"
    pool.shutdown()
    assert journal.lines() == ["urgent", "0", "1", "2", "3", "4"]


# ===== retries =====


@pytest.mark.needs("crash")
def test_a_crash_is_retried_when_asked_for(make_pool, journal):
    task = make_pool(retries=1).submit(work.die_first_times, journal, 1, "value")
    assert (task.result(), task.attempts, task.state) == ("value", 2, "succeeded")
    assert len(journal.lines()) == 2


@pytest.mark.needs("crash")
def test_a_crash_is_not_retried_unless_asked_for(pool, journal):
    task = pool.submit(work.die_first_times, journal, 1, "value")
    assert isinstance(task.exception(), WorkerCrashed)
    assert pool.submit(work.add, 1, 2).result() == 3
    assert (task.attempts, len(journal.lines())) == (1, 1)


@pytest.mark.needs("crash")
def test_retries_come_to_an_end(pool, journal):
    task = pool.options(retries=2).submit(work.die_first_times, journal, 100, "value")
    assert isinstance(task.exception(), WorkerCrashed)
    assert (task.attempts, len(journal.lines())) == (3, 3)
    assert (pool.stats().retried, pool.stats().failed) == (2, 1)


def test_named_exceptions_are_retried(pool, journal):
    view = pool.options(retries=3, retry_on=(OSError, KeyError))
    task = view.submit(work.raise_first_times, journal, 2, "value")
    assert (task.result(), task.attempts, len(journal.lines())) == ("value", 3, 3)
    assert pool.stats().retried == 2


def test_other_exceptions_are_not_retried(pool, journal):
    task = pool.options(retries=3, retry_on=KeyError).submit(work.raise_first_times, journal, 1, "value")
    assert isinstance(task.exception(), ConnectionError)
    assert (task.attempts, len(journal.lines())) == (1, 1)


@pytest.mark.needs("process")
def test_a_failure_that_is_slow_to_unpickle_delays_no_other_result(pool, new_gate):
    """Whether it is retried depends on its type, so it is unpickled before anybody asks for it."""
    arrived, release = new_gate(), new_gate()
    slow = os.getpid(), arrived, release
    task = pool.options(retries=1, retry_on=KeyError).submit(work.raise_slow_to_read, *slow)
    arrived.wait()
    assert not task.done()
    assert pool.submit(work.add, 1, 2).result() == 3
    assert isinstance(pool.options(timeout=0.1).submit(work.spin).exception(), TaskTimeout)
    release.signal()
    assert isinstance(task.exception(), work.SlowToReadError)
    assert task.attempts == 1
    release.signal(2)
    task = pool.options(retries=1, retry_on=work.SlowToReadError).submit(work.raise_slow_to_read, *slow)
    assert isinstance(task.exception(), work.SlowToReadError)
    assert task.attempts == 2


@pytest.mark.needs("by_value")
def test_each_attempt_sees_the_same_input(pool, journal):
    def grow(items):
        journal.write(len(items))
        items.append(1)
        if len(journal.lines()) < 3:
            raise ConnectionError
        return items

    assert pool.options(retries=3, retry_on=ConnectionError).submit(grow, [0]).result() == [0, 1]
    assert journal.lines() == ["1", "1", "1"]


@pytest.mark.needs("real_time", "kill_running")
@pytest.mark.slow
def test_a_timeout_is_retried_when_named(make_pool, journal):
    def spin_once():
        journal.write("run")
        return work.spin() if len(journal.lines()) == 1 else "value"

    pool = make_pool(initializer=lambda: work.none_of_it(journal))  # whatever the run imports is there before it
    # Most often two runs; one that is kept from its work for so long is one more.
    task = pool.options(timeout=0.2, retries=20, retry_on=TaskTimeout).submit(spin_once)
    assert task.result() == "value"
    assert task.attempts >= 2
    assert pool.stats().retried == task.attempts - 1


# ===== a full queue =====


@pytest.mark.needs("background")
def test_a_full_queue_refuses_when_told_not_to_block(make_pool, hold):
    pool = make_pool(max_queue=2)
    held = hold(pool)
    queued = [pool.submit(work.add, number, 0) for number in range(2)]
    with pytest.raises(QueueFull, match="max_queue=2"):
        pool.options(block=False).submit(work.add, 1, 2)
    held.release()
    assert [task.result() for task in queued] == [0, 1]
    assert pool.options(block=False).submit(work.add, 1, 2).result() == 3
    assert pool.stats().submitted == 4


@pytest.mark.needs("background")
def test_a_full_queue_blocks_until_there_is_room(make_pool, hold):
    pool = make_pool(max_queue=1)
    held = hold(pool)
    queued = pool.submit(work.none_of_it)
    found = []
    submitting = threading.Thread(target=lambda: found.append(pool.submit(work.add, 1, 2)))
    submitting.start()
    assert not queued.done()
    assert found == []
    held.release()
    submitting.join()
    assert found[0].result() == 3


@pytest.mark.needs("background")
def test_whoever_waits_for_room_hears_of_shutdown(make_pool, hold, recorder):
    pool = make_pool(max_queue=1)
    held = hold(pool)
    pool.submit(work.none_of_it)

    def submit():
        with pytest.raises(RuntimeError) as caught:
            pool.submit(work.none_of_it)
        recorder(caught.value)

    submitting = threading.Thread(target=submit)
    submitting.start()
    pool.shutdown(wait=False)
    assert "shut down" in str(recorder.next())
    submitting.join()
    held.release()


@pytest.mark.needs("background")
def test_a_callback_is_refused_room_rather_than_left_to_wait_for_itself(make_pool, hold, recorder):
    pool = make_pool(max_queue=1)
    held = hold(pool)

    def fill(_done):
        tasks = []
        with pytest.raises(QueueFull):
            for _ in range(10):
                tasks.append(pool.submit(work.spin))
        for task in tasks:
            task.cancel()
        recorder(len(tasks))

    held.task.add_done_callback(fill)
    held.release()
    assert recorder.next() == 2


@pytest.mark.needs("background")
def test_map_respects_a_bounded_queue(make_pool):
    pool = make_pool(2, max_queue=1)
    assert list(pool.map(work.square, range(50), chunksize=1)) == [number**2 for number in range(50)]
