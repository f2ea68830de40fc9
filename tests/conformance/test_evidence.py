"""The evidence that errors carry: what the task printed, where it was stuck, and words that an operator can act on."""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading

import pytest

import support_evidence as tasks
import support_functions as work
from poolkit import DeadlineExceeded, TaskTimeout, WorkerCrashed
from support import retry_until


@pytest.mark.needs("crash")
def test_a_crash_shows_the_last_that_the_task_printed(pool):
    pool.submit(tasks.say, "of another task").result()
    error = pool.submit(tasks.say_and_die, *range(2000)).exception()
    assert type(error) is WorkerCrashed
    lines = error.output.splitlines()
    assert lines == [str(number) for number in range(2000)][-len(lines) :]
    assert len(error.output) > 4000
    assert str(error).endswith("\nthe last that it printed:\n  1995\n  1996\n  1997\n  1998\n  1999")
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


@pytest.mark.needs("crash")
def test_only_what_the_task_itself_printed_in_its_own_run_is_shown(pool, journal):
    pool.submit(tasks.say, "of another task").result()
    assert pool.submit(work.die).exception().output == ""
    error = pool.submit(tasks.say_in_many_ways_and_die).exception()
    assert error.output == "to stdout\nto stderr\nas bytes\nfrom thread 0\nfrom thread 1\nfrom thread 2\n"
    assert pool.submit(tasks.close_streams_and_die).exception().output == ""


@pytest.mark.needs("crash", "process")
def test_a_line_that_a_task_printed_arrives_and_is_shown_whatever_ends_it(make_pool, capfd):
    """Nobody flushes, and the standard output is no terminal."""
    pool = make_pool()  # with "fork" it has the descriptors of this moment
    for call in ((work.die,), (os._exit, 3), (tasks.crash,)):
        assert pool.submit(tasks.print_and, *call).exception().output == "important\n"
        assert capfd.readouterr().out == "important\n"


@pytest.mark.needs("crash", "here")
def test_a_worker_killed_in_the_midst_of_printing_shows_whole_lines_in_order(pool, new_gate):
    """Killed at any instruction: the lines shown are some that follow upon one another, the last one perhaps cut."""
    gate = new_gate()
    task = pool.submit(tasks.say_for_ever, gate)
    gate.wait()
    os.kill(pool.workers()[0].pid, 9)
    lines = task.exception().output.splitlines()
    first = int(lines[0].removeprefix("line "))
    assert lines == [f"line {number}" for number in range(first, first + len(lines))]
    assert first + len(lines) > 1000
    assert len(lines) > 300


@pytest.mark.needs("crash")
def test_workers_that_die_at_boot_show_what_the_initializer_printed(make_pool):
    pool = make_pool(initializer=tasks.say_and_die, initargs=("no licence file",))
    error = pool.submit(work.none_of_it).exception()
    assert "before they were ready" in str(error)
    assert error.output == "no licence file\n"
    assert str(error).endswith("  no licence file")


@pytest.mark.needs("process")
def test_what_the_owner_had_not_flushed_comes_out_once(make_pool, capfd):
    """Also when workers are forked from the owner while another object stands in the place of `sys.stdout`."""
    print("pending", file=sys.__stdout__)
    pool = make_pool(2)
    for _ in range(2):
        pool.submit(tasks.say, "done").result()
    sys.__stdout__.flush()
    assert sorted(capfd.readouterr().out.split()) == ["done", "done", "pending"]


# ===== where a task was stuck =====


def stuck(pool, *call):
    """What a task that hangs ends with; on a busy machine its stack may take longer than it is waited for."""
    attempt = pool.options(timeout=0.3).submit
    return retry_until(lambda: attempt(*call).exception(), lambda error: type(error) is not TaskTimeout or error.stack)


