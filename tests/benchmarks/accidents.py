"""A run with accidents, as its timeline shows it: docs/crash.svg.

Usage: python tests/benchmarks/accidents.py [FILE]

Of many tasks one crashes its worker, another one the first time it runs, and one never ends. The others go on.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import poolkit

PICTURE = Path(__file__).resolve().parent.parent.parent / "docs/crash.svg"


def resize(number: int) -> int:
    """Take a while."""
    time.sleep(0.06 + 0.01 * (number % 5))
    return number


def parse(number: int) -> int:
    """Read where nothing is, as a fault in somebody's C code does."""
    time.sleep(0.1)
    return ctypes.string_at(number)[0]


def upload(number: int) -> int:
    """Crash, but not when it is tried again."""
    time.sleep(0.05)
    task = poolkit.current_task()
    return number if task is not None and task.attempt > 1 else parse(0)


def index(_: int) -> None:
    """Never end."""
    while True:
        pass


def main() -> None:
    """Run all of them in three workers."""
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with poolkit.Pool(max_workers=3, name="pictures") as pool:
        pool.warm_up()
        list(pool.map(resize, range(3)))  # so that all workers have it
        with pool.trace() as trace:
            tasks = [pool.submit(resize, number) for number in range(6)]
            tasks += [pool.submit(parse, 0), pool.options(timeout=0.4).submit(index, 0)]
            tasks += [pool.submit(resize, number) for number in range(12)]
            tasks += [pool.options(retries=1).submit(upload, 1), *(pool.submit(resize, number) for number in range(9))]
            poolkit_errors = [type(error).__name__ for task in tasks if (error := task.exception()) is not None]
        trace.save(picture)
    print(f"{len(tasks)} tasks, of which {len(poolkit_errors)} failed: {', '.join(poolkit_errors)}")


if __name__ == "__main__":
    main()
