"""A pool from its first worker to its last: how workers come, are replaced, are watched, and leave."""

from __future__ import annotations

import collections
import logging
import threading

import pytest

import support_functions as work
from poolkit import PoolClosed
from support import wait_until


def worker_count(pool):
    return sum(pool.stats().workers.values())


# ===== coming =====


def test_workers_start_on_demand(make_pool):
    pool = make_pool(2)
    assert pool.workers() == []
    pool.submit(work.none_of_it).result()
    assert len(pool.workers()) == 1


def test_warm_up_starts_all(make_pool):
    pool = make_pool(2)
    pool.warm_up()
    assert pool.stats().workers["idle"] == 2
    pool.warm_up()
    assert len(pool.workers()) == 2


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_warm_up_may_time_out(make_pool, new_gate):
    release = new_gate()
    pool = make_pool(initializer=release.wait)
    with pytest.raises(TimeoutError, match="0 of 1 workers are up"):
        pool.warm_up(timeout=0.01)
    release.signal()
    pool.warm_up()
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_warm_up_hears_of_shutdown(make_pool, new_gate, recorder):
    release = new_gate()
    pool = make_pool(initializer=release.wait)

    def warm_up():
        with pytest.raises(PoolClosed):
            pool.warm_up()
        recorder("closed")

    thread = threading.Thread(target=warm_up)
    thread.start()
    wait_until(lambda: pool.workers())
    pool.shutdown(wait=False, kill=True)
    assert recorder.next() == "closed"
    thread.join()


# ===== watching =====


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_workers_tell_what_they_do(make_pool, hold, kind):
    pool = make_pool(2)
    pool.warm_up()
    held = hold(pool)
    busy, idle = sorted(pool.workers(), key=lambda worker: worker.state)
    assert (busy.state, busy.task, busy.id) == ("busy", held.task, held.task.worker_id)
    assert (idle.state, idle.task, idle.tasks_done) == ("idle", None, 0)
    if kind.can("here"):  # else it is told soon, or after a task
        assert busy.pid != idle.pid
    assert busy.since >= 0
    held.release()
    held.task.result()
    wait_until(lambda: pool.stats().workers["idle"] == 2)
    assert sum(worker.tasks_done for worker in pool.workers()) == 1


@pytest.mark.needs("process", "here")
def test_workers_tell_their_memory(pool):
    pool.warm_up()
    (worker,) = pool.workers()
    assert worker.rss > 1_000_000


@pytest.mark.one_start_method
def test_stats_add_up(pool, journal):
    tasks = [pool.submit(work.square, number) for number in range(5)]
    tasks += [pool.submit(work.raise_value_error, "no") for _ in range(3)]
    tasks.append(pool.options(retries=1, retry_on=OSError).submit(work.raise_first_times, journal, 1, 0))
    for task in tasks:
        task.exception()
    stats = pool.stats()
    assert (stats.submitted, stats.succeeded, stats.failed, stats.cancelled) == (9, 6, 3, 0)
    assert (stats.queued, stats.running, stats.retried) == (0, 0, 1)
    assert (stats.run_time.count, stats.wait_time.count) == (10, 10)
    assert 0 <= stats.run_time.percentile(50) <= stats.run_time.percentile(99) <= stats.run_time.largest
    assert stats.run_time.total >= stats.run_time.largest


@pytest.mark.one_start_method
@pytest.mark.needs("process")
def test_stats_count_the_bytes_on_links(make_pool):
    pool = make_pool(shm_threshold=None)
    pool.submit(work.identity, b"x" * 1_000_000).result()
    stats = pool.stats()
    assert stats.link_bytes_sent > 1_000_000
    assert stats.link_bytes_received > 1_000_000


@pytest.mark.one_start_method
@pytest.mark.needs("unattended")
def test_listeners_hear_of_a_task_from_start_to_end(pool, recorder):
    for event in ("worker_started", "task_started", "task_done"):
        pool.on(event, recorder)
    task = pool.submit(work.none_of_it)
    events = [recorder.next() for _ in range(3)]
    assert [type(event).__name__ for event in events] == ["WorkerStarted", "TaskStarted", "TaskDone"]
    assert events[1].task is events[2].task is task
    assert events[0].worker_id == events[1].worker_id == task.worker_id


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_listeners_run_on_the_thread_for_callbacks(pool, hold, recorder):
    pool.on("task_done", recorder)
    held = hold(pool)
    held.task.add_done_callback(recorder)
    held.release()
    recorder.next()
    recorder.next()
    assert {thread.name for thread in recorder.threads} == {f"poolkit-{pool.name}-callbacks"}


@pytest.mark.one_start_method
def test_the_end_waits_until_all_events_are_told_in_their_order(make_pool):
    told = []
    with make_pool() as pool:
        for event in ("worker_started", "task_started", "task_done", "worker_exited"):
            pool.on(event, lambda event: (told.append(event), pool.stats()))
        tasks = [pool.submit(work.none_of_it) for _ in range(20)]
    names = [type(event).__name__ for event in told]
    assert (names[0], names[-1]) == ("WorkerStarted", "WorkerExited")
    for task in tasks:
        mine = [type(event).__name__ for event in told if getattr(event, "task", None) is task]
        assert mine == ["TaskStarted", "TaskDone"]


