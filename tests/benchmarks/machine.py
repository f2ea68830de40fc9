"""The machine's own limits: what no pool on it can beat. They run in the same rounds as the contenders."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable

from benchmarks.measure import Limit, Sized

_COPY_DOUBLES = 8 * 1024 * 1024


def round_trip_on_one_cpu(sized: Sized) -> float:
    """One byte to another process and back, both blocking, both on the same CPU: microseconds."""
    return _round_trip(sized(2_000), os.read, cpus=1)


def round_trip_across_cpus(sized: Sized) -> float:
    """The same on two CPUs, each of which has to be woken up."""
    return _round_trip(sized(2_000), os.read)


def spinning_round_trip(sized: Sized) -> float:
    """The same on two CPUs, both sides asking again and again instead of sleeping."""

    def spin(fd: int, count: int) -> bytes:
        while True:
            try:
                return os.read(fd, count)
            except BlockingIOError:
                os.sched_yield()

    return _round_trip(sized(2_000), spin, blocking=False)


def _round_trip(count: int, read: Callable[[int, int], bytes], *, blocking: bool = True, cpus: int = 2) -> float:
    """Each side stays on its CPU; left to itself, the kernel moves them between the two ways in one run."""
    there, back = os.pipe(), os.pipe()
    os.set_blocking(there[0], blocking)
    os.set_blocking(back[0], blocking)
    allowed = os.sched_getaffinity(0)
    chosen = sorted(allowed)[:cpus]
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, chosen[-1:])
        os.close(there[1])
        while read(there[0], 1):
            os.write(back[1], b"x")
        os._exit(0)
    os.sched_setaffinity(0, chosen[:1])
    started = 0.0
    for number in range(count + 100):
        if number == 100:  # the first ones warm up
            started = time.perf_counter()
        os.write(there[1], b"x")
        read(back[0], 1)
    took = time.perf_counter() - started
    os.sched_setaffinity(0, allowed)
    os.close(there[1])
    os.waitpid(child, 0)
    for fd in (there[0], *back):
        os.close(fd)
    return took / count * 1e6


def fork_and_wait(sized: Sized) -> float:
    """`os.fork` of a small process that ends at once, and `waitpid`: milliseconds."""
    count = sized(50)
    started = time.perf_counter()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return (time.perf_counter() - started) / count * 1e3


def memcpy(sized: Sized) -> float:
    """One copy of 64 MiB into shared memory that was touched before: milliseconds."""
    return _copy(sized, lambda _: None)


def memcpy_and_sum(sized: Sized) -> float:
    """The same, and the sum of the copy: what the worker does with the argument is no copy."""
    import numpy as np

    return _copy(sized, lambda copy: np.frombuffer(copy, np.float64).sum())


def _copy(sized: Sized, use: Callable[[memoryview], object]) -> float:
    nbytes = sized(_COPY_DOUBLES) * 8
    source, shared = bytearray(b"x") * nbytes, memoryview(mmap.mmap(-1, nbytes))
    count = sized(10)
    started = 0.0
    for number in range(count + 2):
        if number == 2:  # the first ones touch the pages
            started = time.perf_counter()
        shared[:] = source
        use(shared)
    return (time.perf_counter() - started) / count * 1e3


LIMITS = {
    "pipe": Limit("pipe round trip, one CPU", "us", round_trip_on_one_cpu),
    "pipes": Limit("pipe round trip, two CPUs", "us", round_trip_across_cpus),
    "spin": Limit("the same, spinning", "us", spinning_round_trip),
    "fork": Limit("os.fork and wait", "ms", fork_and_wait),
    "memcpy": Limit("warm memcpy of 64 MiB", "ms", memcpy),
    "memcpy-sum": Limit("the same, and its sum", "ms", memcpy_and_sum),
}
