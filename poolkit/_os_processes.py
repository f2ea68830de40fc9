"""What this process has to do with others: whose end is its own, which descend from it, and how to end them all.

A program may leave the process group of its worker, by a session of its own, but not its descent: a worker adopts what
its programs leave behind (it is a "child subreaper"), so all that its tasks started stays below it. When it ends, the
template process, which is one too, adopts that.
Keeps no state. Elsewhere than on Linux, and without a /proc of its own, there is no such descent, but the group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection

from poolkit import _os

MOST_ROUNDS = 100  # looks for processes that start others while they are killed
MOST_ENDED = 100  # children of this process that have ended, and may still be waited for
_ZOMBIE = "Z"


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Elsewhere the owner kills the workers itself.

    Only for a parent with one thread: the signal comes when the *thread* that forked ends.
    """
    if _os.LINUX:
        pr_set_pdeathsig = 1
        _prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of those that descend from this process and whose parent ends."""
    if _os.LINUX:
        pr_set_child_subreaper = 36
        _prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _prctl(*args: int) -> None:
    """Call the C function. By what ctypes is made from, as importing the rest of it takes every first result 2 ms."""
    try:
        import _ctypes  # noqa: PLC0415 -- only where workers are started

        _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"), args)  # type: ignore[arg-type]
    except AttributeError:  # a later CPython
        import ctypes  # noqa: PLC0415 -- see above

        ctypes.CDLL(None).prctl(*args)


# ===== who is there =====


def children() -> set[int]:
    """The children of this process; empty where that cannot be known. One that has ended and was not reaped counts."""
    if not has_children():
        return set()
    found = _listed_children()
    if found is not None and found == _listed_children():  # one that ends meanwhile may hide the next
        return found
    me = os.getpid()
    return {pid for pid, (parent, _) in _all().items() if parent == me}


def _listed_children() -> set[int] | None:
    """What the kernel lists as children, without a look at all other processes; None where it has no such list."""
    found: set[int] = set()
    try:
        for thread in os.listdir("/proc/self/task") if _os.has_proc() else ():  # noqa: PTH208
            with open(f"/proc/self/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found.update(map(int, file.read().split()))
    except OSError:
        return None
    return found or None


def has_children() -> bool:
    """Return True if this process has a child, ended or not. Costs next to nothing."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be reaped; True also where that cannot be known."""
    state = _os.read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] if _os.has_proc() else []
    return state in ([], ["Z"], ["X"])


def _all() -> dict[int, tuple[int, str]]:
    """Parent and state of every process; none where that cannot be known."""
    found: dict[int, tuple[int, str]] = {}
    if _os.LINUX and _os.has_proc():
        for name in os.listdir("/proc"):  # noqa: PTH208 -- pathlib costs a worker half an import
            if name.isdigit():
                state, parent, *_ = [*_os.read_text(f"/proc/{name}/stat").rpartition(")")[2].split(), "", ""]
                if parent:
                    found[int(name)] = int(parent), state
    return found


def _descendants(roots: Collection[int], excluded: Collection[int]) -> set[int]:
    """All that descend from these, but for those that are excluded and what descends from them."""
    below: dict[int, list[int]] = {}
    for pid, (parent, _) in _all().items():
        below.setdefault(parent, []).append(pid)
    found: set[int] = set()
    left = list(roots)
    while left:
        for pid in below.get(left.pop(), ()):
            if pid not in found and pid not in excluded:
                found.add(pid)
                left.append(pid)
    return found


def tree_bytes(pid: int) -> int | None:
    """What a process and all that descends from it have for themselves, in bytes; None where that cannot be known."""
    total, left = _os.own_bytes(pid), [pid]
    while left and total is not None:
        parent = left.pop()
        for thread in _names(f"/proc/{parent}/task"):
            below = [int(word) for word in _os.read_text(f"/proc/{parent}/task/{thread}/children").split()]
            total += sum(_os.own_bytes(child) or 0 for child in below)
            left += below
    return total


def groups_with(inodes: Collection[int]) -> set[int]:
    """The process groups, of other sessions than ours, of whoever has one of these pipes open."""
    wanted, found = {f"pipe:[{inode}]" for inode in inodes}, set[int]()
    for name in filter(str.isdigit, _names("/proc") if _os.LINUX and _os.has_proc() else []):
        for fd in _names(f"/proc/{name}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/fd/{fd}") in wanted and os.getsid(int(name)) != os.getsid(0):  # noqa: PTH115
                    found.add(os.getpgid(int(name)))
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 -- pathlib costs a worker half an import
    except OSError:
        return []


def count_lasting_threads() -> int:
    """Return how many threads are there after a fork of this process: libraries end theirs for that, if they can.

    Those of C libraries included; where that cannot be known, those of Python. Forks only if there are several.
    """
    if _count_threads() > 1:
        import warnings  # noqa: PLC0415 -- there only

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has threads
            pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    return _count_threads()


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 -- see above
    except OSError:
        threading = sys.modules.get("threading")
        return 1 if threading is None else int(threading.active_count())


# ===== how they end =====


def kill_group(pid: int, number: int) -> None:
    """Send a signal to a process and its whole group, if they still exist."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        _send(pid, number)


def kill_trees(pids: Collection[int]) -> None:
    """Kill children of this process with their groups, and all that descends from them.

    They are stopped first, and go last: until then they start nothing, and adopt whatever is orphaned below them.
    """
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    _kill_below(lambda: _descendants(pids, ()))
    for pid in pids:
        kill_group(pid, signal.SIGKILL)


def kill_adopted(own: Collection[int]) -> None:
    """Kill all children of this process but its own, and what descends from them."""
    if children() - set(own):
        _kill_below(lambda: _descendants((os.getpid(),), own))


def _kill_below(find: Callable[[], set[int]]) -> None:
    """Kill those that are found, until no new one is: whoever starts others meanwhile is dead before the next look."""
    known: set[int] = set()
    for _ in range(MOST_ROUNDS):
        new = find() - known
        if not new:
            return
        for pid in new:
            _send(pid, signal.SIGKILL)
        known |= new


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def reap_adopted() -> None:
    """Reap children of this process that have ended, but for the latest MOST_ENDED: somebody may wait for those.

    Whom a task left behind, nobody waits for, and which ones that are is not to be told.
    """
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
    except ChildProcessError:
        return
    me = os.getpid()
    ended = sorted(pid for pid, (parent, state) in _all().items() if parent == me and state == _ZOMBIE)
    for pid in ended[:-MOST_ENDED]:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def has_handler(pid: int, number: int) -> bool:
    """Whether a process has a handler for that signal; true where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 -- pathlib costs an import
            caught = file.read().partition(b"SigCgt:")[2].split(None, 1)[0]
    except (OSError, IndexError):
        return not _os.LINUX
    return bool(int(caught, 16) >> (number - 1) & 1)
