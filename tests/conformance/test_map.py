"""`map` is lazy, ordered unless told otherwise, and stops at the first exception; what nobody reads is done too."""

from __future__ import annotations

import asyncio
import itertools
import weakref

import pytest

import support_functions as work
import support_objects as objects
from poolkit import PoolClosed, TaskCancelled, WorkerCrashed
from poolkit._engine.feed import MOST_CLAIMED
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


@pytest.mark.needs("background")
@pytest.mark.one_start_method
@pytest.mark.parametrize("chunksize", [None, 100])
def test_unordered_waits_for_a_slow_item_with_those_alone_that_were_claimed_with_it(make_pool, new_gate, chunksize):
    gate = new_gate()

    def wait_at_300(number):
        if number == 300:
            gate.wait()
        return number

    results = make_pool(2).map(wait_at_300, range(600), ordered=False, chunksize=chunksize)
    found = {next(results) for _ in range(600 - MOST_CLAIMED)}
    assert 300 not in found
    gate.signal()
    assert found | set(results) == set(range(600))


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
def test_dropping_what_was_begun_to_be_read_cancels_the_rest(pool, hold, journal):
    results = pool.map(_write(journal), range(10), chunksize=1)
    assert next(results) == 0
    held = hold(pool)
    assert next(results) == -1
    assert pool.stats().queued >= 1
    del results
    wait_until(lambda: not pool.stats().queued, "the rest is cancelled")
    held.release()
    pool.submit(work.none_of_it).result()
    assert _written(journal) == [0, 1, 2]


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


# ===== nobody reads =====


def _write(journal):
    def write(number):
        journal.write(number)
        return -number

    return write


def _written(journal):
    return sorted(map(int, journal.lines()))


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.needs("unattended")
def test_a_map_that_is_dropped_unread_is_done_in_the_background(make_pool, journal, is_sized):
    pool, items = make_pool(2), range(50)
    pool.map(_write(journal), items if is_sized else iter(items))
    wait_until(lambda: len(journal.lines()) == 50, "all of it is done")
    assert pool.submit(work.square, 3).result() == 9
    assert _written(journal) == list(items)


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("settings", [{}, {"chunksize": 7}, {"ordered": False}, {"buffersize": 1}])
@pytest.mark.one_start_method
def test_a_map_that_nobody_read_is_done_by_the_end_of_the_with_block(make_pool, journal, is_held, settings):
    with make_pool(2) as pool:
        results = pool.map(_write(journal), iter(range(60)), **settings)
        if not is_held:
            del results
    assert _written(journal) == list(range(60))
    if is_held:
        found = list(results)
        assert sorted(found, reverse=True) == [-number for number in range(60)]


def test_its_results_can_be_read_afterwards(make_pool):
    with make_pool(2) as pool:
        results = pool.map(work.square, range(100))
    assert list(results) == [number**2 for number in range(100)]
    assert list(results) == []


@pytest.mark.one_start_method
def test_starmap_and_views_are_done_too(make_pool, journal):
    def write(number, more):
        journal.write(number + more)

    with make_pool(2) as pool:
        pool.starmap(write, [(number, 0) for number in range(20)])
        results = pool.options(timeout=60, name="mine").starmap(write, iter([(number, 100) for number in range(20)]))
    assert _written(journal) == [*range(20), *range(100, 120)]
    assert len(list(results)) == 20


@pytest.mark.one_start_method
def test_a_full_queue_is_waited_for(make_pool, journal):
    with make_pool(1, max_queue=1) as pool:
        pool.options(block=False).map(_write(journal), range(100, 101))
        pool.map(_write(journal), range(20))
        for number in range(5):
            pool.submit(work.square, number)
        results = pool.map(_write(journal), range(200, 220))
    assert _written(journal) == [*range(20), 100, *range(200, 220)]
    assert len(list(results)) == 20


@pytest.mark.parametrize("chunksize", [None, 4])
@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.one_start_method
def test_an_item_that_raises_stops_no_other_of_an_unread_map(make_pool, journal, caplog, chunksize, is_held):
    def write(number):
        journal.write(number)
        if number % 5 == 0:
            raise ValueError(f"not {number}")
        return number

    with make_pool(2) as pool:
        results = pool.map(write, range(1, 31), chunksize=chunksize)
        if not is_held:
            del results
    assert _written(journal) == list(range(1, 31))
    logged = [record for record in caplog.records if record.name == "poolkit"]
    if not is_held:
        assert len(logged) == 1
        assert logged[0].exc_info[0] is ValueError
        assert "write" in logged[0].getMessage()
        return
    assert logged == []
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="not 5"):
        next(results)
    assert list(results) == []


