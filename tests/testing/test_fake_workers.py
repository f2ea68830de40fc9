"""Dedicated workers of fake pools: targets in lockstep, messages through the codec, time on the virtual clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

import poolkit
import support_functions as work
from poolkit import ChannelClosed, PoolkitError, Port, SerializationError, Worker, WorkerCrashed
from poolkit.decorator import installed
from poolkit.testing import FakePool


@pytest.fixture(params=["eager", "manual"])
def pool(request: pytest.FixtureRequest) -> Iterator[FakePool]:
    """A fake pool, installed as the default one."""
    made = FakePool(request.param)
    with installed(made):
        yield made
    made.end()


def echo(port: Port, by: int = 2) -> str:
    for message in port:
        port.send(message * by)
    return "bye"


async def echo_async(port: Port) -> str:
    async for message in port:
        await port.send_async(message)
    return "bye"


def count_up(port: Port, most: int) -> int:
    for number in range(most):
        port.send(number)
    return most


def fail(port: Port) -> NoReturn:
    port.send("before")
    raise LookupError("gone")


def wait_for_five(port: Port) -> str:
    try:
        return str(port.recv(timeout=5))
    except TimeoutError:
        return "nothing came"


def call_the_pool(port: Port) -> list[int]:
    assert poolkit.current_port() is port
    pool = poolkit.default_pool()
    return [pool.submit(work.square, number).result() for number in port]


def run_a_command(port: Port) -> Any:
    return poolkit.run(["date"], text=True).result().stdout


def test_a_conversation(pool: FakePool) -> None:
    with Worker(echo, 3, name="tripler") as worker:
        assert isinstance(worker, Worker)
        assert (worker.name, worker.pid, worker.alive) == ("tripler", None, True)
        for number in range(5):
            worker.send(number)
            assert worker.recv() == number * 3
    assert worker.task.result() == "bye"
    assert not worker.alive
    with pytest.raises(ChannelClosed, match="it was closed"):
        worker.send(1)
    with pytest.raises(ChannelClosed, match="has ended"):
        worker.recv()
    assert "worker tripler is sent 4" in pool.timeline()
    assert pool.now == 0


def test_messages_are_copies_unless_the_worker_is_a_thread(pool: FakePool) -> None:
    message = [1]
    for kind, is_same in (("process", False), ("thread", True)):
        with Worker(echo, 1, kind=kind) as worker:
            worker.send((message,))
            assert (worker.recv()[0] is message) is is_same
    with Worker(echo) as worker:
        with pytest.raises(SerializationError):
            worker.send(threading.Lock())
        worker.send(1)
        assert worker.recv() == 2
    with pytest.raises(SerializationError):
        Worker(count_up, threading.Lock())


def test_loops_on_both_sides_end(pool: FakePool) -> None:
    worker = Worker(count_up, 5000)  # more than are kept
    assert list(worker) == list(range(5000))
    assert worker.task.result() == 5000


def test_the_exception_of_the_target(pool: FakePool) -> None:
    worker = Worker(fail)
    assert worker.recv() == "before"
    for _ in range(2):
        with pytest.raises(LookupError, match="gone"):
            worker.recv()
    with pytest.raises(LookupError):
        worker.task.result()


def test_time_passes_on_the_virtual_clock(pool: FakePool) -> None:
    worker = Worker(wait_for_five)
    with pytest.raises(TimeoutError):
        worker.recv(timeout=3)
    assert pool.now == 3
    assert worker.task.result() == "nothing came"
    assert pool.now == 5
    with pytest.raises(TimeoutError), Worker(echo) as other:
        other.recv(timeout=0)
    assert pool.now == 5


def test_what_never_comes_is_an_error_with_the_timeline(pool: FakePool) -> None:
    with Worker(echo, name="echo") as worker:
        worker.send(1)
        assert worker.recv() == 2
        with pytest.raises(PoolkitError, match=r"a message of worker echo would never be done(.|\n)*sends 2"):
            worker.recv()
        with pytest.raises(PoolkitError, match="would never be done"):
            worker.task.result()
    worker = Worker(time.perf_counter_ns, name="takes no port")
    with pytest.raises(TypeError):
        worker.recv()


def test_a_crash(pool: FakePool) -> None:
    pool.when_worker(echo).crashes("SIGSEGV", after=3).times(1).then.crashes(exitcode=4)
    worker = Worker(echo)
    for number in range(4):
        worker.send(number)
    received = []
    with pytest.raises(WorkerCrashed, match="SIGSEGV") as crash:
        received.extend(worker)
    assert (crash.value.signal, crash.value.exitcode) == ("SIGSEGV", None)
    assert "a crash in C code" in crash.value.hint
    worker = Worker(echo)
    if not worker.task.done():
        worker.send(1)
    with pytest.raises(WorkerCrashed) as crash:
        worker.recv()
    assert crash.value.exitcode == 4
    worker = Worker(count_up, 5)
    assert list(worker) == list(range(5))


def test_a_crash_of_who_only_sends(pool: FakePool) -> None:
    pool.when_worker(count_up).crashes(after=2)
    worker, received = Worker(count_up, 5), list[int]()
    with pytest.raises(WorkerCrashed):
        received.extend(worker)
    assert received == [0, 1]


def test_terminate(pool: FakePool) -> None:
    worker = Worker(echo)
    worker.terminate()
    assert worker.join()
    assert worker.task.cancelled() or worker.task.result() == "bye"  # an eager one has ended by itself
    worker = Worker(flood)
    worker.terminate(grace=4)
    assert not worker.join(timeout=3)
    assert worker.join()
    assert worker.task.cancelled()
    assert pool.now == 4
    assert set(worker) == {0}  # what it had sent
    with pytest.raises(ChannelClosed, match="terminated"):
        worker.recv()
    with Worker(flood) as worker:
        pass
    assert worker.task.cancelled()
    assert pool.now == 9


def flood(port: Port) -> None:
    while True:
        port.send(0)


def test_coroutines_on_both_sides(pool: FakePool) -> None:
    async def main() -> list[object]:
        async with Worker(echo_async) as worker:
            await worker.send_async("a")
            worker.close()
            return [message async for message in worker] + [await worker.task]

    assert asyncio.run(main()) == ["a", "bye"]


def test_callbacks(pool: FakePool) -> None:
    heard: list[object] = []
    worker = Worker(count_up, 3)
    worker.on_message(heard.append)
    worker.on_exit(lambda exited: heard.append(exited.cause))
    worker.join()
    assert heard == [0, 1, 2, "finished"]
    with pytest.raises(RuntimeError):
        worker.on_message(print)
    pool.when_worker(echo).crashes("SIGBUS")
    worker = Worker(echo)
    worker.on_exit(heard.append)
    worker.send(1)
    worker.join()
    worker.on_exit(heard.append)
    assert [(exited.cause, exited.signal) for exited in heard[4:]] == [("crashed", "SIGBUS")] * 2


class Account:
    """What a worker hosts."""

    def __init__(self, amount: int) -> None:
        if amount < 0:
            raise ValueError(amount)
        self.amount = amount

    def add(self, amount: int) -> int:
        self.amount += amount
        return self.amount

    async def half(self) -> float:
        return self.amount / 2


def test_calls_to_an_object_that_is_hosted(pool: FakePool) -> None:
    with Worker.hosting(Account, 5) as worker:
        calls = [worker.call("add", amount) for amount in (1, 2)] + [worker.call("half"), worker.call("lend")]
        assert [call.result() for call in calls[:3]] == [6, 8, 4.0]
        with pytest.raises(AttributeError):
            calls[3].result()
        with pytest.raises(RuntimeError):
            worker.recv()
    worker = Worker.hosting(Account, -1)
    with pytest.raises(ValueError, match="-1"):
        worker.call("half").result()
    pool.when_worker(Account).crashes("SIGSEGV", after=1)
    worker = Worker.hosting(Account, 5)
    calls = [worker.call("add", 1), worker.call("add", 2)]
    assert calls[0].result() == 6
    with pytest.raises(WorkerCrashed):
        calls[1].result()
    with pytest.raises(TypeError, match="hosts no object"), Worker(echo) as other:
        other.call("add", 1)


def test_calls_are_awaited() -> None:
    async def main() -> Any:
        async with Worker.hosting(Account, 5) as worker:
            return await worker.call("add", 1)

    with FakePool() as pool, installed(pool):
        assert asyncio.run(main()) == 6


def test_a_target_uses_the_pool(pool: FakePool) -> None:
    with Worker(call_the_pool) as worker:
        worker.send(2)
        worker.send(3)
    assert worker.task.result() == [4, 9]
    pool.when_command("date").takes(2).returns(stdout="today")
    assert Worker(run_a_command).task.result() == "today"
    assert pool.now == 2


def test_two_workers_run_one_at_a_time(pool: FakePool) -> None:
    with Worker(echo) as first, Worker(echo) as second:
        for number in range(20):
            first.send(number)
            second.send(first.recv())
            assert second.recv() == number * 4
        assert len({thread.name for thread in threading.enumerate() if "fake-worker" in thread.name}) == 1


def test_who_drops_one_is_warned(pool: FakePool) -> None:
    workers = [Worker(echo)]
    with pytest.warns(ResourceWarning, match="was dropped while it ran"):
        workers.clear()


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (TypeError, lambda pool: Worker(3)),
        (TypeError, lambda pool: Worker(echo, colour="red")),
        (ValueError, lambda pool: Worker(echo, kind="fibre")),
        (TypeError, lambda pool: pool.when_worker(3)),
        (ValueError, lambda pool: pool.when_worker(echo).crashes("SIGFOO")),
        (ValueError, lambda pool: pool.when_worker(echo).crashes(after=-1)),
    ],
)
def test_what_makes_no_sense(pool: FakePool, error: type[Exception], make: Callable[[FakePool], object]) -> None:
    with pytest.raises(error):
        make(pool)


def test_the_end_of_the_pool_ends_those_that_are_left() -> None:
    with FakePool("manual") as pool, installed(pool):
        worker = Worker(flood)
        assert worker.recv() == 0
    assert worker.task.cancelled()


def test_without_a_fake_pool_a_worker_is_a_real_one() -> None:
    FakePool().shutdown()
    with Worker(echo, kind="thread") as worker:
        assert type(worker) is Worker
        worker.send(1)
        assert worker.recv() == 2


class Echo(Worker[str]):
    """A class of a user's own."""

    def __init__(self, by: int) -> None:
        super().__init__(echo, by)
        self.by = by

    def ask(self, number: int) -> Any:
        self.send(number)
        return self.recv()


def test_classes_of_ones_own(pool: FakePool) -> None:
    with Echo(5) as worker:
        assert isinstance(worker, Echo)
        assert worker.ask(3) == 15
