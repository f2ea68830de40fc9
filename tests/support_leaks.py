"""The check for leaks: what a process holds before and after a test."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from support import (
    PROC,
    STEP,
    WATCHDOG,
    descendants,
    describe_process,
    idle_templates,
    resource_tracker,
    state_of,
    wait_for_one_exit,
)

LEAK_GRACE = WATCHDOG / 3  # what is on its way out gets so long to leave
_SHM = Path("/dev/shm")  # noqa: S108 -- looked at, never written to


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
        wait_for_one_exit(pid, max(0.0, give_up - time.monotonic()))
    collected = False
    while leaks := _differences(before):
        if not collected:
            gc.collect()
            collected = True
            continue
        if time.monotonic() > give_up:
            break
        time.sleep(STEP)  # noqa: TID251 -- descriptors have no event
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


def _new_children(before: Snapshot) -> list[int]:
    return [pid for pid in descendants() if pid not in before.children]


def _reap_adopted(before: Snapshot) -> None:
    """Reap orphans that came to us; whoever started a child of ours has reaped it by now, or never will."""
    for pid in _new_children(before):
        if state_of(pid) == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _open_fds() -> Iterator[tuple[int, str]]:
    roots = {template._root.fileno() for template in idle_templates() if template._root is not None}
    for path in list(Path("/proc/self/fd").iterdir()) if PROC.is_dir() else []:
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            if int(path.name) not in {resource_tracker()[1], *roots}:
                yield int(path.name), os.fspath(path.readlink())


def _shm_names() -> Iterable[str]:
    """Segments with poolkit's name; other programs have theirs, and other tests run beside this one."""
    with contextlib.suppress(OSError):
        return [path.name for path in _SHM.iterdir() if path.name.startswith("poolkit")]
    return []
