"""Calls that run in workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import poolkit


@dataclass(frozen=True)
class Order:
    """What somebody wants."""

    number: int
    items: int


@poolkit.offload(timeout=30, retries=1, retry_on=(ConnectionError, poolkit.WorkerCrashed))
def price(order: Order, *, discount: float = 0.0) -> float:
    """A call with options."""
    if (task := poolkit.current_task()) is not None:
        task.progress(order.items, order.items)
    return order.items * (1.0 - discount)


@poolkit.offload
async def fetch(number: int) -> Order:
    """A coroutine function."""
    return Order(number, number * 2)


@poolkit.offload
def lines(count: int) -> Iterator[str]:
    """A generator function."""
    for number in range(count):
        yield f"line {number}"


class Shop:
    """One with methods."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    @poolkit.offload
    def convert(self, amount: float) -> float:
        """A method."""
        return amount * self.rate

    @poolkit.offload
    def amounts(self, count: int) -> Iterator[float]:
        """One that yields."""
        for number in range(count):
            yield number * self.rate
