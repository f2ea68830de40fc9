"""Dedicated workers that host an object: calls one after the other, each with its own outcome."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

import support_workers as work
from poolkit import ChannelClosed, SerializationError, Worker, WorkerCrashed
from support import WATCHDOG
from support_gates import Gate
from support_loops import LOOPS, Loop

pytestmark = pytest.mark.needs("kill_running", "here")  # there are no fakes of them

MakeWorker = Callable[..., Worker[Any]]


@pytest.mark.each_start_method
def test_calls_run_in_order_on_one_object(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    tasks = [counter.call("add", number) for number in range(50)]
    tasks += [counter.call("add", 2, times=3), counter.call("add_later", 1)]
    assert [task.result(WATCHDOG) for task in tasks[-3:]] == [5 + 1225, 1236, 1237]
    task = counter.call("add", 0)
    assert task.result(WATCHDOG) == 1237
    assert task.name == f"{counter.name}.add"
    assert (task.state, task.attempts) == ("succeeded", 1)
    counter.close()
    assert counter.task.result(WATCHDOG) is None


def test_exceptions_come_with_their_frames(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    with pytest.raises(LookupError, match="why not") as caught:
        counter.call("fail", "why not").result(WATCHDOG)
    assert [frame.name for frame in caught.traceback][-1] == "fail"
    with pytest.raises(AttributeError, match="no_such"):
        counter.call("no_such").result(WATCHDOG)
    with pytest.raises(TypeError, match="unexpected keyword"):
        counter.call("add", 1, tims=2).result(WATCHDOG)
    assert counter.call("add", 1).result(WATCHDOG) == 6


@pytest.mark.each_start_method
def test_what_the_factory_raises_is_the_outcome_of_all(make_worker: MakeWorker) -> None:
    worker = make_worker(work.not_made, hosting=True)
    tasks = [worker.call("add") for _ in range(3)]
    for task in tasks:
        with pytest.raises(LookupError, match="cannot be made"):
            task.result(WATCHDOG)
    with pytest.raises(LookupError, match="cannot be made"):
        worker.task.result(WATCHDOG)
    with pytest.raises(LookupError, match="cannot be made"):
        worker.call("add").result(WATCHDOG)


def test_a_call_that_waits_can_be_cancelled_and_one_that_runs_goes_on(
    make_worker: MakeWorker, new_gate: Callable[[], Gate]
) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    arrived, release = new_gate(), new_gate()
    running, waiting, last = counter.call("wait", arrived, release), counter.call("add", 100), counter.call("add", 1)
    arrived.wait()
    done: list[Any] = []
    waiting.add_done_callback(done.append)
    assert waiting.cancel()
    assert not running.cancel()
    assert (running.state, waiting.state, last.state) == ("running", "cancelled", "queued")
    assert done == [waiting]
    with pytest.raises(CancelledError):
        waiting.result(WATCHDOG)
    with pytest.raises(TimeoutError):
        running.result(0.01)
    release.signal()
    assert running.result(WATCHDOG) == 6
    assert last.result(WATCHDOG) == 7
    assert not last.cancel()


@pytest.mark.needs("crash")
@pytest.mark.each_start_method
def test_a_crash_is_the_outcome_of_what_runs_and_waits(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    tasks = [counter.call("add"), *(counter.call("die") for _ in range(3))]
    assert tasks[0].result(WATCHDOG) == 6
    errors: list[Any] = [task.exception(WATCHDOG) for task in [*tasks[1:], counter.call("add")]]
    assert [(type(error), error.exitcode) for error in errors] == [(WorkerCrashed, 3)] * 4
    assert len({id(error) for error in errors}) == 4, "each its own"


def test_terminate_stops_a_call(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    arrived = new_gate()
    tasks = [counter.call("wait", arrived, new_gate()), counter.call("add")]
    arrived.wait()
    counter.terminate()
    for task in tasks:
        with pytest.raises(CancelledError):
            task.result(WATCHDOG)
    with pytest.raises(ChannelClosed):
        counter.call("add")


def test_close_lets_the_calls_end_that_were_made(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    with counter:
        tasks = [counter.call("add") for _ in range(20)]
    assert tasks[-1].result(0) == 25
    with pytest.raises(ChannelClosed, match="closed"):
        counter.call("add")


def test_what_cannot_be_pickled_is_the_outcome_of_its_call(kind: Any, make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    if kind.can("by_reference"):
        pytest.skip("nothing is pickled")
    with pytest.raises(SerializationError):
        counter.call("give", threading.Lock())
    with pytest.raises(SerializationError):
        counter.call("lock").result(WATCHDOG)
    with pytest.raises(ArithmeticError):
        counter.call("give", work.Unloadable()).result(WATCHDOG)
    assert counter.call("add").result(WATCHDOG) == 6


@pytest.mark.needs("process")
@pytest.mark.parametrize("size", [10, 50_000, 3_000_000])
def test_large_arguments_and_values(make_worker: MakeWorker, size: int) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    data = bytes(range(256)) * (size // 256 + 1)
    tasks = [counter.call("give", data) for _ in range(5)]
    assert all(task.result(WATCHDOG) == data for task in tasks)
    counter.call("give", data)  # nobody asks for it


def test_done_callbacks_and_futures(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    done = threading.Event()
    tasks = [counter.call("add") for _ in range(10)]
    tasks[-1].add_done_callback(lambda _task: done.set())
    assert done.wait(WATCHDOG)
    tasks += [counter.call("add") for _ in range(10)]
    found = [task.result() for task in concurrent.futures.as_completed(tasks, WATCHDOG)]
    assert sorted(found) == [*range(6, 26)]
    task = counter.call("add")
    while not task.done():  # nobody waits for it
        pass


def test_threads_wait_for_calls(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    found: list[list[int]] = [[] for _ in range(4)]

    def run(mine: list[int]) -> None:
        for number in range(100):
            tasks = [counter.call("add") for _ in range(1 + number % 3)]
            mine += [task.result(WATCHDOG) for task in tasks]

    threads = [threading.Thread(target=run, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = 4 * sum(1 + number % 3 for number in range(100))
    assert sorted(itertools.chain(*found)) == [*range(6, 6 + total)]
    assert all(mine == sorted(mine) for mine in found)


@pytest.mark.one_start_method
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
def test_calls_are_awaited(make_worker: MakeWorker, loop: Loop, new_gate: Callable[[], Gate]) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    arrived, release = new_gate(), new_gate()

    async def add() -> int:
        return int(await counter.call("add"))

    async def main() -> list[int]:
        assert await add() == 6
        running = counter.call("wait", arrived, release)
        waiting = counter.call("add", 100)

        async def wait() -> None:
            await waiting

        assert await loop.is_stopped_after(0.01, wait)
        assert waiting.cancelled()
        release.signal()
        assert await running == 7
        with pytest.raises(LookupError):
            await counter.call("fail", "why not")
        return await loop.together([add] * 20)

    assert sorted(loop.run(main)) == [*range(8, 28)]


def test_what_it_gave_is_let_go_of(kind: Any, make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    if not kind.can("by_reference"):
        pytest.skip("it is a copy")
    what = work.Counter()
    gone = weakref.ref(what)
    assert counter.call("give", what).result(WATCHDOG) is what
    counter.call("add").result(WATCHDOG)
    del what
    gc.collect()
    assert gone() is None


def test_bad_input(make_worker: MakeWorker) -> None:
    counter = make_worker(work.Counter, 5, hosting=True)
    with pytest.raises(AttributeError, match="private"):
        counter.call("_private")
    with pytest.raises(AttributeError, match="private"):
        counter.call("__init__")
    with pytest.raises(TypeError, match="was 3"):
        counter.call(3)  # type: ignore[arg-type]
    for refused in (lambda: counter.send(1), counter.recv, lambda: counter.on_message(print), lambda: next(counter)):
        with pytest.raises(RuntimeError, match="hosts an object"):
            refused()
    with pytest.raises(TypeError, match=r"Worker\.hosting"):
        make_worker(work.echo).call("add")
    with pytest.raises(TypeError, match="something to call"):
        make_worker(3, hosting=True)
