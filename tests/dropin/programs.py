"""Small programs as they are written for `ProcessPoolExecutor`: what users' scripts do, one habit each.

`Executor` stands for the class in them; see `support_pools.py`. The last line that one prints says "right", or what was
found instead. `compare.py` runs them with several pools, `test_programs.py` with poolkit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import support_pools as pools

TESTS = Path(__file__).resolve().parents[1]
SECONDS = 25.0  # after so long, a program hangs
HEAD = "import os, sys, threading, time\nfrom support_pools import Executor, outcome, told\n"


class Program(NamedTuple):
    """One program, and what is looked at."""

    title: str
    source: str
    on_stdin: bool = False


def _program(title: str, source: str, main: str, *, on_stdin: bool = False) -> Program:
    body = textwrap.indent(textwrap.dedent(main).strip(), "    ")
    return Program(title, f'{HEAD}{textwrap.dedent(source)}\nif __name__ == "__main__":\n{body}\n', on_stdin)


PROGRAMS: dict[str, Program] = {
    # ===== the script's module in its workers =====
    "initializer": _program(
        "an initializer sets a global, tasks read it",
        """
        connection = None

        def connect(name):
            global connection
            connection = name

        def query():
            return connection
        """,
        """
        with Executor(1, initializer=connect, initargs=("database",)) as pool:
            told(outcome(pool.submit(query)), "database")
        """,
    ),
    "counter": _program(
        "a counter in a global is kept between tasks",
        """
        count = 0

        def count_up():
            global count
            count += 1
            return count
        """,
        """
        with Executor(1) as pool:
            told([outcome(pool.submit(count_up)) for _ in range(3)], [1, 2, 3])
        """,
    ),
    "generator": _program(
        "`rng = random.Random(1)` of the script: the tasks of a worker draw different numbers",
        """
        import random
        rng = random.Random(1)

        def draw():
            return rng.random()
        """,
        """
        with Executor(1) as pool:
            told(len({outcome(pool.submit(draw)) for _ in range(20)}), 20)
        """,
    ),
    "generators": _program(
        "... and two workers draw different ones, too",
        """
        import random
        rng = random.Random(1)

        def draw():
            time.sleep(0.05)
            return rng.random()
        """,
        """
        with Executor(2) as pool:
            told(len({outcome(task) for task in [pool.submit(draw) for _ in range(20)]}), 20)
        """,
    ),
    "lru_cache": _program(
        "`functools.lru_cache` on a function of the script: computed once in a worker",
        """
        import functools

        @functools.lru_cache
        def compute(number):
            return number * 2

        def hits(number):
            compute(number)
            return compute.cache_info().hits
        """,
        """
        with Executor(1) as pool:
            told([outcome(pool.submit(compute, 4))] + [outcome(pool.submit(hits, 4)) for _ in range(2)], [8, 1, 2])
        """,
    ),
    "enum": _program(
        "an Enum with `__init__`, as argument and result",
        """
        import enum

        class Planet(enum.Enum):
            MERCURY = (3.3e23, 2.4e6)
            EARTH = (5.9e24, 6.3e6)

            def __init__(self, mass, radius):
                self.mass, self.radius = mass, radius

        def other(planet):
            assert planet is Planet.EARTH and planet.radius == 6.3e6
            return Planet.MERCURY
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(other, Planet.EARTH)), Planet.MERCURY)
        """,
    ),
    "slots": _program(
        "a dataclass with slots and required fields",
        """
        import dataclasses

        @dataclasses.dataclass(slots=True)
        class Point:
            x: int
            y: int = dataclasses.field(default_factory=lambda: 2)

        def shift(point):
            try:
                Point()
            except TypeError:
                return dataclasses.replace(point, x=point.x + 1)
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(shift, Point(1))), Point(2))
        """,
    ),
    "singledispatch": _program(
        "`functools.singledispatch` with an implementation for a class of the script",
        """
        import functools

        class Shape:
            pass

        @functools.singledispatch
        def area(shape):
            return 0

        @area.register
        def _(shape: Shape):
            return 5
        """,
        """
        with Executor(1) as pool:
            told([outcome(pool.submit(area, Shape())), outcome(pool.submit(area, 1))], [5, 0])
        """,
    ),
    "lock": _program(
        "a lock and a `threading.local` among the globals",
        """
        lock, local = threading.Lock(), threading.local()

        def work(number):
            with lock:
                local.number = getattr(local, "number", 0) + number
                return local.number
        """,
        """
        with Executor(1) as pool:
            told([outcome(pool.submit(work, 1)) for _ in range(2)], [1, 2])
        """,
    ),
    "pickle-file": _program(
        "a task reads a pickle file with classes of the script",
        """
        import pickle, tempfile

        class Model:
            weight = 3

        def load(path):
            with open(path, "rb") as file:
                return isinstance(pickle.load(file), Model)
        """,
        """
        with tempfile.NamedTemporaryFile() as file, Executor(1) as pool:
            pickle.dump(Model(), file)
            file.flush()
            told(outcome(pool.submit(load, file.name)))
        """,
    ),
    "by-name": _program(
        "`globals()[name]`, `getattr(sys.modules['__main__'], name)`, `__main__.__file__`",
        """
        def double(number):
            return number * 2

        def call(name):
            main = sys.modules["__main__"]
            return globals()[name](1), getattr(main, name)(2), os.path.basename(main.__file__)
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(call, "double")), (2, 4, os.path.basename(__file__)))
        """,
    ),
    "nested": _program(
        "a task opens a `ProcessPoolExecutor` for functions of the script",
        """
        def double(number):
            return number * 2

        def outer():
            from concurrent.futures import ProcessPoolExecutor
            with ProcessPoolExecutor(1) as pool:
                return pool.submit(double, 4).result(5)
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(outer)), 8)
        """,
    ),
    "recursion-limit": _program(
        "the recursion limit set at the top of the script",
        """
        sys.setrecursionlimit(5000)

        def deep(number):
            return 0 if not number else 1 + deep(number - 1)
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(deep, 3000)), 3000)
        """,
    ),
    "decimal": _program(
        "the precision of `decimal` set at the top of the script",
        """
        import decimal
        decimal.getcontext().prec = 5

        def third():
            return str(decimal.Decimal(1) / 3)
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(third)), "0.33333")
        """,
    ),
    "no-guard": Program(
        "a script without `if __name__ == '__main__'`",
        HEAD
        + textwrap.dedent("""
        def double(number):
            return number * 2

        with Executor(1) as pool:
            told(outcome(pool.submit(double, 4)), 8)
        """),
    ),
    "stdin": _program(
        "a script that Python reads from standard input",
        """
        def double(number):
            return number * 2
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(double, 4)), 8)
        """,
        on_stdin=True,
    ),
    "lambda": _program(
        "a lambda, and a closure",
        """
        def adder(left):
            return lambda right: left + right
        """,
        """
        with Executor(1) as pool:
            told([outcome(pool.submit(lambda: 5)), outcome(pool.submit(adder(1), 2))], [5, 3])
        """,
    ),
    "traceback": _program(
        "the remote traceback shows the line of the script",
        """
        def divide(number):
            return number / 0  # this line
        """,
        """
        import traceback
        with Executor(1) as pool:
            error = pool.submit(divide, 4).exception(10)
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            told("return number / 0  # this line" in text)
        """,
    ),
    # ===== map =====
    "map-unread": _program(
        "`map` whose results nobody reads does all of it",
        """
        import tempfile

        def save(path):
            open(path, "w").close()
        """,
        """
        with tempfile.TemporaryDirectory() as folder:
            with Executor(2) as pool:
                pool.map(save, [os.path.join(folder, str(number)) for number in range(50)])
            told(len(os.listdir(folder)), 50)
        """,
    ),
    "map-later": _program(
        "results of `map` are read behind the `with` block",
        """
        def double(number):
            return number * 2
        """,
        """
        with Executor(2) as pool:
            results = pool.map(double, range(20))
        try:
            told(list(results), [number * 2 for number in range(20)])
        except Exception as exc:
            told(type(exc).__name__)
        """,
    ),
    # ===== what multiprocessing hands on =====
    "connection": _program(
        "an end of `multiprocessing.Pipe()` as an argument",
        """
        import multiprocessing

        def tell(connection):
            connection.send("hello")
            return "sent"
        """,
        """
        pipes = [multiprocessing.Pipe() for _ in range(3)]
        ours, theirs = multiprocessing.Pipe()
        with Executor(1) as pool:
            told([outcome(pool.submit(tell, theirs)), ours.poll(2) and ours.recv()], ["sent", "hello"])
        """,
    ),
    "socket": _program(
        "a socket as an argument",
        """
        import socket

        def answer(connection):
            connection.sendall(b"hello")
            return "sent"
        """,
        """
        ours, theirs = socket.socketpair()
        ours.settimeout(2)
        with Executor(1) as pool:
            first = outcome(pool.submit(answer, theirs))
            told([first, first == "sent" and ours.recv(10)], ["sent", b"hello"])
        """,
    ),
    "connection-back": _program(
        "a task returns an end of a pipe",
        """
        import multiprocessing

        def open_line():
            ours, theirs = multiprocessing.Pipe()
            theirs.send("hello")
            return ours
        """,
        """
        with Executor(1) as pool:
            found = outcome(pool.submit(open_line))
            told(found.recv() if hasattr(found, "recv") else found, "hello")
        """,
    ),
    "shared-memory": _program(
        "a `SharedMemory` block as argument and result, and the worker ends",
        """
        from multiprocessing.shared_memory import SharedMemory

        def work(block):
            block.buf[0] += 1
            return block.buf[0]

        def make():
            made = SharedMemory(create=True, size=10)
            made.buf[0] = 7
            return made
        """,
        """
        block = SharedMemory(create=True, size=10)
        with Executor(1) as pool:
            found = [outcome(pool.submit(work, block)), block.buf[0]]
            made = outcome(pool.submit(make))
        again = SharedMemory(block.name)
        found += [again.buf[0], made.buf[0] if hasattr(made, "buf") else made]
        for each in (again, block, made):
            if hasattr(each, "close"):
                each.close()
        block.unlink()
        if hasattr(made, "unlink"):
            made.unlink()
        told(found, [1, 1, 1, 7])
        """,
    ),
    # ===== who a worker is =====
    "identity": _program(
        "in a worker, `parent_process()` is one and `current_process().name` is not `MainProcess`",
        """
        import multiprocessing

        def who():
            process = multiprocessing.current_process()
            return multiprocessing.parent_process() is not None, process.name != "MainProcess", bool(process._identity)
        """,
        """
        with Executor(1) as pool:
            told(outcome(pool.submit(who)), (True, True, True))
        """,
    ),
    # ===== exceptions =====
    "frozen": _program(
        "an exception that is a frozen dataclass arrives with its cause",
        """
        import dataclasses

        @dataclasses.dataclass(frozen=True)
        class Refused(Exception):
            reason: str

        def fail():
            try:
                1 / 0
            except ZeroDivisionError as exc:
                raise Refused("closed") from exc
        """,
        """
        with Executor(1) as pool:
            try:
                error = pool.submit(fail).exception(10)
                told((type(error).__name__, getattr(error, "reason", None), error.__cause__ is not None),
                     ("Refused", "closed", True))
            except Exception as exc:
                told(type(exc).__name__)
        """,
    ),
    "required": _program(
        "an exception whose `__init__` has a required keyword arrives as itself",
        """
        class Refused(Exception):
            def __init__(self, message, *, code):
                super().__init__(message)
                self.code = code

        def fail():
            raise Refused("closed", code=5)
        """,
        """
        with Executor(1) as pool:
            error = pool.submit(fail).exception(10)
            told((type(error).__name__, str(error), getattr(error, "code", None)), ("Refused", "closed", 5))
        """,
    ),
    "crash": _program(
        "one task crashes, the others deliver",
        """
        def work(number):
            time.sleep(0.05)
            if number == 5:
                os.abort()
            return number
        """,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with Executor(2) as pool:
            tasks = [pool.submit(work, number) for number in range(20)]
            told(sum(type(outcome(task)) is int for task in tasks), 19)
        """,
    ),
    "broken": _program(
        "`except BrokenProcessPool` catches a crash",
        """
        def crash():
            os._exit(3)
        """,
        """
        from concurrent.futures.process import BrokenProcessPool
        with Executor(1) as pool:
            try:
                pool.submit(crash).result(10)
            except BrokenProcessPool:
                told(True)
            except Exception as exc:
                told(type(exc).__name__)
        """,
    ),
    # ===== parameters, logging =====
    "mp_context": _program(
        "`mp_context=multiprocessing.get_context('spawn')`",
        """
        import multiprocessing

        def double(number):
            return number * 2
        """,
        """
        try:
            with Executor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                told(outcome(pool.submit(double, 4)), 8)
        except TypeError as exc:
            told("TypeError")
        """,
    ),
    "logging": _program(
        "`logging.basicConfig` in an initializer: a task's INFO record is written once",
        """
        import logging, tempfile

        def configure(path):
            logging.basicConfig(filename=path, level=logging.INFO, force=False)

        def work():
            logging.getLogger("work").info("hello")
        """,
        """
        with tempfile.NamedTemporaryFile("r") as file:
            with Executor(1, initializer=configure, initargs=(file.name,)) as pool:
                outcome(pool.submit(work))
            told(file.read().count("hello"), 1)
        """,
    ),
}


