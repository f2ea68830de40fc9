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
from collections.abc import Callable, Mapping

from poolkit import _os

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any

    from poolkit._workforce.settings import PoolSettings

FORKING = threading.Lock()  # held by whoever forks this process, or starts another; taken before a pool's lock
NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE, which ends programs that left it at its default
READ_GRACE = 5.0  # seconds a new process gets to read what it is to be, where that does not fit the socket

# Thread counts of the numerical libraries, which read them when they are first imported.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_START_CODE = """\
import sys, os, marshal
fd, size, data = int(sys.argv[1]), int(sys.argv[2]), b''
while len(data) < size:
    data += os.read(fd, size - len(data)) or sys.exit(1)
sys.path[:], start_method, preload = marshal.loads(data)
from poolkit._child.nursery import main
main(fd, start_method, preload)
"""


class NurserySettings:
    """How the template process is made. Never changed. `initializer` is inherited, and for start_method "fork" only.

    `env` is set for the whole of it, `late_env` in each worker, before anything of the user's is imported there.
    `pool` stands for the pool that it is for.
    """

    __slots__ = ("env", "initializer", "late_env", "pool", "preload", "start_method")

    def __init__(
        self,
        *,
        start_method: str,
        preload: tuple[str, ...],
        env: Mapping[str, str],
        late_env: Mapping[str, str],
        initializer: Callable[[], object] | None = None,
        pool: PoolSettings | None = None,
    ) -> None:
        """Take what was checked."""
        self.pool = pool
        self.start_method = start_method
        self.preload = preload
        self.env = env
        self.late_env = late_env
        self.initializer = initializer


def nursery_settings(settings: PoolSettings, initializer: Callable[[], object] | None = None) -> NurserySettings:
    """What the template process of a pool is made from."""
    shares = _fair_shares(settings)
    # What is imported in the template reads them there. Else pools of different sizes may have one in common.
    at_once = settings.start_method == "fork" or bool(settings.preload)
    return NurserySettings(
        start_method=settings.start_method,
        preload=settings.preload,
        env={**shares, **settings.env} if at_once else settings.env,
        late_env={} if at_once else shares,
        initializer=initializer,
        pool=settings,
    )


def _fair_shares(settings: PoolSettings) -> dict[str, str]:
    """A fair share of the CPUs for libraries that make threads, unless the environment says something else."""
    share = str(max(1, _os.usable_cpus() // settings.size))
    return {name: share for name in _THREAD_VARIABLES if name not in os.environ and name not in settings.env}


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """A pair, with numbers above those of the standard streams: one of these may be closed in the owner."""
    import fcntl  # noqa: PLC0415 -- not on Windows, where importing poolkit must work

    pair = []
    for end in _socket.socketpair():
        fd = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)
        end.close()
        pair.append(_socket.socket(fileno=fd))
    return pair[0], pair[1]


def search_path() -> tuple[str, ...]:
    """Where a new interpreter is to look for modules, this package included."""
    entries: list[object] = [*sys.path]
    paths = [str(path) for path in entries if isinstance(path, str)]  # marshal takes no subclasses
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
    flags: list[str] = []
    if len(sys.orig_argv) > 1 and sys.orig_argv[1].startswith("-") and sys.orig_argv[1] not in {"-c", "-m"}:
        import subprocess  # noqa: PLC0415 -- what was set by variables comes with the environment

        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return (sys.executable, *flags)


class Start:
    """What a new template process is told, and how it is started."""

    __slots__ = ("command", "env", "paths", "preload", "start_method")

    def __init__(self, settings: NurserySettings, env: dict[str, str]) -> None:
        """Look at this process, too.

        Raises:
            RuntimeError: there is no interpreter.
        """
        self.command = interpreter()
        self.env = env
        self.paths = search_path()
        self.start_method = settings.start_method
        # With "spawn" each worker has imports of its own.
        self.preload = () if settings.start_method == "spawn" else settings.preload

    def key(self) -> tuple[object, ...]:
        """All of it but the environment."""
        return self.command, self.paths, self.start_method, self.preload


def execute(theirs: _socket.socket, ours: _socket.socket, start: Start) -> int:
    """Start a template process; returns its number. FORKING is held.

    Raises:
        OSError: there are no more processes, or descriptors, or no such program.
    """
    data = marshal.dumps((list(start.paths), start.start_method, list(start.preload)))
    argv = [*start.command, "-c", _START_CODE]
    pid = _spawn(theirs.fileno(), ours.fileno(), argv, str(len(data)), start.env)
    ours.settimeout(READ_GRACE)
    with contextlib.suppress(OSError):  # it died at once, or hangs: whoever wants something of it will see
        ours.sendall(data, NO_SIGNAL)
    ours.setblocking(False)
    return pid


def _spawn(fd: int, number: int, argv: list[str], size: str, env: Mapping[str, str]) -> int:
    """Start a program in a session of its own: a Ctrl-C on the terminal is the owner's alone.

    It gets nothing but the standard streams, its input empty, and `fd`, under the `number` of a descriptor of ours that
    programs do not inherit. Importing subprocess takes 4 ms, so where it can be done without that, it is.
    """
    try:
        os.getcwd()  # noqa: PTH109 -- only to see whether it is there
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, fd, number),
            *((os.POSIX_SPAWN_CLOSE, stray) for stray in _inheritable() if stray not in {0, 1, 2, number}),
        ]
        return os.posix_spawn(
            argv[0],
            [*argv, str(number), size],
            env,
            file_actions=actions,
            setsid=True,
            setsigdef=[getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)],
        )
    except (AttributeError, NotImplementedError, FileNotFoundError):  # the directory is gone, or the system is old
        pass
    except OSError as exc:
        if exc.errno != errno.EBADF:  # one of the strays has a number above a limit that was lowered since
            raise
    import subprocess  # noqa: PLC0415 -- see above

    process = subprocess.Popen(
        [*argv, str(fd), size],
        stdin=subprocess.DEVNULL,
        pass_fds=[fd],
        env=env,
        cwd=_directory(),
        start_new_session=True,
    )
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


def _directory() -> str | None:
    """Where to start it: here, or at the root when this directory is gone, which CPython 3.13.0 cannot start in."""
    try:
        os.getcwd()  # noqa: PTH109 -- see above
    except OSError:
        return "/"
    return None


def fork(theirs: _socket.socket, ours: _socket.socket, settings: NurserySettings) -> int:
    """Fork this process into a template process for one pool; returns its number. FORKING is not held."""
    from poolkit._child import nursery as child  # noqa: PLC0415 -- for this start method alone

    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):  # what is buffered must not come twice
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
    theirs_fd = theirs.detach()  # what the pool knows of it, the hooks of this very fork close in the child
    pid = os.fork()
    if pid:
        os.close(theirs_fd)
        return pid
    try:
        theirs = _socket.socket(fileno=theirs_fd)
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
