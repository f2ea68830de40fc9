"""A pool that is called from inside itself: by finalizers and signal handlers, callbacks, its own workers."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

import support_functions as work
from poolkit import InitializerFailed, PoolClosed
from support import wait_until

pytestmark = pytest.mark.one_start_method


def in_the_middle_of_a_step(pool, action):
    """Do something on a thread that is inside the pool's lock, as a finalizer or a signal handler may be."""
    with pool._supervisor._lock:
        return action()


@pytest.mark.needs("background")
def test_a_cancel_inside_a_step_is_done_after_it(pool, hold):
    held = hold(pool)
    task = pool.submit(work.square, 3)
    assert in_the_middle_of_a_step(pool, task.cancel) is True
    wait_until(task.cancelled, "the task is cancelled")
    held.release()


@pytest.mark.needs("background")
def test_a_submit_inside_a_step_is_done_after_it(pool):
    pool.warm_up()
    task = in_the_middle_of_a_step(pool, lambda: pool.submit(work.square, 3))
    assert task.result() == 9


@pytest.mark.needs("background")
def test_a_submit_inside_a_step_of_a_pool_that_closes_fails_as_a_task(pool, hold):
    held = hold(pool)
    pool.shutdown(wait=False)
    task = in_the_middle_of_a_step(pool, lambda: pool.submit(work.square, 3))
    assert isinstance(task.exception(), PoolClosed)
    held.release()


@pytest.mark.needs("background")
def test_a_shutdown_inside_a_step_is_done_after_it(pool):
    task = pool.submit(work.square, 3)
    in_the_middle_of_a_step(pool, pool.shutdown)
    assert task.result() == 9
    wait_until(lambda: "closed" in repr(pool), "the pool is closed")


@pytest.mark.needs("kill_running")
def test_cancel_all_inside_a_step_is_done_after_it(pool, hold):
    held = hold(pool)
    in_the_middle_of_a_step(pool, pool.cancel_all)
    wait_until(held.task.cancelled, "the task is cancelled")


def test_a_callback_that_ends_the_program_ends_only_itself(pool, caplog):
    def leave(_task):
        raise SystemExit(3)

    task = pool.submit(work.square, 3)
    task.add_done_callback(leave)
    assert task.result() == 9
    assert pool.submit(work.square, 4).result() == 16


def test_a_listener_that_ends_the_program_ends_only_itself(pool, caplog):
    told = threading.Event()

    def leave(_event):
        told.set()
        raise SystemExit(3)

    pool.on("task_done", leave)
    assert pool.submit(work.square, 3).result() == 9
    assert told.wait(30)
    pool.off("task_done", leave)
    assert pool.submit(work.square, 4).result() == 16


@pytest.mark.needs("by_reference")
def test_a_task_may_shut_its_own_pool_down(pool):
    assert pool.submit(pool.shutdown).result() is None
    with pytest.raises(PoolClosed):
        pool.submit(work.square, 3)


@pytest.mark.needs("by_reference", "kill_running")
def test_a_thread_that_is_stopped_within_another_pool_leaves_that_whole(pool, make_pool, new_gate):
    """The exception that stops it may come at any instruction there."""
    other = make_pool()
    tasks = []

    def submit_for_ever(arrived):
        arrived.signal()
        while True:
            tasks.append(other.submit(work.square, 3))
            tasks[-1].result()

    for _ in range(20):
        arrived = new_gate()
        task = pool.submit(submit_for_ever, arrived)
        arrived.wait()
        seen = len(tasks)
        wait_until(lambda seen=seen: len(tasks) > seen, "it submits")
        assert task.cancel()
    assert all(task.result() == 9 for task in tasks)
    stats = other.stats()
    assert stats.submitted == stats.succeeded >= len(tasks)


@pytest.mark.needs("background")
def test_limits_of_any_length_are_taken(make_pool):
    pool = make_pool(timeout=1e12, idle_timeout=1e10)
    assert pool.options(deadline=86400 * 365, queue_timeout=1e15).submit(work.square, 3).result() == 9


