"""How far a task is: what it reports, what the owner sees of it, and that it is never another's."""

from __future__ import annotations

import asyncio
import threading

import pytest

import poolkit
import support_functions as work
from support import wait_until


def report(done, total=None):
    poolkit.current_task().progress(done, total)


def report_and_wait(arrived, release, done, total):
    poolkit.current_task().progress(done, total)
    arrived.signal()
    release.wait()


def report_and_raise(done):
    poolkit.current_task().progress(done)
    raise KeyError(done)


@pytest.mark.each_start_method
def test_the_last_that_a_task_has_reported_is_kept(pool):
    def count_up(total):
        for done in range(total):
            poolkit.current_task().progress(done + 1, total)
        return total

    task = pool.submit(count_up, 1000)
    assert task.result() == 1000
    assert task.progress == (1000, 1000)
    assert task.progress.fraction == 1.0
    assert isinstance(task.progress, poolkit.Progress)


@pytest.mark.each_start_method
@pytest.mark.needs("background", "at_once")
def test_what_a_running_task_reports_is_seen_at_once(pool, new_gate):
    arrived, release = new_gate(), new_gate()
    task = pool.submit(report_and_wait, arrived, release, 1, 4)
    arrived.wait()
    assert task.progress == (1, 4)
    assert [info.progress for info in pool.workers()] == [(1, 4)]
    release.signal()
    task.result()
    assert task.progress == (1, 4)
    wait_until(lambda: [info.progress for info in pool.workers()] == [None])


@pytest.mark.one_start_method
def test_a_task_that_reports_nothing_has_none(pool):
    reporting = pool.submit(report, 1, 2)
    silent = pool.submit(work.none_of_it)
    assert (reporting.result(), silent.result()) == (None, None)
    assert reporting.progress == (1, 2)
    assert silent.progress is None


@pytest.mark.one_start_method
@pytest.mark.needs("background", "at_once")
def test_a_task_that_has_not_begun_has_none(pool, new_gate):
    arrived, release = new_gate(), new_gate()
    first = pool.submit(report_and_wait, arrived, release, 1, 4)
    second = pool.submit(report_and_wait, arrived, release, 2, 4)
    arrived.wait()
    assert (first.progress, second.progress) == ((1, 4), None)
    release.signal()
    arrived.wait()
    assert (first.progress, second.progress) == ((1, 4), (2, 4))
    release.signal()


@pytest.mark.one_start_method
def test_a_total_may_be_unknown_or_change(pool):
    task = pool.submit(report, 3)
    task.result()
    assert task.progress == (3, None)
    assert task.progress.fraction is None
    task = pool.submit(lambda: (report(1, 2), report(2, 8), report(0.5, 1.5)))
    task.result()
    assert task.progress == (0.5, 1.5)


@pytest.mark.one_start_method
def test_what_is_no_number_is_the_tasks_own_error(pool):
    task = pool.submit(report, "half")
    with pytest.raises(TypeError, match="done must be a number, was 'half'"):
        task.result()
    assert task.progress is None
    with pytest.raises(ValueError, match="total must be a number, was nan"):
        pool.submit(report, 1, float("nan")).result()


@pytest.mark.one_start_method
def test_what_a_failed_task_has_reported_is_kept(pool):
    task = pool.submit(report_and_raise, 7)
    assert type(task.exception()) is KeyError
    assert task.progress == (7, None)


@pytest.mark.one_start_method
def test_a_retry_begins_with_none(pool, journal):
    def report_once():
        journal.write("run")
        if len(journal.lines()) == 1:
            report_and_raise(5)

    task = pool.options(retries=1, retry_on=KeyError).submit(report_once)
    assert task.result() is None
    assert task.attempts == 2
    assert task.progress is None


@pytest.mark.one_start_method
@pytest.mark.needs("background")
def test_a_retry_that_runs_shows_nothing_of_the_run_before(pool, journal, new_gate):
    arrived, release = new_gate(), new_gate()

    def report_once():
        journal.write("run")
        if len(journal.lines()) == 1:
            report_and_raise(5)
        arrived.signal()
        release.wait()

    task = pool.options(retries=1, retry_on=KeyError).submit(report_once)
    arrived.wait()
    assert task.progress is None
    release.signal()
    assert task.result() is None


@pytest.mark.slow
@pytest.mark.one_start_method
@pytest.mark.needs("kill_running")
def test_what_a_stopped_task_has_reported_is_kept(pool):
    def report_for_ever(done):
        report(done, 10)
        while True:
            pass

    task = pool.options(timeout=2).submit(report_for_ever, 3)
    assert type(task.exception()) is poolkit.TaskTimeout
    assert task.progress == (3, 10)
    task = pool.submit(report_for_ever, 4)
    wait_until(lambda: task.progress == (4, 10))
    assert task.cancel()
    assert task.progress == (4, 10)


@pytest.mark.each_start_method
@pytest.mark.needs("crash")
def test_what_a_task_has_reported_before_its_worker_died_is_kept(pool):
    task = pool.submit(lambda: (report(3, 10), work.die()))
    assert type(task.exception()) is poolkit.WorkerCrashed
    assert task.progress == (3, 10)


@pytest.mark.one_start_method
def test_coroutines_and_threads_of_a_task_report_for_it(pool):
    async def together():
        async def report_later(done):
            await asyncio.sleep(0)
            report(done, 4)

        await asyncio.gather(report_later(1), report_later(2))

    task = pool.submit(together)
    task.result()
    assert task.progress == (2, 4)

    def in_a_thread():
        context = poolkit.current_task()
        thread = threading.Thread(target=context.progress, args=(3, 4))
        thread.start()
        thread.join()

    task = pool.submit(in_a_thread)
    task.result()
    assert task.progress == (3, 4)


@pytest.mark.one_start_method
@pytest.mark.needs("background")
def test_what_is_seen_is_never_another_tasks(make_pool):
    """Quick tasks, one behind the other, and looks at all of them; threads that they leave go on reporting."""
    pool = make_pool(2)

    def report_own(number):
        context = poolkit.current_task()
        if number % 20 == 0:
            threading.Thread(target=lambda: [context.progress(number, number + 1) for _ in range(2000)]).start()
        for _ in range(number % 7):
            context.progress(number, number + 1)
        return number

    for start in range(1000, 4000, 100):
        tasks = {number: pool.submit(report_own, number) for number in range(start, start + 100)}
        while not all(task.done() for task in tasks.values()):
            for number, task in tasks.items():
                assert task.progress in {None, (number, number + 1)}
            for info in pool.workers():
                if info.task is not None and info.progress is not None:
                    assert info.progress == (info.task.progress or info.progress)
        for number, task in tasks.items():
            assert task.result() == number
            expected = (number, number + 1) if number % 7 else None
            assert task.progress == expected or number % 20 == 0


@pytest.mark.one_start_method
def test_reporting_costs_a_plain_task_nothing(pool):
    tasks = [pool.submit(work.none_of_it) for _ in range(50)]
    for task in tasks:
        task.result()
        assert "reported" not in vars(task)