@pytest.mark.needs("by_value")
@pytest.mark.one_start_method
def test_an_item_that_cannot_be_pickled_stops_no_other_of_an_unread_map(make_pool, journal):
    with make_pool(2) as pool:
        pool.map(lambda item: journal.write(item), [1, 2, objects.RaisesOnPickle(), 3, 4], chunksize=5)
    assert _written(journal) == [1, 2, 3, 4]


@pytest.mark.one_start_method
def test_an_input_that_raises_ends_an_unread_map(make_pool, journal, caplog):
    def items():
        yield from range(40)
        raise LookupError("no more")

    with make_pool(2) as pool:
        pool.map(_write(journal), items())
    assert _written(journal) == list(range(40))
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]
    with make_pool(2) as pool:
        results = pool.map(work.identity, items())
    for number in range(40):
        assert next(results) == number
    with pytest.raises(LookupError, match="no more"):
        next(results)


@pytest.mark.one_start_method
def test_what_was_begun_and_has_a_length_is_finished_by_a_shutdown(make_pool, journal):
    with make_pool(2) as pool:
        results = pool.map(_write(journal), range(50), buffersize=4)
        assert next(results) == 0
    assert _written(journal) == list(range(50))
    assert list(results) == [-number for number in range(1, 50)]


@pytest.mark.one_start_method
def test_of_what_was_begun_and_has_no_length_what_was_taken_is_done(make_pool, journal):
    taken = []

    def items():
        for number in itertools.count():
            taken.append(number)
            yield number

    with make_pool(2) as pool:
        results = pool.map(_write(journal), items(), buffersize=4)
        assert [next(results), next(results)] == [0, -1]
    assert _written(journal) == taken
    assert [next(results) for _ in taken[2:]] == [-number for number in taken[2:]]
    with pytest.raises(PoolClosed, match="shut down"):
        next(results)
    assert list(results) == []


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_closing_it_unread_cancels_the_rest_at_a_shutdown(make_pool, hold, journal):
    with make_pool() as pool:
        held = hold(pool)
        results = pool.map(_write(journal), range(10))
        results.close()
        held.release()
    assert journal.lines() == []


@pytest.mark.parametrize("how", [{"cancel_futures": True}, {"kill": True}])
@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_a_shutdown_that_cancels_cancels_unread_maps(make_pool, hold, journal, how):
    pool = make_pool()
    held = hold(pool)
    results = pool.map(_write(journal), itertools.count())
    pool.map(_write(journal), itertools.count())
    pool.shutdown(wait=False, **how)
    held.release()
    pool.shutdown()
    assert journal.lines() == []
    with pytest.raises((TaskCancelled, PoolClosed)):
        next(results)


@pytest.mark.one_start_method
@pytest.mark.needs("background", "kill_running")
def test_cancel_all_ends_an_unread_map(make_pool, new_gate):
    pool, gate = make_pool(), new_gate()
    pool.map(lambda number: gate.wait(), itertools.count())
    pool.cancel_all()
    pool.shutdown()


@pytest.mark.one_start_method
def test_a_shutdown_that_does_not_wait_leaves_the_rest_to_the_pool(make_pool, journal):
    pool = make_pool(2)
    results = pool.map(_write(journal), iter(range(50)))
    pool.map(_write(journal), iter(range(100, 150)))
    pool.shutdown(wait=False)
    with pytest.raises(PoolClosed):
        pool.submit(work.square, 1)
    with pytest.raises(PoolClosed):
        pool.map(work.square, [1])
    pool.shutdown()
    assert _written(journal) == [*range(50), *range(100, 150)]
    assert list(results) == [-number for number in range(50)]


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_a_shutdown_in_a_callback_leaves_the_rest_to_the_pool(make_pool, journal):
    pool = make_pool(2)
    results = pool.map(_write(journal), iter(range(50)))
    pool.submit(work.square, 1).add_done_callback(lambda _: pool.shutdown())
    wait_until(lambda: len(journal.lines()) == 50, "all of it is done")
    pool.shutdown()
    assert list(results) == [-number for number in range(50)]


