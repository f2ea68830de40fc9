"""Binding: the listening sockets of a cluster, bound by the owner before its first worker, from what `bind` says.

Guarantees: they are non-blocking from the start, as O_NONBLOCK is the same for all workers; they are TCP by name and
send small answers at once, whatever server accepts; no program inherits them. Either all are bound or none.
The file of a Unix socket is replaced when nobody listens there any more, and removed at the end if it is still ours.
What is ours is told by device and inode; clusters that find a dead file at the same moment take turns, by a lock on its
folder, which ends with this process.
Owner: the cluster, also of the sockets that users give it: it closes them. No state of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_EXPECTED = "'host:port', '[v6 address]:port', ':port', 'unix:/path' or a bound socket"
_LOOKS, _LOOK = 100, 0.01  # how often it is looked whether the folder is locked yet, and seconds between that
_MOST = 65535
Identity = tuple[int, int]  # of a file: device and inode


class Bound:
    """One listening socket of a cluster."""

    def __init__(self, sock: socket.socket, path: str | None = None, *, is_given: bool = False) -> None:
        """Take a socket; `path` is the file that was made for it. One that is given may be others' as well."""
        self.socket = sock
        self.address: Any = sock.getsockname()
        self.is_stream: bool = sock.type == socket.SOCK_STREAM
        self._path = path
        self._identity = None if path is None else _identity(path)
        self._is_shared = is_given or not self.is_stream
        self._pid = os.getpid()

    def remove(self) -> None:
        """Remove the file of a Unix socket if it is still the same one. Idempotent."""
        if self._path is not None and os.getpid() == self._pid:  # not in a forked child
            _remove(self._path, self._identity)  # while the open socket keeps the inode from others
            self._path = None

    def close(self) -> None:
        """Close it, also the copies that workers have, unless others may have some; remove its file. Idempotent."""
        try:
            self.remove()
            if not self._is_shared and os.getpid() == self._pid:
                with contextlib.suppress(OSError):  # it is closed
                    self.socket.shutdown(socket.SHUT_RDWR)
        finally:
            self.socket.close()


def bind_all(bind: Any, backlog: int) -> list[Bound]:
    """Bind what a cluster's `bind` says; see there. The cluster owns the sockets that are given.

    Raises:
        TypeError, ValueError: that is no address, or no bound socket. It says what is expected.
        OSError: an address cannot be bound; it is named. What was bound before is closed, what was given is not.
    """
    if bind is None:
        return []
    if isinstance(bind, (str, socket.socket)):
        named = {"bind": bind}
    elif isinstance(bind, Sequence) and not isinstance(bind, (bytes, bytearray, memoryview)):
        named = {f"bind[{at}]": one for at, one in enumerate(bind)}
    else:
        msg = f"bind must be {_EXPECTED}, several of them in a list, or None, not {bind!r}"
        raise TypeError(msg)
    if not named:
        msg = f"bind is empty; it must be {_EXPECTED}, or None for workers without a port"
        raise ValueError(msg)
    for name, one in named.items():  # all of them are looked at before the first is bound
        _check(name, one)
    found: list[Bound] = []
    try:
        found += map(functools.partial(_bind, backlog=backlog), named.values())
    except BaseException:
        for bound in found:
            if bound.socket not in named.values():
                bound.close()
        raise
    return found


# ===== what users say =====


def _check(name: str, one: Any) -> None:
    if isinstance(one, socket.socket):
        if why := _unfit(one):
            msg = f"{name} must be a bound socket; {one!r} {why}"
            raise ValueError(msg)
    elif isinstance(one, str):
        if not one.startswith("unix:"):
            _host_and_port(one)
        elif not one[5:] or "\0" in one:
            msg = f"{name} must name a file, as 'unix:/run/app.sock' does, not {one!r}"
            raise ValueError(msg)
    else:
        msg = f"{name} must be {_EXPECTED}, not {one!r}"
        raise TypeError(msg)


