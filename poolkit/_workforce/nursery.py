"""Nursery, the owner's side: starts the template process, hands it orders, reads its notices.

Owner: the supervisor thread, alone. Orders that do not fit the socket are kept and sent later; nothing here blocks
but `start`, and `close`, which waits for the template process to end.

The control socket must have no copies: the template ends when the owner's side of it closes, and the owner knows the
template's end by the other side. A fork in another thread copies everything. So the pair is made under the pool's
lock, which every fork takes, and is known to the pool from then on: a forked child closes its copies. And no fork
happens while `start` runs (FORKING): a copy of Popen's own pipes would keep it waiting for as long as that child lives.
"""

from __future__ import annotations

import array
import contextlib
import errno
import marshal
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from poolkit import _os
from poolkit._child import nursery as template
from poolkit._wire import messages

FORKING = threading.Lock()  # held by whoever forks this process, or starts another; taken before a pool's lock
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE, which ends programs that left it at its default
END_GRACE = 5.0  # seconds the template process gets to kill its workers and end
ANSWER_GRACE = 2.0  # seconds it gets to carry out a signal; one that is stopped or hangs cannot stop a task
SECOND_LOOK = 0.5  # seconds more, lest a pause of the whole machine is taken for its own

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
    """How the template process is made. `initializer` is inherited, and for start_method "fork" only."""

    start_method: str
    preload: tuple[str, ...]
    env: Mapping[str, str]
    initializer: Callable[[], object] | None = None


class Nursery:
    """A handle on one template process."""

    def __init__(self) -> None:
        self.pid = -1
        self._control, self._theirs = _socket_pair()
        self._control.setblocking(False)
        self._buffer = b""
        self._orders: deque[tuple[bytes, list[int]]] = deque()
        self.refused: list[tuple[int, OSError]] = []  # workers whose order could not be sent, and why
        self._unanswered: deque[float] = deque()  # when each signal was ordered that was not carried out yet
        self._hangs = False  # it did not answer in time
        self._killed = False  # for that

    def start(self, settings: NurserySettings) -> None:
        """Start the process. Blocks for that.

        Raises:
            Exception: it could not be started; everything is closed.
        """
        try:
            if settings.start_method == "fork":
                self.pid = _fork(self._theirs, self._control, settings)
            else:
                self.pid = _execute(self._theirs, self._control, settings)
        except BaseException:
            self._control.close()
            raise
        finally:
            self._theirs.close()

    def fileno(self) -> int:
        """The control socket's descriptor, to wait for notices."""
        return self._control.fileno()

    def fork(self, worker_id: int, fds: Sequence[int]) -> None:
        """Order a worker; the descriptors are closed here once they are on their way."""
        self._orders.append((messages.ORDER.pack(messages.FORK, 0, len(fds), 0, worker_id), list(fds)))
        self.flush()

    def signal(self, worker_id: int, number: int, *, group: bool, up: bool = True) -> None:
        """Order a signal to a worker, or to its whole process group.

        Where the worker is not up yet the template may be importing, and takes its time to answer.
        """
        self._orders.append((messages.ORDER.pack(messages.SIGNAL, group, 0, number, worker_id), []))
        self._unanswered.append(time.monotonic() if up else math.inf)
        self.flush()

    def answer_due(self) -> float | None:
        """When it must have carried out the oldest signal; None when nothing is due."""
        due = min(self._unanswered, default=math.inf) + ANSWER_GRACE
        return None if due == math.inf else due

    def kill_if_it_hangs(self) -> None:
        """Kill the process if an answer is overdue; its workers die with it. Call this when all notices were read."""
        due, now = self.answer_due(), time.monotonic()
        if due is None or due > now:
            return
        if not self._hangs:
            self._hangs = True
            later = now - ANSWER_GRACE + SECOND_LOOK
            self._unanswered = deque(max(asked, later) for asked in self._unanswered)
        else:
            self._unanswered.clear()
            self._killed = True
            self._kill()

    def flush(self) -> bool:
        """Send what is pending, as far as it goes. True when nothing is left."""
        while self._orders:
            data, fds = self._orders[0]
            try:
                count = self._send(data, fds)
            except BlockingIOError:
                return False
            except OSError as exc:
                count = len(data)
                if exc.errno not in _GONE and len(data) == messages.ORDER.size:  # if it is gone, its end-of-file tells
                    self.refused.append((messages.ORDER.unpack(data)[-1], exc))
            for fd in fds:
                os.close(fd)
            if count < len(data):
                self._orders[0] = (data[count:], [])
            else:
                self._orders.popleft()
        return True

    def _send(self, data: bytes, fds: list[int]) -> int:
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        return self._control.sendmsg([data], attached, _NO_SIGNAL)

    def receive(self) -> list[tuple[tuple[int, ...], bytes]]:
        """The notices that are here: (kind, status, worker, pid, peak rss, size) and payload.

        Raises:
            EOFError: the template process is gone.
        """
        notices: list[tuple[tuple[int, ...], bytes]] = []
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return notices
        except OSError as exc:
            raise EOFError from exc
        if not data:
            raise EOFError
        self._buffer += data
        size = messages.NOTICE.size
        while len(self._buffer) >= size:
            fields = messages.NOTICE.unpack_from(self._buffer)
            end = size + fields[-1]
            if len(self._buffer) < end:
                break
            if fields[0] != messages.SIGNALLED:
                notices.append((fields, self._buffer[size:end]))
            elif self._unanswered:
                self._unanswered.popleft()
                self._hangs = False
            self._buffer = self._buffer[end:]
        return notices

    def close(self) -> str:
        """Let go of it: it kills its workers and ends. Blocks until it has, and kills it after END_GRACE seconds.

        Returns how it ended, in words.
        """
        for _, fds in self._orders:
            for fd in fds:
                os.close(fd)
        self._orders.clear()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        self._control.settimeout(END_GRACE)
        try:
            while self._control.recv(65536):
                pass
        except OSError:  # a timeout too
            self._kill()
        self._control.close()
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # somebody else waited for it
            return "ended"
        if self._killed:
            return f"did not answer for {ANSWER_GRACE:g} s and was killed"
        return f"was killed by {_os.signal_name(-code)}" if code < 0 else f"exited with code {code}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # our own child and not reaped, so the number is still its own

    def close_in_forked_child(self) -> None:
        """Close the copies that a forked child of the owner has, so that both ends are the only ones."""
        for end in (self._control, self._theirs):
            with contextlib.suppress(OSError):
                end.close()


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """A pair, with numbers above those of the standard streams: one of these may be closed in the owner."""
    import fcntl  # noqa: PLC0415 -- not on Windows, where importing poolkit must work

    pair = []
    for end in socket.socketpair():
        fd = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)
        end.close()
        pair.append(socket.socket(fileno=fd))
    return pair[0], pair[1]


