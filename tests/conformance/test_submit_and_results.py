"""A call goes in, its outcome comes out, and the task tells what became of it."""

from __future__ import annotations

import functools
import operator
import os
import sys
from pathlib import Path

import pytest

import poolkit
import support_functions as work
import support_objects as objects
from support import wait_until


def test_result_is_what_the_function_returned(pool):
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.one_start_method
def test_every_keyword_belongs_to_the_function(pool):
    keywords = {"fn": 1, "self": 2, "timeout": 3, "name": 4, "args": 5, "kwargs": 6, "block": 7}
    assert pool.submit(work.collect, 0, **keywords).result() == ((0,), keywords)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        pytest.param(len, ([1, 2],), 2, id="builtin"),
        pytest.param(operator.itemgetter(1), ("ab",), "b", id="callable-object"),
        pytest.param(functools.partial(work.add, 1), (2,), 3, id="partial"),
        pytest.param("a-b".split, ("-",), ["a", "b"], id="bound-method"),
        pytest.param(dict, ([("a", 1)],), {"a": 1}, id="class"),
        pytest.param(lambda number: number + 1, (1,), 2, id="lambda"),
    ],
)
@pytest.mark.one_start_method
def test_anything_callable_can_be_submitted(pool, function, arguments, expected):
    assert pool.submit(function, *arguments).result() == expected


def test_closures_travel(pool):
    base = 40

    def add_base(number):
        return number + base

    assert pool.submit(add_base, 2).result() == 42


def test_classes_defined_in_a_function_travel_both_ways(pool):
    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self, by):
            return Point(self.x + by)

    moved = pool.submit(Point(1).moved, 2).result()
    assert type(moved) is Point
    assert moved.x == 3


@pytest.mark.parametrize("value", [None, b"", "x" * 5_000_000, bytearray(b"y" * 300_000), {"deep": [(1, {2})]}])
def test_values_of_all_sizes_come_back_equal(pool, value):
    assert pool.submit(work.identity, value).result() == value


def test_a_thousand_tasks_all_get_their_own_result(make_pool):
    pool = make_pool(2)
    tasks = [pool.submit(work.square, number) for number in range(1000)]
    assert [task.result() for task in tasks] == [number * number for number in range(1000)]


@pytest.mark.one_start_method
def test_result_can_be_read_again(pool):
    task = pool.submit(objects.make_payload, 1)
    assert task.result() is task.result()


@pytest.mark.one_start_method
def test_exception_can_be_read_again(pool):
    task = pool.submit(work.raise_value_error, "no")
    with pytest.raises(ValueError, match="no") as caught:
        task.result()
    assert task.exception() is caught.value


@pytest.mark.one_start_method
def test_exception_of_a_success_is_none(pool):
    assert pool.submit(work.none_of_it).exception() is None


@pytest.mark.one_start_method
def test_a_done_task_tells_what_became_of_it(pool):
    first, second = pool.submit(work.square, 2), pool.submit(work.raise_value_error, "no")
    assert (first.result(), str(second.exception())) == (4, "no")
    assert (first.id, second.id) == (1, 2)
    assert (first.name, second.name) == ("square", "raise_value_error")
    assert (first.state, second.state) == ("succeeded", "failed")
    assert (first.attempts, second.attempts) == (1, 1)
    assert first.worker_id is not None
    assert first.done()
    assert not first.running()
    assert first.wait_time >= 0
    assert first.run_time >= 0
    assert repr(first) == "<poolkit.Task 1 'square' succeeded>"
    assert repr(second) == "<poolkit.Task 2 'raise_value_error' failed>"


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_a_task_is_queued_then_running_then_done(pool, hold):
    held = hold(pool, "value")
    queued = pool.submit(work.none_of_it)
    assert (held.task.state, held.task.running(), held.task.done()) == ("running", True, False)
    assert (queued.state, queued.running(), queued.done()) == ("queued", False, False)
    assert (queued.attempts, queued.wait_time, queued.run_time) == (0, None, None)
    assert repr(queued) == f"<poolkit.Task {queued.id} 'none_of_it' queued>"
    held.release()
    assert held.task.result() == "value"
    assert queued.result() is None
    assert (held.task.state, queued.state) == ("succeeded", "succeeded")


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_waiting_may_time_out_and_harms_nothing(pool, hold):
    held = hold(pool, "late")
    with pytest.raises(TimeoutError):
        held.task.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        held.task.exception(timeout=0)
    held.release()
    assert held.task.result() == "late"


