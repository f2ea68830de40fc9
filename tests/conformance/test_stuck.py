"""What is logged of tasks that wait for whoever waits for them."""

from __future__ import annotations

import logging
import threading

import pytest

import poolkit
import support_functions as work
from poolkit import task as tasks
from support import wait_until

pytestmark = pytest.mark.needs("background")


def count_up(number):
    yield from range(number)
    return "all"


def say(number):
    for each in range(number):
        poolkit.current_task().send(each)
    return number


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "poolkit")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def _soon(monkeypatch):
    monkeypatch.setattr(tasks, "SILENT_FOR", 0.1)


@pytest.mark.needs("streams")
@pytest.mark.usefixtures("_soon")
@pytest.mark.one_start_method
def test_who_waits_for_a_stream_that_nobody_reads_is_told_once(pool, warnings):
    stream = pool.options(buffersize=2, name="mine").stream(count_up, 10)
    task = stream.task
    with pytest.raises(TimeoutError, match=r"is not done after 0\.3 s"):
        task.result(0.3)
    wait_until(lambda: _waits_in_vain(task) and warnings())
    assert len(warnings()) == 1
    assert warnings()[0].startswith(f"task {task.id} is stalled: nobody takes its items")
    assert "mine" in warnings()[0]
    assert list(stream) == [*range(10)]
    assert task.result() == "all"
    assert len(warnings()) == 1


def _waits_in_vain(task):
    with pytest.raises(TimeoutError):
        task.result(0.2)
    return True


@pytest.mark.usefixtures("_soon")
@pytest.mark.one_start_method
def test_who_waits_for_a_task_whose_messages_he_stopped_reading_is_told_once(pool, warnings, kind):
    count = 30_000 if kind.can("at_once") else 150_000  # from another machine, some come before it hears that it waits
    task = pool.options(name="mine").submit(say, count)
    messages = task.messages()
    assert next(messages) == 0
    wait_until(lambda: _waits_in_vain(task) and warnings())
    assert len(warnings()) == 1
    assert warnings()[0].startswith(f"task {task.id} waits for who reads its messages")
    assert list(messages) == [*range(1, count)]
    assert task.result() == count


@pytest.mark.needs("streams")
@pytest.mark.usefixtures("_soon")
@pytest.mark.one_start_method
def test_nothing_is_said_where_somebody_takes_or_the_task_just_takes_long(pool, warnings, new_gate):
    release = new_gate()
    task = pool.submit(_wait_and_say, release)
    assert next(task.messages()) == "begun"
    _waits_in_vain(task)
    release.signal()
    assert task.result() == "on"
    stream = pool.options(buffersize=2).stream(count_up, 50)
    reader = threading.Thread(target=lambda: [pool.submit(work.identity, 1).result() for _ in stream])
    reader.start()
    assert stream.task.result() == "all"
    reader.join()
    assert warnings() == []


def _wait_and_say(release):
    poolkit.current_task().send("begun")
    release.wait()
    return "on"


@pytest.mark.one_start_method
@pytest.mark.parametrize("count", [31, 33])
def test_many_streams_that_wait_are_warned_of_once(make_pool, warnings, count, kind):
    if kind.can("process"):
        pytest.skip("so many processes take long, and threads go the same way")
    pool = make_pool(1)
    streams = [pool.options(buffersize=1).stream(count_up, 3) for _ in range(count)]
    assert [next(stream) for stream in streams] == [0] * count
    assert pool.submit(work.identity, 1).result() == 1
    wait_until(lambda: (count < 32) or warnings())
    for stream in streams:
        assert list(stream) == [1, 2]
    found = [message for message in warnings() if "wait for their readers" in message]
    assert len(found) == (count > 32)
