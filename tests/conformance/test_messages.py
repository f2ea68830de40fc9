"""Messages between a task that runs and whoever has its handle."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import support_functions as work
import support_messages as said
from poolkit import Pool, QueueFull, SerializationError, TaskTimeout, WorkerCrashed
from poolkit.testing import FakePool
from support import WATCHDOG, wait_until
from support_gates import Gate

MakePool = Callable[..., Pool]


# ===== from the task =====


@pytest.mark.each_start_method
def test_they_come_in_order_and_end_with_the_task(pool: Pool) -> None:
    task = pool.submit(said.say, 1, None, {"three": 3})
    assert [*task.messages()] == [1, None, {"three": 3}]
    assert task.result() == "said"
    assert task.messages() is task.messages()
    assert [*task.messages()] == []


def test_those_of_a_task_that_is_done_are_kept(pool: Pool) -> None:
    task = pool.submit(said.say_numbers, 100)
    assert task.result() == "said"
    assert [*task.messages()] == [*range(100)]
    assert [*pool.submit(work.square, 3).messages()] == []


@pytest.mark.needs("background")
def test_one_is_here_before_the_task_is_done(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    task = pool.submit(said.say_and_wait, gate, "first")
    assert next(task.messages()) == "first"
    gate.signal()
    assert [*task.messages()] == []


def test_the_error_belongs_to_the_result(pool: Pool) -> None:
    task = pool.submit(said.say_and_raise, 1, 2)
    assert [*task.messages()] == [1, 2]
    with pytest.raises(LookupError):
        task.result()


@pytest.mark.needs("crash")
@pytest.mark.each_start_method
def test_those_before_a_crash_come(pool: Pool) -> None:
    task = pool.submit(said.say_and_die, 1, 2)
    assert [*task.messages()] == [1, 2]
    with pytest.raises(WorkerCrashed):
        task.result()


@pytest.mark.needs("crash")
def test_those_of_a_run_that_is_retried_stay(pool: Pool) -> None:
    task = pool.options(retries=5).submit(said.say_in_each_attempt)
    assert [*task.messages()] == [1, 2, 3]


@pytest.mark.needs("background")
def test_threads_of_the_task_may_send(pool: Pool) -> None:
    task = pool.submit(said.say_in_threads, 20)
    assert sorted(task.messages()) == [*range(20)]


@pytest.mark.needs("by_value")
def test_what_cannot_be_pickled_is_refused_where_it_is_sent(pool: Pool) -> None:
    assert "lock" in pool.submit(said.say_what_cannot_be_said).result()


@pytest.mark.needs("by_value")
def test_one_is_packed_when_it_is_sent(pool: Pool) -> None:
    assert [len(box) for box in pool.submit(said.say_changing).messages()] == [1, 2, 3]


def test_large_ones_come_writable(pool: Pool) -> None:
    pytest.importorskip("numpy")
    total = 0.0
    for array in pool.submit(said.say_arrays, 5, 1 << 20).messages():
        array[0] = array[1]
        total += float(array.sum())
    assert total == sum(range(5)) * (1 << 17)


def test_of_too_many_for_which_nobody_asked_the_oldest_are_dropped(pool: Pool, caplog: Any) -> None:
    task = pool.submit(said.say_numbers, 25_000)
    assert task.result() == "said"
    messages = task.messages()
    assert messages.dropped == 15_000
    assert [*messages] == [*range(15_000, 25_000)]
    wait_until(lambda: "for which nobody asks" in caplog.text, "it is logged")
    assert caplog.text.count("for which nobody asks") == 1


@pytest.mark.needs("background")
def test_where_somebody_reads_none_is_lost(pool: Pool) -> None:
    task = pool.submit(said.say_numbers, 25_000)
    assert [*task.messages()] == [*range(25_000)]
    assert task.messages().dropped == 0


@pytest.mark.needs("unattended")
def test_a_coroutine_reads_them(pool: Pool) -> None:
    async def read() -> list[int]:
        return [message async for message in pool.submit(said.say_numbers, 30).messages()]

    assert asyncio.run(read()) == [*range(30)]


@pytest.mark.needs("real_time")
def test_a_wait_that_is_cancelled_loses_none(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()

    async def read() -> list[Any]:
        messages = pool.submit(said.say_and_wait, gate, 1).messages()
        got = [await anext(messages)]
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(messages), 0.005)
        gate.signal()
        return got + [message async for message in messages]

    assert asyncio.run(read()) == [1]


def test_they_cannot_be_pickled(pool: Pool) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(pool.submit(work.square, 3).messages())


def test_to_look_how_many_were_dropped_is_not_to_read(pool: Pool) -> None:
    task = pool.submit(said.say_numbers, 25_000)
    assert task.messages().dropped <= 15_000
    assert task.result() == "said"
    assert task.messages().dropped == 15_000


@pytest.mark.needs("background", "by_value")
def test_a_reader_that_closes_or_goes_keeps_no_task_waiting(make_pool: MakePool) -> None:
    pool = make_pool(1)
    for leave in (lambda messages: messages.close(), lambda _messages: None):
        task = pool.submit(said.say_large, 3000, 20_000)
        messages = task.messages()
        next(messages)
        leave(messages)
        del messages
        assert task.result() == "said"


@pytest.mark.needs("background", "by_value")
def test_a_reader_that_stops_keeps_no_pool_from_its_end(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        task = pool.submit(said.say_large, 3000, 20_000)
        messages = task.messages()
        next(messages)
    assert task.result() == "said"
    assert len([*messages]) < 3000


# ===== callbacks =====


@pytest.mark.needs("background")
def test_callbacks_and_a_reader_take_turns(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    gate, got = new_gate(), list[Any]()
    task = pool.submit(said.say_and_wait, gate, 0, 1)
    assert next(task.messages()) == 0
    task.on_message(got.append)
    task.on_message(got.append)
    gate.signal()
    assert [*task.messages()] in ([], [1])
    assert task.result() == "said"
    assert got in ([1, 1], [])


def test_every_callback_has_returned_when_the_result_is_here(pool: Pool) -> None:
    got: list[int] = []
    task = pool.submit(said.say_numbers, 500)
    task.on_message(got.append)
    assert task.result() == "said"
    assert got == [*range(500)]


def test_earlier_ones_come_first(pool: Pool) -> None:
    task = pool.submit(said.say_numbers, 5)
    task.result()
    got: list[int] = []
    task.on_message(got.append)
    wait_until(lambda: got == [0, 1, 2, 3, 4], "they are handed on")


def test_one_that_raises_is_logged_and_harms_nothing(pool: Pool, caplog: Any) -> None:
    def raise_at(message: int) -> None:
        if message == 1:
            raise LookupError("a callback")
        got.append(message)

    got: list[int] = []
    task = pool.submit(said.say_numbers, 3)
    task.on_message(raise_at)
    assert task.result() == "said"
    assert got == [0, 2]
    assert "a callback for messages" in caplog.text
    with pytest.raises(TypeError):
        task.on_message(None)  # type: ignore[arg-type]


@pytest.mark.needs("real_time")
def test_one_may_ask_for_other_tasks(make_pool: MakePool) -> None:
    pool = make_pool(2)
    got: list[int] = []
    task = pool.submit(said.say_numbers, 3)
    task.on_message(lambda message: got.append(pool.submit(work.square, message).result()))
    assert task.result() == "said"
    wait_until(lambda: got == [0, 1, 4], "they are handed on")


@pytest.mark.needs("real_time")
def test_a_slow_one_delays_no_limit(make_pool: MakePool, new_gate: Callable[[], Gate]) -> None:
    pool = make_pool(2)
    release, gate = threading.Event(), new_gate()
    talking = pool.submit(said.say_and_wait, gate, 1)
    talking.on_message(lambda _message: release.wait(WATCHDOG))
    gate.signal()
    with pytest.raises(TaskTimeout):
        pool.options(timeout=0.05).submit(work.spin).result()
    assert pool.submit(work.square, 3).result() == 9
    release.set()
    assert talking.result() == "said"


# ===== to the task =====


@pytest.mark.needs("background", "mail")
@pytest.mark.each_start_method
def test_a_task_is_told_and_answers(pool: Pool) -> None:
    task = pool.submit(said.answer, 5)
    answers = []
    for number in range(5):
        assert task.send(number)
        answers.append(next(task.messages()))
    assert answers == [0, 2, 4, 6, 8]
    assert task.result() == "answered"
    assert not task.send(1)


@pytest.mark.needs("mail")
@pytest.mark.parametrize("fn", [said.receive_all, said.receive_in_coroutine])
def test_what_was_sent_before_it_began_is_kept(make_pool: MakePool, hold: Any, fn: Any) -> None:
    pool = make_pool()
    if isinstance(pool, FakePool):
        with FakePool("manual") as pool:
            task = pool.submit(fn, 3)
            assert [task.send(number) for number in range(3)] == [True] * 3
            assert task.result() == [0, 1, 2]
        return
    held = hold(pool)
    task = pool.submit(fn, 3)
    assert [task.send(number) for number in range(3)] == [True] * 3
    held.release()
    assert task.result() == [0, 1, 2]


@pytest.mark.needs("background", "mail")
def test_a_task_that_was_sent_and_is_taken_back_gets_its_mail_once(make_pool: MakePool, send_ahead: Any) -> None:
    """Whichever worker runs it in the end."""
    pool = make_pool()
    tasks: list[Any] = []
    held = send_ahead(pool, lambda view: tasks.extend(view.submit(said.receive_what_is_there) for _ in range(3)))
    assert [task.send(number) for number, task in enumerate(tasks)] == [True] * 3
    pool.resize(2)
    assert [task.result() for task in tasks] == [[0], [1], [2]]
    held.release()


def test_the_wait_for_one_has_an_end(pool: Pool) -> None:
    assert pool.submit(said.receive_within, 0).result() == "no message came within 0 s"
    assert pool.submit(said.receive_within, 0.01).result() == "no message came within 0.01 s"
    with pytest.raises(ValueError, match="timeout must be at least 0"):
        pool.submit(said.receive_within, -1).result()


@pytest.mark.needs("background", "mail")
def test_too_many_that_it_does_not_ask_for_are_refused(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    task = pool.submit(said.say_and_wait, gate)
    for number in range(1000):
        task.send(number)
    with pytest.raises(QueueFull, match="has not asked for the last 1000"):
        task.send(1000)
    gate.signal()
    assert task.result() == "said"


@pytest.mark.needs("by_value", "mail")
def test_one_that_cannot_be_pickled_is_refused(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    if isinstance(pool, FakePool):
        pool = FakePool("manual")
        task: Any = pool.submit(work.square, 3)
    else:
        gate = new_gate()
        task = pool.submit(said.say_and_wait, gate)
        gate.signal()
    with pytest.raises(SerializationError, match="lock"):
        task.send(threading.Lock())


@pytest.mark.needs("crash", "mail")
def test_what_a_run_received_before_it_crashed_is_not_sent_again(pool: Pool) -> None:
    task = pool.options(retries=1).submit(said.receive_in_each_attempt)
    task.send("first")
    assert next(task.messages()) == "got it"
    task.send("second")
    assert task.result() == [2, "second"]


@pytest.mark.needs("crash")
def test_only_the_tasks_own_thread_receives(pool: Pool) -> None:
    assert "thread that runs the task" in pool.submit(said.receive_elsewhere).result()


@pytest.mark.needs("kill_running")
def test_one_that_waits_for_a_message_can_be_stopped(pool: Pool) -> None:
    with pytest.raises(TaskTimeout):
        pool.options(timeout=0.1).submit(said.receive_all, 1).result()
    assert pool.submit(work.square, 3).result() == 9
