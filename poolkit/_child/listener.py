"""Listener: what a cluster's worker accepts connections from, a listening socket as far as any server can tell.

    schedule "kernel"   Listener   a copy of the one listening socket; who is free takes a connection
    the others          Passed     the owner accepts, and sends the connection through the hand, a pair of sockets

O_NONBLOCK belongs to the open socket, which all workers share: one that made its copy blocking would stop the event
loops of all others. So the owner has set it, once, and here whether a socket blocks is a private value, and who waits
does so by polling. For the same reason `listen` leaves the backlog alone, and `shutdown` does nothing.

Guarantees: no connection is accepted from the moment on that the owner has said so on the slate, or that the worker is
to stop; a blocking `accept` ends then. A connection that an interrupt has cut off is closed. What was passed counts as
taken once, and as closed once: when it is closed, detached or collected, in this process and not in its children.
Owner: any thread; the file holds no lock, but for the slate's.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
from collections import deque
from itertools import starmap

from poolkit._clock import monotonic
from poolkit._os import close_fd, fds_of
from poolkit._select import poll
from poolkit._typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._child.stopping import Stopping
    from poolkit._wire.slate import Slate

_FOREVER = 2_000_000.0  # seconds; about the longest time that a socket takes
_AGAIN = 0.1  # seconds after which a thread that waits for the stop alone looks at the slate
_IN_VAIN, _PAUSE = 0.2, 2  # seconds for which a loop may be woken in vain; milliseconds that it then has to wait
_CLOEXEC: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
_FLAGS = _socket.MSG_DONTWAIT | _CLOEXEC
_ROOM = _socket.CMSG_LEN(4)  # for one descriptor


class Gate:
    """What the listeners of one worker share."""

    def __init__(
        self, slate: Slate, stopping: Stopping, say_ready: Callable[[], object], acceptor_bell: Any = None
    ) -> None:
        self.slate = slate
        self.stopping = stopping
        self._acceptor_bell = acceptor_bell  # what has `set`
        self._to_say = deque([say_ready])

    def ready(self) -> None:
        """Tell the owner, once, that the worker serves. Thread-safe."""
        while self._to_say:
            try:
                say_ready = self._to_say.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self.slate.ready = True
                self.slate.alive = monotonic()
                say_ready()
            except BaseException:
                self._to_say.append(say_ready)
                raise

    def is_shut(self) -> bool:
        """Whether no connection is to be accepted."""
        return self.stopping.is_set() or self.slate.no_more

    def took(self, once: list[int]) -> None:
        """Count a connection, and tell the acceptor if it waits for that. For `once` see `Slate`."""
        slate = self.slate
        slate.took(once)
        slate.alive = monotonic()
        if slate.is_waited_for and self._acceptor_bell is not None:
            self._acceptor_bell.set()


class Listener(socket.socket):
    """A copy of the listening socket that all workers share. Takes over its descriptor."""

    _timeout: float | None = None
    _is_over = False  # the owner passes nothing any more
    _vain_since: float | None = None  # when a loop was first told that there is nothing, while it may not accept

    def __init__(self, fd: int, gate: Gate) -> None:
        super().__init__(fileno=fd)
        self._gate = gate
        self._apply()

    # ===== whether it blocks: a private value =====

    def _apply(self) -> None:
        """Have what is not `accept` wait as long as one wants. None of this ever clears O_NONBLOCK."""
        is_stream = self.type == socket.SOCK_STREAM
        super().settimeout(0.0 if is_stream else _FOREVER if self._timeout is None else self._timeout)

    def setblocking(self, flag: bool, /) -> None:
        """Have calls wait, or not. In this worker alone."""
        self.settimeout(None if flag else 0.0)

    def settimeout(self, value: float | None, /) -> None:
        """Have calls wait for so long; None: for ever, 0: not at all. In this worker alone."""
        seconds = None if value is None else float(value)
        if seconds is not None and not seconds >= 0.0:
            msg = f"a socket's timeout is None or at least 0, not {value!r}"
            raise ValueError(msg)
        self._timeout = seconds if seconds is None else min(seconds, _FOREVER)
        self._apply()

    def gettimeout(self) -> float | None:
        """How long calls wait."""
        return self._timeout

    def getblocking(self) -> bool:
        """Whether calls wait."""
        return self._timeout != 0.0

    @property
    def timeout(self) -> float | None:
        """How long calls wait."""
        return self._timeout

    # ===== accepting =====

    def listen(self, backlog: int = 0, /) -> None:
        """Say that the worker serves. It listens already, and the backlog is the cluster's."""
        if self.type != socket.SOCK_STREAM:
            super().listen(backlog)  # raises
        self._gate.ready()

    def accept(self) -> tuple[socket.socket, Any]:
        """Wait for a connection; return it and the client's address.

        Raises:
            BlockingIOError: it is non-blocking and there is nothing, or the worker is to accept nothing.
            TimeoutError: nothing came in time.
            ConnectionAbortedError: the worker is to stop; or, if it is non-blocking, this client has gone.
        """
        gate, timeout = self._gate, self._timeout
        gate.ready()
        give_up = None if timeout is None else monotonic() + timeout
        while True:
            is_shut = self._is_over or gate.is_shut()
            if not is_shut:
                self._vain_since = None
                try:
                    return self._take()
                except BlockingIOError:
                    if timeout == 0.0:
                        raise
                except ConnectionAbortedError:
                    if timeout == 0.0:
                        raise
                    continue
            elif timeout == 0.0 or gate.stopping:
                self._slow_down()
                if timeout == 0.0:
                    msg = "this worker is to accept no more connections"
                    raise BlockingIOError(errno.EAGAIN, msg)
                msg = "this worker is to stop: it accepts no more connections"
                raise ConnectionAbortedError(errno.ECONNABORTED, msg)
            self._wait(None if give_up is None else give_up - monotonic(), is_shut=is_shut)

    def take(self) -> tuple[socket.socket, Any]:
        """Do the same without waiting, whatever the timeout. Raises BlockingIOError, ConnectionAbortedError."""
        if self._is_over or self._gate.is_shut():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._take()

    def _wait(self, left: float | None, *, is_shut: bool) -> None:
        """Wait until there may be something, or the worker is to stop."""
        fd = self.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if left is not None and left <= 0.0:
            msg = "timed out"
            raise TimeoutError(msg)
        if is_shut:
            self._gate.stopping.poll_with(-1, _AGAIN if left is None else min(left, _AGAIN))
        else:
            self._gate.stopping.poll_with(fd, left)

    def _slow_down(self) -> None:
        """Let a loop not take a whole CPU, which is woken by a connection that it may not accept, again and again."""
        now = monotonic()
        if self._vain_since is None:
            self._vain_since = now
        elif now - self._vain_since > _IN_VAIN and self.fileno() >= 0:
            poller = poll()
            poller.register(self.fileno(), select.POLLIN)
            if poller.poll(0):
                poll().poll(_PAUSE)

    def _take(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError."""
        connection, taken = socket.socket.__new__(socket.socket), list[tuple[int, Any]]()
        try:
            taken += starmap(self._accept, ((),))  # type: ignore[attr-defined]
            fd, address = taken[0]
            connection.__init__(self.family, self.type, self.proto, fileno=fd)  # type: ignore[misc]
            if socket.getdefaulttimeout() is None:
                connection.setblocking(True)  # some systems hand down the listener's flag
            self._gate.took([1])
        except BaseException:
            _give_up(connection, [fd for fd, _ in taken])
            raise
        return connection, address

    # ===== the copy =====

    def shutdown(self, how: int, /) -> None:
        """Do nothing: it would end the listening socket of all workers."""

    def dup(self) -> Self:
        """Another copy, with a private value of its own."""
        copy = self.__class__(os.dup(self.fileno()), self._gate)
        copy.settimeout(self._timeout)
        return copy


def _give_up(connection: socket.socket, fds: list[int]) -> None:
    """Close what was accepted; either the connection has the descriptor, or it has none."""
    if connection.fileno() >= 0:
        _socket.socket.close(connection)
    else:
        for fd in fds:
            close_fd(fd)


class PassedConnection(socket.socket):
    """A connection that the owner has accepted. Its end is counted: also where it is detached, as TLS does."""

    _once: list[int] = []  # noqa: RUF012 -- each that counts has its own; this one stays empty, for copies
    _slate: Slate

    def count_with(self, slate: Slate, once: list[int]) -> None:
        """Have its end counted on this slate; for `once` see there."""
        self._slate, self._once = slate, once

    def _note_end(self) -> None:
        if self._once:
            self._slate.closed_one(self._once)

    def _real_close(self, *args: Any) -> None:
        self._note_end()
        super()._real_close(*args)  # type: ignore[misc]

    def detach(self) -> int:
        """Give the descriptor away."""
        self._note_end()
        return super().detach()

    def __del__(self) -> None:
        """As every socket, with a warning if it was not closed."""
        self._note_end()
        super().__del__()  # type: ignore[misc]


class Passed(Listener):
    """What looks like the listening socket, and gives the connections that the owner sends through the hand.

    Takes over both descriptors: that of the hand, which is watched, and that of the listening socket, which is asked.
    """

    _listener: _socket.socket

    def __init__(self, hand_fd: int, listener_fd: int, gate: Gate) -> None:
        self._listener = _socket.socket(fileno=listener_fd)
        super().__init__(hand_fd, gate)

    @property
    def family(self) -> Any:
        """The listening socket's."""
        return socket.AddressFamily(self._listener.family)

    @property
    def type(self) -> Any:
        """The listening socket's."""
        return socket.SocketKind(self._listener.type)

    @property
    def proto(self) -> int:
        """The listening socket's."""
        return self._listener.proto

    def getsockname(self) -> Any:
        """The listening socket's."""
        return self._listener.getsockname()

    def getsockopt(self, *args: Any) -> Any:
        """The listening socket's."""
        return self._listener.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        """Set it for the listening socket."""
        self._listener.setsockopt(*args)

    def _take(self) -> tuple[socket.socket, Any]:
        # Without a free number, what was sent would be lost. Opened and closed in one instruction; raises OSError.
        deque(map(os.close, map(os.dup, (self.fileno(),))), 0)
        connection, received = PassedConnection.__new__(PassedConnection), list[Any]()
        taken, closed = [1], [1]
        try:
            received += starmap(self.recvmsg, ((1, _ROOM, _FLAGS),))
            data, fds = received[0][0], fds_of(received[0][1])
            if not data:
                self._is_over = True
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            address = self._unpack(connection, fds)
            connection.count_with(self._gate.slate, closed)
            self._gate.took(taken)
        except BaseException:
            if received and received[0][0]:
                self._gate.took(taken)
                self._gate.slate.closed_one(closed)
                _give_up(connection, fds_of(received[0][1]))
            raise
        return connection, address

    def _unpack(self, connection: socket.socket, fds: list[int]) -> Any:
        """Have the connection take over its descriptor; return the client's address."""
        if not fds:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if not _CLOEXEC:
            os.set_inheritable(fds[0], False)
        connection.__init__(self.family, self.type, self.proto, fileno=fds[0])  # type: ignore[misc]
        if socket.getdefaulttimeout() is None:
            connection.setblocking(True)
        try:
            return connection.getpeername()
        except OSError:
            msg = "the client has gone before its connection was accepted"
            raise ConnectionAbortedError(errno.ECONNABORTED, msg) from None

    def _real_close(self, *args: Any) -> None:
        self._listener.close()
        super()._real_close(*args)  # type: ignore[misc]

    def detach(self) -> int:
        """Give the hand away; close the copy of the listening socket."""
        self._listener.close()
        return super().detach()

    def __del__(self) -> None:
        """As every socket, with a warning if it was not closed."""
        listener = getattr(self, "_listener", None)
        if listener is not None:
            listener.close()
        super().__del__()  # type: ignore[misc]

    def dup(self) -> Self:
        """Another copy, with a private value of its own."""
        hand = os.dup(self.fileno())
        try:
            listener = os.dup(self._listener.fileno())
        except BaseException:
            close_fd(hand)
            raise
        copy = self.__class__(hand, listener, self._gate)
        copy.settimeout(self._timeout)
        return copy
