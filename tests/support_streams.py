"""What tests have workers stream. Importable by name here and in the workers, so it imports little."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from typing import Any, NoReturn

import poolkit
from support_gates import Gate, Journal


def count(stop: int) -> Generator[int, None, str]:
    yield from range(stop)
    return "counted"


async def count_async(stop: int) -> AsyncIterator[int]:
    import asyncio

    for number in range(stop):
        await asyncio.sleep(0)
        yield number


def numbers(stop: int) -> Iterable[int]:
    return range(stop)


async def list_of(stop: int) -> list[int]:
    import asyncio

    await asyncio.sleep(0)
    return [*range(stop)]


class Counter:
    def up_to(self, stop: int) -> Iterator[int]:
        yield from range(stop)


def keep(journal: Journal, stop: int | None = None) -> Iterator[int]:
    """Numbers, each written down when the generator goes on after it; and its end."""
    try:
        for number in itertools.count() if stop is None else range(stop):
            yield number
            journal.write(number)
    finally:
        journal.write("closed")


async def keep_async(journal: Journal) -> AsyncIterator[int]:
    try:
        for number in itertools.count():
            yield number
    finally:
        journal.write("closed")


def changing() -> Iterator[list[int]]:
    box: list[int] = []
    for number in range(5):
        box.append(number)
        yield box


def keep_arrays(journal: Journal) -> Iterator[Any]:
    """The same, each in an array of 256 KiB that is full of it."""
    import numpy as np

    for number in keep(journal):
        yield np.full(1 << 15, number)


def raise_after(items: int) -> Iterator[int]:
    yield from range(items)
    raise LookupError("no more", items)


def raise_at_once(_items: int) -> Iterator[int]:
    raise LookupError("at once")


def unpicklable_after(items: int) -> Iterator[Any]:
    yield from range(items)
    yield {"lock": threading.Lock()}


class Spoilt:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _spoil, (ValueError,)


class Stopped:
    def __reduce__(self) -> Any:
        return _spoil, (StopIteration,)


def _spoil(error: type[Exception]) -> NoReturn:
    raise error("spoilt")


def spoilt_in_the_middle(kind: type) -> Iterator[Any]:
    yield 0
    yield kind()
    yield 2


def die_after(items: int, name: str = "SIGKILL") -> Iterator[int]:
    yield from range(items)
    os.kill(os.getpid(), signal.Signals[name])
    signal.pause()


def hang_after(items: int) -> Iterator[int]:
    yield from range(items)
    while True:
        _pause()


def _pause() -> None:
    threading.Event().wait(0.01)


def wait_after(items: int, gate: Gate) -> Iterator[int]:
    yield from range(items)
    gate.wait()
    yield -1


def stubborn(journal: Journal, gate: Gate) -> Iterator[int]:
    """Does not end when it is closed, until the test says so."""
    try:
        yield 0
        yield 1
    finally:
        journal.write("closing")
        gate.wait()


def raise_when_closed() -> Iterator[int]:
    try:
        yield 0
        yield 1
    finally:
        raise LookupError("while it was closed")


def yield_when_closed() -> Iterator[int]:
    try:
        yield 0
        yield 1
    finally:
        yield 2


def until_cancelled(journal: Journal) -> Iterator[int]:
    """Computes for long, and asks whether anybody wants that."""
    yield 0
    task = poolkit.current_task()
    assert task is not None
    journal.write("computes")
    while not task.cancelled:
        pass
    journal.write("was told")


def arrays(items: int, nbytes: int) -> Iterator[Any]:
    import numpy as np

    for number in range(items):
        yield np.full(nbytes // 8, number, dtype=np.float64)


def attempts() -> Iterator[int]:
    task = poolkit.current_task()
    assert task is not None
    if task.attempt < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    yield task.attempt


def die_once_after_an_item(journal: Journal) -> Iterator[int]:
    journal.write("began")
    yield 0
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class Iteration:
    """An iterator that is no generator."""

    def __init__(self, stop: int) -> None:
        self.left = iter(range(stop))

    def __iter__(self) -> Iteration:
        return self

    def __next__(self) -> int:
        return next(self.left)


def tick(seconds: float) -> Iterator[int]:
    """Numbers, one each time that so long has passed."""
    for number in itertools.count():
        threading.Event().wait(seconds)
        yield number


def die_when_closed(journal: Journal) -> Iterator[int]:
    try:
        yield from itertools.count()
    finally:
        journal.write("closing")
        os.kill(os.getpid(), signal.SIGKILL)


def count_and_die_soon(stop: int) -> Generator[int, None, str]:
    """Another thread kills the process at about the time of the last item."""
    threading.Timer(0.0005, os.kill, (os.getpid(), signal.SIGKILL)).start()
    yield from range(stop)
    return "counted"


async def beat_while_it_waits(journal: Journal) -> AsyncIterator[int]:
    """A coroutine of the generator goes on while that waits for its reader."""
    import asyncio

    async def beat() -> None:
        while True:
            journal.write("beat")
            await asyncio.sleep(0.001)

    beating = asyncio.get_running_loop().create_task(beat())
    try:
        for number in range(3):
            yield number
    finally:
        beating.cancel()
