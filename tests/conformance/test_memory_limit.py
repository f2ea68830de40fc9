"""The limit on the memory of a task: it is stopped, its neighbours are not, and what it left behind harms nobody."""

from __future__ import annotations

import math
import os

import pytest

import support
import support_functions as work
from poolkit import MemoryLimitExceeded, Pool, TaskTimeout, _os, offload, use_pool
from poolkit._kinds.process import ProcessWorkforce
from support_gates import Gate

MB = 10**6


def grow_for_ever(arrived: Gate | None = None):
    """Take ten megabytes more, over and over, as fast as a loop does that has gone wild."""
    if arrived is not None:
        arrived.signal()
    kept = []
    while len(kept) < 200:  # and not more than the machine has
        kept.append(b"x" * 10 * MB)
    raise AssertionError("nobody stopped it")


def own_bytes():
    return _os.own_bytes(os.getpid())


@pytest.mark.needs("process")
def test_a_task_that_grows_beyond_its_limit_is_stopped_and_no_other(make_pool, hold):
    pool = make_pool(2)
    held = hold(pool, "neighbour")
    limited = pool.options(memory_limit=150 * MB)
    exits = []
    pool.on("worker_exited", exits.append)
    with pytest.raises(
        MemoryLimitExceeded, match=r"grow_for_ever.* beyond the task's memory_limit of 150\.0 MB"
    ) as caught:
        limited.submit(grow_for_ever).result()
    assert isinstance(caught.value, MemoryError)
    assert caught.value.limit == 150 * MB < caught.value.used
    assert limited.submit(work.add, 1, 2).result() == 3
    held.release()
    assert held.task.result() == "neighbour"
    support.wait_until(lambda: exits, "the event, which the thread for callbacks tells")
    assert [(event.cause, event.signal) for event in exits] == [("memory", "SIGKILL")]
    stats = pool.stats()
    assert (stats.failed, stats.crashed, stats.timed_out, stats.succeeded) == (1, 0, 0, 2)


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_task_below_its_limit_runs_as_if_it_had_none(pool):
    limited = pool.options(memory_limit=500 * MB)
    first = limited.submit(work.grow, 100 * MB).result()
    assert limited.submit(work.context_facts).result()[2:] == (1, False, None)
    assert limited.submit(work.pid).result() == first
    assert list(limited.map(work.square, range(20))) == [number**2 for number in range(20)]


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_worker_that_another_task_left_too_large_is_exchanged(pool, kind):
    left = pool.submit(work.grow, 200 * MB).result()
    task = pool.options(memory_limit=150 * MB).submit(own_bytes)
    assert task.result() < 150 * MB
    assert task.attempts == 1
    assert pool.submit(work.pid).result() != left
    assert pool.stats().recycled == 1 or not kind.can("here")  # a node counts for itself


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_memory_that_others_see_too_does_not_count(pool):
    numpy = pytest.importorskip("numpy")
    array = numpy.ones(200 * MB, dtype=numpy.uint8)
    assert pool.options(memory_limit=150 * MB, timeout=60).submit(numpy.sum, array).result() == 200 * MB


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_an_item_of_a_map_that_grows_too_large_fails_at_its_place(make_pool):
    def one(number):
        return grow_for_ever() if number == 30 else number

    results = make_pool(2).options(memory_limit=150 * MB).map(one, range(40))
    got = []
    with pytest.raises(MemoryLimitExceeded):
        got.extend(results)
    assert got == list(range(30))


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_it_is_retried_when_named(make_pool, journal):
    def grow_once():
        journal.write("run")
        return grow_for_ever() if len(journal.lines()) == 1 else "value"

    task = make_pool().options(memory_limit=150 * MB, retries=1, retry_on=MemoryLimitExceeded).submit(grow_once)
    assert (task.result(), task.attempts) == ("value", 2)


@pytest.mark.needs("process")
@pytest.mark.one_start_method
@pytest.mark.parametrize("limits", [{"memory_limit": 10**13, "timeout": 0.3}, {"memory_limit": 1, "timeout": 60}])
def test_whichever_limit_is_passed_first_is_told(pool, limits):
    expected = TaskTimeout if limits["timeout"] < 1 else MemoryLimitExceeded
    with pytest.raises(expected):
        pool.options(**limits).submit(work.spin).result()


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_task_near_its_limit_can_be_cancelled(pool, hold):
    held = hold(pool.options(memory_limit=300 * MB))
    assert held.task.cancel()
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("by_value")
@pytest.mark.one_start_method
def test_offload_takes_it_too(pool):
    double = offload(memory_limit=200 * MB, pool=pool)(work.square)
    assert double(3).result() == 9
    assert double.options(memory_limit=None)(4).result() == 16


@pytest.mark.one_start_method
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (math.nan, TypeError), (True, TypeError), ("1", TypeError)],
)
def test_a_limit_without_sense_is_refused(pool, value, error):
    with pytest.raises(error, match="memory_limit"):
        pool.options(memory_limit=value)


@pytest.mark.one_start_method
@pytest.mark.parametrize("value", [None, math.inf])
def test_none_and_infinity_are_no_limit_for_any_kind(pool, value):
    assert pool.options(memory_limit=value).submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("by_reference")
@pytest.mark.one_start_method
def test_threads_refuse_it(pool):
    with pytest.raises(ValueError, match="memory_limit=100 cannot be kept: threads share the memory of their process"):
        pool.options(memory_limit=100).submit(work.square, 3)
    for method in (pool.options(memory_limit=100).map, pool.options(memory_limit=100).stream):
        with pytest.raises(ValueError, match="threads share"):
            method(work.square, [3])
    with pytest.raises(ValueError, match="threads share"):
        offload(memory_limit=100, pool=pool)(work.square)
    with use_pool(pool), pytest.raises(ValueError, match="threads share"):
        offload(memory_limit=100)(work.square)(3)


def test_a_system_that_tells_no_memory_says_so(monkeypatch):
    monkeypatch.setattr(ProcessWorkforce, "why_memory_unknown", "no memory is told")
    with Pool(1) as pool, pytest.raises(ValueError, match="memory_limit=100 cannot be kept: no memory is told"):
        pool.options(memory_limit=100).submit(work.square, 3)
