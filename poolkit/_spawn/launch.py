"""Launch: how a template process comes to be: a new interpreter, or a fork of this process.

Owner: whoever calls; nothing is kept here but FORKING.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import errno
import fcntl
import marshal
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from poolkit import _os
from poolkit._locks import RLock
from poolkit._spawn.key import ADVICE, GUARD, is_open

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from poolkit._spawn.key import Start

# Held by whoever forks this process, or starts another; taken before a pool's lock. Re-entrant for signal handlers that
# fork, and for finalizers, which see that it is held.
FORKING = RLock()

_START_CODE = f"""\
import sys, os, marshal
os.environ.pop({GUARD!r}, None)
sys.path[:], *how = marshal.loads(os.pread(0, os.fstat(0).st_size, 0))
from poolkit._child.template import main
main(*map(int, sys.argv[1:5]), *how)
"""
_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.ELOOP, errno.EISDIR)


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """A pair, with numbers above those of the standard streams: one of these may be closed in the owner."""
    ours, theirs = (_socket.socket(fileno=above_streams(end.detach())) for end in _socket.socketpair())
    ours.setblocking(False)
    return ours, theirs


def page_with(data: bytes) -> int:
    """A descriptor of memory with this in it, behind which a template process prints until it runs our code.

    In the end it writes there how its imports went.
    """
    page = above_streams(_os.shared_page(len(data)))
    os.pwrite(page, data, 0)
    os.lseek(page, len(data), os.SEEK_SET)
    return page


def above_streams(fd: int) -> int:
    """The same descriptor, under a number above those of the standard streams."""
    if fd > 2:  # noqa: PLR2004 -- the last of them
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def start_data(start: Start) -> bytes:
    """What the page of a template process has that is a new interpreter."""
    return marshal.dumps((start.paths, start.start_method, start.preload))


def execute(theirs: _socket.socket, number: int, page: int, start: Start) -> int:
    """Start a template process as a new interpreter; returns its process id. FORKING is held.

    It leads a process group of its own: a Ctrl-C on the terminal is the owner's alone. It gets the page, as its input
    and to print to, its end of the root socket, and our output and errors, to print to once it is known to be an
    interpreter. Not by `subprocess`, whose import takes 4 ms.

    Args:
        theirs: its end of the root socket.
        number: of a descriptor that programs do not inherit: under this it gets the socket.
        page: see `page_with`.
        start: what is to be started.

    Raises:
        OSError: there are no more processes, or descriptors.
        RuntimeError: there is no such program.
    """
    program, nbytes = start.command[0], os.fstat(page).st_size
    command = [*start.command, "-c", _START_CODE]
    if not start.directory:  # it is gone: CPython 3.13.0 cannot start there
        command[:0] = ["/bin/sh", "-c", 'cd / && exec "$0" "$@"']
    actions: list[tuple[int, int, int]] = [
        (os.POSIX_SPAWN_DUP2, page, 0),
        (os.POSIX_SPAWN_DUP2, theirs.fileno(), number),
    ]
    # The numbers of page and socket are free once those were duplicated.
    streams = dict(zip(filter(is_open, (1, 2)), (page, theirs.fileno())))  # noqa: B905
    for stream, copy in streams.items():
        actions += [(os.POSIX_SPAWN_DUP2, stream, copy), (os.POSIX_SPAWN_DUP2, 0, stream)]
    arguments = map(str, (number, streams.get(1, -1), streams.get(2, -1), nbytes))
    try:
        return os.posix_spawnp(
            command[0],
            [*command, *arguments],
            {**start.env, GUARD: program},
            file_actions=actions,
            setpgroup=0,
            setsigdef=[getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)],
        )
    except OSError as exc:
        if exc.errno not in _NO_PROGRAM:
            raise
        msg = f"{program!r} cannot be started ({exc.strerror}); {ADVICE}"
        raise RuntimeError(msg) from exc


def fork(
    theirs: _socket.socket,
    page: int,
    preload: Sequence[str],
    env: Mapping[str, str],
    initializer: Callable[[], object] | None,
) -> int:
    """Fork this process into a template process; returns its process id. FORKING is not held.

    Our end of its root socket is closed there by the hooks of this very fork.
    """
    from poolkit._child import boot, template  # noqa: PLC0415 -- for this start method alone

    boot.flush_streams()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        os.environ.update(env)
        process = template.TemplateProcess(theirs, "fork", initializer)
        if process.prepare(tuple(preload), page):
            process.serve()
    except BaseException:  # noqa: BLE001 -- the owner's code must not go on in its copy
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
