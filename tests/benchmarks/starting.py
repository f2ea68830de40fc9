"""Programs that start: the time to the first result, and the memory that an idle pool takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import proc
from benchmarks.measure import Figures, Measure, Row, Sized

_FRESH = Path(__file__).with_name("fresh.py")
_SETTLE_SECONDS = 0.5


def start(name: str, sized: Sized) -> Figures:
    for _ in range(2):  # the first one makes byte code, and brings the files into the cache
        done = subprocess.run([sys.executable, _FRESH, name, "start"], capture_output=True, text=True, check=True)
        first, second = map(float, done.stdout.split())
    return {"first": first * 1e3, "second": second * 1e3}


def memory(name: str, sized: Sized) -> Figures:
    nothing, _ = _held("idle")
    total, processes = _held(name)
    return {"pss": (total - nothing) / 1e6, "processes": processes}


def _held(name: str) -> tuple[int, int]:
    """Bytes and number of the processes of a program that holds an idle pool."""
    with subprocess.Popen(
        [sys.executable, _FRESH, name, "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        os.read(program.stdout.fileno(), 1)  # it is ready
        time.sleep(_SETTLE_SECONDS)
        family = proc.family(program.pid)
        return sum(proc.pss(pid) for pid in family), len(family)


MEASURES = (
    Measure(
        "start",
        "a fresh interpreter, imports included, to the first result of a pool of 2",
        ("poolkit", "ppe-spawn", "ppe-fork"),
        (
            Row("first", "the first pool", "ms", {"ppe-spawn": "1.5, then 2.5"}, ("fork",)),
            Row("second", "a second pool of the same process", "ms", {"poolkit": "under 5.8, then 4"}, ("fork",)),
        ),
        start,
    ),
    Measure(
        "memory",
        "PSS of an idle pool of 2: owner and all its processes, above an idle interpreter",
        ("poolkit", "ppe-spawn", "ppe-fork"),
        (
            Row("pss", "in all", "MB", {"poolkit": "under 17, then 12"}, words=("smaller", "larger")),
            Row("processes", "processes, the owner included", "number", words=None),
        ),
        memory,
    ),
)
