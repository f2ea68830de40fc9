"""Starters: the owner's ends of the processes that start programs; see `_child/starter.py`.

Owner: the programs thread. A socket has no copies: it is made while FORKING is held, and a forked child closes it.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import array
import contextlib
import linecache
import math
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Sequence

from poolkit._child import starter as protocol
from poolkit._clock import monotonic
from poolkit._spawn import launch
from poolkit._spawn.key import interpreter
from poolkit._spawn.launch import FORKING

START_GRACE = 10.0  # seconds that one gets to come up
ANSWER_GRACE = 2.0  # seconds that one gets to start a program; then it gets no more to start
_END_GRACE, _END_LOOK = 1.0, 0.001  # seconds: for it to end, and between two looks whether it has
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)
_LIMITS = [value for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]

_never = threading.Event()  # `time.sleep` may be patched

Note = tuple[bytes, int, int, int]  # kind, number of the program, and two facts; see the protocol


def likeness() -> tuple[object, ...]:
    """What programs have of this process through their starter."""
    cpus = frozenset(os.sched_getaffinity(os.getpid())) if hasattr(os, "sched_getaffinity") else ()
    ids = (os.getuid(), os.geteuid(), os.getgid(), os.getegid(), tuple(os.getgroups()))
    return (cpus, ids, tuple(map(resource.getrlimit, _LIMITS)))


class Starter:
    """One of them. All methods belong to the programs thread, but for `close`."""

    def __init__(self) -> None:
        """Start it. Raises OSError, or RuntimeError where there is no interpreter."""
        self.key = likeness()
        self.is_ready = False
        self.asked = 0  # the program that it is to start now; one at a time
        self.asked_at = math.inf
        self._unsent: deque[bytes] = deque()
        self._read = b""
        source = "".join(linecache.getlines(protocol.__file__, vars(protocol)))  # also of what is in an archive
        with FORKING:
            self._socket, theirs = launch.socket_pair()
            try:
                self.pid = self._execute(theirs, source)
            except BaseException:
                self._socket.close()
                raise
            finally:
                theirs.close()
        self._started_at = monotonic()

    def _execute(self, theirs: _socket.socket, source: str) -> int:
        number = self._socket.fileno()  # it is free there
        null = launch.above_streams(os.open(os.devnull, os.O_RDWR))
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null, place) for place in (0, 1, 2)]
            actions += [(os.POSIX_SPAWN_DUP2, theirs.fileno(), number)]
            program, *_ = interpreter()
            command = [program, "-I", "-S", "-c", f"{source}\nmain({number})"]
            return os.posix_spawnp(program, command, os.environ, file_actions=actions, setpgroup=0)
        finally:
            os.close(null)

    def fileno(self) -> int:
        """What becomes readable when it has something to say, or has ended."""
        return self._socket.fileno()

    def fits(self) -> bool:
        """Whether a program that is started now gets from it what it would get from this process."""
        return self.key == likeness()

    def hangs(self, now: float) -> bool:
        """Whether it should have started a program, and has not."""
        return now >= self.answer_due()

    def answer_due(self) -> float:
        """When it should have started what it was asked to."""
        if not self.asked:
            return math.inf
        return self.asked_at + ANSWER_GRACE if self.is_ready else self._started_at + START_GRACE

    def execute(self, number: int, packed: bytes, fds: Sequence[int]) -> None:
        """Have a program started: what is packed, or in the last of the descriptors, which stay the caller's.

        Raises:
            OSError: it has ended, or takes nothing any more.
        """
        if self._unsent:
            raise BlockingIOError
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))
        whole = protocol.ORDER.pack(protocol.EXEC, number, len(packed)) + packed
        sent = self._socket.sendmsg([whole], [rights], _NO_SIGNAL)
        if sent < len(whole):
            self._unsent.append(whole[sent:])
        self.asked, self.asked_at = number, monotonic()

    def bury(self, number: int) -> None:
        """Once a program has ended, have what is left of its group killed, and it reaped: `flush` sends that."""
        self._unsent.append(protocol.ORDER.pack(protocol.BURY, number, 0))

    def signal(self, number: int, which: int) -> None:
        """Have the group of a program get a signal that is to be buried: `flush` sends that."""
        self._unsent.append(protocol.ORDER.pack(protocol.SIGNAL, number, which))

    def flush(self) -> bool:
        """Send what it had no room for; false where it still has none."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is noticed elsewhere
            while self._unsent:
                try:
                    sent = self._socket.send(self._unsent[0], _NO_SIGNAL)
                except BlockingIOError:
                    return False
                rest = self._unsent.popleft()[sent:]
                if rest:
                    self._unsent.appendleft(rest)
        return True

    def receive(self) -> list[Note] | None:
        """What it says; None where it has ended."""
        size = protocol.NOTE.size
        try:
            data = self._socket.recv(size * 256)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        self._read += data
        whole = len(self._read) - len(self._read) % size
        notes, self._read = list(protocol.NOTE.iter_unpack(self._read[:whole])), self._read[whole:]
        for kind, number, *_ in notes:
            if kind == protocol.READY:
                self.is_ready, self.asked_at = True, monotonic()
            elif kind in {protocol.STARTED, protocol.FAILED} and number == self.asked:
                self.asked = 0
        return notes

    def kill(self) -> None:
        """Kill it; `receive` says when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def let_go(self) -> None:
        """Tell it to end, as it has nothing left to do; `receive` says when it has."""
        with contextlib.suppress(OSError):  # it has
            self._socket.shutdown(_socket.SHUT_WR)

    def close(self) -> None:
        """Close its socket: it kills what it has started, and ends. In a forked child only a copy is closed."""
        self._socket.close()

    def end(self) -> None:
        """Close it, and reap it: it ends by itself, or is killed after a moment. Blocks for that."""
        self.close()
        give_up = monotonic() + _END_GRACE
        with contextlib.suppress(ChildProcessError):  # somebody else has reaped it
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                if monotonic() > give_up:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                _never.wait(_END_LOOK)
