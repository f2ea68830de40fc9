"""Launch: how a template process comes to be: a new interpreter, or a fork of this process.

Owner: whoever calls; nothing is kept here but FORKING.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import contextlib
import errno
import marshal
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from poolkit import _os
from poolkit._spawn.key import ADVICE, GUARD, is_open

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any

    from poolkit._spawn.key import Start

# Held by whoever forks this process, or starts another; taken before a pool's lock. Re-entrant for signal handlers that
# fork, and for finalizers, which see that it is held.
FORKING = threading.RLock()

_START_CODE = f"""\
import sys, os, marshal
os.environ.pop({GUARD!r}, None)
sys.path[:], *how = marshal.loads(os.pread(0, os.fstat(0).st_size, 0))
from poolkit._child.template import main
main(*map(int, sys.argv[1:5]), *how)
"""


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """A pair, with numbers above those of the standard streams: one of these may be closed in the owner."""
    one, other = (_socket.socket(fileno=_above_streams(end.detach())) for end in _socket.socketpair())
    one.setblocking(False)
    return one, other


def _above_streams(fd: int) -> int:
    """The same descriptor, under a number above those of the standard streams."""
    import fcntl  # noqa: PLC0415 -- not on Windows, where importing poolkit must work

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def page_with(data: bytes) -> int:
    """A descriptor of memory that a template process reads this from, and prints to behind it until it runs our code.

    In the end it writes there how its imports went.
    """
    page = _above_streams(_os.shared_page(len(data)))
    os.pwrite(page, data, 0)
    os.lseek(page, len(data), os.SEEK_SET)
    return page


def told(start: Start) -> bytes:
    """What a template process that is a new interpreter is told."""
    return marshal.dumps((start.paths, start.start_method, start.preload))


def execute(theirs: _socket.socket, ours: _socket.socket, page: int, nbytes: int, start: Start) -> int:
    """Start a template process as a new interpreter, with so much on its page; returns its number. FORKING is held.

    It leads a process group of its own: a Ctrl-C on the terminal is the owner's alone. It gets nothing but the page, as
    its input and to print to, its end of the root socket, under the number of a descriptor of ours that programs do not
    inherit, and our output and errors, to print to once it is known to be an interpreter, under two more such numbers.
    Importing subprocess takes 4 ms, so where it can be done without that, it is.

    Raises:
        OSError: there are no more processes, or descriptors.
        RuntimeError: there is no such program.
    """
    argv = [*start.command, "-c", _START_CODE]
    env = {**start.env, GUARD: start.command[0]}
    try:
        try:
            if start.directory:  # CPython 3.13.0 cannot start in one that is gone
                return _spawn(argv, env, page, nbytes, theirs.fileno(), ours.fileno())
        except (AttributeError, NotImplementedError, FileNotFoundError):  # the last: it may be found on the path
            pass
        except OSError as exc:
            if exc.errno != errno.EBADF:  # one of the strays has a number above a limit that was lowered since
                raise
        return _popen(argv, env, page, nbytes, theirs.fileno(), cwd=None if start.directory else "/")
    except OSError as exc:
        if exc.errno not in _NO_PROGRAM:
            raise
        msg = f"{start.command[0]!r} cannot be started ({exc.strerror}); {ADVICE}"
        raise RuntimeError(msg) from exc


_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.ELOOP, errno.EISDIR)


def _spawn(argv: list[str], env: Mapping[str, str], page: int, nbytes: int, fd: int, number: int) -> int:
    streams = [stream for stream in (1, 2) if is_open(stream)]
    spare = dict(zip(streams, (page, fd)))  # noqa: B905 -- numbers that are free once those were duplicated
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, page, 0), (os.POSIX_SPAWN_DUP2, fd, number)]
    for stream in streams:
        actions += [(os.POSIX_SPAWN_DUP2, stream, spare[stream]), (os.POSIX_SPAWN_DUP2, 0, stream)]
    kept = {0, 1, 2, number, *spare.values()}
    actions += [(os.POSIX_SPAWN_CLOSE, stray) for stray in _inheritable() if stray not in kept]
    return os.posix_spawn(
        argv[0],
        [*argv, *map(str, (number, spare.get(1, -1), spare.get(2, -1), nbytes))],
        env,
        file_actions=actions,
        setpgroup=0,
        setsigdef=[getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)],
    )


def _popen(argv: list[str], env: Mapping[str, str], page: int, nbytes: int, fd: int, *, cwd: str | None) -> int:
    import subprocess  # noqa: PLC0415 -- see above

    # In older ones the template makes its group: a function to be called in the child would call our hooks for forks.
    group: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {}
    copies = {stream: os.dup(stream) for stream in (1, 2) if is_open(stream)}
    try:
        process = subprocess.Popen(
            [*argv, *map(str, (fd, copies.get(1, -1), copies.get(2, -1), nbytes))],
            stdin=page,
            stdout=page if 1 in copies else None,
            stderr=page if 2 in copies else None,  # noqa: PLR2004 -- the number of a stream
            pass_fds=[fd, *copies.values()],
            env=env,
            cwd=cwd,
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
    for name in os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"):  # noqa: PTH208 -- importing pathlib takes 6 ms
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def fork(
    theirs: _socket.socket,
    page: int,
    preload: Sequence[str],
    env: Mapping[str, str],
    initializer: Callable[[], object] | None,
) -> int:
    """Fork this process into a template process; returns its number. FORKING is not held.

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
