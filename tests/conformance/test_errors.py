"""Errors arrive as themselves, and the library's own carry evidence."""

from __future__ import annotations

import concurrent.futures.process
import copy
import os
import pickle
import sys
import threading
import traceback

import pytest

import poolkit
import support_functions as work
import support_objects as objects
from poolkit import RemoteError, SerializationError, TaskTimeout, WorkerCrashed

pytestmark = pytest.mark.one_start_method


def error_of(task):
    error = task.exception()
    assert error is not None
    return error


# ===== a task's own exception =====


def test_type_arguments_and_attributes_are_kept(pool):
    error = error_of(pool.submit(work.raise_attributed, "no", 42))
    assert type(error) is work.AttributedError
    assert (error.args, error.code) == (("no",), 42)


def test_attributes_of_exceptions_written_in_c_are_kept(pool):
    error = error_of(pool.submit(open, "/nowhere/at/all"))
    assert type(error) is FileNotFoundError
    assert (error.errno, error.filename) == (2, "/nowhere/at/all")


def test_the_cause_is_kept(pool):
    error = error_of(pool.submit(work.raise_with_cause_and_notes))
    assert (type(error), error.args) == (RuntimeError, ("the effect",))
    assert (type(error.__cause__), error.__cause__.args) == (KeyError, ("the cause",))


def test_the_context_is_kept(pool):
    error = error_of(pool.submit(work.raise_with_context))
    assert (type(error), error.__cause__) == (RuntimeError, None)
    assert (type(error.__context__), error.__context__.args) == (KeyError, ("first",))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups came with CPython 3.11")
