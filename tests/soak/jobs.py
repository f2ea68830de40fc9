"""What the soak has workers do: leave a token, then what was asked. Imported by every worker, so it imports little."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, NoReturn

import poolkit
from support_gates import Journal


def act(journal: Journal, token: int, deed: Callable[..., Any], *args: Any) -> Any:
    """Leave the token, then do the deed: a second run would leave a second one."""
    journal.write(token)
    return deed(*args)


async def act_later(journal: Journal, token: int, value: Any) -> Any:
    journal.write(token)
    return value


def fail_first_times(journal: Journal, token: int, times: int, fail: Callable[[], NoReturn]) -> int:
    """Fail in the first attempts; returns the one that got through."""
    journal.write(token)
    task = poolkit.current_task()
    assert task is not None
    if task.attempt <= times:
        fail()
    return task.attempt


def lose_connection() -> NoReturn:
    raise ConnectionError("once more")


def triple(journal: Journal, token: int) -> int:
    """An item of a map."""
    journal.write(token)
    return token * 3


def triple_or_raise(journal: Journal, token: int, bad: int) -> int:
    journal.write(token)
    if token == bad:
        raise LookupError(token)
    return token * 3


def count_up(journal: Journal, token: int, count: int, nbytes: int, end: str) -> Generator[Any, None, int]:
    """A stream of numbers, each alone or in an array that is full of it."""
    journal.write(token)
    for number in range(count):
        if nbytes:
            import numpy as np

            yield np.full(nbytes // 8, number)
        else:
            yield number
    if end == "raise":
        raise LookupError(token)
    if end == "die":
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    return token


async def count_up_async(journal: Journal, token: int, count: int, nbytes: int, end: str) -> AsyncIterator[Any]:
    """The same; it returns nothing."""
    for item in count_up(journal, token, count, nbytes, end):
        yield item


def ask(journal: Journal, token: int, count: int, is_answered: bool) -> int:
    """Send so many messages, and wait for the answer to each, passing over those to an attempt before this one."""
    journal.write(token)
    task = poolkit.current_task()
    assert task is not None
    for number in range(count):
        question = task.attempt, number
        task.send((*question, bytes(100 * (number % 7))))
        while is_answered and task.receive(20.0) != question:
            pass
    return token


def reverse(data: Any) -> Any:
    return data[::-1]


def fill(shared: Any, number: int) -> int:
    """In place, which the owner sees; a second attempt does it again."""
    shared.array[:] = number
    return int(shared.array[0])


def log(number: int) -> int:
    """More than fits a pipe at once, in a few records."""
    for part in range(5):
        logging.getLogger("soak").warning("%d.%d %s", number, part, "." * 20_000)
    return number


def grow_for_ever() -> NoReturn:
    kept = []
    while True:
        kept.append(bytearray(b"x") * 5_000_000)


def sum_of(array: Any) -> int:
    return int(array.sum())


def raise_numbered(number: int) -> NoReturn:
    raise ValueError(number)


def spin_until_asked() -> NoReturn:
    """For ever. A thread also looks itself whether it is to stop: the exception may be lost in a finalizer."""
    task = poolkit.current_task()
    assert task is not None
    while not task.cancelled:
        pass
    raise AssertionError("stopped")
