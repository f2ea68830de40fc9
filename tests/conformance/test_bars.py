"""Bars: what they count, when they are closed, and that they change nothing else. The bar itself is a recorder here."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

import poolkit
import support_functions as work

pytestmark = pytest.mark.one_start_method


def double(number):
    return 2 * number


class Recorded:
    """A bar that notes what it is told."""

    def __init__(self, total, desc):
        self.total, self.desc = total, desc
        self.steps = []
        self.closed = 0

    @property
    def shown(self):
        return sum(self.steps)

    def update(self, step):
        assert not self.closed
        assert step > 0
        self.steps.append(step)

    def close(self):
        self.closed += 1


@pytest.fixture
def bars():
    """Every bar that `make_bar` made."""
    return []


@pytest.fixture
def make_bar(bars):
    def make(total=None, desc=None):
        bars.append(Recorded(total, desc))
        return bars[-1]

    return make


def take_all(results, way):
    async def take_later():
        return [result async for result in results]

    return list(results) if way == "sync" else asyncio.run(take_later())


both_ways = pytest.mark.parametrize("way", ["sync", pytest.param("async", marks=pytest.mark.needs("unattended"))])


# ===== map =====


@both_ways
@pytest.mark.parametrize("ordered", [True, False])
def test_a_bar_counts_every_item_and_is_closed_at_the_end(make_pool, bars, make_bar, ordered, way):
    results = make_pool(2).map(double, range(500), ordered=ordered, progress=make_bar)
    assert sorted(take_all(results, way)) == [2 * item for item in range(500)]
    (bar,) = bars
    assert (bar.total, bar.shown, bar.closed) == (500, 500, 1)
    assert all(type(step) is int for step in bar.steps)


def test_the_total_is_the_length_of_the_shortest_input_that_has_one(pool, bars, make_bar):
    assert list(pool.map(work.add, range(3), itertools.count(), progress=make_bar)) == [0, 2, 4]
    assert list(pool.map(work.add, range(3), range(5), progress=make_bar)) == [0, 2, 4]
    assert list(pool.map(double, iter(range(3)), progress=make_bar)) == [0, 2, 4]
    assert list(pool.starmap(work.add, [(0, 1), (1, 1)], progress=make_bar)) == [1, 2]
    assert list(pool.map(double, [], progress=make_bar)) == []
    assert [bar.total for bar in bars] == [3, 3, None, 2, 0]
    assert [bar.shown for bar in bars] == [3, 3, 3, 2, 0]
    assert [bar.closed for bar in bars] == [1] * 5


def test_an_input_whose_length_cannot_be_asked_for_has_none(pool, bars, make_bar):
    class Stream(list):
        def __len__(self):
            raise NotImplementedError

    assert list(pool.map(double, Stream([1, 2]), progress=make_bar)) == [2, 4]
    assert [(bar.total, bar.shown) for bar in bars] == [(None, 2)]


@both_ways
@pytest.mark.needs("background")
def test_what_is_done_counts_while_an_earlier_item_holds_it_up(make_pool, new_gate, way):
    """The bar itself lets the first item go, once it has shown that the others are done."""
    release = new_gate()

    class Releasing(Recorded):
        def update(self, step):
            super().update(step)
            if self.shown == 3:
                release.signal()

    def wait_if_first(item):
        if item == 0:
            release.wait()
        return item

    results = make_pool(2).map(wait_if_first, range(4), chunksize=1, buffersize=8, progress=Releasing)
    assert take_all(results, way) == [0, 1, 2, 3]


@both_ways
def test_a_bar_is_closed_when_an_item_raises_and_shows_what_came_before(pool, bars, make_bar, way):
    results = pool.map(double, [1, 2, None, 4], chunksize=4, progress=make_bar)
    with pytest.raises(TypeError):
        take_all(results, way)
    (bar,) = bars
    assert (bar.shown, bar.closed) == (2, 1)


def test_a_bar_is_closed_when_the_input_raises(pool, bars, make_bar):
    def items():
        yield 1
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        list(pool.map(double, items(), progress=make_bar))
    assert [(bar.shown, bar.closed) for bar in bars] == [(1, 1)]


def test_a_bar_is_closed_when_the_results_are_left_early(pool, bars, make_bar):
    for result in pool.map(double, range(100), progress=make_bar):
        assert result == 0
        break
    results = pool.map(double, range(100), progress=make_bar)
    next(results)
    results.close()
    results.close()
    assert [bar.closed for bar in bars] == [1, 1]
    assert all(bar.shown >= 1 for bar in bars)


def test_a_bar_is_closed_when_nobody_reads_and_all_is_done_all_the_same(pool, bars, make_bar, journal):
    pool.map(lambda item: journal.write(str(item)), range(5), progress=make_bar)
    (bar,) = bars
    assert bar.closed == 1
    pool.shutdown()
    assert sorted(journal.lines()) == ["0", "1", "2", "3", "4"]


def test_a_bar_is_closed_when_the_pool_takes_nothing_more(pool, bars, make_bar):
    pool.shutdown()
    with pytest.raises(poolkit.PoolClosed):
        pool.map(double, range(5), progress=make_bar)
    assert [bar.closed for bar in bars] == [1]


@both_ways
@pytest.mark.needs("kill_running", "real_time")
def test_a_limit_of_the_map_ends_it_and_closes_the_bar(pool, bars, make_bar, new_gate, way):
    release = new_gate()
    with pytest.raises(TimeoutError, match=r"0\.25 s after the call"):
        take_all(pool.map(lambda _: release.wait(), range(2), timeout=0.25, progress=make_bar), way)
    assert [(bar.shown, bar.closed) for bar in bars] == [(0, 1)]


@both_ways
@pytest.mark.parametrize("how", ["update", "close"])
def test_a_bar_that_raises_is_given_up_and_the_results_come(pool, caplog, how, way):
    class Broken(Recorded):
        def update(self, step):
            if how == "update":
                raise OSError("no terminal")
            super().update(step)

        def close(self):
            raise OSError("no terminal")

    with caplog.at_level(logging.ERROR, logger="poolkit"):
        results = pool.map(double, range(100), progress=Broken)
        assert take_all(results, way) == [2 * item for item in range(100)]
    assert [record.getMessage() for record in caplog.records] == ["a progress bar raised, and is shown no more"]


def test_what_makes_no_bar_is_refused_by_map_itself(pool, bars):
    with pytest.raises(TypeError, match="progress must be True, False, a description or what makes a bar, was 3"):
        pool.map(double, range(3), progress=3)

    def refuse(total, desc):
        raise KeyError("no bar")

    with pytest.raises(KeyError, match="no bar"):
        pool.map(double, range(3), progress=refuse)
    assert pool.stats().submitted == 0


def test_views_and_offloaded_functions_have_bars_too(pool, bars, make_bar):
    assert list(pool.options(retries=1).map(double, range(3), progress=make_bar)) == [0, 2, 4]
    doubled = poolkit.offload(pool=pool)(double)
    assert list(doubled.map(range(3), progress=make_bar)) == [0, 2, 4]
    assert [(bar.total, bar.shown, bar.closed) for bar in bars] == [(3, 3, 1)] * 2


# ===== tasks =====


def test_tasks_are_yielded_as_they_are_done_and_counted(make_pool, bars, make_bar):
    pool = make_pool(2)
    tasks = [pool.submit(double, item) for item in range(20)]
    found = list(poolkit.progress(iter(tasks), desc="doubling", bar=make_bar))
    assert set(found) == set(tasks)
    assert len(found) == 20
    assert all(task.done() for task in found)
    (bar,) = bars
    assert (bar.total, bar.desc, bar.shown, bar.closed) == (20, "doubling", 20, 1)
    assert list(poolkit.progress(tasks, bar=make_bar)) == tasks  # once they are done


def test_one_task_or_none_may_be_shown(pool, bars, make_bar):
    task = pool.submit(double, 1)
    assert list(poolkit.progress(task, total=7, bar=make_bar)) == [task]
    assert list(poolkit.progress([task, task], bar=make_bar)) == [task]
    assert list(poolkit.progress([], bar=make_bar)) == []
    assert [(bar.total, bar.shown, bar.closed) for bar in bars] == [(7, 1, 1), (1, 1, 1), (0, 0, 1)]


def test_tasks_that_fail_or_are_cancelled_are_yielded_too(pool, bars, make_bar):
    tasks = [pool.submit(double, None), pool.submit(double, 1), pool.submit(double, 2)]
    tasks[2].cancel()
    assert set(poolkit.progress(tasks, bar=make_bar)) == set(tasks)
    assert [(bar.shown, bar.closed) for bar in bars] == [(3, 1)]


def test_what_is_no_task_is_refused_at_once(pool):
    with pytest.raises(TypeError, match="progress\\(\\) shows tasks, was given 1"):
        poolkit.progress([pool.submit(double, 1), 1])
    with pytest.raises(TypeError, match="progress\\(\\) shows tasks, was given 1"):
        poolkit.progress(1)


@pytest.mark.needs("background")
def test_tasks_count_with_the_fraction_that_they_report(make_pool, new_gate):
    """The bar itself lets the tasks go on, once it has shown the half of each."""
    release = new_gate()

    class Releasing(Recorded):
        def update(self, step):
            super().update(step)
            if self.shown == 1.0:
                release.signal()
                release.signal()

    def report_half():
        poolkit.current_task().progress(5, 10)
        release.wait()

    pool = make_pool(2)
    tasks = [pool.submit(report_half) for _ in range(2)]
    assert set(poolkit.progress(tasks, bar=Releasing)) == set(tasks)


@pytest.mark.needs("background")
def test_tasks_of_several_pools_are_shown_together(make_pool, bars, make_bar, new_gate):
    release = new_gate()

    def wait(item):
        release.wait()
        return item

    pools = [make_pool(), make_pool()]
    tasks = [pool.submit(wait, item) for item in range(5) for pool in pools]
    for _ in tasks:
        release.signal()
    assert set(poolkit.progress(tasks, bar=make_bar)) == set(tasks)
    assert [(bar.total, bar.shown, bar.closed) for bar in bars] == [(10, 10, 1)]


def test_an_iterator_that_is_left_early_closes_its_bar_and_leaves_the_tasks_alone(pool, bars, make_bar):
    tasks = [pool.submit(double, item) for item in range(20)]
    for task in poolkit.progress(tasks, bar=make_bar):
        assert task.done()
        break
    (bar,) = bars
    assert bar.closed == 1
    assert [task.result() for task in tasks] == [2 * item for item in range(20)]
    assert all(not task._wakers for task in tasks)