@pytest.mark.needs("kill_running", "process")
@pytest.mark.parametrize(
    ("function", "innermost"),
    [
        (tasks.sleep_with_the_gil, "in sleep_with_the_gil"),
        (tasks.match_for_ever, "in match"),
        (tasks.sleep_twice_called, "in sleep"),
        pytest.param(tasks.compute_for_ever, "in ", id="numpy", marks=pytest.mark.slow),
    ],
)
def test_a_timeout_names_the_line_also_inside_c_code(pool, function, innermost):
    if function is tasks.compute_for_ever:
        pytest.importorskip("numpy")
        pool.submit(__import__, "numpy").result()
    pool.submit(work.none_of_it, function).result()  # what it has to import first it has imported
    error = stuck(pool, function)
    assert type(error) is TaskTimeout
    first, *_ = lines = error.stack.splitlines()
    assert innermost in first
    assert any(re.search(rf'{re.escape(tasks.__file__)}", line \d+ in {function.__name__}$', line) for line in lines)
    assert str(error).endswith(
        f" ({function.__name__}, attempt 1) ran longer than its timeout of 0.3 s and was stopped; "
        f"it was at (most recent call first):\n{error.stack}"
    )


@pytest.mark.needs("kill_running", "process")
def test_a_timeout_of_a_call_that_hangs_while_it_is_unpickled_names_the_line(pool):
    error = stuck(pool, work.identity, tasks.SleepsOnUnpickle())
    assert "in sleep" in error.stack.splitlines()[0]


@pytest.mark.needs("kill_running", "real_time")
def test_a_task_stopped_at_its_deadline_tells_where_it_was(pool):
    pool.submit(work.none_of_it).result()
    submit = pool.options(deadline=0.5).submit
    error = retry_until(lambda: submit(work.spin).exception(), lambda error: "File " in str(error))
    assert type(error) is DeadlineExceeded
    assert "(spin, attempt 1) was not done within its deadline of 0.5 s and was stopped" in str(error)
    assert "it was at (most recent call first):\n  File " in str(error)
    assert "in spin" in str(error)


@pytest.mark.needs("kill_running", "process")
@pytest.mark.parametrize("how", ["forked", "asked"])
def test_a_stack_is_never_that_of_an_earlier_task_or_of_a_child_that_it_forked(pool, how):
    """A child that a task forks and that crashes; somebody who asks a worker for its stack."""
    earlier = tasks.fork_a_child_that_crashes if how == "forked" else tasks.ask_for_the_stack
    assert pool.submit(earlier).result() in {None, "SIGSEGV"}
    assert pool.submit(os._exit, 3).exception().stack == ""
    pool.submit(earlier).result()
    assert pool.submit(work.die).exception().stack == ""
    pool.submit(earlier).result()
    stack = pool.submit(tasks.crash).exception().stack
    assert [line.rpartition(" in ")[2] for line in stack.splitlines()] == ["crash"]
    pool.submit(earlier).result()
    error = pool.options(timeout=0.3).submit(tasks.sleep).exception()
    assert error.stack == "" or "in sleep" in error.stack  # on a busy machine it may take too long
    assert earlier.__name__ not in error.stack


# ===== why poolkit had to end a worker =====


@pytest.mark.needs("crash")
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.closerange, (3, 200)), (os.execv, ("/bin/sh", ["/bin/sh", "-c", "sleep 600"]))],
    ids=["close", "exec"],
)
def test_a_worker_that_lost_its_link_while_it_lived_is_told_from_one_that_was_killed(pool, function, arguments):
    error = pool.submit(tasks.call_and_wait, function, *arguments).exception()
    assert type(error) is WorkerCrashed
    assert error.signal == "SIGKILL"
    assert "poolkit had to end it: the task closed or wrote to descriptors" in error.hint


@pytest.mark.needs("by_value")
def test_a_result_that_cannot_be_pickled_names_its_task(pool):
    error = pool.options(name="lock").submit(threading.Lock).exception()
    assert str(error).startswith(
        "task 1 (lock, attempt 1): cannot pickle the result: result: _thread.lock (TypeError: "
    )
