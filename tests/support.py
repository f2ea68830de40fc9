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
    from poolkit._workforce.templates import Template

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
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # most often: no child, so nothing behind one
        return []
    children: dict[int, list[int]] = {}
    for path in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            pid = int(path.parent.name)
            children.setdefault(parent_of(pid), []).append(pid)
    found = [os.getpid()]
    for one in found:  # grows while we go through it
        found += children.get(one, ())
    known = {resource_tracker()[0], *(template.pid for template in idle_templates())}
    return [pid for pid in found[1:] if pid not in known]


def resource_tracker() -> tuple[int | None, int | None]:
    """Process and descriptor of multiprocessing's resource tracker, which lives as long as this process."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(module, "_resource_tracker", None)
    return getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)


def idle_templates() -> list[Template]:
    """The template processes that no pool has; they wait for the next one, as long as this process lives."""
    module = sys.modules.get("poolkit._workforce.templates")
    return [one for one in list(getattr(module, "_templates", {}).values()) if not one.users]


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def describe_process(pid: int) -> str:
    """A line about a process: its number, state, what it waits for in the kernel, and its command."""
    words = [f"{pid} state={state_of(pid) or 'gone'}"]
    for name in ("wchan", "cmdline"):
        with contextlib.suppress(OSError):
            text = (PROC / str(pid) / name).read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            words.append(f"{name}={text[:200]!r}")
    return " ".join(words)


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


def adopt_orphans() -> None:
    """Have orphaned grandchildren become children of this process, so that `descendants` finds them. Linux only."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