def run(name: str, pool: str, folder: Path) -> str:
    """Run a program with a pool, in a file in `folder`; "right", or what was wrong. Ends all that it started."""
    program = PROGRAMS[name]
    path = folder / f"program_{name.replace('-', '_')}.py"  # not the name of a module that it imports
    path.write_text(program.source)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env = {**os.environ, "PYTHONPATH": paths, pools.POOL: pool}
    with path.open() as source, (folder / "out").open("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-"] if program.on_stdin else [sys.executable, os.fspath(path)],
            stdin=source if program.on_stdin else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=folder,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
            hangs = False
        except subprocess.TimeoutExpired:
            hangs = True
        _end(process)
        out.seek(0)
        lines = out.read().split("\n")
    verdicts = [line for line in lines if line == "right" or line.startswith("found ")]
    if len(verdicts) == 1 and not hangs and process.returncode == 0:
        return verdicts[0]
    if hangs:
        return "hangs" if not verdicts else f"{verdicts[0]}, and hangs"
    firsts = [line.partition(":")[0] for line in lines]
    errors = [first for first in firsts if "Error" in first and " " not in first]
    what = errors[-1].rpartition(".")[2] if errors else f"exit code {process.returncode}"
    return " and ".join([*dict.fromkeys(verdicts), what])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a session."""
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        process.poll()
        time.sleep(0.01)  # noqa: TID251 -- no event to wait on
    process.wait()
