"""What long streams hold of memory: a window of items, whatever comes through it; and messages that nobody reads.

By default a slice; POOLKIT_CHAOS_SCALE=34 POOLKIT_TIMEOUT_SCALE=30 makes it ten million numbers, and ten thousand
arrays.
"""

from __future__ import annotations

import os

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

SCALE = float(os.environ.get("POOLKIT_CHAOS_SCALE", "1"))
HEAD = """
import ctypes
import logging
import os
import sys
import numpy as np
import poolkit

def resident(*pids):
    ctypes.CDLL(None).malloc_trim(0)  # gives back what malloc keeps of what was freed
    return [int(line.split()[1]) << 10 for pid in pids for line in open(f"/proc/{pid}/status") if "VmRSS" in line]

def arrays(count):
    for number in range(count):
        yield np.full(1 << 17, number, dtype="i8")
"""
NUMBERS = f"""{HEAD}
count = int(sys.argv[1])
with poolkit.Pool(1) as pool:
    right, stream = 0, pool.stream(range, count)
    for number, item in enumerate(stream):
        right += number == item
        if number == count // 10:
            pids = os.getpid(), pool.workers()[0].pid
            before = resident(*pids)
        elif number == count - 2000:  # the worker is there: it has made no more than a window
            after = resident(*pids)
    print(right, *(late - early for early, late in zip(before, after)), *after)
"""
ARRAYS = f"""{HEAD}
count = int(sys.argv[1])
with poolkit.Pool(1) as pool:
    right = most = 0
    for number, array in enumerate(pool.stream(arrays, count)):
        right += len(array) == 1 << 17 and array[0] == array[-1] == number
        most = max(most, pool.stats().arena_bytes)
    print(right, most)
"""
UNHEARD = f"""{HEAD}
def say(count):
    for number in range(count):
        poolkit.current_task().send((number, "." * 1000))

count = int(sys.argv[1])
logging.getLogger("poolkit").setLevel("ERROR")  # it warns
with poolkit.Pool(1) as pool:
    pool.submit(int).result()
    before, = resident(os.getpid())
    task = pool.submit(say, count)
    task.result()
    after, = resident(os.getpid())
    found = [message[0] for message in task.messages()]
    print(found == list(range(count - len(found), count)), task.messages().dropped + len(found), after - before)
"""


@pytest.mark.long
def test_millions_of_small_items_take_no_more_memory_than_a_few() -> None:
    """Between the tenth part of them and the last, neither side grows by 2 MiB."""
    count = round(300_000 * SCALE)
    right, owner, worker, *held = map(int, run(NUMBERS, str(count))[0].split())
    print(f"{count:,} numbers: the owner grew by {owner:,} bytes, the worker by {worker:,}; they have {held}")
    assert right == count
    assert max(owner, worker) < 2 << 20


def test_thousands_of_arrays_go_through_a_few_blocks() -> None:
    count = round(300 * SCALE)
    right, most = map(int, run(ARRAYS, str(count))[0].split())
    print(f"{count:,} arrays of 1 MiB: {most / (1 << 20):.1f} MiB of shared memory at most")
    assert right == count
    assert most < 16 << 20


def test_messages_that_nobody_reads_take_a_bounded_amount_of_memory() -> None:
    count = round(30_000 * SCALE)
    right, accounted, grown = run(UNHEARD, str(count))[0].split()
    print(f"{count:,} messages of 1 KiB that nobody reads: the owner grew by {int(grown):,} bytes")
    assert (right, int(accounted)) == ("True", count)
    assert int(grown) < 20 << 20
