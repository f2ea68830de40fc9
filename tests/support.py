"""What every test may lean on: one watchdog, gates that make order between processes, and a check for leaks.

WATCHDOG bounds every wait and never decides order. When it expires, the stacks of all threads and what the kernel
knows of each child are written to stderr, the children are killed, and the test fails.
Worker processes import this module too (they get the owner's `sys.path`), so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import gc
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

WATCHDOG = 30.0 * float(os.environ.get("POOLKIT_TIMEOUT_SCALE", "1"))
LEAK_GRACE = WATCHDOG / 3  # what is on its way out gets so long to leave
_STEP = 0.005  # seconds between two looks at what has no event; also how soon a held thread notices that it must stop
_PROC = Path("/proc")
_SHM = Path("/dev/shm")  # noqa: S108 -- looked at, never written to


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
        time.sleep(_STEP)  # noqa: TID251 -- the one poll of the tests


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
    return _state_of(pid) not in {"", "Z", "X"}


def wait_for_exit(*pids: int) -> None:
    """Return when none of the processes runs any more."""
    for pid in pids:
        if not _wait_for_one_exit(pid, WATCHDOG):
            explain_hang()
            msg = f"process {pid} did not end within {WATCHDOG:g} s"
            raise WatchdogExpired(msg)


def _wait_for_one_exit(pid: int, timeout: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):  # it is gone, or there are no pidfds here
        give_up = time.monotonic() + timeout
        while is_alive(pid) and time.monotonic() < give_up:
            time.sleep(_STEP)  # noqa: TID251 -- no event to wait on
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
    """The children of this process, their children, and so on, zombies included; but for the resource tracker."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # most often: no child, so nothing behind one
        return []
    children: dict[int, list[int]] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            pid = int(path.parent.name)
            children.setdefault(parent_of(pid), []).append(pid)
    found = [os.getpid()]
    for one in found:  # grows while we go through it
        found += children.get(one, ())
    return [pid for pid in found[1:] if pid != _tracker()[0]]


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def describe_process(pid: int) -> str:
    """A line about a process: its number, state, what it waits for in the kernel, and its command."""
    words = [f"{pid} state={_state_of(pid) or 'gone'}"]
    for name in ("wchan", "cmdline"):
        with contextlib.suppress(OSError):
            text = (_PROC / str(pid) / name).read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            words.append(f"{name}={text[:200]!r}")
    return " ".join(words)


def _state_of(pid: int) -> str:
    """The state letter of a process; "" when there is none of that number."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return "?"
        return "" if _PROC.is_dir() else "?"


def adopt_orphans() -> None:
    """Have orphaned grandchildren become children of this process, so that `descendants` finds them. Linux only."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


# ===== gates =====


class GateClosed(Exception):
    """The test that made the gate is over."""


class _Descriptor(io.FileIO):
    """A descriptor that is closed when nobody holds it: the thread that opened it may be stopped at any moment.

    By its repr the warning that it was not closed by hand is told from others, and ignored. Not by a `__del__`: a
    thread that is stopped in there would go on.
    """

    def __repr__(self) -> str:
        return "<descriptor of a test>"


def _open(path: str, flags: int) -> _Descriptor:
    # In one call into C: a thread that is stopped between opening and owning would leave the descriptor open.
    (file,) = map(_Descriptor, map(os.open, [path], [flags | os.O_CLOEXEC], [0o600]))
    return file


