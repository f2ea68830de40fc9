"""What a worker knows of the script survives its death; nothing of the script is run again; large data go once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import support

ROOT = Path(__file__).parents[2]
SCALE = int(os.environ.get("POOLKIT_CHAOS_SCALE", "1"))

KILLS = """
import dataclasses, enum, os, random, signal, sys, threading, time
import poolkit

rate = 3
table = {"a": 1}
model = None
calls = 0

class Kind(enum.Enum):
    DOUBLE = (2,)
    TRIPLE = (3,)
    def __init__(self, factor):
        self.factor = factor

@dataclasses.dataclass(slots=True)
class Item:
    x: int
    kind: Kind

def load(value):
    global model
    model = value

def helper(x):
    return x * rate + table["a"]

def work(item):
    global calls
    calls += 1
    return Item(helper(item.x) * item.kind.factor + model, item.kind)

killed, stop = set(), threading.Event()

def kill(pool):
    while not stop.wait(random.random() * 0.2):
        pids = [info.pid for info in pool.workers() if info.pid and info.tasks_done]
        if pids:
            pid = random.choice(pids)
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

if __name__ == "__main__":
    count = int(sys.argv[1])
    kinds = list(Kind)
    with poolkit.Pool(2, initializer=load, initargs=(7,), start_method=sys.argv[2]) as pool:
        killer = threading.Thread(target=kill, args=(pool,))
        killer.start()
        wrong = crashed = done = 0
        for start in range(0, count, 500):
            rate, table["a"] = 3 + start % 7, 1 + start % 5
            tasks = [(x, pool.submit(work, Item(x, kinds[x % 2]))) for x in range(start, start + 500)]
            for x, task in tasks:
                error = task.exception()
                if isinstance(error, poolkit.WorkerCrashed) and error.pid in killed:
                    crashed += 1
                elif error is not None:
                    raise error
                else:
                    done += 1
                    wrong += task.result() != Item((x * rate + table["a"]) * kinds[x % 2].factor + 7, kinds[x % 2])
        stop.set()
        killer.join()
    print(wrong, done + crashed, crashed <= len(killed))
"""

ONCE = """
import os, sys
with open(os.environ["TRACE"], "a") as file:
    file.write("run\\n")
import poolkit

class Base:
    def run(self, x):
        return x + 1

class Thing(Base):
    pass

def work(x):
    return Thing().run(x)

for method in ("forkserver", "spawn", "fork"):
    with poolkit.Pool(2, start_method=method) as pool:
        print(list(pool.map(work, range(5))), pool.submit(lambda: Thing().run(1)).result())
"""

LARGE = """
import numpy as np
import poolkit

data = np.ones(3_000_000)

def use(i):
    return float(data[i])

def change(i):
    data[i] = 5
    return float(data[i]), float(data[i + 1])

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

with poolkit.Pool(2) as pool:
    pool.warm_up()
    before = resident()
    tasks = [pool.submit(use, i) for i in range(30)]
    grown = resident() - before
    total = sum(task.result() for task in tasks)
    stats = pool.stats()
    print(total, grown < 10, stats.link_bytes_sent < 1 << 20, stats.arena_bytes_sent <= 2 * (data.nbytes + 4096))
    print(pool.submit(change, 3).result(), data[3])
"""

NESTED = """
import concurrent.futures, multiprocessing, os, warnings
with open(os.environ["TRACE"], "a") as file:
    file.write("run\\n")
import poolkit

class Item:
    def __init__(self, x):
        self.x = x

def leaf(item):
    return Item(item.x + 1)

def inner(method):
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings(record=True) as caught, open(os.devnull, "w") as null:
        warnings.simplefilter("always")
        os.dup2(null.fileno(), 2)  # the child's complaint
        try:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                found = [item.x for item in pool.map(leaf, [Item(1)])]
        except Exception as error:
            found = type(error).__name__
    return found, any("guard" in str(each.message) for each in caught)

def main():
    with poolkit.Pool(1) as pool:
        for method in ("fork", "spawn", "forkserver"):
            print(*pool.submit(inner, method).result())
