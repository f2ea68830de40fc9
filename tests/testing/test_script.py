"""Scripted faults: what a test says about a call is what happens, with the errors of a real pool."""

from __future__ import annotations

import traceback
from unittest.mock import ANY

import pytest

import poolkit
import support_functions as work
import support_offloaded as offloaded
from poolkit.testing import FakePool


class Plain:
    """Equal to nothing but itself."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


def test_calls_of_which_nothing_was_said_really_run(pool: FakePool) -> None:
    pool.when(work.identity).returns(0)
    assert pool.submit(work.square, 3).result() == 9


def test_a_value(pool: FakePool) -> None:
    pool.when(work.square).returns("nine")
    assert [pool.submit(work.square, 3).result() for _ in range(3)] == ["nine"] * 3


def test_a_value_is_copied_like_any_result(pool: FakePool) -> None:
    value = [1]
    pool.when(work.square).returns(value)
    result = pool.submit(work.square, 3).result()
    assert result == [1]
    assert result is not value


@pytest.mark.parametrize("error", [LookupError("gone"), LookupError])
def test_an_exception(pool: FakePool, error: BaseException | type[BaseException]) -> None:
    pool.when(work.square).raises(error)
    assert isinstance(pool.submit(work.square, 3).exception(), LookupError)


def test_a_crash_by_a_signal_or_an_exit_code(pool: FakePool) -> None:
    pool.when(work.square).crashes("SIGSEGV").then.crashes(exitcode=3)
    first, second = pool.submit(work.square, 3).exception(), pool.submit(work.square, 3).exception()
    assert isinstance(first, poolkit.WorkerCrashed)
    assert (first.signal, first.exitcode, first.worker_id) == ("SIGSEGV", None, 1)
    assert "a crash in C code" in first.hint
    assert isinstance(second, poolkit.WorkerCrashed)
    assert (second.signal, second.exitcode, second.worker_id) == (None, 3, 2)
    assert pool.stats().crashed == 2


def test_a_hang_that_meets_its_limit_tells_where(pool: FakePool) -> None:
    pool.when(work.square).hangs()
    error = pool.options(timeout=2).submit(work.square, 3).exception()
    assert isinstance(error, poolkit.TaskTimeout)
    assert error.timeout == 2
    assert "in square" in error.stack
    assert pool.now == 2


def test_a_worker_that_grows_meets_the_limit_of_its_task(pool: FakePool) -> None:
    pool.when(work.square, 3).uses(2_000_000).takes(1)
    limited = pool.options(memory_limit=1_000_000)
    error = limited.submit(work.square, 3).exception()
    assert isinstance(error, poolkit.MemoryLimitExceeded)
    assert (error.limit, error.used) == (1_000_000, 2_000_000)
    assert pool.now < 1
    assert limited.submit(work.square, 2).result() == 4
    assert pool.submit(work.square, 3).result() == 9


def test_what_is_killed_in_its_time_has_not_run() -> None:
    seen: list[int] = []
    pool = FakePool(check_pickle=False)
    pool.when(seen.append).takes(5)
    assert isinstance(pool.options(timeout=2).submit(seen.append, 1).exception(), poolkit.TaskTimeout)
    pool.submit(seen.append, 2).result()
    assert seen == [2]


def test_steps_take_turns(pool: FakePool) -> None:
    pool.when(work.square).raises(KeyError).times(2).then.returns(1).then.runs()
    tasks = [pool.submit(work.square, 3) for _ in range(5)]
    assert [task.exception() is None for task in tasks] == [False, False, True, True, True]
    assert [task.result() for task in tasks[2:]] == [1, 9, 9]


def test_after_the_last_turn_calls_really_run(pool: FakePool) -> None:
    pool.when(work.square).returns(0).times(1)
    assert [pool.submit(work.square, 3).result() for _ in range(2)] == [0, 9]


def test_calls_are_told_apart_by_their_arguments(pool: FakePool) -> None:
    pool.when(work.collect, 1, ANY, key="a").returns("matched")
    assert pool.submit(work.collect, 1, 2, key="a").result() == "matched"
    for args, kwargs in [((1, 2), {}), ((1,), {"key": "a"}), ((2, 2), {"key": "a"}), ((1, 2), {"key": "b"})]:
        assert pool.submit(work.collect, *args, **kwargs).result() == (args, kwargs)


def test_arrays_match_when_they_hold_the_same(pool: FakePool) -> None:
    numpy = pytest.importorskip("numpy")
    pool.when(work.identity, numpy.arange(3)).returns(0)
    assert pool.submit(work.identity, numpy.arange(3)).result() == 0
    assert pool.submit(work.identity, numpy.arange(4)).result().tolist() == [0, 1, 2, 3]
    pool.assert_called(work.identity, numpy.arange(4), times=1)


def test_objects_that_compare_by_identity_match_their_copies(pool: FakePool) -> None:
    plain = Plain(3)
    pool.submit(work.identity, plain)
    pool.assert_called(work.identity, plain)
    pool.assert_not_called(work.identity, Plain(4))


def test_arguments_match_whether_given_by_name_or_by_position(pool: FakePool) -> None:
    pool.when(work.square, number=3).returns("by name")
    assert pool.submit(work.square, 3).result() == "by name"
    pool.assert_called(work.square, 3)
    pool.when(work.square, 4).returns("by position")
    assert pool.submit(work.square, number=4).result() == "by position"


def test_a_method_is_known_by_its_class(pool: FakePool) -> None:
    pool.when(offloaded.Account.times, ANY, 2).returns("scripted")
    with poolkit.use_pool(pool):
        assert offloaded.Account(3).times(2).result() == "scripted"
        assert offloaded.Account(3).times(3).result() == 9
    pool.assert_called(offloaded.Account.times, times=2)


def test_an_exception_that_is_raised_often_does_not_grow() -> None:
    pool = FakePool(check_pickle=False)
    error = LookupError("gone")
    pool.when(work.square).raises(error)
    lengths = set()
    for _ in range(3):
        assert pool.submit(work.square, 3).exception() is error
        lengths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(lengths) == 1


def test_a_call_that_really_runs_has_no_frames_of_the_script_in_its_traceback(pool: FakePool) -> None:
    pool.when(work.raise_value_error).takes(1)
    error = pool.submit(work.raise_value_error, "no").exception()
    assert error is not None
    assert "testing/script.py" not in "".join(traceback.format_exception(error))


def test_what_was_said_last_comes_first(pool: FakePool) -> None:
    pool.when(work.square).returns("any")
    pool.when(work.square, 2).returns("two").times(1)
    assert [pool.submit(work.square, 2).result() for _ in range(2)] == ["two", "any"]


def test_retries_are_runs_of_their_own(pool: FakePool) -> None:
    pool.when(work.square).raises(ConnectionError("down")).takes(1).then.takes(2).runs()
    task = pool.options(retries=1, retry_on=(ConnectionError,)).submit(work.square, 3)
    assert task.result() == 9
    assert (task.attempts, task.run_time) == (2, 2.0)
    assert pool.now > 3


def test_functions_are_known_by_value_too(pool: FakePool) -> None:
    def local(number: int) -> int:
        return number

    pool.when(local).returns("scripted")
    assert pool.submit(local, 1).result() == "scripted"
    assert pool.submit(lambda: local(1)).result() == 1


def test_methods_are_known(pool: FakePool) -> None:
    text = "some text"
    pool.when(text.upper).returns("SCRIPTED")
    assert pool.submit(text.upper).result() == "SCRIPTED"
    assert pool.submit("other".upper).result() == "OTHER"


def test_offloaded_functions_and_methods_are_known(pool: FakePool) -> None:
    account = offloaded.Account(3)
    pool.when(offloaded.double).returns("function")
    pool.when(account.times).returns("method")
    with poolkit.use_pool(pool):
        assert offloaded.double(1).result() == "function"
        assert account.times(2).result() == "method"
    pool.assert_called(offloaded.double, 1)
    assert pool.calls[0].fn is offloaded.double._fn


@pytest.mark.parametrize("chunksize", [None, 1, 2, 5])
def test_the_items_of_a_map_are_calls(pool: FakePool, chunksize: int | None) -> None:
    pool.when(work.square, 2).returns("two")
    pool.when(work.square, 3).takes(1)
    assert list(pool.map(work.square, range(5), chunksize=chunksize)) == [0, 1, "two", 9, 16]
    assert pool.now == 1
    assert [call.args for call in pool.calls] == [(number,) for number in range(5)]
    assert list(pool.starmap(work.collect, [(1, 2)])) == [((1, 2), {})]
    pool.assert_called(work.collect, 1, 2, times=1)


def test_an_item_of_a_map_that_raises_or_crashes(pool: FakePool) -> None:
    pool.when(work.square, 2).raises(LookupError("two"))
    results = pool.map(work.square, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(LookupError):
        next(results)
    pool.when(work.square, 2).crashes()
    with pytest.raises(poolkit.WorkerCrashed):
        list(pool.map(work.square, range(5)))


def test_a_fault_may_come_with_a_coroutine_function(pool: FakePool) -> None:
    pool.when(work.double_later, 2).returns("two")
    with pool:  # whose event loop ends with it
        assert [pool.submit(work.double_later, number).result() for number in (1, 2)] == [2, "two"]


@pytest.mark.parametrize("times", [0, -1, 1.5, "2", True])
def test_numbers_of_times_without_sense_are_refused(pool: FakePool, times: object) -> None:
    with pytest.raises((TypeError, ValueError), match="count"):
        pool.when(work.square).returns(1).times(times)  # type: ignore[arg-type]


def test_faults_without_sense_are_refused(pool: FakePool) -> None:
    with pytest.raises(ValueError, match="SIGNONE"):
        pool.when(work.square).crashes("SIGNONE")
    with pytest.raises(ValueError, match="exitcode"):
        pool.when(work.square).crashes(exitcode=-1)
    with pytest.raises(TypeError, match="exception"):
        pool.when(work.square).raises("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function"):
        pool.when(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds"):
        pool.when(work.square).takes(-1)
    with pytest.raises(ValueError, match="nbytes"):
        pool.when(work.square).uses(0)
