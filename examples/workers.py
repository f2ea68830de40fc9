"""Five uses of a process of one's own: what Node.js does with worker threads and `fork`.

(a) numbers there, a sum back; (b) a long calculation beside an event loop that goes on; (c) a picture of 64 MiB that
both sides see, without a copy; (d) an object that lives in a worker and answers calls; (e) a worker that dies, what is
told of it, and its successor.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import pickle
import queue
import re
import time

import numpy as np

import poolkit


def add_squares(port: poolkit.Port) -> int:
    """Answer each message with the sum of its squares; return how many there were."""
    answered = 0
    for message in port:  # until the owner closes
        port.send(sum(number * number for number in message["numbers"]))
        answered += 1
    return answered


def sum_by_messages() -> None:
    """(a) Messages both ways, in order."""
    with poolkit.Worker(add_squares) as worker:
        worker.send({"numbers": range(10)})
        worker.send({"numbers": [0.5, 1.5]})
        print(f"(a) sums of squares: {worker.recv()} and {worker.recv()}")
        worker.close()
        print(f"    the worker returned {worker.task.result()}")


def fibonacci(port: poolkit.Port, number: int) -> None:
    """Take the slow way."""

    def value(n: int) -> int:
        return n if n < 2 else value(n - 1) + value(n - 2)  # noqa: PLR2004 -- its definition

    port.send(value(number))


async def calculate_beside_a_loop(number: int) -> None:
    """(b) The loop ticks every 5 ms meanwhile; how late it ever was is told."""
    async with poolkit.Worker(fibonacci, number) as worker:
        answer = asyncio.ensure_future(worker.recv_async())
        ticks, latest = 0, 0.0
        while not answer.done():
            started = time.perf_counter()
            await asyncio.sleep(0.005)
            latest = max(latest, time.perf_counter() - started - 0.005)
            ticks += 1
        print(f"(b) fibonacci({number}) = {answer.result()}; {ticks} ticks meanwhile")
        print(f"    the latest was {latest * 1e3:.1f} ms late")


def brighten(port: poolkit.Port) -> None:
    """Brighten pictures where they are, and say when."""
    for picture in port:
        np.add(np.minimum(picture.array, 205), 50, out=picture.array)
        port.send(int(picture.array[0, 0]))


def brighten_in_place(mebibytes: int) -> None:
    """(c) What travels is a handle; the worker writes where the owner reads."""
    with poolkit.SharedArray.copy_of(np.full((mebibytes, 1 << 20), 100, np.uint8)) as picture:
        with poolkit.Worker(brighten) as worker:
            worker.send(picture)
            seen = worker.recv()
        print(
            f"(c) {picture.array.nbytes >> 20} MiB brightened from 100 to {picture.array.min()}; the worker saw {seen}"
        )
        print(f"    what was sent of it: a handle of {len(pickle.dumps(picture))} bytes")


class Tokenizer:
    """Numbers words by a vocabulary that is made once."""

    def __init__(self, words: list[str]) -> None:
        self._numbers = {word: number for number, word in enumerate(words)}
        self.calls = 0

    def encode(self, text: str) -> list[int]:
        """The number of each word; -1 for one that is not known."""
        self.calls += 1
        return [self._numbers.get(word, -1) for word in re.findall(r"\w+", text.lower())]

    async def encode_later(self, text: str) -> list[int]:
        """The same, as a coroutine of the worker."""
        await asyncio.sleep(0.01)
        return self.encode(text)


async def call_an_object() -> None:
    """(d) One object, called from many coroutines; calls run one after the other."""
    async with poolkit.Worker.hosting(Tokenizer, ["a", "pool", "of", "workers"]) as worker:
        texts = ["A pool of workers", "workers of a cluster"]
        found = await asyncio.gather(worker.call("encode", texts[0]), worker.call("encode_later", texts[1]))
        print(f"(d) {found[0]} and {found[1]}")
        try:
            await worker.call("decode", found[0])
        except AttributeError as error:
            print(f"    {error}")


def parse(port: poolkit.Port) -> None:
    """Say the length of each text; a picture of address 0 ends it."""
    port.send(os.getpid())
    for text in port:
        if not text:
            ctypes.string_at(0)
        port.send(len(text))


def replace_what_dies() -> None:
    """(e) A worker is not restarted by itself: that is for `on_exit`, or whoever gets the error."""
    exits: queue.SimpleQueue[poolkit.WorkerExited] = queue.SimpleQueue()
    worker = poolkit.Worker(parse, name="parser")
    worker.on_exit(exits.put)
    first = worker.recv()
    worker.send("")
    try:
        worker.recv()
    except poolkit.WorkerCrashed as error:
        where = re.search(r"in parse\b", error.stack)
        print(f"(e) {worker.name} died of {error.signal}, {where.group() if where else 'who knows where'}")
    exited = exits.get(timeout=10)
    print(
        f"    on_exit was told: {exited.cause}, {exited.signal}, {'its' if exited.pid == first else 'another'} process"
    )
    with poolkit.Worker(parse, name="parser") as successor:
        is_new = successor.recv() != first
        successor.send("four")
        print(f"    its successor, {'a new process' if is_new else 'the same'}, says {successor.recv()}")


def main() -> None:
    """Show all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fibonacci", type=int, default=27, metavar="N", help="for (b) (default: 27)")
    parser.add_argument("--mebibytes", type=int, default=64, metavar="N", help="of the picture in (c) (default: 64)")
    asked = parser.parse_args()
    sum_by_messages()
    asyncio.run(calculate_beside_a_loop(asked.fibonacci))
    brighten_in_place(asked.mebibytes)
    asyncio.run(call_an_object())
    replace_what_dies()


if __name__ == "__main__":
    main()
