"""Done callbacks that take long, or wait for tasks, as code for the standard library's executors has them.

What listeners to events do, which are called on the same thread, holds up as little.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import poolkit
import support
import support_functions as work
from support_gates import Gate

pytestmark = pytest.mark.slow

KINDS = ["thread", "process"]


@pytest.fixture(params=KINDS)
def pool(request: pytest.FixtureRequest) -> Iterator[poolkit.Pool]:
    with support.watchdog(), poolkit.Pool(2, kind=request.param) as pool:
        pool.warm_up()
        yield pool


class Slow:
    """A callback that does not return until it is let go of."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, _task: object) -> None:
        self.entered.set()
        assert self.go_on.wait(support.WATCHDOG)


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.go_on.set()


Add = Callable[[poolkit.Pool, Callable[[Any], object]], None]


@pytest.fixture(params=["callback", "listener"])
def add_callback(request: pytest.FixtureRequest, new_gate: Callable[[], Gate]) -> Add:
    """Adds a callback to a task that is done afterwards: to one that is done already it would be called here."""

    def add(pool: poolkit.Pool, callback: Callable[[Any], object]) -> None:
        release = new_gate()
        mine = pool.submit(work.arrive_and_wait, new_gate(), release)
        if request.param == "callback":
            mine.add_done_callback(callback)
        else:
            pool.on("task_done", lambda event: event.task is mine and callback(mine))
        release.signal()

    return add


@pytest.mark.parametrize("count", [1, 10])
def test_other_tasks_are_not_delayed_by_a_callback(
    pool: poolkit.Pool, slow: Slow, add_callback: Add, count: int
) -> None:
    add_callback(pool, slow)
    slow.entered.wait()
    assert [task.result() for task in [pool.submit(abs, -n) for n in range(count)]] == list(range(count))
    assert list(pool.map(abs, range(-count, 0))) == list(range(count, 0, -1))
    slow.go_on.set()


def test_as_many_callbacks_as_workers_delay_nothing(pool: poolkit.Pool, slow: Slow, add_callback: Add) -> None:
    for _ in range(4):
        add_callback(pool, slow)
    slow.entered.wait()
    assert pool.submit(abs, -1).result() == 1
    slow.go_on.set()


@pytest.mark.parametrize("wait", ["result", "wait", "as_completed", "map"])
def test_a_callback_may_wait_for_other_tasks(pool: poolkit.Pool, add_callback: Add, wait: str) -> None:
    found: list[Any] = []
    done = threading.Event()

    def callback(_task: object) -> None:
        try:
            tasks = [pool.submit(abs, -n) for n in range(5)]
            if wait == "result":
                found.append(sum(task.result() for task in tasks))
            elif wait == "wait":
                found.append(sum(task.result() for task in concurrent.futures.wait(tasks).done))
            elif wait == "as_completed":
                found.append(sum(task.result() for task in concurrent.futures.as_completed(tasks)))
            else:
                found.append(sum(pool.map(abs, range(-4, 0))))
        except BaseException as exc:
            found.append(exc)
        done.set()

    add_callback(pool, callback)
    assert done.wait(support.WATCHDOG)
    assert found == [10]


def test_a_limit_is_kept_while_a_callback_runs(
    pool: poolkit.Pool, slow: Slow, add_callback: Add, new_gate: Callable[[], Gate]
) -> None:
    add_callback(pool, slow)
    slow.entered.wait()
    spinning = pool.options(timeout=0.1).submit(work.spin, new_gate())
    assert type(spinning.exception()) is poolkit.TaskTimeout
    slow.go_on.set()


def test_a_callback_may_wait_for_a_task_whose_worker_crashes(add_callback: Add) -> None:
    found: list[Any] = []
    done = threading.Event()

    def callback(_task: object) -> None:
        found.append(pool.submit(os._exit, 3).exception())
        done.set()

    with support.watchdog(), poolkit.Pool(1) as pool:
        add_callback(pool, callback)
        assert done.wait(support.WATCHDOG)
        assert type(found[0]) is poolkit.WorkerCrashed
        assert pool.submit(abs, -1).result() == 1


