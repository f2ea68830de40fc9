"""Leakage: what a block of code left behind: threads, child processes, descriptors, shared memory.

What belongs to poolkit for as long as the program runs does not count: the template processes that wait for the next
pool, what waits for the next command, and multiprocessing's resource tracker. Processes and descriptors are seen where
there is `/proc`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

from poolkit._clock import monotonic

_PROC = Path("/proc")
_STEP = 0.005  # seconds between two looks
_LASTING = ("poolkit-programs", "poolkit-spawned")  # beginnings of the names of threads that wait for the next command


class leaks:  # noqa: N801 -- used like a function, and a class lets every exception pass as it is: frozen ones, too
    """Fail if the block leaves a thread, child process, descriptor or shared memory behind; the error names them.

    What is on its way out gets `grace` seconds. Nothing is said when the block itself raises. Blocks while it waits.

    Raises:
        AssertionError: there is something.
    """

    def __init__(self, grace: float = 2.0) -> None:
        self._grace = grace

    def __enter__(self) -> None:
        """Begin."""
        self._before = Snapshot()

    def __exit__(self, exc_type: type[BaseException] | None, *_exc: object) -> None:
        """End, and look."""
        found = self._before.leaks(self._grace) if exc_type is None else []
        if found:
            raise AssertionError("left behind:\n  " + "\n  ".join(found))


class Snapshot:
    """What this process holds at one moment. Never changed once made."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.children = set(descendants())
        self.fds = _open_fds()

    def leaks(self, grace: float) -> list[str]:
        """What is held now and was not then, in words. Waits for at most `grace` seconds for what is on its way out."""
        give_up = monotonic() + grace
        for thread in self.new_threads():
            if thread is not threading.current_thread():
                thread.join(max(0.0, give_up - monotonic()))
        collected = False
        while (found := self._differences()) and monotonic() < give_up:
            if collected:
                threading.Event().wait(_STEP)  # descriptors have no event, and `time.sleep` may be patched
            else:
                collected = True
                gc.collect()
        return found

    def new_threads(self) -> list[threading.Thread]:
        """The threads that were not there."""
        new = [thread for thread in threading.enumerate() if thread not in self.threads]
        # One whose start was interrupted stays in that list, and never runs.
        return [thread for thread in new if thread.ident and not thread.name.startswith(_LASTING)]

    def new_children(self) -> list[int]:
        """The processes that were not there."""
        return [pid for pid in descendants() if pid not in self.children]

    def _differences(self) -> list[str]:
        found = [f"thread {thread.name}" for thread in self.new_threads()]
        found += [f"process {describe_process(pid)}" for pid in self.new_children()]
        before = {(fd, place) for (fd, _), place in self.fds.items()}
        for (fd, target), place in sorted(_open_fds().items()):
            if (fd, place) in before:
                continue
            what = "shared memory" if target.startswith("/memfd:") else "descriptor"
            if target.startswith("socket:") and (address := _listens_at(fd)) is not None:
                found.append(f"listener {fd} -> {address}")
            else:
                found.append(f"{what} {fd} -> {target}")
        return found


def descendants() -> list[int]:
    """The children of this process, their children, and so on, zombies included; but see the file's header."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # most often: no child, so nothing behind one
        return []
    children: dict[int, list[int]] = {}
    for path in list(_PROC.iterdir()) if _PROC.is_dir() else []:  # not `glob`: a process that ends just now breaks it
        with contextlib.suppress(OSError, IndexError, ValueError):
            pid = int(path.name)
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found = [os.getpid()]
    for pid in found:  # grows while we go through it
        found += children.get(pid, ())
    known = {_resource_tracker()[0], *(template.pid for template in idle_templates()), *starters()[0]}
    return [pid for pid in found[1:] if pid not in known]


def describe_process(pid: int) -> str:
    """A line about a process: its number, state, what it waits for in the kernel, and its command."""
    words = [str(pid)]
    for name in ("stat", "wchan", "cmdline"):
        with contextlib.suppress(OSError, IndexError):
            text = (_PROC / str(pid) / name).read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            words.append(f"state={text.rpartition(')')[2].split()[0]}" if name == "stat" else f"{name}={text[:200]!r}")
    return " ".join(words) if len(words) > 1 else f"{pid} gone"


def _open_fds() -> dict[tuple[int, str], str]:
    """The descriptors and where they lead, and what that is whatever its name: a file may lose it."""
    own = {template._root.fileno() for template in idle_templates()}  # noqa: SLF001 -- of this library
    own |= {template._page for template in idle_templates()}  # noqa: SLF001 -- see above
    own |= {_resource_tracker()[1], *starters()[1]}
    found = {}
    for path in list((_PROC / "self/fd").iterdir()) if _PROC.is_dir() else []:
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            target = os.fspath(path.readlink())
            place = path.stat()
            if int(path.name) not in own:
                kind = target if target.startswith("anon_inode:") else ""  # they have one number together
                found[int(path.name), target] = f"{place.st_dev}:{place.st_ino}{kind}"
    return found


def _listens_at(fd: int) -> object:
    """The address of a listening socket; None where it is none."""
    import socket  # noqa: PLC0415 -- where there is one

    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return copy.getsockname()
    return None


def _resource_tracker() -> tuple[Any, Any]:
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    return getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)


def starters() -> tuple[list[int], list[int]]:
    """The processes that start programs, and the descriptors of what owns them."""
    programs = getattr(sys.modules.get("poolkit._spawn.programs"), "_programs", None)
    return ([], []) if programs is None else programs.lasting()


def idle_templates() -> list[Any]:
    """The template processes that fork no workers. Not imported for this: if there are any, it is there."""
    busy = {child.template for child in list(getattr(sys.modules.get("poolkit._spawn.templates"), "children", ()))}
    known = getattr(sys.modules.get("poolkit._spawn.registry"), "_templates", {})
    return [one for one in list(known.values()) if one not in busy]