@pytest.mark.needs("background")
def test_a_pool_whose_thread_cannot_start_says_so_and_tries_again(pool, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("poolkit._engine.supervisor.SupervisorThread.start", refuse)
        with pytest.raises(PoolClosed, match="can't start new thread"):
            pool.submit(work.square, 3)
    assert pool.submit(work.square, 3).result() == 9


def raise_unspeakable():
    class UnspeakableError(Exception):
        def __str__(self):
            raise RuntimeError

    raise UnspeakableError


def test_an_initializer_whose_exception_cannot_be_printed_fails_the_tasks(make_pool):
    pool = make_pool(initializer=raise_unspeakable)
    with pytest.raises(InitializerFailed):
        pool.submit(work.square, 3).result()


def test_a_copy_in_a_process_that_python_did_not_fork_is_refused(pool, monkeypatch):
    assert pool.submit(work.square, 3).result() == 9
    with monkeypatch.context() as patch:
        patch.setattr(pool._supervisor, "pid", -1)
        with pytest.raises(PoolClosed, match="forked"):
            pool.submit(work.square, 3)
    assert pool.submit(work.square, 3).result() == 9


# ===== map =====


@pytest.mark.needs("background")
def test_map_does_not_wait_for_room_while_it_has_something_to_yield(make_pool, hold):
    pool = make_pool(max_queue=1)
    held = hold(pool)
    results = pool.map(work.square, range(5), chunksize=1)
    held.release()
    assert list(results) == [0, 1, 4, 9, 16]


def test_what_the_input_gave_before_it_raised_is_yielded(pool):
    def numbers():
        yield from range(100)
        raise ConnectionError

    results = pool.map(work.square, numbers(), chunksize=7)
    assert list(itertools.islice(results, 100)) == [number**2 for number in range(100)]
    with pytest.raises(ConnectionError):
        next(results)


def test_what_a_chunk_gave_before_it_left_is_yielded(pool):
    def leave_at_three(number):
        if number == 3:
            raise SystemExit(number)
        return number

    results = pool.map(leave_at_three, range(6), chunksize=6)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(SystemExit):
        next(results)


# ===== asyncio =====


@pytest.mark.needs("unattended", "grows")
@pytest.mark.needs("background")
def test_submit_async_goes_on_when_the_pool_grows(make_pool, hold):
    pool = make_pool(max_queue=1)
    held = hold(pool)
    pool.submit(work.square, 2)

    async def main():
        waiting = asyncio.ensure_future(pool.submit_async(work.square, 3))
        await asyncio.sleep(0)
        pool.resize(2)
        return await (await waiting)

    assert asyncio.run(main()) == 9
    held.release()


@pytest.mark.needs("unattended")
@pytest.mark.needs("kill_running")
def test_a_with_block_in_a_cancelled_coroutine_stops_the_work(make_pool, hold):
    pool = make_pool()
    tasks = []

    async def main():
        inside = asyncio.Event()

        async def work_in_pool():
            with pool:
                tasks.append(hold(pool).task)
                inside.set()
                await asyncio.Event().wait()

        running = asyncio.ensure_future(work_in_pool())
        await inside.wait()
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())
    assert tasks[0].cancelled()
    with pytest.raises(PoolClosed):
        pool.submit(work.square, 3)


def test_one_interrupt_at_exit_stops_every_pool(monkeypatch):
    """The wait for the first pool is interrupted; none of the others is waited for as if nothing had happened."""
    from poolkit._engine import lifetime

    done: list[str] = []

    class Stand:
        def __init__(self, name):
            self.name = name

        def end_with_interpreter(self):
            done.append(f"wait {self.name}")
            if len(done) == 1:
                raise KeyboardInterrupt

        def shutdown(self, *, wait, cancel_queued, kill, timeout):
            assert (wait, cancel_queued, kill, timeout) == (False, True, True, None)
            done.append(f"stop {self.name}")

    monkeypatch.setattr(lifetime, "_all_live", lambda: [Stand("a"), Stand("b")])
    monkeypatch.setattr(lifetime, "is_over", False)  # which it is not, afterwards
    lifetime._finish_all()
    assert done == ["wait a", "stop a", "stop b", "wait a", "wait b"]