def test_callbacks_that_submit_with_callbacks_come_to_their_end(pool: poolkit.Pool) -> None:
    done = threading.Event()
    seen: list[int] = []

    def callback(left: int, _task: object) -> None:
        seen.append(left)
        if left:
            pool.submit(abs, -left).add_done_callback(functools.partial(callback, left - 1))
        else:
            done.set()

    pool.submit(abs, -1).add_done_callback(functools.partial(callback, 100))
    assert done.wait(support.WATCHDOG)
    assert seen == list(range(100, -1, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_waits_for_callbacks_but_not_beyond_its_timeout(kind: str, slow: Slow, add_callback: Add) -> None:
    order: list[str] = []
    pool = poolkit.Pool(1, kind=kind)
    add_callback(pool, slow)
    slow.entered.wait()
    ending = threading.Thread(target=lambda: (pool.shutdown(), order.append("ended")))  # type: ignore[func-returns-value]
    ending.start()
    order.append("let go")
    slow.go_on.set()
    ending.join()
    assert order == ["let go", "ended"]
    slow.go_on.clear()
    slow.entered.clear()
    pool = poolkit.Pool(1, kind=kind)
    add_callback(pool, slow)
    slow.entered.wait()
    add_callback(pool, slow)
    with support.watchdog():
        pool.shutdown(timeout=0.1)  # the first still runs, and the other one behind it


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_of_a_cancel_run_when_signals_come_again(kind: str, new_gate: Callable[[], Gate]) -> None:
    """A callback of `cancel()` is the user's code on the main thread, which a Ctrl-C ends as any other."""
    after: list[str] = []

    def interrupted(_task: object) -> None:
        signal.raise_signal(signal.SIGINT)
        after.append("went on")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with support.watchdog(), poolkit.Pool(1, kind=kind) as pool:
            release = new_gate()
            held = pool.submit(work.arrive_and_wait, new_gate(), release)
            task = pool.submit(abs, -1)
            others_called = threading.Event()
            task.add_done_callback(interrupted)
            task.add_done_callback(lambda _: others_called.set())
            with pytest.raises(KeyboardInterrupt):
                task.cancel()
            assert after == []
            assert task.cancelled()
            assert others_called.wait(support.WATCHDOG), "the pool's thread calls the rest"
            release.signal()
            held.result()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("depth", [200, 2000])
def test_callbacks_that_cancel_are_a_queue_and_no_recursion(
    pool: poolkit.Pool, new_gate: Callable[[], Gate], caplog: pytest.LogCaptureFixture, depth: int
) -> None:
    release = new_gate()
    held = [pool.submit(work.arrive_and_wait, new_gate(), release) for _ in range(2)]
    tasks = [pool.submit(abs, -number) for number in range(depth)]
    called: list[int] = []

    def cancel_next(number: int, _task: object) -> None:
        called.append(number)
        if number + 1 < depth:
            tasks[number + 1].add_done_callback(functools.partial(cancel_next, number + 1))
            assert tasks[number + 1].cancel()

    tasks[0].add_done_callback(functools.partial(cancel_next, 0))
    assert tasks[0].cancel()
    assert called == list(range(depth)), "all are called when the first cancel returns"
    assert not caplog.records
    release.signal(2)
    for task in held:
        task.result()


def test_an_exit_in_a_pickling_hook_of_a_callbacks_submit_is_an_error_of_that_task(add_callback: Add) -> None:
    class Exits:
        def __reduce__(self) -> Any:
            raise SystemExit(3)

    found: list[Any] = []
    done = threading.Event()

    def callback(_task: object) -> None:
        found.append(pool.submit(print, Exits()).exception())
        done.set()

    with support.watchdog(), poolkit.Pool(1) as pool:
        add_callback(pool, callback)
        assert done.wait(support.WATCHDOG)
    assert type(found[0]) is poolkit.SerializationError
