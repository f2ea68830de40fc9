"""Dedicated workers: messages in order, each once, and an end that tells what ended the worker."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

import poolkit
import support_workers as work
from poolkit import ChannelClosed, MemoryLimitExceeded, SerializationError, SharedArray, Worker, WorkerCrashed, _os
from poolkit._engine import life
from support import WATCHDOG, is_alive, parent_of, wait_for_exit, wait_until
from support_gates import Gate

pytestmark = pytest.mark.needs("kill_running", "here")  # there are no fakes of them

MakeWorker = Callable[..., Worker[Any]]


def ending_of(worker: Worker[Any]) -> BaseException:
    """What the end of its messages is told by."""
    try:
        worker.recv(WATCHDOG)
    except Exception as exc:
        return exc.with_traceback(None)  # which holds the frame of the test
    pytest.fail("there was one more")


# ===== messages =====


@pytest.mark.each_start_method
@pytest.mark.parametrize("target", [work.echo, work.echo_later])
def test_they_come_in_order_and_end_with_the_worker(make_worker: MakeWorker, target: Any) -> None:
    sent = [1, None, {"three": [3]}, "x" * 100_000, ()]
    with make_worker(target, name="parrot") as worker:
        assert worker.name == "parrot"
        for message in sent:
            worker.send(message)
        worker.close()
        assert [*worker] == sent
        assert worker.task.result(WATCHDOG) == "done"
    assert not worker.alive
    with pytest.raises(ChannelClosed, match="parrot has ended"):
        worker.recv()
    assert [*worker] == []


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_each_worker_has_a_process_that_nobody_had_before(make_worker: MakeWorker) -> None:
    first, second = make_worker(work.sleep), make_worker(work.sleep)
    pids = {first.recv(WATCHDOG), second.recv(WATCHDOG)}
    assert pids == {first.pid, second.pid}
    first.terminate()
    assert first.join(WATCHDOG)
    third = make_worker(work.sleep)
    assert third.recv(WATCHDOG) not in pids


def test_a_timeout_takes_nothing(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    worker = make_worker(work.say_and_wait, gate, 1)
    assert worker.recv(WATCHDOG) == 1
    with pytest.raises(TimeoutError):
        worker.recv(0)
    with pytest.raises(TimeoutError):
        worker.recv(0.01)
    gate.signal()
    assert worker.join(WATCHDOG)
    assert [*worker] == []


@pytest.mark.parametrize("size", [1, 50_000, 400_000])
def test_send_waits_for_room_and_what_it_gave_up_was_not_sent(make_worker: MakeWorker, size: int) -> None:
    worker = make_worker(work.echo)
    number = 0
    with pytest.raises(TimeoutError):
        for number in range(1_000_000):
            worker.send((number, b"x" * size), timeout=0.2)
    assert number > 1
    assert [worker.recv(WATCHDOG)[0] for _ in range(number)] == [*range(number)]
    with pytest.raises(TimeoutError):
        worker.recv(0.05)


def test_threads_send_and_receive_each_message_once(make_worker: MakeWorker) -> None:
    with make_worker(work.totals_in_threads, 2) as worker:
        found: list[list[int]] = [[], []]

        def send(first: int) -> None:
            for number in range(first, first + 500):
                worker.send(number)

        def receive(mine: list[int]) -> None:
            mine += worker

        senders = [threading.Thread(target=send, args=(first,)) for first in (0, 500)]
        receivers = [threading.Thread(target=receive, args=(mine,)) for mine in found]
        for thread in (*senders, *receivers):
            thread.start()
        for thread in senders:
            thread.join()
        worker.close()
        for thread in receivers:
            thread.join()
        there = worker.task.result(WATCHDOG)
    assert sorted(there[0] + there[1]) == sorted(found[0] + found[1]) == [*range(1000)]


def test_a_message_that_cannot_be_loaded_is_the_only_one_lost(kind: Any, make_worker: MakeWorker) -> None:
    if kind.can("by_reference"):
        pytest.skip("nothing is loaded")
    with make_worker(work.unloadable_between) as worker:
        assert worker.recv(WATCHDOG) == 1
        with pytest.raises(ArithmeticError):
            worker.recv(WATCHDOG)
        assert worker.recv(WATCHDOG) == 2
    with make_worker(work.receive_all) as worker:
        for message in (1, work.Unloadable(), 2):
            worker.send(message)
        worker.close()
        assert worker.task.result(WATCHDOG) == [1, "it cannot be loaded", 2]


@pytest.mark.needs("process")
def test_a_message_that_cannot_be_pickled_is_refused_where_it_is_sent(make_worker: MakeWorker) -> None:
    with make_worker(work.echo) as worker:
        with pytest.raises(SerializationError):
            worker.send(threading.Lock())
        worker.send(2)
        assert worker.recv(WATCHDOG) == 2


def test_objects_go_to_a_thread_as_they_are() -> None:
    message = object()
    with Worker(work.echo, kind="thread") as worker:
        worker.send(message)
        assert worker.recv(WATCHDOG) is message
        assert worker.pid is None


# ===== shared memory =====


@pytest.mark.needs("process")
@pytest.mark.parametrize("threshold", [64 * 1024, None])
@pytest.mark.parametrize("items", [10, 20_000, 1_000_000])
def test_arrays_arrive_writable_and_as_the_receivers_own(
    make_worker: MakeWorker, items: int, threshold: int | None
) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(items)
    array.flags.writeable = False
    with make_worker(work.echo, shm_threshold=threshold) as worker:
        worker.send(array)
        mine = worker.recv(WATCHDOG)
        mine[0] = 7
        assert (mine[1:] == array[1:]).all()
        assert array[0] == 0
        del mine


@pytest.mark.needs("process")
def test_shared_memory_and_descriptors_go_along(make_worker: MakeWorker) -> None:
    numpy = pytest.importorskip("numpy")
    shared = SharedArray.copy_of(numpy.arange(100_000))
    with make_worker(work.set_first) as worker:
        worker.send(shared.array)
        assert worker.recv(WATCHDOG) == (True, 7)
    with make_worker(work.echo) as worker:
        worker.send(shared)
        back = worker.recv(WATCHDOG)
        back.array[0] = 8
        assert shared.array[0] == 8
        del back


@pytest.mark.needs("process")
def test_memory_that_nobody_receives_is_bounded(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    worker = make_worker(work.say_and_wait, gate)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 100:
            worker.send(bytes(16 << 20), timeout=0)
            sent += 1
    assert 1 <= sent <= 8
    gate.signal()


# ===== the end =====


def test_close_ends_the_loop_of_the_worker(make_worker: MakeWorker) -> None:
    with make_worker(work.total) as worker:
        for number in range(10):
            worker.send(number)
        worker.close()
        worker.close()
        with pytest.raises(ChannelClosed, match="closed"):
            worker.send(1)
        assert worker.task.result(WATCHDOG) == 45


def test_the_worker_sees_that_it_was_closed(make_worker: MakeWorker) -> None:
    with make_worker(work.wait_for_close) as worker:
        assert worker.recv(WATCHDOG) is False
        worker.close()
        assert worker.task.result(WATCHDOG) == "closed True"


@pytest.mark.each_start_method
def test_target_raises(make_worker: MakeWorker) -> None:
    worker = make_worker(work.say_and_raise, 1, 2)
    found: list[Any] = []
    with pytest.raises(LookupError, match="no more"):
        for message in worker:
            found.append(message)  # noqa: PERF402 -- it raises in the end
    assert found == [1, 2]
    errors = [ending_of(worker) for _ in range(2)]
    assert errors[0] is not errors[1]
    assert [type(error) for error in errors] == [LookupError] * 2
    assert worker.join(WATCHDOG)
    assert isinstance(worker.task.exception(), LookupError)
    with pytest.raises(LookupError):
        worker.send(1)


@pytest.mark.needs("crash")
@pytest.mark.each_start_method
@pytest.mark.parametrize("code", [0, 3])
def test_dies_after_a_thousand_messages(make_worker: MakeWorker, code: int) -> None:
    worker = make_worker(work.count_and_die, 1000, code)
    assert [worker.recv(WATCHDOG) for _ in range(1000)] == [*range(1000)]
    errors: list[Any] = [ending_of(worker) for _ in range(2)]
    assert errors[0] is not errors[1]
    assert [(type(error), error.exitcode) for error in errors] == [(WorkerCrashed, code)] * 2
    assert worker.join(WATCHDOG)
    with pytest.raises(WorkerCrashed):
        worker.send(1)


@pytest.mark.needs("crash")
@pytest.mark.one_start_method
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 100_000])
def test_is_killed_between_any_two_instructions_of_send(make_worker: MakeWorker, size: int) -> None:
    """The message has come as a whole or not at all, and then the death is told."""
    message = bytearray(range(256)) * (size // 256 + 1)
    for steps in itertools.count(1, size // 1000 + 61):
        worker = make_worker(work.die_while_sending, message, steps)
        found: list[Any] = []
        try:
            for each in worker:
                found.append(each)  # noqa: PERF402 -- it raises in the end
        except WorkerCrashed as error:
            assert error.signal == "SIGKILL"  # noqa: PT017 -- one of two ends
            assert found in ([message], [message] * 2)
        else:
            assert found == [message, message, "done"], "so many instructions it has not got"
            assert steps > 100
            break


@pytest.mark.needs("process")
def test_the_worker_closes_its_descriptor_and_goes_on(
    make_worker: MakeWorker, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "END_WITHIN", 0.05)
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.close_descriptor, arrived, release)
    arrived.wait()
    with pytest.raises(ChannelClosed, match="has closed its end of the channel, and goes on"):
        worker.recv(WATCHDOG)
    with pytest.raises(ChannelClosed, match="has closed its end of the channel, and goes on"):
        worker.send(1)
    with pytest.raises(TimeoutError):
        worker.recv(0.001)
    release.signal()
    assert worker.join(WATCHDOG)
    with pytest.raises(LookupError, match="it is closed"):
        worker.recv(WATCHDOG)


@pytest.mark.needs("crash")
def test_is_killed_while_its_owner_waits(make_worker: MakeWorker) -> None:
    worker = make_worker(work.sleep)
    pid = worker.recv(WATCHDOG)
    assert pid == worker.pid
    timer = threading.Timer(0.05, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(WorkerCrashed) as caught:
        worker.recv(WATCHDOG)
    timer.join()
    assert caught.value.signal == "SIGKILL"
    assert caught.value.pid == pid


@pytest.mark.needs("crash", "forks")
def test_its_template_dies(make_worker: MakeWorker) -> None:
    worker = make_worker(work.sleep)
    pid = worker.recv(WATCHDOG)
    os.kill(parent_of(pid), signal.SIGKILL)
    with pytest.raises(WorkerCrashed):
        worker.recv(WATCHDOG)
    wait_for_exit(pid)
    with make_worker(work.echo) as other:
        other.send(1)
        assert other.recv(WATCHDOG) == 1


@pytest.mark.needs("process")
def test_memory_limit(make_worker: MakeWorker) -> None:
    own = _os.own_bytes(os.getpid()) or 0  # which one that is forked has from its start
    worker = make_worker(work.grow, own + (300 << 20), memory_limit=own + (100 << 20))
    assert worker.recv(WATCHDOG) == "up"
    with pytest.raises(MemoryLimitExceeded):
        worker.recv(WATCHDOG)


@pytest.mark.each_start_method
def test_terminate_leaves_what_was_sent(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.say_and_arrive, arrived, release, 1, 2, 3)
    arrived.wait()
    assert worker.recv(WATCHDOG) == 1
    worker.terminate()
    assert [*worker] == [2, 3]
    with pytest.raises(ChannelClosed, match="terminated"):
        worker.recv()
    with pytest.raises(CancelledError):
        worker.task.result(WATCHDOG)
    with pytest.raises(ChannelClosed):
        worker.send(1)
    release.signal()
    assert worker.join(WATCHDOG)


def test_terminate_with_a_grace_lets_it_end(make_worker: MakeWorker) -> None:
    worker = make_worker(work.total)
    worker.send(5)
    worker.terminate(grace=WATCHDOG)
    assert worker.task.result(WATCHDOG) == 5
    assert worker.join(WATCHDOG)


def test_terminate_stops_it_after_the_grace(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    worker = make_worker(work.say_and_wait, new_gate(), 1)
    assert worker.recv(WATCHDOG) == 1
    worker.terminate(grace=0.05)
    with pytest.raises(CancelledError):
        worker.task.result(WATCHDOG)
    assert worker.join(WATCHDOG)


@pytest.mark.needs("by_reference")
def test_a_thread_that_does_not_stop_is_abandoned(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    worker = make_worker(work.stubborn, gate)
    assert worker.recv(WATCHDOG) == "up"
    worker.terminate()
    with pytest.raises(ChannelClosed):
        worker.recv(WATCHDOG)
    assert worker.join(WATCHDOG)
    assert worker.task.cancelled()
    assert worker._life.engine.stats().abandoned == 1
    gate.signal()


def test_a_send_that_waits_is_woken_by_the_end(make_worker: MakeWorker, new_gate: Callable[[], Gate]) -> None:
    worker = make_worker(work.say_and_wait, new_gate(), 1)
    assert worker.recv(WATCHDOG) == 1
    with pytest.raises(TimeoutError):
        while True:
            worker.send(b"x" * 10_000, timeout=0)
    timer = threading.Timer(0.05, worker.terminate)
    timer.start()
    with pytest.raises(ChannelClosed):
        worker.send(1)
    timer.join()


def test_a_receiver_that_waits_is_woken_by_close(make_worker: MakeWorker) -> None:
    worker = make_worker(work.total)
    timer = threading.Timer(0.05, worker.close)
    timer.start()
    with pytest.raises(ChannelClosed):
        worker.recv(WATCHDOG)
    timer.join()
    assert worker.task.result() == 0


def test_dropped_while_it_runs(kind: Any) -> None:
    worker: Any = Worker(work.echo, **kind.settings)
    worker.send(1)
    assert worker.recv(WATCHDOG) == 1
    life = worker._life
    with pytest.warns(ResourceWarning, match="dropped while it ran"):
        del worker
    assert life.gone.wait(WATCHDOG)
    assert life.task.cancelled()


def test_terminated_before_it_is_up(make_worker: MakeWorker) -> None:
    worker = make_worker(work.echo)
    worker.terminate()
    with pytest.raises(ChannelClosed):
        worker.recv(WATCHDOG)
    assert worker.join(WATCHDOG)


# ===== what the worker knows =====


def test_current_port(kind: Any, make_worker: MakeWorker) -> None:
    assert poolkit.current_port() is None
    with make_worker(work.is_current) as worker:
        assert worker.task.result(WATCHDOG) == (True, not kind.can("by_reference"))
    assert poolkit.current_port() is None


@pytest.mark.needs("process")
def test_a_fork_of_the_worker_has_no_port(make_worker: MakeWorker) -> None:
    with make_worker(work.fork_and_use) as worker:
        assert worker.task.result(WATCHDOG) == "exit 7"
        assert [*worker] == []


# ===== bad input =====


def test_bad_input(make_worker: MakeWorker) -> None:
    with pytest.raises(TypeError, match="something to call"):
        make_worker(3)
    with pytest.raises(ValueError, match="memory_limit"):
        make_worker(work.echo, memory_limit=0)
    with pytest.raises(TypeError, match="name"):
        make_worker(work.echo, name=3)
    worker = make_worker(work.echo)
    for wrong in (worker.recv, worker.join, worker.terminate, lambda seconds: worker.send(1, seconds)):
        with pytest.raises(ValueError, match="-1"):
            wrong(-1)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(worker)
    worker.close()
    assert worker.task.result(WATCHDOG) == "done"


@pytest.mark.needs("process")
def test_what_cannot_be_pickled_is_refused_at_once(make_worker: MakeWorker) -> None:
    with pytest.raises(SerializationError):
        make_worker(work.say, threading.Lock())


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="kind"):
        Worker(work.echo, kind="fiber")
    with pytest.raises(ValueError, match="memory_limit"):
        Worker(work.echo, kind="thread", memory_limit=1 << 30)
    with pytest.raises(ValueError, match="preload"):
        Worker(work.echo, kind="thread", preload=["json"])


# ===== nothing is left =====


@pytest.mark.needs("process")
def test_what_it_started_ends_with_it(make_worker: MakeWorker) -> None:
    worker = make_worker(work.sleep)
    pid = worker.recv(WATCHDOG)
    worker.terminate()
    assert worker.join(WATCHDOG)
    wait_until(lambda: not is_alive(pid))