"""


OVERTAKEN = """
import os, sys, time
import poolkit

class C:
    n = 0

listed, text, D, E = [0], "0", "there", "there"

def values():
    return listed[0], int(text), C.n

def look():
    return D

def bind():
    global E
    E, C.n = "own", 100

def look_at_own():
    return E, C.n

def hold(path):
    while not os.path.exists(path):
        time.sleep(0.01)

with poolkit.Pool(1, start_method=sys.argv[1]) as pool:
    held, tasks = pool.submit(hold, os.environ["TRACE"]), []
    for number in range(4):
        tasks.append(pool.options(priority=number).submit(values))
        listed[0], text, C.n = number + 1, str(number + 1), number + 1
    bound = pool.options(priority=-1).submit(look)
    del D
    unbound = pool.submit(look)
    open(os.environ["TRACE"], "w").close()
    print([task.result() for task in tasks], bound.result(), unbound.exception())
    pool.submit(bind).result()
    E, C.n = "rebound", 200
    print(pool.submit(look_at_own).result())
"""


FORKED_TWICE = """
import sys
import poolkit

data, count = {"value": 0}, 0

class C:
    limit = 0

def look():
    return data["value"], count, C.limit

def change(method):
    global data, count
    found = []
    with poolkit.Pool(1, start_method=method) as pool:
        for number in range(1, 4):
            data["value"] = count = C.limit = number
            found.append(pool.submit(look).result())
        data = {"value": 4}
        found.append(pool.submit(look).result())
    return found

with poolkit.Pool(1, start_method=sys.argv[1]) as pool:
    for number in range(3):
        data["value"] = number
        pool.submit(look).result()
    print(pool.submit(change, "fork").result())
"""


def run(source: str, folder: Path, *arguments: str) -> list[str]:
    path = folder / "prog.py"
    path.write_text(source, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRACE": str(folder / "trace")}
    argv = [sys.executable, str(path), *arguments]
    limit = support.WATCHDOG * SCALE
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=limit)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.every_nth(9)
@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_worker_that_replaces_a_killed_one_knows_the_script(tmp_path: Path, method: str) -> None:
    count = 1000 * SCALE
    assert run(KILLS, tmp_path, str(count), method) == [f"0 {count} True"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_tasks_that_are_overtaken_see_the_globals_of_their_submit(tmp_path: Path, method: str) -> None:
    """Also what a copy of the script began with; what a task has bound stays."""
    values = [(number,) * 3 for number in range(4)]
    assert run(OVERTAKEN, tmp_path, method) == [f"{values} there name 'D' is not defined", "('own', 100)"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_forks_of_a_worker_have_what_that_worker_sends_them(tmp_path: Path, method: str) -> None:
    """Whatever the worker itself was sent before."""
    assert run(FORKED_TWICE, tmp_path, method) == [str([(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 3, 3)])]


@pytest.mark.slow
def test_nothing_of_a_script_is_run_again(tmp_path: Path) -> None:
    assert run(ONCE, tmp_path) == ["[1, 2, 3, 4, 5] 2"] * 3
    assert (tmp_path / "trace").read_text() == "run\n"


@pytest.mark.slow
def test_a_large_global_is_sent_once_to_each_worker_which_has_its_own(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    assert run(LARGE, tmp_path) == ["30.0 True True True", "(5.0, 1.0) 1.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "lines", "runs"),
    [
        ("if __name__ == '__main__':\n    main()\n", ["[2] False"] * 3, 3),  # by multiprocessing, twice
        ("main()\n", ["[2] False", "BrokenProcessPool True", "BrokenProcessPool True"], 1),
    ],
    ids=["guard", "no-guard"],
)
def test_pools_of_multiprocessing_in_a_task_run_a_script_that_has_a_guard(
    tmp_path: Path, end: str, lines: list[str], runs: int
) -> None:
    assert run(NESTED + end, tmp_path) == lines
    assert (tmp_path / "trace").read_text() == "run\n" * runs
