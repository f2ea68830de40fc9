"""The task as a future of its own: published once, read without a lock, waited for from any thread."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dis
import logging
import pickle
import random
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import pytest
from unit.lonely_tasks import Owner, in_thread, new_task, value

from poolkit import future
from poolkit.errors import TaskCancelled
from poolkit.outcome import CANCELLED, Outcome
from poolkit.task import Task, settled_task

# ===== outcomes =====


def test_a_value() -> None:
    task = new_task()
    assert (task.state, task.done(), task.cancelled(), task.running()) == ("queued", False, False, False)
    task.publish(value(5))
    assert (task.state, task.done(), task.cancelled(), task.running()) == ("succeeded", True, False, False)
    assert task.result() == 5
    assert task.exception() is None


def test_an_exception() -> None:
    task = new_task()
    error = ValueError("no")
    task.publish(Outcome.failure(error))
    assert task.state == "failed"
    assert task.exception() is error
    with pytest.raises(ValueError, match="no") as caught:
        task.result()
    assert caught.value is error


def test_a_cancellation() -> None:
    task = new_task()
    task.publish(CANCELLED)
    assert (task.state, task.done(), task.cancelled()) == ("cancelled", True, True)
    for read in (task.result, task.exception):
        with pytest.raises(concurrent.futures.CancelledError, match="before it began") as caught:
            read()
        assert isinstance(caught.value, TaskCancelled)


def test_each_reader_of_a_cancelled_task_gets_an_exception_of_its_own() -> None:
    task = new_task()
    task.publish(CANCELLED)
    with pytest.raises(TaskCancelled) as first:
        task.result()
    with pytest.raises(TaskCancelled) as second:
        task.result()
    assert first.value is not second.value


def test_states_while_pending_are_the_owners_to_tell() -> None:
    owner = Owner()
    task = new_task(owner)
    assert "queued" in repr(task)
    owner.begun = True
    assert (task.state, task.running()) == ("running", True)
    assert "running" in repr(task)
    assert task.cancel()
    assert owner.cancels == [task]


def test_a_task_of_no_pool() -> None:
    assert settled_task("name", value(3)).result() == 3
    assert not settled_task("name", value(3)).cancel()
    assert settled_task("name", CANCELLED).cancel()


def test_reprs_name_the_state_without_reading_the_outcome() -> None:
    def explode(_payload: object) -> NoReturn:
        raise AssertionError

    for outcome, word in (
        (value(1), "succeeded"),
        (Outcome.failure(ValueError()), "failed"),
        (CANCELLED, "cancelled"),
        (Outcome(b"", ok=True, load=explode), "succeeded"),
        (Outcome(b"", ok=False, load=explode), "failed"),
    ):
        task = new_task()
        task.publish(outcome)
        assert repr(task) == f"<poolkit.Task 1 'name' {word}>"


def test_times() -> None:
    task = new_task()
    assert (task.wait_time, task.run_time) == (None, None)
    task.submitted_at, task.started_at = 10.0, 12.5
    assert (task.wait_time, task.run_time) == (2.5, None)
    task.ended_at = 13.0
    assert task.run_time == 0.5
    task.started_at = 9.0  # another process's clock read a moment apart
    assert task.wait_time == 0.0


def test_a_task_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(new_task())


# ===== outcomes that are unpickled when they are read =====


def test_an_outcome_is_loaded_once_by_who_reads_it() -> None:
    loads = []

    def load(payload: bytes) -> bytes:
        loads.append(payload)
        return payload.upper()

    task = new_task()
    task.publish(Outcome(b"x", ok=True, load=load))
    assert loads == []
    assert [task.result(), task.result(), task.exception()] == [b"X", b"X", None]
    assert loads == [b"x"]


def test_an_error_is_loaded_and_raised() -> None:
    task = new_task()
    task.publish(Outcome(b"x", ok=False, load=KeyError))
    assert task.state == "failed"
    with pytest.raises(KeyError):
        task.result()


@pytest.mark.parametrize("ok", [True, False])
def test_what_loading_raises_is_the_tasks_exception(ok: bool) -> None:
    error = LookupError("cannot be read here")

    def load(_payload: object) -> NoReturn:
        raise error

    task = new_task()
    task.publish(Outcome(b"x", ok=ok, load=load))
    assert task.exception() is error
    assert task.state == "failed"


def test_an_interrupt_while_loading_is_the_readers_own() -> None:
    """The next one reads again."""
    interrupts = [KeyboardInterrupt()]

    def load(_payload: object) -> str:
        if interrupts:
            raise interrupts.pop()
        return "read"

    task = new_task()
    task.publish(Outcome(b"x", ok=True, load=load))
    with pytest.raises(KeyboardInterrupt):
        task.result()
    assert task.result() == "read"


def test_an_exception_at_any_instruction_of_reading_leaves_the_outcome_to_the_next_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of a signal handler may be raised between any two of them."""

    class Rung(BaseException):
        pass

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code is not Task._read.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:  # no signal comes there
            left -= 1
            if left == 0:
                raise Rung
        return trace

    # Its own lock: this raises also just behind its acquisition, where no signal comes, and where it stays held.
    monkeypatch.setattr(future, "_LOCK", threading.RLock())
    before, at, left = sys.gettrace(), 0, 0
    sys._getframe().f_trace_opcodes = True  # what CPython 3.12 looks at when tracing begins
    while left <= 0:
        at += 1
        left = at
        task = new_task()
        task.publish(Outcome(b"x", ok=True, load=bytes.upper))
        sys.settrace(trace)
        with contextlib.suppress(Rung):
            task.exception()
        sys.settrace(before)
        assert task.result() == b"X", f"instruction {at}"
    assert at > 50


