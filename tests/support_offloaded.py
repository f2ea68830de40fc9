"""Offloaded functions and methods that workers can import by name."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import poolkit


@poolkit.offload
def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@poolkit.offload(timeout=30, name="named")
def which_task() -> str:
    """The name of the task that this runs in."""
    task = poolkit.current_task()
    assert task is not None
    return task.name


@poolkit.offload
def sum_of_doubles(numbers: list[int]) -> int:
    """Calls another offloaded function, and its `map`, inside a worker."""
    return double(0).result() + sum(double.map(numbers))


@poolkit.offload
async def double_later(number: int) -> int:
    """A coroutine function."""
    await asyncio.sleep(0)
    return 2 * number


@poolkit.offload
def double_later_inside(number: int) -> int:
    """Calls an offloaded coroutine function inside a worker."""
    return double_later(number).result()


@poolkit.offload
def fail(text: str) -> None:
    """Raise."""
    raise ValueError(text)


@poolkit.offload
def failure_inside(text: str) -> str:
    """The exception of a nested call is the nested task's."""
    return repr(fail(text).exception())


class Scale:
    """Methods of every sort."""

    factor = 10

    def __init__(self, offset: int) -> None:
        """Remember the offset."""
        self.offset = offset

    @poolkit.offload
    def plain(self, number: int) -> int:
        """A plain method."""
        return self.offset + self.factor * number

    @classmethod
    @poolkit.offload
    def inner(cls, number: int) -> int:
        """A class method, decorated inside."""
        return cls.factor * number

    @poolkit.offload
    @classmethod
    def outer(cls, number: int) -> int:
        """A class method, decorated outside."""
        return cls.factor * number

    @staticmethod
    @poolkit.offload
    def static(number: int) -> int:
        """A static method."""
        return 5 * number


# ===== as a user meets them =====


@poolkit.offload
def offloaded_square(number: int) -> int:
    return number * number


@poolkit.offload(name="named", timeout=60)
def offloaded_name() -> str:
    task = poolkit.current_task()
    assert task is not None
    return task.name


@poolkit.offload(kind="thread")
def offloaded_thread_id() -> int:
    return threading.get_ident()


class Account:
    """Offloaded methods of the three sorts."""

    rate = 2

    def __init__(self, amount: int) -> None:
        self.amount = amount

    @poolkit.offload
    def times(self, factor: int) -> int:
        return self.amount * factor

    @poolkit.offload
    @classmethod
    def rated(cls, amount: int) -> int:
        return amount * cls.rate

    @poolkit.offload
    @staticmethod
    def plus(left: int, right: int) -> int:
        return left + right


def call_offloaded(function: Any, *args: Any) -> Any:
    """Call an offloaded function that came as an argument."""
    return function(*args).result()
