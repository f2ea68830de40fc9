"""What tests have workers do. Importable by name here and in the workers, which get the owner's `sys.path`.

Every worker of every test imports it, so it imports little; nothing here needs the owner's half of the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import types
from typing import Any, NoReturn

import poolkit
from support_gates import Gate, Journal

# ===== plain work =====


def add(left: int, right: int) -> int:
    return left + right


def identity(value: Any) -> Any:
    return value


def square(number: int) -> int:
    return number * number


def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def none_of_it(*_args: Any) -> None:
    return None


def pid() -> int:
    return os.getpid()


def thread_id() -> int:
    return threading.get_ident()


def is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def share_of_pools() -> tuple[int, int, int]:
    """What this process may use, and the sizes of pools that are made without one."""
    with poolkit.Pool() as pool, poolkit.default_pool("thread") as default:
        return poolkit.usable_cpus(), pool.max_workers, default.max_workers


def in_preloaded(name: str, *args: Any) -> Any:
    """Call a function of the module with pools, which is preloaded."""
    return getattr(sys.modules["support_taken_over"], name)(*args)


def append_to(items: list[int], item: int) -> int:
    items.append(item)
    return len(items)


async def double_later(number: int) -> int:
    return number * 2


async def raise_later(text: str) -> NoReturn:
    raise KeyError(text)


# ===== order =====


def arrive(gate: Gate) -> None:
    gate.signal()


def arrive_and_wait(arrived: Gate, release: Gate, value: Any = None) -> Any:
    """Tell that the task runs, then hold it until the test lets it go."""
    arrived.signal()
    release.wait()
    return value


def arrive_and_raise(arrived: Gate, release: Gate, text: str) -> NoReturn:
    arrived.signal()
    release.wait()
    raise ValueError(text)


def arrive_and_die(arrived: Gate, release: Gate) -> NoReturn:
    arrived.signal()
    release.wait()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def write_line(journal: Journal, line: object) -> object:
    journal.write(line)
    return line


def write_when_released(arrived: Gate, release: Gate, journal: Journal) -> None:
    arrived.signal()
    release.wait()
    journal.write("went on")


def write_and_die(journal: Journal, line: object) -> NoReturn:
    journal.write(line)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def write_and_raise(journal: Journal, line: object, text: str) -> NoReturn:
    journal.write(line)
    raise ValueError(text)


def die_first_times(journal: Journal, times: int, value: Any) -> Any:
    """Die in the first runs, succeed afterwards."""
    journal.write("run")
    if len(journal.lines()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def raise_first_times(journal: Journal, times: int, value: Any) -> Any:
    journal.write("run")
    if len(journal.lines()) <= times:
        raise ConnectionError(str(len(journal.lines())))
    return value


# ===== ends =====


def die(number: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), number)
    raise AssertionError


def leave(code: int) -> NoReturn:
    os._exit(code)


def output_of(command: str) -> str:
    """What a program writes that inherits all it can."""
    import subprocess

    return subprocess.run(
        ["/bin/sh", "-c", command], close_fds=False, capture_output=True, text=True, check=True
    ).stdout


def segfault() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError


def spin(arrived: Gate | None = None) -> NoReturn:
    """Run for ever, in Python, so that a thread can be stopped too."""
    if arrived is not None:
        arrived.signal()
    while True:
        pass


def hold_the_gil(arrived: Gate | None = None) -> NoReturn:
    """Sleep in C without letting go of the interpreter's lock."""
    if arrived is not None:
        arrived.signal()
    ctypes.PyDLL(None).sleep(3600)
    raise AssertionError


def start_program(arrived: Gate, journal: Journal) -> NoReturn:
    """Start a program that would live on by itself, and wait for it."""
    import subprocess

    with subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"]) as program:
        journal.write(program.pid)
        arrived.signal()
        program.wait()
    raise AssertionError


def exit_python(code: object) -> NoReturn:
    sys.exit(code)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def close_generator() -> NoReturn:
    raise GeneratorExit


# ===== errors =====


class SlowToReadError(Exception):
    """Unpickled in the process of that number, it waits."""

    def __init__(self, owner: int, arrived: Gate, release: Gate) -> None:
        super().__init__(owner, arrived, release)

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_slowly, self.args


