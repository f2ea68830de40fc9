"""Preloaded: a template imports this after the application, and fails where that left what does not survive a fork.

Threads are not copied, and what they hold stays locked; a connection is copied too well: two workers would talk on it.
Elsewhere, importing this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from typing import Any

from poolkit import _child, _os_processes


def remains() -> list[str]:
    """Say what there is in this process that does not survive a fork: threads, and connections to others.

    Socket pairs of this process are none, nor are sockets for datagrams, such as those that logs are sent by.
    """
    main = threading.main_thread()
    found = [_thread(each) for each in threading.enumerate() if each is not main]
    others = _os_processes.count_lasting_threads() - 1 - len(found)
    if others > 0:
        found.append(f"{others} thread{'s' * (others > 1)} that Python did not start")
    for fd in set(_descriptors()) - {0, 1, 2}:  # a standard stream may be a connection, to a log for example
        with contextlib.suppress(OSError):  # it is closed by now, or not connected
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as each:
                kind, peer = each.type, each.getpeername()
            if kind in {socket.SOCK_STREAM, socket.SOCK_SEQPACKET} and peer:
                where = ":".join(map(str, peer[:2])) if isinstance(peer, tuple) else str(peer)
                found.append(f"a connection to {where} (descriptor {fd})")
    return found


def _thread(thread: threading.Thread) -> str:
    runs: Any = getattr(thread, "_target", None)
    where = f" (runs {runs.__module__}.{runs.__qualname__})" if hasattr(runs, "__qualname__") else ""
    return f"thread {thread.name!r}{where}"


def _descriptors() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 -- pathlib costs an import
    return [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 -- see above


if _child.is_here and (_found := remains()):
    _message = (
        f"what was preloaded does not survive a fork, it has left: {'; '.join(_found)}. "
        "Start and connect in the workers (in a lifespan, or at the first request), or leave out --preload"
    )
    raise RuntimeError(_message)