@pytest.mark.needs("by_value", "background")
@pytest.mark.one_start_method
def test_arguments_are_what_they_were_when_submitted(pool, hold):
    held = hold(pool)
    items = [1]
    task = pool.submit(work.identity, items)
    items.append(2)
    held.release()
    assert task.result() == [1]


@pytest.mark.needs("by_value")
@pytest.mark.one_start_method
def test_a_task_does_not_change_the_callers_objects(pool):
    items = [1]
    assert pool.submit(work.append_to, items, 2).result() == 2
    assert items == [1]


@pytest.mark.needs("by_reference")
def test_threads_work_on_the_objects_themselves(pool):
    items = [1]
    assert pool.submit(work.identity, items).result() is items


@pytest.mark.needs("background")
def test_workers_work_side_by_side(make_pool, hold):
    pool = make_pool(2)
    first, second = hold(pool, 1), hold(pool, 2)
    second.release()
    assert second.task.result() == 2
    assert not first.task.done()
    first.release()
    assert first.task.result() == 1


@pytest.mark.needs("process")
def test_processes_are_not_the_owner_and_stay(pool):
    pids = {pool.submit(work.pid).result() for _ in range(3)}
    assert len(pids) == 1
    assert os.getpid() not in pids


@pytest.mark.needs("process")
def test_tasks_of_processes_run_in_the_main_thread(pool):
    assert pool.submit(work.is_main_thread).result()


@pytest.mark.needs("process")
def test_workers_see_the_owners_surroundings(make_pool, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "only_here.py").write_text("name = __name__\n")
    pool = make_pool()
    assert pool.submit(os.getcwd).result() == str(Path.cwd())
    assert pool.submit(lambda: sys.argv).result() == sys.argv
    assert pool.submit(lambda: __import__("only_here").name).result() == "only_here"


@pytest.mark.needs("process")
def test_what_a_task_prints_reaches_the_owners_streams(make_pool, capfd):
    pool = make_pool()
    pool.submit(lambda: print("to stdout")).result()
    pool.submit(lambda: print("to stderr", file=sys.stderr)).result()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("to stdout\n", "to stderr\n")


@pytest.mark.one_start_method
def test_a_task_refuses_to_be_pickled(pool):
    task = pool.submit(work.none_of_it)
    with pytest.raises(TypeError, match=r"Task 1 .*cannot be pickled"):
        task.__reduce__()
    task.result()


@pytest.mark.one_start_method
def test_pool_shows_name_kind_size_and_state(make_pool):
    pool = make_pool(2, name="thumbnails")
    assert repr(pool) == f"<poolkit.Pool 'thumbnails' kind={pool.kind} max_workers=2 open>"
    pool.shutdown()
    assert repr(pool) == f"<poolkit.Pool 'thumbnails' kind={pool.kind} max_workers=2 closed>"


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_submitting_from_many_threads_loses_nothing(make_pool):
    pool, users = make_pool(2), poolkit.Pool(4, kind="thread")

    def use(start):
        return [pool.submit(work.square, number).result() for number in range(start, start + 50)]

    with users:
        found = [users.submit(use, start) for start in (0, 50, 100, 150)]
        assert [value for task in found for value in task.result()] == [number**2 for number in range(200)]


@pytest.mark.needs("background")
@pytest.mark.one_start_method
def test_stats_tell_queued_and_running(pool, hold):
    held = hold(pool)
    tasks = [pool.submit(work.none_of_it) for _ in range(3)]
    stats = pool.stats()
    assert (stats.running, stats.queued, stats.submitted) == (1, 3, 4)
    held.release()
    for task in tasks:
        task.result()
    wait_until(lambda: pool.stats().workers["idle"] == 1)
    stats = pool.stats()
    assert (stats.running, stats.queued, stats.succeeded) == (0, 0, 4)