@pytest.mark.one_start_method
def test_the_input_of_an_unread_map_may_be_another_map(make_pool, journal):
    with make_pool(2) as pool:
        pool.map(_write(journal), pool.map(work.square, iter(range(30))))
        results = pool.map(work.identity, (item + 1 for item in pool.map(work.square, iter(range(30)))))
    assert _written(journal) == [number**2 for number in range(30)]
    assert list(results) == [number**2 + 1 for number in range(30)]


@pytest.mark.one_start_method
def test_an_input_may_shut_the_pool_down(make_pool, journal):
    def items():
        yield from range(3)
        pool.shutdown(wait=False)
        yield from range(3, 6)

    pool = make_pool()
    results = pool.map(_write(journal), items(), chunksize=1, buffersize=2)
    with pytest.raises(PoolClosed):
        for _ in results:
            pass
    pool.shutdown()
    assert set(_written(journal)) >= {0, 1, 2}


@pytest.mark.needs("background")
@pytest.mark.one_start_method
@pytest.mark.slow
def test_a_shutdown_says_which_endless_map_it_goes_on_with(make_pool, caplog):
    pool = make_pool(2)
    pool.map(work.square, itertools.count())
    pool.shutdown(timeout=1.2)
    (record,) = caplog.records
    assert "map(square)" in record.getMessage()


@pytest.mark.one_start_method
def test_a_map_that_was_handed_in_during_a_shutdown_is_refused(make_pool):
    pool = make_pool()
    results = pool.map(work.square, range(5))
    pool.shutdown()
    with pytest.raises(PoolClosed):
        pool.map(work.square, range(5))
    assert list(results) == [0, 1, 4, 9, 16]


@pytest.mark.needs("unattended")
@pytest.mark.one_start_method
def test_async_iteration_after_the_end_of_the_pool(make_pool):
    async def main():
        async with make_pool(2) as pool:
            unread = pool.map(work.square, iter(range(30)))
            begun = pool.map(work.square, range(30))
            assert await begun.__anext__() == 0
        return [item async for item in unread], [item async for item in begun]

    squares = [number**2 for number in range(30)]
    assert asyncio.run(main()) == (squares, squares[1:])


@pytest.mark.needs("background")
@pytest.mark.one_start_method
@pytest.mark.parametrize("is_sized", [True, False])
def test_a_shutdown_takes_up_first_what_a_coroutine_waits_to_hand_in(make_pool, hold, is_sized):
    pool = make_pool(1, max_queue=1)

    async def main():
        numbers = range(5) if is_sized else itertools.count()
        results = pool.map(work.square, numbers, chunksize=1, buffersize=1)
        wait_until(lambda: pool.stats().succeeded, "the end of the first item")
        held, filler = hold(pool), pool.submit(work.identity, "in the queue")
        assert await results.__anext__() == 0  # and there is no room for the second
        second = asyncio.ensure_future(results.__anext__())
        await asyncio.sleep(0)  # it stands in the line now
        held.release()
        pool.shutdown()  # on the thread of the loop, so the coroutine goes on afterwards
        assert filler.result() == "in the queue"
        came = [await second]
        try:
            came += [value async for value in results]
        except PoolClosed:  # what was taken is done, and no more is taken
            assert not is_sized
        return came

    assert asyncio.run(main()) == ([1, 4, 9, 16] if is_sized else [1])


# ===== coroutine functions =====


@pytest.mark.parametrize("chunksize", [None, 1, 4])
@pytest.mark.one_start_method
def test_coroutine_functions_are_run(make_pool, chunksize):
    async def triple(number, more=0):
        await asyncio.sleep(0)
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 3 * number + more

    pool = make_pool(2)
    assert list(pool.map(triple, range(20), chunksize=chunksize)) == [3 * number for number in range(20)]
    assert list(pool.starmap(triple, [(1, 2), (3, 4)], chunksize=chunksize)) == [5, 13]
    results = pool.map(triple, [1, 2, -3], chunksize=chunksize)
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(ValueError, match="-3 is negative"):
        next(results)
