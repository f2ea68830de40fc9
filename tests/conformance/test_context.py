"""What a running task may know of itself, and what it may raise."""

from __future__ import annotations

import asyncio
import contextvars
import threading

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


# ===== context variables: a thread's task has those of its submitter =====

variable = contextvars.ContextVar("variable", default="unset")


def look():
    """The variable, and whether the task is known."""
    return variable.get(), poolkit.current_task() is not None


def change(value):
    before = variable.get()
    variable.set(value)
    return before


async def change_later(value):
    before = change(value)
    await asyncio.sleep(0)
    return before, variable.get()


def fail_after_change(journal):
    journal.write(change("changed"))
    raise ConnectionError


def submit_within(pool):
    variable.set("inner")
    return pool.submit(look).result(), poolkit.current_task().name


@pytest.fixture
def set_variable():
    """Set the variable in the test's own context."""
    tokens = []
    yield lambda value: tokens.append(variable.set(value))
    for token in reversed(tokens):
        variable.reset(token)


@pytest.mark.needs("by_reference")
def test_a_task_has_the_variables_of_its_submitter_as_they_were_then(pool, hold, set_variable):
    held = hold(pool)
    tasks = []
    for value in ("a", "b", "c"):
        set_variable(value)
        tasks.append(pool.submit(look))
    set_variable("d")
    held.release()
    assert [task.result() for task in tasks] == [("a", True), ("b", True), ("c", True)]


@pytest.mark.needs("by_reference")
def test_what_a_task_sets_is_its_own(pool, set_variable):
    set_variable("mine")
    assert pool.submit(change, "changed").result() == "mine"
    assert pool.submit(change_later, "changed").result() == ("mine", "changed")
    assert pool.submit(look).result() == ("mine", True)
    assert variable.get() == "mine"


@pytest.mark.needs("by_reference")
def test_each_run_of_a_task_begins_with_what_the_submitter_had(pool, journal, set_variable):
    set_variable("mine")
    task = pool.options(retries=2, retry_on=ConnectionError).submit(fail_after_change, journal)
    assert type(task.exception()) is ConnectionError
    assert journal.lines() == ["mine"] * 3


@pytest.mark.needs("by_reference")
def test_a_task_within_a_task_has_the_variables_of_that(make_pool):
    pool = make_pool(2)
    assert pool.submit(submit_within, pool).result() == (("inner", True), "submit_within")


@pytest.mark.needs("by_reference")
@pytest.mark.parametrize("how", ["here", "elsewhere", "unread"])
def test_a_map_has_the_variables_of_its_caller_whoever_submits_the_rest(pool, journal, set_variable, how):
    def note(_):
        journal.write(variable.get())

    set_variable("mine")
    results = pool.map(note, range(30), chunksize=1)
    set_variable("changed")
    if how == "here":
        list(results)
    elif how == "elsewhere":
        reader = threading.Thread(target=contextvars.Context().run, args=(list, results))
        reader.start()
        reader.join()
    del results
    pool.shutdown()
    assert journal.lines() == ["mine"] * 30


@pytest.mark.needs("by_reference")
def test_an_awaited_map_has_the_variables_of_its_caller(make_pool, set_variable):
    pool = make_pool(max_queue=1)

    async def read():
        set_here = variable.set("mine")
        results = pool.map(lambda _: variable.get(), range(30), chunksize=1)
        variable.reset(set_here)
        return [value async for value in results]

    assert asyncio.run(read()) == ["mine"] * 30
