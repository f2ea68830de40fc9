"""The program."""

from __future__ import annotations

import asyncio
from typing import cast

import poolkit
from orders.prices import Order, Shop, fetch, lines, price

ended: list[str] = []


def note(done: poolkit.TaskDone) -> None:
    """A listener."""
    ended.append(done.task.name)


def largest(numbers: list[int]) -> int:
    """What a broadcast object arrives at, as itself."""
    return max(numbers)


def half(amount: float) -> float:
    """What `map` calls."""
    return amount / 2


def add_up(port: poolkit.Port, total: int) -> str:
    """What a dedicated worker runs."""
    for number in port:
        total += number
        port.send(total)
    return "closed"


def in_threads(pool: poolkit.Pool) -> None:
    """Without an event loop."""
    pool.on("task_done", note)
    pool.on("worker_exited", lambda exited: ended.append(exited.cause))
    task: poolkit.Task[float] = price(Order(1, 3), discount=0.5)
    total: float = task.result(timeout=60)
    fraction: float | None = None if task.progress is None else task.progress.fraction
    totals: list[float] = list(price.map([Order(number, number) for number in range(3)]))
    urgent: poolkit.Task[float] = price.options(priority=10, timeout=5, memory_limit=None)(Order(2, 2))
    here: float = price.local(Order(3, 1))
    print(total, fraction, totals, urgent.result(), here)

    shop = Shop(2.0)
    converted: poolkit.Task[float] = shop.convert(1.5)
    stream: poolkit.Stream[float] = shop.amounts(3)
    with lines(2) as texts:
        first: str = next(texts)
    print(converted.result(), list(stream), first)

    view: poolkit.PoolView = pool.options(timeout=2, queue_timeout=60, name="length")
    counted: poolkit.Task[int] = view.submit(len, "abc")
    shared: poolkit.Shared[list[int]] = pool.broadcast([1, 2, 3])
    done: poolkit.CompletedCommand[str] = pool.run(["echo", "ready"], text=True).result()
    raw: bytes = pool.run(["echo", "raw"]).result().stdout
    print(counted.result(), pool.submit(largest, cast("list[int]", shared)).result(), done.stdout.strip(), raw)

    with poolkit.Worker(add_up, 100, kind="thread") as worker:
        worker.send(1)
        message: object = worker.recv(timeout=60)
        worker.close()
        print(message, worker.task.result())
    try:
        pool.submit(divmod, 1, 0).result()
    except poolkit.PoolkitError as error:
        print(error)
    except ZeroDivisionError:
        print("as itself")


async def in_a_loop(pool: poolkit.Pool) -> None:
    """In coroutines."""
    order: Order = await fetch(4)
    values: list[float] = [value async for value in pool.map(half, [2.0, 4.0])]
    text: str = await (await pool.submit_async(str, order.items))
    async with poolkit.spawn(["echo", "line"], text=True) as command:
        said: list[str] = [line async for line in command]
    print(order, values, text, said)


def main() -> None:
    """Both."""
    with poolkit.Pool(max_workers=2, kind="process", start_method="forkserver") as pool, poolkit.use_pool(pool):
        in_threads(pool)
        asyncio.run(in_a_loop(pool))
    print(len(ended) > 0)


if __name__ == "__main__":
    main()
