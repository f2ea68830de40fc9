"""Inherit: multiprocessing's locks, events and queues as `initargs`, as the standard library allows.

They refuse to be pickled unless a process is being spawned. `pack_initializer` plays that process; the descriptors it
collects go to each worker when it is started, where `arrived` keeps them for the unpickling.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable

from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire.modules import cloudpickle_module, look
from poolkit._wire.pickles import BY_VALUE, Needs, pickler_of

if TYPE_CHECKING:
    from poolkit._wire.buffers import Found
    from poolkit._wire.plans import Manifest

_arrived: list[int] = []  # owner: the worker's main thread, at boot


class _Inherited:
    """Stands for a descriptor in a pickle."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        return os.dup(_arrived[self.index])


class _Spawning:
    """Looks to multiprocessing like the process being spawned, and keeps a copy of each descriptor for the workers."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(os.dup(fd))
        return len(self.fds) - 1

    def DupFd(self, fd: int) -> Any:  # noqa: N802 -- the name multiprocessing calls
        return _Inherited(fd)


def pack_initializer(
    fn: Callable[..., object], args: tuple[Any, ...], *, found: Found | None = None
) -> tuple[bytes, list[int], Manifest | None]:
    """Return the initializer and its arguments as a pickle, its descriptors, and what it needs of the script.

    The descriptors are the caller's to close. Connections and the like go as multiprocessing reduces them.
    With `found` it is for another machine: multiprocessing refuses, and shared memory is noted there.

    Raises:
        SerializationError: they cannot be pickled.
    """
    import multiprocessing.reduction  # noqa: F401, PLC0415 -- whose reducers are asked
    from multiprocessing import context  # noqa: PLC0415 -- only for pools with an initializer

    from poolkit._wire.plans import manifest_for  # noqa: PLC0415 -- see above

    before = context.get_spawning_popen()
    stand_in = _Spawning()
    if found is None:
        context.set_spawning_popen(stand_in)  # type: ignore[arg-type]
    buffer, needs = io.BytesIO(), Needs()
    look()
    try:
        with contextlib.nullcontext() if found is None else found:
            pickler_of(cloudpickle_module().Pickler)(buffer, None, needs).dump((fn, args))
        names = needs.now | needs.later
        manifest = manifest_for(None, names) if names else None
    except BaseException as exc:  # noqa: BLE001 -- it is raised again
        try:
            if isinstance(exc, Exception):
                from poolkit._wire.unpicklable import serialization_error  # noqa: PLC0415 -- only failures need it

                roots = [("initializer", fn), *((f"initargs[{index}]", value) for index, value in enumerate(args))]
                raise serialization_error("the initializer or its arguments", roots, exc) from exc
            raise
        finally:
            for fd in stand_in.fds:
                os.close(fd)
    finally:
        context.set_spawning_popen(before)
    return buffer.getvalue() + BY_VALUE, stand_in.fds, manifest


def arrived(fds: list[int]) -> None:
    """Keep the descriptors that came with this worker's start."""
    _arrived[:] = fds