def _read_slowly(owner: int, arrived: Gate, release: Gate) -> SlowToReadError:
    if os.getpid() == owner:
        arrived.signal()
        release.wait()
    return SlowToReadError(owner, arrived, release)


def raise_slow_to_read(owner: int, arrived: Gate, release: Gate) -> NoReturn:
    raise SlowToReadError(owner, arrived, release)


def raise_value_error(text: str) -> NoReturn:
    raise ValueError(text)


def raise_if_negative(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return number


class AttributedError(Exception):
    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _attributed, (self.args[0], self.code)


def _attributed(message: str, code: int) -> AttributedError:
    return AttributedError(message, code=code)


def raise_attributed(message: str, code: int) -> NoReturn:
    raise AttributedError(message, code=code)


class UnbuildableError(Exception):
    """Pickles, and cannot be unpickled by its own recipe."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def raise_unbuildable() -> NoReturn:
    raise UnbuildableError("this", "that")


def raise_lost() -> NoReturn:
    """Raise an exception of a class that only this process can find."""
    module = types.ModuleType("only_in_the_worker")
    sys.modules[module.__name__] = module
    exec("class LostError(Exception): pass", module.__dict__)  # noqa: S102 -- our own source
    raise module.LostError("this and that")


def raise_with_cause_and_notes() -> NoReturn:
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        error = RuntimeError("the effect")
        if hasattr(error, "add_note"):
            error.add_note("a note")
        raise error from cause


def raise_with_context() -> NoReturn:
    try:
        raise KeyError("first")
    except KeyError:
        raise RuntimeError("second")  # noqa: B904 -- the context is the point


def raise_group() -> NoReturn:
    raise ExceptionGroup("group", [ValueError("one"), TypeError("two")])  # noqa: F821 -- CPython 3.11


def raise_from_library_error() -> NoReturn:
    raise poolkit.TaskTimeout("mine", timeout=3.0, stack="here")


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


# ===== the worker's own state =====

_state: dict[str, Any] = {}


def initialize(**values: Any) -> None:
    _state.update(values)


def initialize_positional(name: str, value: Any) -> None:
    _state[name] = value


def state(name: str) -> Any:
    return _state.get(name)


def fail_to_initialize(text: str = "no") -> NoReturn:
    raise ZeroDivisionError(text)


def die_to_initialize() -> NoReturn:
    os._exit(7)


def keep_primitives(lock: Any, event: Any, queue: Any) -> None:
    _state.update(lock=lock, event=event, queue=queue)


def use_primitives(value: int) -> bool:
    """Use a multiprocessing lock, event and queue that came with the initializer."""
    with _state["lock"]:
        _state["queue"].put(value)
    return bool(_state["event"].is_set())


def loaded_modules(*names: str) -> list[bool]:
    return [name in sys.modules for name in names]


def grow(nbytes: int) -> int:
    """Keep so much memory in use after the task."""
    ballast = _state["ballast"] = bytearray(nbytes)
    ballast[::4096] = b"x" * len(range(0, nbytes, 4096))  # memory counts when it is touched
    return os.getpid()


# ===== context =====


def context_facts() -> tuple[int, str, int, bool, float | None]:
    task = poolkit.current_task()
    assert task is not None
    return task.id, task.name, task.attempt, task.cancelled, task.time_left()


def context_is_set() -> bool:
    return poolkit.current_task() is not None


async def context_facts_later() -> tuple[int, str, int, bool, float | None]:
    return context_facts()


def attempt_after(journal: Journal, times: int) -> int:
    """The attempt that got through, after so many that raised."""
    journal.write("run")
    task = poolkit.current_task()
    assert task is not None
    if len(journal.lines()) <= times:
        raise ConnectionError
    return task.attempt


def wait_for_cancelled(arrived: Gate, noticed: Gate) -> bool:
    """A task that looks whether it was asked to stop, and tells when it was.

    The exception that stops it may come anywhere once it has arrived, so it tries again until it has told.
    """
    task = poolkit.current_task()
    assert task is not None
    told = False
    while True:
        with contextlib.suppress(BaseException):
            if not told:
                told = True
                arrived.signal()
            while not task.cancelled:
                pass
            noticed.signal()
            return True