@pytest.mark.one_start_method
def test_listeners_can_stop_listening(pool, recorder):
    pool.on("task_done", recorder)
    pool.submit(work.none_of_it).result()
    recorder.next()
    pool.off("task_done", recorder)
    pool.submit(work.none_of_it).result()
    pool.shutdown()
    assert recorder.is_empty()


@pytest.mark.one_start_method
def test_a_raising_listener_is_logged_and_harms_nothing(pool, recorder, caplog):
    pool.on("task_done", lambda event: 1 / 0)
    pool.on("task_done", recorder)
    pool.submit(work.none_of_it).result()
    recorder.next()
    assert pool.submit(work.add, 1, 2).result() == 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[0].exc_info[0] is ZeroDivisionError


@pytest.mark.one_start_method
@pytest.mark.needs("background")
def test_a_listener_may_use_the_pool(pool, recorder):
    def listen(event):
        pool.off("task_done", listen)
        recorder((pool.stats().succeeded, pool.submit(work.add, 1, 2)))

    pool.on("task_done", listen)
    pool.submit(work.none_of_it).result()
    succeeded, task = recorder.next()
    assert (succeeded, task.result()) == (1, 3)


# ===== being replaced =====


def test_workers_are_replaced_after_so_many_tasks(make_pool, recorder):
    pool = make_pool(max_tasks_per_child=2)
    pool.on("worker_exited", recorder)
    tasks = [pool.submit(work.square, number) for number in range(10)]
    assert [task.result() for task in tasks] == [number**2 for number in range(10)]
    runs = collections.Counter(task.worker_id for task in tasks)
    assert max(runs.values()) <= 2, "one that is slow may lose its second task to the next worker"
    assert len(runs) >= 5
    assert {recorder.next().cause for _ in range(4)} == {"recycled"}
    assert pool.stats().respawned == 0


@pytest.mark.one_start_method
def test_a_worker_for_each_task(make_pool):
    pool = make_pool(2, max_tasks_per_child=1)
    tasks = [pool.submit(work.none_of_it) for _ in range(6)]
    for task in tasks:
        task.result()
    assert len({task.worker_id for task in tasks}) == 6


@pytest.mark.needs("process")
@pytest.mark.slow
def test_a_worker_that_has_grown_is_replaced(make_pool, kind):
    pool = make_pool(max_memory_per_child=200_000_000)
    first = pool.submit(work.pid).result()
    assert pool.submit(work.grow, 250_000_000).result() == first
    wait_until(lambda: pool.submit(work.pid).result() != first)
    assert pool.stats().respawned == 0
    assert pool.stats().recycled == 1 or not kind.can("here")  # a node counts for itself


@pytest.mark.needs("process", "inherits")
def test_what_a_fork_had_from_its_owner_does_not_count(make_pool):
    """A new worker would have it as well."""
    ballast = bytearray(60_000_000)
    ballast[::4096] = b"x" * len(range(0, len(ballast), 4096))  # memory counts when it is touched
    pool = make_pool(max_memory_per_child=50_000_000)
    assert len({pool.submit(work.pid).result() for _ in range(5)}) == 1
    assert pool.stats().recycled == 0


@pytest.mark.needs("real_time", "here")
def test_idle_workers_leave_down_to_a_minimum(make_pool, recorder):
    pool = make_pool(2, idle_timeout=0.02, min_workers=1)
    pool.on("worker_exited", recorder)
    pool.warm_up()
    assert recorder.next().cause == "idle"
    assert worker_count(pool) == 1
    tasks = [pool.submit(work.square, number) for number in range(10)]
    assert [task.result() for task in tasks] == [number**2 for number in range(10)]


@pytest.mark.needs("real_time", "here")
@pytest.mark.one_start_method
def test_idle_workers_all_leave_and_come_back(make_pool, recorder):
    pool = make_pool(idle_timeout=0.02)
    pool.on("worker_exited", recorder)
    assert pool.submit(work.add, 1, 2).result() == 3
    assert recorder.next().cause == "idle"
    assert pool.submit(work.add, 1, 2).result() == 3


# ===== resize =====


@pytest.mark.needs("background", "grows")
@pytest.mark.one_start_method
def test_a_pool_grows_while_it_runs(pool, hold):
    held = hold(pool)
    queued = pool.submit(work.add, 1, 2)
    pool.resize(2)
    assert queued.result() == 3
    assert pool.max_workers == 2
    held.release()
    held.task.result()
    assert worker_count(pool) == 2


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_a_pool_shrinks_and_running_tasks_end(make_pool, hold, recorder):
    pool = make_pool(3)
    pool.on("worker_exited", recorder)
    pool.warm_up()
    held = [hold(pool, 0), hold(pool, 1)]
    pool.resize(1)
    assert recorder.next().cause == "shrunk"
    assert not any(one.task.done() for one in held)
    for one in held:
        one.release()
    assert [one.task.result() for one in held] == [0, 1]
    assert recorder.next().cause == "shrunk"
    assert pool.submit(work.add, 1, 2).result() == 3
    assert worker_count(pool) == 1


@pytest.mark.needs("grows")
@pytest.mark.one_start_method
def test_a_resized_pool_that_has_not_begun(make_pool):
    pool = make_pool(1)
    pool.resize(3)
    pool.resize(2)
    pool.warm_up()
    assert worker_count(pool) == 2
