"""Named: memory that any process may attach to by a name, as blocks of `multiprocessing.shared_memory`.

The name belongs to the process that made the block: it is removed with that process's last handle, or at its end. If it
is killed, the resource tracker of the standard library removes it. Who attaches is not known to the tracker, which
would remove the block with the first such process that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os

from poolkit import _os
from poolkit._memory.memory import Memory, new_id
from poolkit._wire import buffers

__all__ = ["attach_memory", "create_memory", "remove_name"]


def create_memory(nbytes: int, name: str) -> Memory:
    """Make a new one of zeroed memory under a name.

    Raises:
        FileExistsError: the name is taken.
        OSError: there is no memory for it.
    """
    import weakref  # noqa: PLC0415 -- these two are for few programs
    from multiprocessing.shared_memory import SharedMemory  # noqa: PLC0415

    from poolkit._os_memory import check_room  # noqa: PLC0415

    check_room(nbytes)
    block = SharedMemory(_checked(name), create=True, size=nbytes)
    block.close()
    try:
        memory = attach_memory(name)
        _os.reserve(memory.fd, 0, nbytes)
    except BaseException as exc:
        block.unlink()
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            why = f"no room for {nbytes} bytes under a name, which are in /dev/shm; without one they need no room there"
            raise OSError(exc.errno, why) from exc
        raise
    weakref.finalize(memory, _remove_own, name, os.getpid())
    return memory


def attach_memory(name: str) -> Memory:
    """Open the block of this name. Raises FileNotFoundError, or another OSError."""
    import _posixshmem  # noqa: PLC0415 -- for few programs

    fd = _posixshmem.shm_open(_path(_checked(name)), os.O_RDWR, mode=0o600)
    buffers.memory_in_use = True
    memory = Memory(fd, new_id(), os.fstat(fd).st_size)
    memory.name = name
    return memory


def remove_name(name: str) -> None:
    """Remove a name; the memory stays with those who have it. Idempotent."""
    import _posixshmem  # noqa: PLC0415 -- for few programs

    with contextlib.suppress(FileNotFoundError):
        _posixshmem.shm_unlink(_path(name))


def _remove_own(name: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        from multiprocessing import resource_tracker  # noqa: PLC0415 -- it is loaded

        remove_name(name)
        resource_tracker.unregister(_path(name), "shared_memory")


def _checked(name: str) -> str:
    if type(name) is not str or not name.strip("/") or "/" in name.lstrip("/") or "\0" in name:
        msg = f"the name of a block of shared memory must be text without a slash, was {name!r}"
        raise ValueError(msg)
    return name


def _path(name: str) -> str:
    return "/" + name.lstrip("/")