def _unfit(sock: socket.socket) -> str | None:
    """Why a socket cannot be accepted from, if so."""
    ssl = sys.modules.get("ssl")
    if sock.fileno() < 0:
        return "is closed"
    if ssl is not None and isinstance(sock, ssl.SSLSocket):
        return "speaks TLS, which workers could not inherit: give the plain socket, and TLS to the server"
    name = sock.getsockname()
    if not name or (isinstance(name, tuple) and len(name) > 1 and not name[1]):
        return "is not bound"
    with contextlib.suppress(OSError):
        sock.getpeername()
        return "is a connection"
    return None


def _host_and_port(address: str) -> tuple[str, int, bool]:
    """The host, the port, and whether the host is an address of IPv6."""
    host, colon, port = address.rpartition(":")
    is_v6 = host[:1] == "[" and host[-1:] == "]"
    host = host[1:-1] if is_v6 else host
    is_number = port.isascii() and port.isdigit() and len(port) < 6 and int(port) <= _MOST  # noqa: PLR2004
    if not colon or not is_number or "\0" in host or (":" in host) != is_v6 or set(host) & set("[]/"):
        msg = f"{address!r} is no address to bind; it must be {_EXPECTED}, with a port from 0 to {_MOST}"
        raise ValueError(msg)
    return host, int(port), is_v6


# ===== the sockets =====


def _bind(one: str | socket.socket, backlog: int) -> Bound:
    if isinstance(one, str):
        return _named(one, backlog)
    one.set_inheritable(False)
    return Bound(_ready(one, backlog), is_given=True)


def _named(address: str, backlog: int) -> Bound:
    try:
        if address.startswith("unix:"):
            return _unix(os.path.abspath(address[5:]), backlog)  # noqa: PTH100 -- no link may be followed
        return _tcp(*_host_and_port(address), backlog)
    except OSError as exc:
        msg = f"cannot listen on {address}: {exc.strerror or exc}"
        raise type(exc)(exc.errno or errno.EINVAL, msg) from exc
    except UnicodeError as exc:
        msg = f"{address!r} is no address to bind: {exc}"
        raise ValueError(msg) from exc


def _tcp(host: str, port: int, is_v6: bool, backlog: int) -> Bound:
    family = socket.AF_INET6 if is_v6 else socket.AF_UNSPEC if host else socket.AF_INET
    places = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    family, _, _, _, name = min(places, key=lambda place: place[0] != socket.AF_INET)  # IPv4, where there is both
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so that ':port' may be bound beside it
        sock.bind(name)
        return Bound(_ready(sock, backlog))
    except BaseException:
        sock.close()
        raise


def _ready(sock: socket.socket, backlog: int) -> socket.socket:
    """Make a bound socket one that all workers may accept from."""
    sock.setblocking(False)
    if sock.type == socket.SOCK_STREAM:
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the connections inherit it
        sock.listen(backlog)
    return sock


# ===== files of Unix sockets =====


def _unix(path: str, backlog: int) -> Bound:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone_in(os.path.dirname(path)):  # noqa: PTH120 -- as above
            try:
                sock.bind(path)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                _remove(path, _dead(path))
                sock.bind(path)
            return Bound(_ready(sock, backlog), path)  # before others look: a bound one looks dead until it listens
    except BaseException:
        if sock.getsockname() == path:
            _remove(path, _identity(path))
        sock.close()
        raise


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Hold a lock on a folder; go without it where there is none, or somebody does not let it go for a second."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it is missing, or must not be read
        yield
        return
    try:
        for _ in range(_LOOKS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                select.select([], [], [], _LOOK)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(fd)


def _dead(path: str) -> Identity | None:
    """The socket at `path`; None where it is gone. Raises OSError when somebody listens there, or it is no socket."""
    identity = _identity(path)
    if identity is None and os.path.lexists(path):
        msg = "there is a file of this name, which is no socket"
        raise OSError(errno.EADDRINUSE, msg)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) not in {errno.ECONNREFUSED, errno.ENOENT}:
            msg = "somebody listens there already"
            raise OSError(errno.EADDRINUSE, msg)
    return identity


def _identity(path: str) -> Identity | None:
    """What tells a socket's file from another that has its name later; None where there is no such file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _remove(path: str, identity: Identity | None) -> None:
    if identity is not None and _identity(path) == identity:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 -- as above
