"""Where there is one CPU, and so one worker, streams whose readers need the pool go on as they do elsewhere."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.long

SCRIPT = """
import logging
import os
import sys

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import poolkit

logging.disable()  # it tells of so many streams that wait

def count(stop):
    yield from range(stop)

with poolkit.Pool(kind=sys.argv[1]) as pool:
    print(pool.max_workers)
    view = pool.options(buffersize=2)
    print([pool.submit(pow, item, 2).result() for item in view.stream(count, 4)])
    streams = [view.stream(count, 3) for _ in range(100)]
    print(all([next(stream) for stream in streams] == [number] * 100 for number in range(3)))
"""


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_streams_and_tasks_share_one_worker(kind: str) -> None:
    assert run(SCRIPT, kind) == ["1", "[0, 1, 4, 9]", "True"]
