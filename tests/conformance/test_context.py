"""What a running task may know of itself, and what it may raise."""

from __future__ import annotations

import asyncio

import pytest

import poolkit
import support_functions as work

pytestmark = pytest.mark.one_start_method


def test_a_task_knows_itself(pool):
    task = pool.submit(work.context_facts)
    assert task.result() == (task.id, "context_facts", 1, False, None)


def test_there_is_no_task_outside_of_one(pool):
    assert poolkit.current_task() is None
    assert pool.submit(work.context_is_set).result()
    assert poolkit.current_task() is None


def test_each_task_gets_a_context_of_its_own(pool):
    assert [pool.submit(work.context_facts).result()[0] for _ in range(3)] == [1, 2, 3]


def test_attempt_counts_the_runs(pool, journal):
    view = pool.options(retries=2, retry_on=ConnectionError)
    assert view.submit(work.attempt_after, journal, 2).result() == 3


@pytest.mark.needs("crash")
def test_attempt_counts_the_runs_that_crashed(pool, journal):
    def attempt():
        journal.write("run")
        return work.die() if len(journal.lines()) == 1 else poolkit.current_task().attempt

    assert pool.options(retries=1).submit(attempt).result() == 2


def test_time_left_counts_down_from_the_limit(pool):
    left = pool.options(timeout=1000).submit(work.context_facts).result()[-1]
    assert 0 < left <= 1000


def test_the_context_shows_itself(pool):
    text = pool.submit(lambda: repr(poolkit.current_task())).result()
    assert text.startswith("<poolkit.TaskContext 1 ")
    assert text.endswith("attempt=1>")


def test_async_functions_run_to_completion(pool):
    assert pool.submit(work.double_later, 21).result() == 42


def test_async_functions_raise_as_others_do(pool):
    with pytest.raises(KeyError, match="later"):
        pool.submit(work.raise_later, "later").result()


def test_async_functions_may_wait_for_others(pool):
    async def both():
        return await asyncio.gather(work.double_later(1), work.double_later(2))

    assert pool.submit(both).result() == [2, 4]


def test_async_functions_know_their_task(pool):
    task = pool.submit(work.context_facts_later)
    assert task.result()[:3] == (task.id, "context_facts_later", 1)


@pytest.mark.parametrize(
    ("function", "arguments", "error"),
    [
        pytest.param(work.exit_python, (3,), SystemExit, id="sys.exit"),
        pytest.param(work.interrupt, (), KeyboardInterrupt, id="KeyboardInterrupt"),
        pytest.param(work.close_generator, (), GeneratorExit, id="GeneratorExit"),
    ],
)
def test_exceptions_that_end_programs_are_the_tasks_own(pool, function, arguments, error):
    task = pool.submit(function, *arguments)
    assert type(task.exception()) is error
    assert task.exception().args == arguments
    assert task.state == "failed"
    assert pool.submit(work.add, 1, 2).result() == 3
    assert (pool.stats().crashed, pool.stats().respawned) == (0, 0)


def test_stop_iteration_is_an_exception_like_any_other(pool):
    task = pool.submit(next, iter(()))
    assert type(task.exception()) is StopIteration


def test_a_recursion_error_is_an_exception_like_any_other(pool):
    assert type(pool.submit(work.recurse).exception()) is RecursionError
    assert pool.submit(work.add, 1, 2).result() == 3
