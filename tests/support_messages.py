"""What tests have tasks say and be told. Importable by name here and in the workers, so it imports little."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import poolkit
from support_gates import Gate


def me() -> Any:
    task = poolkit.current_task()
    assert task is not None
    return task


def say(*messages: Any) -> str:
    for message in messages:
        me().send(message)
    return "said"


def say_numbers(count: int) -> str:
    task = me()
    for number in range(count):
        task.send(number)
    return "said"


def say_and_wait(gate: Gate, *messages: Any) -> str:
    say(*messages)
    gate.wait()
    return "said"


def say_and_raise(*messages: Any) -> None:
    say(*messages)
    raise LookupError("said")


def say_and_die(*messages: Any) -> None:
    say(*messages)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def say_in_each_attempt() -> int:
    task = me()
    task.send(task.attempt)
    if task.attempt < 3:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    return int(task.attempt)


def say_in_threads(count: int) -> None:
    task = me()
    threads = [threading.Thread(target=task.send, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def say_what_cannot_be_said() -> str:
    try:
        me().send(threading.Lock())
    except poolkit.SerializationError as exc:
        return str(exc)
    return "it was sent"


def say_changing() -> None:
    box: list[int] = []
    for number in range(3):
        box.append(number)
        me().send(box)


def say_arrays(count: int, nbytes: int) -> None:
    import numpy as np

    for number in range(count):
        me().send(np.full(nbytes // 8, number, dtype=np.float64))


def answer(count: int) -> str:
    task = me()
    for _ in range(count):
        task.send(task.receive() * 2)
    return "answered"


def receive_all(count: int) -> list[Any]:
    return [me().receive() for _ in range(count)]


def receive_what_is_there() -> list[Any]:
    """The first, and what else comes soon."""
    got = [me().receive()]
    try:
        while True:
            got.append(me().receive(0.05))
    except TimeoutError:
        return got


async def receive_in_coroutine(count: int) -> list[Any]:
    return [await me().receive_async() for _ in range(count)]


def receive_within(seconds: float) -> str:
    try:
        return f"got {me().receive(seconds)!r}"
    except TimeoutError as exc:
        return str(exc)


def receive_in_each_attempt() -> list[Any]:
    task = me()
    got = task.receive()
    if task.attempt == 1:
        task.send("got it")
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    return [task.attempt, got]


def receive_elsewhere() -> str:
    task, told = me(), []

    def receive() -> None:
        try:
            told.append(task.receive(1))
        except RuntimeError as exc:
            told.append(str(exc))

    thread = threading.Thread(target=receive)
    thread.start()
    thread.join()
    return str(told[0])


def say_large(count: int, nbytes: int) -> str:
    for _ in range(count):
        me().send(bytes(nbytes))
    return "said"
