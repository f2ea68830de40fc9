"""What every test may lean on: one watchdog, waiting, and a look at other processes.

WATCHDOG bounds every wait and never decides order. When it expires, the stacks of all threads and what the kernel
knows of each child are written to stderr, the children are killed, and the test fails.
Worker processes import this module too (they get the owner's `sys.path`), so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from poolkit._spawn.templates import Template

T = TypeVar("T")

WATCHDOG = 30.0 * float(os.environ.get("POOLKIT_TIMEOUT_SCALE", "1"))
STEP = 0.005  # seconds between two looks at what has no event; also how soon a held thread notices that it must stop
PROC = Path("/proc")


class WatchdogExpired(BaseException):
    """Something hung. Not an Exception, so that nothing under test can swallow it."""


# ===== waiting =====


def wait_until(predicate: Callable[[], object], what: str = "") -> None:
    """Return when `predicate()` is true. For conditions without an event only."""
    give_up = time.monotonic() + WATCHDOG
    while not predicate():
        if time.monotonic() > give_up:
            explain_hang()
            msg = f"waited {WATCHDOG:g} s in vain for: {what or predicate!r}"
            raise WatchdogExpired(msg)
        time.sleep(STEP)  # noqa: TID251 -- the one poll of the tests


def retry_until(attempt: Callable[[], T], accept: Callable[[T], object], what: str = "") -> T:
    """Call `attempt` until `accept` takes what it returned; returns that."""
    found: list[T] = []

    def accepted() -> bool:
        found[:] = [attempt()]
        return bool(accept(found[0]))

    wait_until(accepted, what)
    return found[0]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return state_of(pid) not in {"", "Z", "X"}


def wait_for_exit(*pids: int) -> None:
    """Return when none of the processes runs any more."""
    for pid in pids:
        if not wait_for_one_exit(pid, WATCHDOG):
            explain_hang()
            msg = f"process {pid} did not end within {WATCHDOG:g} s"
            raise WatchdogExpired(msg)


def wait_for_one_exit(pid: int, timeout: float) -> bool:
    """Whether a process has ended, after `timeout` seconds at most."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):  # it is gone, or there are no pidfds here
        give_up = time.monotonic() + timeout
        while is_alive(pid) and time.monotonic() < give_up:
            time.sleep(STEP)  # noqa: TID251 -- no event to wait on
        return not is_alive(pid)
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)


@contextlib.contextmanager
def watchdog(seconds: float = WATCHDOG) -> Iterator[None]:
    """Bound everything that the main thread does inside, blocking calls included."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        explain_hang()
        msg = f"the test did not end within {seconds:g} s; the stacks are on stderr"
        raise WatchdogExpired(msg)

    before = signal.signal(signal.SIGALRM, expire)
    # It comes again: leaving the blocks of a test that hung may hang too.
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds / 6)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def explain_hang() -> None:
    """Write all stacks, and what is known of each child, to the real stderr; then kill the children."""
    out = sys.__stderr__
    try:
        fd = out.fileno() if out is not None else 2
    except (OSError, ValueError):
        fd = 2
    faulthandler.dump_traceback(fd, all_threads=True)
    children = descendants()
    for pid in children:
        os.write(fd, f"child {describe_process(pid)}\n".encode())
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ===== processes =====


def descendants() -> list[int]:
    """The children of this process, their children, and so on, zombies included.

    But for the resource tracker, and the template processes that no pool has. Who is behind these is among them.
    """
    from poolkit.testing import leakage

    return leakage.descendants()


def idle_templates() -> list[Template]:
    """The template processes that no pool has; they wait for the next one, as long as this process lives."""
    from poolkit.testing import leakage

    return leakage.idle_templates()


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def describe_process(pid: int) -> str:
    """A line about a process: its number, state, what it waits for in the kernel, and its command."""
    from poolkit.testing import leakage

    return leakage.describe_process(pid)


def state_of(pid: int) -> str:
    """The state letter of a process; "" when there is none of that number."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return "?"
        return "" if PROC.is_dir() else "?"


def heed_ctrl_c() -> None:
    """Have Ctrl-C its usual effect, also here in the background of a shell, which has it and SIGQUIT ignored.

    What ignores a signal hands that on to all that it starts, and tests press Ctrl-C for their programs.
    """
    if threading.current_thread() is threading.main_thread():
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, handler)


def adopt_orphans() -> None:
    """Have orphaned grandchildren become children of this process, so that `descendants` finds them. Linux only."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
