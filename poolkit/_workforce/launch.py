"""Launch: how a template process comes to be: a new interpreter, or a fork of this process.

Owner: whoever calls; nothing is kept here but FORKING.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import array
import contextlib
import errno
import marshal
import os
import signal
import sys
import threading
from collections.abc import Sequence

from poolkit import _os
from poolkit._workforce.likeness import ADVICE, GUARD, is_open

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any

    from poolkit._workforce.likeness import Start
    from poolkit._workforce.settings import PoolSettings

FORKING = threading.Lock()  # held by whoever forks this process, or starts another; taken before a pool's lock
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE, which ends programs that left it at its default

_START_CODE = f"""\
import sys, os, marshal
os.environ.pop({GUARD!r}, None)
sys.path[:], start_method, preload = marshal.loads(os.pread(0, os.fstat(0).st_size, 0))
from poolkit._child.nursery import main
main(*map(int, sys.argv[1:4]), start_method, preload)
"""


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """A pair, with numbers above those of the standard streams: one of these may be closed in the owner."""
    one, other = (_socket.socket(fileno=_above_streams(end.detach())) for end in _socket.socketpair())
    return one, other


def _above_streams(fd: int) -> int:
    """The same descriptor, under a number above those of the standard streams."""
    import fcntl  # noqa: PLC0415 -- not on Windows, where importing poolkit must work

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def send_order(to: _socket.socket, order: bytes, fds: Sequence[int]) -> int:
    """Send an order with descriptors, or what is left of one; returns how much of it went.

    Raises:
        OSError: as `sendmsg`.
    """
    attached = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return to.sendmsg([order], attached, _NO_SIGNAL)


def execute(theirs: _socket.socket, ours: _socket.socket, start: Start) -> tuple[int, int]:
    """Start a template process; returns its number, and a descriptor of what it prints until it runs our code.

    FORKING is held.

    Raises:
        OSError: there are no more processes, or descriptors.
        RuntimeError: there is no such program.
    """
    ours.setblocking(False)
    data = marshal.dumps((start.paths, start.start_method, start.preload))
    told, said = _above_streams(_os.shared_page(len(data))), -1
    try:
        said = _above_streams(_os.shared_page(0))
        os.pwrite(told, data, 0)
        return _spawn(told, said, theirs.fileno(), ours.fileno(), start), said
    except BaseException as exc:
        _os.close_fd(said)
        if not isinstance(exc, OSError) or exc.errno not in _NO_PROGRAM:
            raise
        msg = f"{start.program!r} cannot be started ({exc.strerror}); {ADVICE}"
        raise RuntimeError(msg) from exc
    finally:
        os.close(told)


_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.ELOOP, errno.EISDIR)


def _spawn(told: int, said: int, fd: int, number: int, start: Start) -> int:
    """Start a program in a process group of its own: a Ctrl-C on the terminal is the owner's alone.

    It gets nothing but what it is told as its input, `said` to print to, `fd`, under the `number` of a descriptor of
    ours that programs do not inherit, and our output and errors, to print to once it is known to be an interpreter,
    under two more such numbers. Importing subprocess takes 4 ms, so where it can be done without that, it is.
    """
    argv = [*start.command, "-c", _START_CODE]
    env = {**start.env, GUARD: start.program}
    streams = [stream for stream in (1, 2) if is_open(stream)]
    spare = dict(zip(streams, (told, fd)))  # noqa: B905 -- numbers that are free once those were duplicated
    try:
        if not start.directory:  # CPython 3.13.0 cannot start in one that is gone
            raise FileNotFoundError
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, told, 0),
            (os.POSIX_SPAWN_DUP2, fd, number),
        ]
        for stream in streams:
            actions += [(os.POSIX_SPAWN_DUP2, stream, spare[stream]), (os.POSIX_SPAWN_DUP2, said, stream)]
        kept = {0, 1, 2, number, *spare.values()}
        actions += [(os.POSIX_SPAWN_CLOSE, stray) for stray in _inheritable() if stray not in kept]
        return os.posix_spawn(
            argv[0],
            [*argv, *map(str, (number, spare.get(1, -1), spare.get(2, -1)))],
            env,
            file_actions=actions,
            setpgroup=0,
            setsigdef=[getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)],
        )
    except (AttributeError, NotImplementedError, FileNotFoundError):  # the last: its name may be found on the path
        pass
    except OSError as exc:
        if exc.errno != errno.EBADF:  # one of the strays has a number above a limit that was lowered since
            raise
    import subprocess  # noqa: PLC0415 -- see above

    # In older ones the template makes its group: a function to be called in the child would call our hooks for forks.
    group: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {}
    copies = {stream: os.dup(stream) for stream in streams}
    try:
        process = subprocess.Popen(
            [*argv, *map(str, (fd, copies.get(1, -1), copies.get(2, -1)))],
            stdin=told,
            stdout=said if is_open(1) else None,
            stderr=said if is_open(2) else None,
            pass_fds=[fd, *copies.values()],
            env=env,
            cwd=None if start.directory else "/",
            **group,
        )
    finally:
        for copy in copies.values():
            os.close(copy)
    process.returncode = 0  # we wait for it ourselves; without this, Popen warns that it still runs
    return process.pid


def _inheritable() -> list[int]:
    """The descriptors that a program would inherit. Python makes none, libraries do."""
    found = []
    for name in os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"):  # noqa: PTH208 -- see above
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def fork(theirs: _socket.socket, ours: _socket.socket, settings: PoolSettings) -> int:
    """Fork this process into a template process for one pool; returns its number. FORKING is not held."""
    from poolkit._child import boot  # noqa: PLC0415 -- for this start method alone
    from poolkit._child import nursery as child  # noqa: PLC0415 -- as above

    boot.flush_streams()
    theirs_fd = theirs.detach()  # what the pool knows of it, the hooks of this very fork close in the child
    pid = os.fork()
    if pid:
        os.close(theirs_fd)
        return pid
    try:
        theirs = _socket.socket(fileno=theirs_fd)
        ours.close()
        os.setpgid(0, 0)
        os.environ.update({**settings.shares, **settings.env})
        process = child.Nursery(None, "fork", settings.bound_initializer())
        process.prepare(settings.preload, theirs.fileno())
        process.open(theirs)
        process.serve()
    except BaseException:  # noqa: BLE001 -- the owner's code must not go on in its copy
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