class Gate:
    """A counting signal between a test and its tasks, in whatever thread or process they run.

    `signal(n)` adds n, `wait(n)` takes n and blocks until they are there; each one goes to exactly one waiter. It is a
    FIFO, so it pickles as its path, and a process that is killed while it waits or signals harms nobody: it opens the
    FIFO for the moment only, and takes or adds single bytes. Waiting ends with GateClosed when the test closes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = -1  # the test's own end keeps the FIFO open; -1 in workers

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Gate:
        """Make the FIFO. In the test."""
        os.mkfifo(path)
        gate = cls(path)
        gate._fd = os.open(gate.path, os.O_RDWR | os.O_NONBLOCK)  # Linux lets one end be both
        return gate

    def signal(self, count: int = 1) -> None:
        """Add `count`."""
        with self._open(os.O_WRONLY) as end:
            os.write(end.fileno(), b"." * count)

    def wait(self, count: int = 1) -> None:
        """Take `count`, waiting for them. Blocks for at most WATCHDOG seconds."""
        give_up = time.monotonic() + WATCHDOG
        with self._open(os.O_RDONLY) as end:
            while count:
                if time.monotonic() > give_up:
                    if self._fd >= 0:
                        explain_hang()
                    msg = f"nobody came to {self!r} within {WATCHDOG:g} s; {count} are missing"
                    raise WatchdogExpired(msg)
                # Short steps, because a blocking call would keep a thread from seeing that it is to stop.
                if not select.select([end], [], [], _STEP)[0]:
                    continue
                try:
                    taken = os.read(end.fileno(), 1)
                except BlockingIOError:  # another waiter was faster
                    continue
                if not taken:
                    raise GateClosed(repr(self))
                count -= 1

    def count(self) -> int:
        """How many signals wait to be taken; takes none. In the test, while nobody signals."""
        taken = b""
        with contextlib.suppress(BlockingIOError):
            taken = os.read(self._fd, 65536)
        if taken:
            os.write(self._fd, taken)
        return len(taken)

    def close(self) -> None:
        """End every wait. In the test; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                Path(self.path).unlink()

    def _open(self, flags: int) -> _Descriptor:
        try:
            return _open(self.path, flags | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ENXIO}:
                raise GateClosed(repr(self)) from None
            raise

    def __reduce__(self) -> tuple[type[Gate], tuple[str]]:
        """Travel as the path."""
        return Gate, (self.path,)

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Gate {Path(self.path).name}>"


class Journal:
    """Lines that tasks write, whole and in order, wherever they run; picklable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def write(self, line: object) -> None:
        """Append one line, in one system call."""
        with _open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            os.write(file.fileno(), f"{line}\n".encode())

    def lines(self) -> list[str]:
        """What was written so far."""
        try:
            return Path(self.path).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []


# ===== leaks =====


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What this process holds: threads, descendants, descriptors, shared memory."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    fds: frozenset[tuple[int, str]]
    shm: frozenset[str]


def snapshot() -> Snapshot:
    """Look at what this process holds now."""
    return Snapshot(
        threads=frozenset(threading.enumerate()),
        children=frozenset(descendants()),
        fds=frozenset(_open_fds()),
        shm=frozenset(_shm_names()),
    )


def find_leaks(before: Snapshot) -> list[str]:
    """What is held now and was not in `before`, in words. Waits up to LEAK_GRACE seconds for what is on its way out."""
    give_up = time.monotonic() + LEAK_GRACE
    for thread in _new_threads(before):
        thread.join(max(0.0, give_up - time.monotonic()))
    _reap_adopted(before)
    for pid in _new_children(before):
        _wait_for_one_exit(pid, max(0.0, give_up - time.monotonic()))
    collected = False
    while leaks := _differences(before):
        if not collected:
            gc.collect()
            collected = True
            continue
        if time.monotonic() > give_up:
            break
        time.sleep(_STEP)  # noqa: TID251 -- descriptors have no event
    return leaks


def _differences(before: Snapshot) -> list[str]:
    _reap_adopted(before)
    leaks = [f"thread {thread.name}" for thread in _new_threads(before)]
    leaks += [f"process {describe_process(pid)}" for pid in _new_children(before)]
    leaks += [f"descriptor {fd} -> {target}" for fd, target in sorted(set(_open_fds()) - before.fds)]
    leaks += [f"shared memory {name}" for name in sorted(set(_shm_names()) - before.shm)]
    return leaks


def _new_threads(before: Snapshot) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before.threads]


def _tracker() -> tuple[int | None, int | None]:
    """Process and descriptor of multiprocessing's resource tracker, which lives as long as this process."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(module, "_resource_tracker", None)
    return getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)


def _new_children(before: Snapshot) -> list[int]:
    return [pid for pid in descendants() if pid not in before.children]


def _reap_adopted(before: Snapshot) -> None:
    """Reap orphans that came to us; whoever started a child of ours has reaped it by now, or never will."""
    for pid in _new_children(before):
        if _state_of(pid) == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _open_fds() -> Iterator[tuple[int, str]]:
    for path in list(Path("/proc/self/fd").iterdir()) if _PROC.is_dir() else []:
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            if int(path.name) != _tracker()[1]:
                yield int(path.name), os.fspath(path.readlink())


def _shm_names() -> Iterable[str]:
    """Segments with poolkit's name; other programs have theirs, and other tests run beside this one."""
    with contextlib.suppress(OSError):
        return [path.name for path in _SHM.iterdir() if path.name.startswith("poolkit")]
    return []
