"""Inherit: multiprocessing's locks, events and queues as `initargs`, as the standard library allows.

They refuse to be pickled unless a process is being spawned, and hand over descriptors through it. `spawning` plays
that process while the initializer is packed; the descriptors it collects go to each worker when it is started, where
`arrived` keeps them for the unpickling.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_arrived: list[int] = []  # owner: the worker's main thread, at boot


class _Inherited:
    """Stands for a descriptor in a pickle; `detach` gives the number that it has in this worker."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        """The descriptor, which belongs to the caller from now on."""
        return os.dup(_arrived[self.index])


class _Spawning:
    """Looks to multiprocessing like the process being spawned."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        """Keep a copy of `fd`, to be handed to every worker. Returns its index."""
        self.fds.append(os.dup(fd))
        return len(self.fds) - 1

    def DupFd(self, fd: int) -> Any:  # noqa: N802 -- the name multiprocessing calls
        """What stands in the pickle for `fd`."""
        return _Inherited(fd)


@contextmanager
def spawning() -> Iterator[list[int]]:
    """Let multiprocessing's objects be pickled inside; yields the list of descriptors that they need."""
    from multiprocessing import context  # noqa: PLC0415 -- only where initargs are packed

    before = context.get_spawning_popen()
    stand_in = _Spawning()
    context.set_spawning_popen(stand_in)
    try:
        yield stand_in.fds
    finally:
        context.set_spawning_popen(before)


def arrived(fds: list[int]) -> None:
    """Keep the descriptors that came with this worker's start."""
    _arrived[:] = fds
