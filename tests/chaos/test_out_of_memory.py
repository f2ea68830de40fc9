"""Workers that the kernel's out-of-memory killer ends, in a control group with a limit made for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import poolkit
import support
import support_functions as work
from poolkit import Pool, WorkerCrashed
from support_groups import limited_group

LIMIT = 64 << 20
PROGRAM = """\
import os, pathlib, sys, poolkit, support_functions as work
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
def eat():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
with poolkit.Pool(2) as pool:
    tasks = [pool.submit(work.square, number) for number in range(100)]
    print(pool.submit(eat).exception())
    assert [task.result() for task in tasks] == [number**2 for number in range(100)]
    print(pool.submit(work.die).exception())
"""


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of its own, with a limit."""
    with limited_group(LIMIT) as group:
        yield group


def join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def eat() -> NoReturn:
    print("eating", file=sys.__stdout__, flush=True)
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


@pytest.mark.slow
def test_a_kill_for_want_of_memory_in_the_programs_group_is_named(memory_group: Path) -> None:
    """With the limit; and a kill by somebody else afterwards is not put down to it."""
    paths = [str(Path(support.__file__).parent), *(str(Path(path).parent) for path in poolkit.__path__)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(memory_group)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
        timeout=support.WATCHDOG,
    )
    first, second = done.stdout.splitlines()
    assert "was killed by SIGKILL while it ran task 101 (eat, attempt 1); it used up to " in first
    assert re.search(r"; in the \d+ s before, the kernel's out-of-memory killer ended 1 process of its control ", first)
    assert "group, most likely this one: the 67 MB of the group were used up; allow more" in first
    assert "killed by SIGKILL while it ran task 102 (die, attempt 1)" in second
    assert "of its control group" not in second  # what is said of the rest of the machine, others may have a part in


@pytest.mark.slow
def test_a_kill_in_a_group_of_the_workers_own_is_told_with_a_doubt(memory_group: Path) -> None:
    with Pool(1, initializer=join, initargs=(memory_group,)) as pool:
        error = pool.submit(eat).exception()
        assert type(error) is WorkerCrashed
        assert error.signal == "SIGKILL"
        assert "out-of-memory killer ended 1 process on the machine, perhaps this one" in error.hint
        assert error.output == "eating\n"
        assert (error.peak_rss or 0) > LIMIT // 2
        assert pool.submit(work.add, 1, 2).result() == 3