def test_two_readers_of_one_outcome() -> None:
    """The second waits for the first, for as long as it said; a slow outcome costs nobody else."""
    loading, go_on = threading.Event(), threading.Event()

    def load(payload: str) -> str:
        loading.set()
        go_on.wait()
        return payload

    task = new_task()
    task.publish(Outcome("x", ok=True, load=load))
    first, first_found = in_thread(task.result)
    loading.wait()
    with pytest.raises(TimeoutError, match="another thread"):
        task.result(timeout=0)
    second, second_found = in_thread(task.result)
    go_on.set()
    first.join()
    second.join()
    assert first_found == second_found == ["x"]


# ===== waiting =====


def test_no_condition_is_made_before_somebody_waits() -> None:
    task = new_task()
    task.add_done_callback(lambda _: None)
    task.publish(value(1))
    assert task.result() == 1
    assert task._cond is None


@pytest.mark.parametrize("outcome", [value(1), Outcome.failure(ValueError()), CANCELLED])
def test_waiters_are_woken(outcome: Outcome) -> None:
    task = new_task()
    threads = [in_thread(task.exception) for _ in range(3)]
    task.publish(outcome)
    for thread, found in threads:
        thread.join()
        assert len(found) == 1


def test_a_waiter_and_the_publisher_meet_whoever_comes_first() -> None:
    """The waiter looks once more after it made the lock that it sleeps on, as the outcome may have come just before."""
    task = new_task()
    fresh = future.allocate_lock

    def make_late() -> Any:
        patch.undo()  # the publisher makes one, too
        task.publish(value("just in time"))
        return fresh()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(future, "allocate_lock", make_late)
        assert task.result() == "just in time"


def test_waits_that_ended_early_leave_nothing_behind() -> None:
    task = new_task()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            task.result(timeout=0)

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            task.result()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not task._wakers
    task.publish(value(1))
    assert task.result() == 1


