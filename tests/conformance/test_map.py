"""`map` is lazy, ordered unless told otherwise, and stops at the first exception."""

from __future__ import annotations

import itertools
import weakref

import pytest

import support_functions as work
import support_objects as objects
from poolkit import WorkerCrashed
from support import wait_until


def test_results_come_in_the_order_of_the_input(make_pool):
    assert list(make_pool(2).map(work.square, range(300))) == [number**2 for number in range(300)]


@pytest.mark.one_start_method
def test_the_shortest_iterable_ends_it(pool):
    assert list(pool.map(work.add, [1, 2, 3], itertools.count(10))) == [11, 13, 15]


@pytest.mark.one_start_method
def test_nothing_in_gives_nothing_out(pool):
    assert list(pool.map(work.square, [])) == []
    assert list(pool.starmap(work.add, [])) == []


@pytest.mark.one_start_method
def test_starmap_spreads_tuples(pool):
    assert list(pool.starmap(work.add, [(1, 2), [3, 4]])) == [3, 7]


@pytest.mark.parametrize("chunksize", [1, 3, 7, 1000])
@pytest.mark.one_start_method
def test_every_chunksize_gives_the_same(pool, chunksize):
    assert list(pool.map(work.square, range(20), chunksize=chunksize)) == [number**2 for number in range(20)]


@pytest.mark.parametrize("buffersize", [1, 2, 5, 1000])
@pytest.mark.one_start_method
def test_every_buffersize_gives_the_same(make_pool, buffersize):
    found = list(make_pool(2).map(work.square, range(50), buffersize=buffersize))
    assert found == [number**2 for number in range(50)]


def test_unordered_gives_the_same_values(make_pool):
    found = list(make_pool(2).map(work.square, range(100), ordered=False))
    assert sorted(found) == [number**2 for number in range(100)]


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_unordered_yields_as_results_arrive(make_pool, new_gate):
    pool, release, never = make_pool(2), new_gate(), new_gate()

    def wait_for(gate):
        gate.wait()
        return gate.path

    results = pool.map(wait_for, [never, release], ordered=False, chunksize=1)
    release.signal()
    assert next(results) == release.path
    never.signal()
    assert list(results) == [never.path]


@pytest.mark.one_start_method
def test_endless_iterables_work(pool):
    results = pool.map(work.square, itertools.count())
    assert list(itertools.islice(results, 200)) == [number**2 for number in range(200)]
    results.close()


@pytest.mark.parametrize("chunksize", [None, 2])
@pytest.mark.one_start_method
def test_no_more_than_buffersize_items_are_taken_ahead(make_pool, chunksize):
    taken = []

    def items():
        for number in itertools.count():
            taken.append(number)
            yield number

    pool = make_pool(2)
    results = pool.map(work.identity, items(), buffersize=6, chunksize=chunksize)
    for number in range(40):
        assert len(taken) <= number + 6
        assert next(results) == number
    results.close()


@pytest.mark.one_start_method
def test_an_exception_is_raised_at_its_place_and_ends_it(pool):
    results = pool.map(work.raise_if_negative, [1, 2, -3, 4])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="-3"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.one_start_method
def test_an_exception_in_the_middle_of_a_chunk_keeps_what_came_before(pool):
    results = pool.map(work.raise_if_negative, [1, 2, -3, 4], chunksize=4)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="-3"):
        next(results)


@pytest.mark.one_start_method
def test_an_exception_of_the_iterable_arrives_as_itself(pool):
    def items():
        yield 1
        raise LookupError("no more")

    results = pool.map(work.identity, items(), chunksize=1, buffersize=1)
    with pytest.raises(LookupError, match="no more"):
        list(results)


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_closing_cancels_the_rest(pool, hold, journal):
    held = hold(pool)
    results = pool.map(lambda number: journal.write(number), range(10))
    results.close()
    results.close()
    assert list(results) == []
    held.release()
    pool.submit(work.none_of_it).result()
    assert journal.lines() == []


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_dropping_it_cancels_the_rest(pool, hold, journal):
    held = hold(pool)
    results = pool.map(lambda number: journal.write(number), range(10))
    accepted = pool.stats().submitted - 1
    del results
    wait_until(lambda: pool.stats().cancelled == accepted, "the rest is cancelled")
    held.release()
    pool.submit(work.none_of_it).result()
    assert journal.lines() == []


@pytest.mark.one_start_method
def test_closing_closes_a_generator_that_is_its_input(pool):
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    results = pool.map(work.identity, items())
    assert next(results) == 0
    results.close()
    del results
    assert closed == [True]


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_timeout_counts_from_the_call(pool, hold):
    held = hold(pool)
    results = pool.map(work.identity, [1], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    held.release()


@pytest.mark.needs("by_value")
@pytest.mark.one_start_method
def test_an_item_that_cannot_be_pickled_fails_at_its_place(pool):
    results = pool.map(work.identity, [1, objects.RaisesOnPickle()], chunksize=1)
    assert next(results) == 1
    with pytest.raises(Exception, match="cannot be pickled"):
        next(results)


@pytest.mark.needs("crash")
def test_a_crash_costs_its_place_only(make_pool):
    pool = make_pool(2)

    def maybe_die(number):
        return work.die() if number == 3 else number

    results = pool.map(maybe_die, range(6), chunksize=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerCrashed):
        next(results)
    assert list(pool.map(work.identity, range(6))) == list(range(6))


@pytest.mark.needs("crash")
def test_items_are_retried_by_themselves(make_pool, journal):
    def die_once(number):
        journal.write(number)
        if number == 2 and journal.lines().count("2") == 1:
            work.die()
        return number

    assert list(make_pool().options(retries=1).map(die_once, range(4))) == [0, 1, 2, 3]
    assert sorted(journal.lines()) == ["0", "1", "2", "2", "3"]


@pytest.mark.needs("real_time", "kill_running")
@pytest.mark.one_start_method
@pytest.mark.slow
def test_the_time_limit_of_a_view_is_per_item(make_pool):
    def spin_at_two(number):
        return work.spin() if number == 2 else number

    # A worker is up when it has run it once, so the limit is for the items alone and not for imports.
    pool = make_pool(2, initializer=spin_at_two, initargs=(0,))
    results = pool.options(timeout=0.5).map(spin_at_two, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(TimeoutError):
        next(results)


@pytest.mark.needs("by_value")
@pytest.mark.one_start_method
def test_yielded_items_are_not_kept_alive(pool):
    results = pool.map(objects.make_payload, range(3), chunksize=1)
    reference = weakref.ref(next(results))
    wait_until(lambda: reference() is None, "the item is gone")
    results.close()


@pytest.mark.one_start_method
def test_map_of_a_map(make_pool):
    pool = make_pool(2)
    inner = pool.map(work.square, range(50))
    assert list(pool.map(work.square, inner)) == [number**4 for number in range(50)]


@pytest.mark.one_start_method
@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_a_stop_iteration_of_a_call_is_an_error_and_ends_nothing_silently(pool, chunksize):
    iterators = [iter([number]) for number in range(4)] + [iter([])] + [iter([number]) for number in range(5, 8)]
    results = pool.map(next, iterators, chunksize=chunksize)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)