def test_notes_are_kept(pool):
    assert error_of(pool.submit(work.raise_with_cause_and_notes)).__notes__ == ["a note"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups came with CPython 3.11")
def test_groups_are_kept(pool):
    error = error_of(pool.submit(work.raise_group))
    assert [type(one) for one in error.exceptions] == [ValueError, TypeError]


def test_remote_frames_are_shown(pool):
    error = error_of(pool.submit(work.raise_with_cause_and_notes))
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert text.count("in raise_with_cause_and_notes") == 2
    assert "support_functions.py" in text
    assert 'raise KeyError("the cause")' in text
    frames = traceback.extract_tb(error.__traceback__)
    assert frames[-1].name == "raise_with_cause_and_notes"


def test_raising_shows_both_sides(pool):
    with pytest.raises(ValueError, match="no") as caught:
        pool.submit(work.raise_value_error, "no").result()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == "test_raising_shows_both_sides"
    assert names[-1] == "raise_value_error"


def test_an_error_of_the_library_raised_by_a_task_is_its_own(pool):
    error = error_of(pool.submit(work.raise_from_library_error))
    assert type(error) is TaskTimeout
    assert (error.args, error.timeout, error.stack) == (("mine",), 3.0, "here")


def test_an_exception_whose_init_wants_other_arguments_arrives_as_itself(pool):
    error = error_of(pool.submit(work.raise_unbuildable))
    assert type(error) is work.UnbuildableError
    assert error.args == ("this and that",)
    assert traceback.extract_tb(error.__traceback__)[-1].name == "raise_unbuildable"
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("process")
def test_an_exception_whose_class_cannot_be_found_here_is_stood_in_for(pool):
    error = error_of(pool.submit(work.raise_lost))
    assert type(error) is RemoteError
    assert error.type_name == "only_in_the_worker.LostError"
    assert error.message == "this and that"
    assert "in raise_lost" in error.traceback_text
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("by_value")
def test_an_exception_class_that_travels_by_value_comes_home(pool):
    class LocalError(Exception):
        pass

    def fail():
        raise LocalError("mine")

    with pytest.raises(LocalError, match="mine"):
        pool.submit(fail).result()


# ===== crashes =====


@pytest.mark.needs("crash")
def test_a_crash_by_signal_tells_the_facts(pool):
    pid = pool.submit(os.getpid).result()
    task = pool.submit(work.die)
    error = error_of(task)
    assert type(error) is WorkerCrashed
    assert isinstance(error, concurrent.futures.process.BrokenProcessPool)
    assert (error.signal, error.exitcode, error.pid, error.worker_id) == ("SIGKILL", None, pid, task.worker_id)
    assert error.peak_rss > 1_000_000
    assert "out-of-memory" in error.hint
    for fact in ("SIGKILL", str(pid), "task 2", "(die,", error.hint):
        assert fact in str(error)


@pytest.mark.needs("crash")
def test_a_crash_by_exit_tells_the_facts(pool):
    error = error_of(pool.submit(work.leave, 3))
    assert (error.signal, error.exitcode) == (None, 3)
    assert "exited with code 3" in str(error)
    assert "os._exit()" in error.hint


@pytest.mark.needs("crash")
def test_a_crash_in_c_code_shows_the_python_stack(pool):
    error = error_of(pool.submit(work.segfault))
    assert error.signal == "SIGSEGV"
    assert "in segfault" in error.stack
    assert "poolkit/_child" not in error.stack
    assert error.stack in str(error)


# ===== timeouts =====


@pytest.mark.needs("kill_running", "real_time")
def test_a_timeout_shows_where_the_task_was_stuck(make_pool):
    pool = make_pool(initializer=work.none_of_it)  # so that it does not import within the limit, but spins
    error = error_of(pool.options(timeout=0.3).submit(work.spin))
    assert type(error) is TaskTimeout
    assert error.timeout == 0.3
    assert "support_functions.py" in error.stack.splitlines()[0]
    assert "in spin" in error.stack
    assert error.stack in str(error)


@pytest.mark.needs("process", "real_time")
def test_a_timeout_holds_while_c_code_keeps_the_interpreter(pool):
    error = error_of(pool.options(timeout=0.2).submit(work.hold_the_gil))
    assert type(error) is TaskTimeout
    assert pool.submit(work.add, 1, 2).result() == 3


# ===== what cannot be pickled =====


@pytest.mark.needs("by_value")
@pytest.mark.parametrize(
    ("arguments", "keywords", "part"),
    [
        pytest.param(({"lock": threading.Lock()},), {}, 'args[0]["lock"]: _thread.lock', id="in-a-dict"),
        pytest.param((1, [2, threading.Lock()]), {}, "args[1][1]: _thread.lock", id="in-a-list"),
        pytest.param((), {"key": threading.Lock()}, 'kwargs["key"]: _thread.lock', id="keyword"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(pool, arguments, keywords, part):
    error = error_of(pool.submit(work.none_of_it, *arguments, **keywords))
    assert type(error) is SerializationError
    assert isinstance(error, pickle.PicklingError)
    assert part in str(error)


@pytest.mark.needs("by_value")
def test_the_place_of_the_submit_is_in_the_notes(pool):
    error = error_of(pool.submit(work.identity, objects.RaisesOnPickle()))
    (note,) = error.__notes__
    assert "identity was submitted at" in note
    assert "test_errors.py" in note
    assert note.endswith("in test_the_place_of_the_submit_is_in_the_notes")


@pytest.mark.needs("by_value")
def test_a_result_that_cannot_be_pickled_is_named(pool):
    error = error_of(pool.submit(objects.make_unpicklable))
    assert type(error) is SerializationError
    assert '["inner"][0]: _thread.lock' in str(error)


# ===== the tree =====

EXAMPLES = [
    poolkit.PoolkitError("text"),
    TaskTimeout("text", timeout=1.5, stack="frames"),
    poolkit.QueueTimeout("text"),
    poolkit.DeadlineExceeded("text"),
    poolkit.MemoryLimitExceeded("text", limit=1, used=2),
    WorkerCrashed("text", exitcode=1, signal="SIGSEGV", pid=2, worker_id=3, stack="frames", peak_rss=4, hint="because"),
    poolkit.InitializerFailed("text"),
    poolkit.TaskCancelled("text"),
    RemoteError("text", type_name="a.B", message="no", traceback_text="frames"),
    SerializationError("text"),
    poolkit.QueueFull("text"),
    poolkit.PoolClosed("text"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_survive_pickling_and_copying(error, again):
    twin = again(error)
    assert type(twin) is type(error)
    assert isinstance(twin, poolkit.PoolkitError)
    assert (twin.args, str(twin), vars(twin)) == (error.args, "text", vars(error))


def test_errors_are_what_their_users_catch():
    bases = {
        TaskTimeout: TimeoutError,
        poolkit.QueueTimeout: TimeoutError,
        poolkit.DeadlineExceeded: TimeoutError,
        poolkit.MemoryLimitExceeded: MemoryError,
        WorkerCrashed: concurrent.futures.process.BrokenProcessPool,
        poolkit.InitializerFailed: concurrent.futures.process.BrokenProcessPool,
        poolkit.TaskCancelled: concurrent.futures.CancelledError,
        SerializationError: pickle.PicklingError,
        poolkit.PoolClosed: RuntimeError,
    }
    for error, base in bases.items():
        assert issubclass(error, base)
    assert {type(error) for error in EXAMPLES} >= set(bases)
