"""Tasks that print before they die, and tasks that are stuck in many ways.

What is printed goes to the streams that the interpreter made: pytest puts others in their place, which
start_method="fork" inherits.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from poolkit import _os
from support_gates import Gate


def say(*lines: object, to: str = "stdout") -> None:
    stream = getattr(sys, f"__{to}__")
    for line in lines:
        print(line, file=stream)
    stream.flush()


def say_and_die(*lines: object) -> None:
    say(*lines)
    os.kill(os.getpid(), signal.SIGKILL)


def print_and(end: Callable[..., object], *args: object) -> None:
    print("important", file=sys.__stdout__)
    end(*args)


def say_in_many_ways_and_die() -> None:
    say("to stdout")
    say("to stderr", to="stderr")
    sys.__stdout__.buffer.write(b"as bytes\n")
    threads = [threading.Thread(target=say, args=(f"from thread {number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    with contextlib.redirect_stdout(io.StringIO()):
        print("kept by the task itself")
    os.write(1, b"past the stream\n")
    os.system("echo by another program")  # noqa: S605, S607
    pid = os.fork()
    if not pid:
        say("by a forked child")
        os._exit(0)
    os.waitpid(pid, 0)
    os.kill(os.getpid(), signal.SIGKILL)


def say_for_ever(gate: Gate, when: int = 1000) -> NoReturn:
    """Print numbered lines, one a write; tell when there are so many."""
    number = 0
    while True:
        number += 1
        print(f"line {number}", file=sys.__stdout__, flush=True)
        if number == when:
            gate.signal()


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def fork_a_child_that_crashes() -> str:
    pid = os.fork()
    if not pid:
        crash()
    return signal.Signals(os.WTERMSIG(os.waitpid(pid, 0)[1])).name


def ask_for_the_stack() -> None:
    os.kill(os.getpid(), _os.STACK_SIGNAL)


def close_streams_and_die() -> None:
    sys.__stdout__.close()
    sys.__stderr__.close()
    sys.stdout = None
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_with_the_gil() -> None:
    ctypes.PyDLL(None).sleep(600)


def match_for_ever() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def sleep() -> NoReturn:
    while True:
        time.sleep(600)  # noqa: TID251 -- to be found asleep is the point


def compute_for_ever() -> NoReturn:
    import numpy as np

    numbers = np.arange(2_000_000.0)
    while True:
        np.sort(numbers[::-1], kind="stable")


def sleep_twice_called() -> None:
    sleep()


class SleepsOnUnpickle:
    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return sleep, ()


def call_and_wait(fn: Callable[..., Any], *args: Any) -> NoReturn:
    fn(*args)
    sleep()