def test_a_wait_ends_in_time_and_the_task_goes_on() -> None:
    task = new_task()
    for error in (TimeoutError, concurrent.futures.TimeoutError):
        with pytest.raises(error, match="it goes on"):
            task.result(timeout=0)
        with pytest.raises(error):
            task.exception(timeout=0)
    task.publish(value(1))
    assert task.result(timeout=0) == 1


# ===== callbacks =====


def publish(task: Task[object], outcome: Outcome) -> None:
    """As a pool does it, with the callbacks."""
    task.call_back(task.publish(outcome) or [])


def test_callbacks_run_once_in_order_and_at_once_when_it_is_done() -> None:
    task = new_task()
    calls: list[object] = []
    task.add_done_callback(lambda done: calls.append((1, done)))
    task.add_done_callback(lambda done: calls.append((2, done)))
    assert calls == []
    publish(task, value(0))
    task.add_done_callback(lambda done: calls.append((3, done)))
    assert calls == [(1, task), (2, task), (3, task)]


def test_a_callback_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    task = new_task()
    calls = []

    def explode(_: object) -> NoReturn:
        raise ZeroDivisionError

    task.add_done_callback(explode)
    task.add_done_callback(calls.append)
    with caplog.at_level(logging.ERROR, "poolkit"):
        publish(task, value(0))
    assert calls == [task]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_read_the_outcome_and_add_another() -> None:
    task = new_task()
    found = []
    task.add_done_callback(lambda done: (found.append(done.result()), done.add_done_callback(found.append)))
    publish(task, value("read"))
    assert found == ["read", task]


def test_a_copy_in_a_forked_child_forgets_the_parents_callbacks_and_waits_for_no_lock() -> None:
    task = new_task()
    calls: list[object] = []
    task.add_done_callback(calls.append)
    task._condition.acquire()  # as a thread that the child does not have
    task.leave_parent()
    task.publish(value(1))
    assert task.result() == 1
    assert calls == []


def test_a_second_reader_does_not_set_the_mark_again() -> None:
    """It looks, and is put aside until the first reader is done, who takes the mark back without a lock."""
    slot = future.LazyFuture.__dict__["_load"]
    looked, done = threading.Event(), threading.Event()

    class Slow(Task[int]):
        __slots__ = ()

        @property
        def _load(self) -> object:
            found = slot.__get__(self)
            asked_in = sys._getframe(1).f_code.co_name
            if type(found) is int and asked_in == "_read" and threading.current_thread() is second:
                looked.set()
                done.wait()
            return found

        @_load.setter
        def _load(self, mark: object) -> None:
            slot.__set__(self, mark)

    inside, go_on = threading.Event(), threading.Event()

    def load(payload: int) -> int:
        inside.set()
        go_on.wait()
        return payload

    task = Slow(None, "name", None, None)
    task.publish(Outcome(7, ok=True, load=load))
    found: list[int] = []
    first = threading.Thread(target=lambda: (found.append(task.result()), done.set()))
    second = threading.Thread(target=lambda: found.append(task.result()))
    first.start()
    inside.wait()
    second.start()
    looked.wait()
    go_on.set()
    first.join()
    second.join()
    assert found == [7, 7]


class Alarmed(Exception):
    pass


def test_a_handler_that_raises_at_any_moment_leaves_no_lock_held() -> None:
    """The lock is that of all tasks: who waits for it in another thread would wait for ever."""

    def interrupt(_number: int, _frame: object) -> None:
        raise Alarmed

    rng = random.Random(1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            waiting, done = new_task(), [new_task() for _ in range(100)]
            for task in done:
                task.publish(Outcome(b"", ok=True, load=len))
            with contextlib.suppress(Alarmed):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1e-4))
                while True:
                    waiting.remove_done_callback(print)
                    waiting.add_done_callback(print)
                    with contextlib.suppress(TimeoutError):
                        waiting.result(timeout=0)
                    if done:
                        assert done.pop().result() == 0
            assert not future._LOCK._is_owned()  # type: ignore[attr-defined]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
