"""The evidence that errors carry: what the task printed, where it was stuck, and words that an operator can act on."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import sys
import threading

import pytest

import support_functions as work
from poolkit import WorkerCrashed

# What is printed goes to the streams that the interpreter made: pytest puts others in their place, which
# start_method="fork" inherits.


def say(*lines, to="stdout"):
    stream = getattr(sys, f"__{to}__")
    for line in lines:
        print(line, file=stream)
    stream.flush()


def say_and_die(*lines):
    say(*lines)
    os.kill(os.getpid(), signal.SIGKILL)


def say_in_many_ways_and_die():
    say("to stdout")
    say("to stderr", to="stderr")
    sys.__stdout__.buffer.write(b"as bytes\n")
    threads = [threading.Thread(target=say, args=(f"from thread {number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    with contextlib.redirect_stdout(io.StringIO()):
        print("kept by the task itself")
    os.write(1, b"past the stream\n")
    os.system("echo by another program")  # noqa: S605, S607
    pid = os.fork()
    if not pid:
        say("by a forked child")
        os._exit(0)
    os.waitpid(pid, 0)
    os.kill(os.getpid(), signal.SIGKILL)


def say_for_ever(gate):
    number = 0
    while True:
        number += 1
        print(f"line {number}", file=sys.__stdout__, flush=True)
        if number == 1000:
            gate.signal()


def close_streams_and_die():
    sys.__stdout__.close()
    sys.__stderr__.close()
    sys.stdout = None
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.needs("crash")
def test_a_crash_shows_the_last_that_the_task_printed(pool):
    pool.submit(say, "of another task").result()
    error = pool.submit(say_and_die, *range(2000)).exception()
    assert type(error) is WorkerCrashed
    lines = error.output.splitlines()
    assert lines == [str(number) for number in range(2000)][-len(lines) :]
    assert len(error.output) > 4000
    assert str(error).endswith("\nthe last that it printed:\n  1995\n  1996\n  1997\n  1998\n  1999")
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


@pytest.mark.needs("crash")
def test_only_what_the_task_itself_printed_in_its_own_run_is_shown(pool, journal):
    pool.submit(say, "of another task").result()
    assert pool.submit(work.die).exception().output == ""
    error = pool.submit(say_in_many_ways_and_die).exception()
    assert error.output == "to stdout\nto stderr\nas bytes\nfrom thread 0\nfrom thread 1\nfrom thread 2\n"
    assert pool.submit(close_streams_and_die).exception().output == ""


@pytest.mark.needs("crash")
def test_a_worker_killed_in_the_midst_of_printing_shows_whole_lines_in_order(pool, new_gate):
    """Killed at any instruction: the lines shown are some that follow upon one another, the last one perhaps cut."""
    gate = new_gate()
    task = pool.submit(say_for_ever, gate)
    gate.wait()
    os.kill(pool.workers()[0].pid, signal.SIGKILL)
    lines = task.exception().output.splitlines()
    first = int(lines[0].removeprefix("line "))
    assert lines == [f"line {number}" for number in range(first, first + len(lines))]
    assert first + len(lines) > 1000
    assert len(lines) > 300


@pytest.mark.needs("crash")
def test_workers_that_die_at_boot_show_what_the_initializer_printed(make_pool):
    pool = make_pool(initializer=say_and_die, initargs=("no licence file",))
    error = pool.submit(work.none_of_it).exception()
    assert "before they were ready" in str(error)
    assert error.output == "no licence file\n"
    assert str(error).endswith("  no licence file")