def _directory() -> str | None:
    """Where to start it: here, or at the root when this directory is gone, which CPython 3.13.0 cannot start in."""
    try:
        os.getcwd()  # noqa: PTH109 -- only to see whether it is there
    except OSError:
        return "/"
    return None


def _execute(theirs: socket.socket, ours: socket.socket, settings: NurserySettings) -> int:
    if not sys.executable:
        msg = "poolkit cannot start worker processes: sys.executable is empty, as in an embedded interpreter"
        raise RuntimeError(msg)
    paths = [path for path in cast("list[object]", sys.path) if isinstance(path, str)]
    home = os.path.realpath(os.path.join(__file__, "..", "..", ".."))  # noqa: PTH118 -- importing pathlib takes 6 ms
    if home not in paths:
        paths.append(home)
    preload = [] if settings.start_method == "spawn" else list(settings.preload)  # each worker has imports of its own
    data = marshal.dumps((paths, settings.start_method, preload))
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    fd = theirs.fileno()
    with FORKING:
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", _START_CODE, str(fd), str(len(data))],
            stdin=subprocess.DEVNULL,
            pass_fds=[fd],
            env={**os.environ, **settings.env},
            cwd=_directory(),
            start_new_session=True,  # a Ctrl-C on the terminal is the owner's alone
        )
    ours.setblocking(True)
    with contextlib.suppress(OSError):  # it died at once: its end-of-file tells
        ours.sendall(data)
    ours.setblocking(False)
    process.returncode = 0  # we wait for it ourselves; without this, Popen warns that it still runs
    return process.pid


def _fork(theirs: socket.socket, ours: socket.socket, settings: NurserySettings) -> int:
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
        process = template.Nursery(theirs, "fork", settings.initializer)
        if process.prepare(list(settings.preload)):
            process.serve()
    except BaseException:  # noqa: BLE001 -- the owner's code must not go on in its copy
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
