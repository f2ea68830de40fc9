"""What a fake pool says of the calls that it got: records, assertions that explain themselves, the timeline."""

from __future__ import annotations

import gc
import weakref

import pytest

import poolkit
import support_functions as work
from poolkit.testing import FakePool


def test_calls_are_recorded_with_arguments_options_outcome_and_times() -> None:
    with FakePool("manual") as pool:
        pool.when(work.square).takes(2)
        pool.options(priority=3, timeout=5).submit(work.square, 4)
        pool.submit(work.raise_value_error, text="no")
        first, second = pool.calls
        assert (first.fn, first.name, first.args, first.kwargs) == (work.square, "square", (4,), {})
        assert (second.fn, second.args, second.kwargs) == (work.raise_value_error, (), {"text": "no"})
        assert (first.options.priority, first.options.timeout) == (3, 5)
        assert (first.outcome, second.outcome) == ("queued", "queued")
        pool.advance(1)
        assert first.outcome == "running"
        pool.run_all()
        assert (first.outcome, second.outcome) == ("succeeded", "failed")
        assert (first.submitted_at, first.started_at, first.ended_at) == (0, 0, 2)
        assert (second.submitted_at, second.started_at, second.ended_at) == (0, 2, 2)
        assert (first.attempts, first.error) == (1, None)
        assert repr(second.error) == "ValueError('no')"
        assert second.error is not second.error, "whoever raises it must not change the record"


def test_a_record_shows_the_arguments_of_the_submission() -> None:
    items = [1]
    with FakePool("manual") as pool:
        pool.submit(work.append_to, items, 2)
        items.append(3)
        pool.run_all()
        assert pool.calls[0].args == ([1], 2)
    assert items == [1, 3], "a task cannot change the caller's objects"


def test_a_task_gets_the_callers_objects_where_pickling_is_not_checked() -> None:
    items = [1]
    with FakePool(check_pickle=False) as pool:
        pool.submit(work.append_to, items, 2)
        assert items == [1, 2]
        assert pool.calls[0].args[0] is items


def test_what_would_not_travel_fails_here_too() -> None:
    with FakePool() as pool:
        assert isinstance(pool.submit(work.identity, (_ for _ in ())).exception(), poolkit.SerializationError)
        assert isinstance(pool.submit(lambda: (_ for _ in ())).exception(), poolkit.SerializationError)
        assert [call.outcome for call in pool.calls] == ["failed"], "the first was never a call"


def test_a_cancelled_call() -> None:
    with FakePool("manual") as pool:
        pool.submit(work.square, 4).cancel()
        assert pool.calls[0].outcome == "cancelled"
        assert pool.calls[0].started_at is None


def test_a_refused_call_is_none() -> None:
    with FakePool("manual", max_queue=1) as pool:
        view = pool.options(block=False)
        for _ in range(3):
            try:
                view.submit(work.square, 1)
            except poolkit.QueueFull:
                break
        else:
            pytest.fail("the queue is never full")
        assert len(pool.calls) == pool.stats().submitted


def test_records_keep_neither_tasks_nor_results() -> None:
    with FakePool() as pool:
        task = pool.submit(work.raise_value_error, "no")
        kept = weakref.ref(task)
        with pytest.raises(ValueError, match="no"):
            task.result()
        del task
        gc.collect()
        assert kept() is None
        assert pool.calls[0].outcome == "failed"


def test_assert_called_finds_calls() -> None:
    with FakePool() as pool:
        pool.submit(work.collect, 1, key="a")
        pool.submit(work.collect, 2)
        pool.assert_called(work.collect)
        pool.assert_called(work.collect, times=2)
        pool.assert_called(work.collect, 1, key="a", times=1)
        pool.assert_not_called(work.collect, 1)
        pool.assert_not_called(work.square)


def test_a_failed_assertion_shows_calls_and_timeline() -> None:
    pool = FakePool("manual")
    pool.when(work.square, 4).takes(2)
    pool.options(timeout=1).submit(work.square, 4)
    pool.run_all()
    with pytest.raises(AssertionError) as caught:
        pool.assert_called(work.square, 5)
    assert str(caught.value) == (
        "square(5) was not called\n"
        "calls:\n"
        "  <Call square(4) failed>\n"
        "timeline:\n"
        "     0.000  task 1 (square) submitted: square(4)\n"
        "     0.000  task 1 (square) begins on worker 1\n"
        "     1.000  worker 1 is killed\n"
        "     1.000  task 1 (square) failed: TaskTimeout: task 1 (square, attempt 1) ran longer than its timeout of 1 s"
        " and was stopped; it was at (most recent call first):"
    )
    with pytest.raises(AssertionError, match="square was called 1 times, not 2 times"):
        pool.assert_called(work.square, times=2)
    with pytest.raises(AssertionError, match=r"square\(4\) was called 1 times, not 0 times"):
        pool.assert_not_called(work.square, 4)
    pool.shutdown()


def test_the_timeline_of_a_crash_and_its_retry() -> None:
    pool = FakePool(seed=1)
    pool.when(work.square).crashes("SIGSEGV").then.returns(0)
    pool.options(retries=1).submit(work.square, 4)
    lines = [line.split(maxsplit=1) for line in pool.timeline().splitlines()]
    assert [text for _, text in lines] == [
        "task 1 (square) submitted: square(4)",
        "task 1 (square) begins on worker 1",
        "worker 1 dies: SIGSEGV",
        "task 1 (square) begins on worker 2",
        "task 1 (square) succeeded",
    ]
    assert float(lines[-1][0]) > 0
    pool.shutdown()


def test_a_timeline_shows_long_and_odd_arguments_in_short() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise LookupError

    with FakePool(check_pickle=False) as pool:
        pool.submit(work.collect, "x" * 1000, Odd())
        assert f"collect('{'x' * 56}..., <Odd>)" in pool.timeline()
    assert FakePool().timeline() == "nothing has happened"
