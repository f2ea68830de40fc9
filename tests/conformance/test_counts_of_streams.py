"""How many items and messages have come, in the counts of a pool."""

from __future__ import annotations

import os

import pytest

import poolkit

pytestmark = pytest.mark.needs("streams")


def count_up(number):
    yield from range(number)


def blobs(number):
    for _ in range(number):
        yield bytes(200_000)


def say(number):
    for each in range(number):
        poolkit.current_task().send(each)
    return number


def say_and_die(number):
    say(number)
    os._exit(3)


def counts(pool):
    stats = pool.stats()
    return stats.items, stats.messages


@pytest.mark.each_start_method
def test_items_and_messages_are_counted_when_they_come(make_pool):
    pool = make_pool(2)
    assert counts(pool) == (0, 0)
    assert sum(pool.stream(count_up, 3000)) == 4498500
    assert counts(pool) == (3000, 0)
    assert pool.submit(say, 100).result() == 100
    assert counts(pool) == (3000, 100)
    assert len(list(pool.stream(blobs, 5))) == 5
    assert list(pool.stream(count_up, 0)) == []
    task = pool.submit(say, 7)
    assert list(task.messages()) == [*range(7)]
    pool.shutdown()
    assert counts(pool) == (3005, 107)


@pytest.mark.needs("unattended")
def test_what_was_not_taken_is_counted_and_what_is_seen_never_shrinks(pool):
    stream = pool.stream(count_up, 10)
    stream.task.result()
    assert counts(pool) == (10, 0)
    stream.close()
    said = pool.submit(say, 20_000)  # more than is kept
    said.result()
    assert said.messages().dropped
    assert counts(pool) == (10, 20_000)
    assert pool.submit(say, 1).result() == 1
    assert counts(pool) == (10, 20_001)


@pytest.mark.needs("crash")
def test_what_crashed_runs_have_sent_is_counted(pool):
    task = pool.options(retries=1).submit(say_and_die, 10)
    assert type(task.exception()) is poolkit.WorkerCrashed
    assert counts(pool) == (0, 20)


@pytest.mark.needs("by_reference")
def test_what_a_worker_has_sent_counts_when_it_is_gone(pool):
    """A thread that is stopped is replaced."""
    assert list(pool.stream(count_up, 5)) == [*range(5)]
    pool.submit(say, 3).result()
    gone = pool.workers()[0].id
    pool.resize(2)
    with pytest.raises(poolkit.TaskTimeout):
        pool.options(timeout=0.05).submit(_spin).result()
    assert gone not in {info.id for info in pool.workers()}
    assert counts(pool) == (5, 3)


def _spin():
    while True:
        pass
