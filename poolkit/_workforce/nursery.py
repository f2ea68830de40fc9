"""Nursery, the owner's side: starts the template process, hands it orders, reads its notices.

Owner: the supervisor thread, alone. Orders that do not fit the socket are kept and sent later; nothing here blocks
but `close`, which waits for the template process to end.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poolkit._child import nursery as template
from poolkit._wire import messages

END_GRACE = 5.0  # seconds the template process gets to kill its workers and end

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

    def __init__(self, settings: NurserySettings) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._control = ours
        self._buffer = b""
        self._orders: deque[tuple[bytes, list[int]]] = deque()
        try:
            if settings.start_method == "fork":
                self.pid = _fork(theirs, ours, settings)
            else:
                self.pid = _execute(theirs, ours, settings)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        """The control socket's descriptor, to wait for notices."""
        return self._control.fileno()

    def fork(self, worker_id: int, fds: Sequence[int]) -> None:
        """Order a worker; the descriptors are closed here once they are on their way."""
        self._orders.append((messages.ORDER.pack(messages.FORK, 0, len(fds), 0, worker_id), list(fds)))
        self.flush()

    def signal(self, worker_id: int, number: int, *, group: bool) -> None:
        """Order a signal to a worker, or to its whole process group."""
        self._orders.append((messages.ORDER.pack(messages.SIGNAL, group, 0, number, worker_id), []))
        self.flush()

    def flush(self) -> bool:
        """Send what is pending, as far as it goes. True when nothing is left."""
        while self._orders:
            data, fds = self._orders[0]
            try:
                if fds:
                    count = socket.send_fds(self._control, [data], fds)
                else:
                    count = self._control.send(data)
            except BlockingIOError:
                return False
            except OSError:  # it is gone; its end-of-file tells
                count = len(data)
            for fd in fds:
                os.close(fd)
            if count < len(data):
                self._orders[0] = (data[count:], [])
            else:
                self._orders.popleft()
        return True

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
            notices.append((fields, self._buffer[size:end]))
            self._buffer = self._buffer[end:]
        return notices

    def close(self) -> None:
        """Let go of it: it kills its workers and ends. Blocks until it has, and kills it after END_GRACE seconds."""
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
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # our own child and not reaped, so the number is still its own
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def close_in_forked_child(self) -> None:
        """Close the copy that a forked child of the owner has, so that the owner's end is the only one."""
        with contextlib.suppress(OSError):
            self._control.close()


def _execute(theirs: socket.socket, ours: socket.socket, settings: NurserySettings) -> int:
    if not sys.executable:
        msg = "poolkit cannot start worker processes: sys.executable is empty, as in an embedded interpreter"
        raise RuntimeError(msg)
    paths = [path for path in sys.path if isinstance(path, str)]
    home = str(Path(__file__).resolve().parents[2])
    if home not in paths:
        paths.append(home)
    data = marshal.dumps((paths, settings.start_method, list(settings.preload)))
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    fd = theirs.fileno()
    process = subprocess.Popen(  # noqa: S603 -- this interpreter, and code of our own
        [sys.executable, *flags, "-c", _START_CODE, str(fd), str(len(data))],
        stdin=subprocess.DEVNULL,
        pass_fds=[fd],
        env={**os.environ, **settings.env},
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
    pid = os.fork()
    if pid:
        return pid
    try:
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
