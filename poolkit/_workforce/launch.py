"""Launch: how a template process comes to be: a new interpreter, or a fork of this process.

Owner: whoever calls; nothing is kept here but FORKING.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from poolkit._child import nursery as child

FORKING = threading.Lock()  # held by whoever forks this process, or starts another; taken before a pool's lock
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE, which ends programs that left it at its default
READ_GRACE = 5.0  # seconds a new process gets to read what it is to be, where that does not fit the socket

_START_CODE = """\
import sys, os, marshal
fd, size, data = int(sys.argv[1]), int(sys.argv[2]), b''
while len(data) < size:
    data += os.read(fd, size - len(data)) or sys.exit(1)
sys.path[:], start_method, preload = marshal.loads(data)
from poolkit._child.nursery import main
main(fd, start_method, preload)
"""


@dataclass(frozen=True)
class NurserySettings:
    """How the template process is made. `initializer` is inherited, and for start_method "fork" only.

    `env` is set for the whole of it, `late_env` in each worker, before anything of the user's is imported there.
    """

    start_method: str
    preload: tuple[str, ...]
    env: Mapping[str, str]
    late_env: Mapping[str, str]
    initializer: Callable[[], object] | None = None


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A pair, with numbers above those of the standard streams: one of these may be closed in the owner."""
    import fcntl  # noqa: PLC0415 -- not on Windows, where importing poolkit must work

    pair = []
    for end in socket.socketpair():
        fd = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)
        end.close()
        pair.append(socket.socket(fileno=fd))
    return pair[0], pair[1]


def search_path() -> tuple[str, ...]:
    """Where a new interpreter is to look for modules, this package included."""
    paths = [path for path in cast("list[object]", sys.path) if isinstance(path, str)]
    home = os.path.realpath(os.path.join(__file__, "..", "..", ".."))  # noqa: PTH118 -- importing pathlib takes 6 ms
    if home not in paths:
        paths.append(home)
    return tuple(paths)


def interpreter() -> tuple[str, ...]:
    """The interpreter and its flags.

    Raises:
        RuntimeError: there is none.
    """
    if not sys.executable:
        msg = "poolkit cannot start worker processes: sys.executable is empty, as in an embedded interpreter"
        raise RuntimeError(msg)
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return (sys.executable, *flags)


def execute(
    theirs: socket.socket,
    ours: socket.socket,
    command: tuple[str, ...],
    start: tuple[tuple[str, ...], str, tuple[str, ...]],
    env: Mapping[str, str],
) -> int:
    """Start the `command` of `interpreter` as a template process; returns its number. FORKING is held.

    `start` is what it is told at once: its search path, the start method, and what to preload.

    Raises:
        OSError: there are no more processes, or descriptors, or no such program.
    """
    paths, start_method, preload = start
    data = marshal.dumps((list(paths), start_method, list(preload)))
    fd = theirs.fileno()
    process = subprocess.Popen(
        [*command, "-c", _START_CODE, str(fd), str(len(data))],
        stdin=subprocess.DEVNULL,
        pass_fds=[fd],
        env=env,
        cwd=_directory(),
        start_new_session=True,  # a Ctrl-C on the terminal is the owner's alone
    )
    process.returncode = 0  # we wait for it ourselves; without this, Popen warns that it still runs
    ours.settimeout(READ_GRACE)
    with contextlib.suppress(OSError):  # it died at once, or hangs: whoever wants something of it will see
        ours.sendall(data, NO_SIGNAL)
    ours.setblocking(False)
    return process.pid


def _directory() -> str | None:
    """Where to start it: here, or at the root when this directory is gone, which CPython 3.13.0 cannot start in."""
    try:
        os.getcwd()  # noqa: PTH109 -- only to see whether it is there
    except OSError:
        return "/"
    return None


def fork(theirs: socket.socket, ours: socket.socket, settings: NurserySettings) -> int:
    """Fork this process into a template process for one pool; returns its number. FORKING is not held."""
    for stream in (sys.stdout, sys.stderr):  # what is buffered must not be written twice
        with contextlib.suppress(Exception):
            stream.flush()
    theirs_fd = theirs.detach()  # what the pool knows of it, the hooks of this very fork close in the child
    pid = os.fork()
    if pid:
        os.close(theirs_fd)
        return pid
    try:
        theirs = socket.socket(fileno=theirs_fd)
        ours.close()
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.environ.update(settings.env)
        process = child.Nursery(None, "fork", settings.initializer)
        process.prepare(list(settings.preload))
        process.open(theirs)
        process.serve()
    except BaseException:  # noqa: BLE001 -- the owner's code must not go on in its copy
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
