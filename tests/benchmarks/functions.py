"""What the workers run. Importable, so that every contender can send it by name.

It imports next to nothing: a new worker has to do that, too, before it can answer.
"""

from __future__ import annotations

import os
import signal
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MARK = struct.Struct("d")


def noop(_item: object = None) -> None:
    """Do nothing: what is left is the cost of the call."""


def echo(value: object) -> object:
    """Send it back."""
    return value


def summary(name: str, numbers: tuple[float, ...], factor: float) -> dict[str, object]:
    """Take a few small arguments and return a small value, as most calls do."""
    return {"name": name, "total": factor * sum(numbers)}


def total(array: Any) -> float:
    """Read all of an array, and send back next to nothing."""
    return float(array.sum())


def look(shared: Any) -> None:
    """Open an array in shared memory, and read none of it."""
    assert shared.array.size


def thumbnail(picture: bytes) -> bytes:
    """Make a small JPEG of a picture."""
    import io

    from PIL import Image

    made = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").resize((128, 128)).save(made, "JPEG")
    return made.getvalue()


def nap(seconds: float) -> None:
    """Take that long, without a CPU."""
    time.sleep(seconds)


def hold(fifo: str) -> None:
    """Keep a worker until somebody writes a byte."""
    fd = os.open(fifo, os.O_RDONLY)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)


def die(fifo: str) -> None:
    """Say when, then die as after an out-of-memory kill."""
    mark(fifo)
    os.kill(os.getpid(), signal.SIGKILL)


def run_away(fifo: str) -> None:
    """Say when, then never end."""
    mark(fifo)
    while True:
        pass


def hold_the_gil(fifo: str) -> None:
    """Say when, then hang in C, where no signal handler in Python would be run."""
    import ctypes

    sleep = ctypes.PyDLL(None).sleep
    mark(fifo)
    sleep(3600)


def mark(fifo: str) -> None:
    """Write the instant into a fifo. On Linux the clock is the same in every process."""
    fd = os.open(fifo, os.O_WRONLY)
    try:
        os.write(fd, MARK.pack(time.perf_counter()))
    finally:
        os.close(fd)


# ===== what runs for a while =====


def numbers(count: int) -> Any:
    """Yield ints."""
    yield from range(count)


def records(count: int) -> Any:
    """Yield records of four fields."""
    for number in range(count):
        yield {"id": number, "name": "record", "value": number * 0.5, "tags": ("a", "b")}


def arrays(count: int) -> Any:
    """Yield arrays of 8 MiB."""
    import numpy as np

    for number in range(count):
        yield np.full(1 << 20, number, dtype=np.float64)


def stamps(count: int) -> Any:
    """Yield the time, every two milliseconds."""
    for _ in range(count):
        time.sleep(0.002)
        yield time.monotonic()


def stamps_in_bursts(count: int) -> Any:
    """Yield the time ten times at once, then compute for 50 ms."""
    for number in range(count):
        yield time.monotonic()
        if number % 10 == 9:
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                pass


def closing(path: str) -> Any:
    """Yield for ever, and leave a file at the end."""
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        open(path, "w").close()  # noqa: PTH123 -- pathlib is not loaded in a worker


def say(count: int) -> None:
    """Send messages."""
    import poolkit

    task: Any = poolkit.current_task()
    for record in records(count):
        task.send(record)


def answer(count: int) -> None:
    """Answer messages."""
    import poolkit

    task: Any = poolkit.current_task()
    for _ in range(count):
        task.send(task.receive())
