"""Socket channel: the channel of a worker that is a process, a pair of sockets that keep messages apart.

A message is one packet (`packets.py`), so none is ever torn: neither by the death of who sends it, nor by an interrupt
or a timeout. What is large of it lies in blocks of an arena, one for each end, which are used again when the receiver
lets go of them; what was not needed for a while is given back when an end waits. DEFINE brings what a manifest needs of
the script, as the frame of a link does.
Guarded by: `_taking`: what is received and has to be taken in one by one. `_defining`: `_sent`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import pickle
import select
import socket
from itertools import starmap

from poolkit._child import script
from poolkit._child.packets import (
    ARGUMENT,
    DEFINE,
    FAILURE,
    HEAD,
    MESSAGE,
    PLAIN_HEAD,
    ROOM,
    ROOM_FOR_FDS,
    Come,
    Packet,
)
from poolkit._child.port import Channel, ChannelEnd
from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._memory.arena import Arena
from poolkit._select import poll
from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import buffers, codec, handover
from poolkit._wire.buffers import PLAIN, Found, found_from
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.spin import GIVE_UP, SPIN, Spin

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._memory.memory import Memory
    from poolkit._wire.plans import Manifest, Sent

_SEND_BUFFER = 104 << 10  # bytes; twice as many on Linux, which counts its own, too
_SHORT = 16  # items of a tuple that are looked at one by one
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_TAKE_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_TRY_EVERY = 64  # sleeps
_HANG_UP = getattr(select, "POLLRDHUP", 0)
_NOTHING = Found()
_preparing = RLock()  # what a worker does with the script is for one thread at a time


class SocketChannel(Channel):
    """One end of such a pair. Where `sent` is given, this is the owner's: its messages may need parts of the script."""

    def __init__(self, fd: int, threshold: float, sent: Callable[[], Sent] | None = None) -> None:
        super().__init__()
        self.fd: int = fd
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._threshold = threshold
        self._found = found_from(threshold)
        self._spin = _Spin()
        self._arena = Arena()
        self._seen: dict[int, Memory] = {}  # segments of the other end; one atomic operation at a time
        self._make_sent = sent
        self._sent: Sent | None = None
        self._defining = RLock()
        self._capped: Callable[[float | None], float | None] = _as_wanted

    # ===== out =====

    def pack(self, message: object) -> tuple[Manifest | None, Packet]:
        """Pickle a message; what is large of it into memory of its own."""
        if type(message) in PLAIN or (
            type(message) is tuple and len(message) <= _SHORT and PLAIN.issuperset(map(type, message))
        ):
            return None, Packet(MESSAGE, 0, pickle.dumps(message, PROTOCOL), _NOTHING, self._arena)
        found, manifest, kind = self._found(), None, MESSAGE
        found.look((message,))
        with found if buffers.memory_in_use or handover.is_loaded() else contextlib.nullcontext():
            if self._make_sent is None:
                body = codec.pack_value(message, found)
            else:
                kind = ARGUMENT
                _, body, manifest = codec.pack_call(_given, (message,), {}, found)
        return manifest, Packet(kind, manifest.number if manifest is not None else 0, body, found, self._arena)

    def pack_failure(self, error: BaseException) -> tuple[None, Packet]:
        """Pack an exception, with the frames of its traceback."""
        return None, Packet(FAILURE, 0, codec.pack_error(error), _NOTHING, self._arena)

    def has_failed(self, taken: list[Any]) -> bool:
        """Look at the head. What came with it is taken in, as it may never be loaded."""
        if type(taken[0]) is not Come:
            if taken[0][0][: HEAD.size] == PLAIN_HEAD:
                return False
            taken[0] = Come(taken[0])
        return taken[0].open(self._seen).kind == FAILURE  # type: ignore[no-any-return]

    def try_send(self, packed: tuple[Manifest | None, Packet]) -> bool:
        """Send a packet, and before it what is lacking of the script."""
        manifest, packet = packed
        return (manifest is None or self._define(manifest)) and self._send(packet)

    def _define(self, manifest: Manifest) -> bool:
        with self._defining:
            assert self._make_sent is not None  # noqa: S101 -- else there are no manifests
            sent = self._sent = self._sent or self._make_sent()
            if manifest.number in sent.manifests:
                return True
            payload, memories = sent.lacking(manifest)
            found = Found()
            found.memories = tuple(memories)
            if not self._send(Packet(DEFINE, 0, payload, found, self._arena)):
                return False
            sent.commit()
            return True

    def _send(self, packet: Packet) -> bool:
        try:
            if packet.memories:
                packet.sent += starmap(self._socket.sendmsg, (([packet.data], packet.attached(), _SEND_FLAGS),))
            else:
                packet.sent += starmap(self._socket.send, ((packet.data, _SEND_FLAGS),))
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno == errno.ECONNRESET:  # told once, and not for what is sent
                return self._send(packet)
            if exc.errno not in {errno.EPIPE, errno.EBADF}:
                raise
            raise ChannelEnd from None
        return True

    # ===== in =====

    def try_take(self, taken: list[Any]) -> bool:
        """Take in a packet, and those before it that bring parts of the script."""
        with self._taking:  # who takes in what needs them comes after that
            while True:
                try:
                    taken += starmap(self._socket.recvmsg, ((ROOM, ROOM_FOR_FDS, _TAKE_FLAGS),))
                except BlockingIOError:
                    return False
                except ConnectionResetError:  # the other end was closed with packets unread: told before what it sent
                    continue
                if not taken[0][0]:
                    del taken[:]
                    raise ChannelEnd
                if taken[0][0][0] != DEFINE:
                    return True
                come = Come(taken[0]).open(self._seen)
                memories: Any = _Regions(come.memories)
                with _preparing:
                    script.define(come.parts()[0], memories)
                del taken[:]

    def load(self, taken: list[Any]) -> Any:
        """Unpickle a message."""
        if type(taken[0]) is not Come:
            if taken[0][0][: HEAD.size] == PLAIN_HEAD:  # nothing comes with it
                return codec.load_value(memoryview(taken[0][0])[HEAD.size :])
            taken[0] = Come(taken[0])
        come: Come = taken[0].open(self._seen)
        body, parts = come.parts()
        if come.kind == FAILURE:
            return codec.load_error(body)
        if come.manifest and come.manifest not in script.ready:
            with _preparing:
                script.prepare(come.manifest)
        value = codec.load_value(body, parts)
        return value[0][0] if come.kind == ARGUMENT else value

    # ===== waiting, and the end =====

    def wait(self, seconds: float | None, *, writes: bool) -> None:
        """Look for a little while, then sleep."""
        self._arena.trim()
        if (trim_at := self._arena.trim_at) is not None:
            seconds = min(math.inf if seconds is None else seconds, max(0.0, trim_at - monotonic()))
        poller = poll()  # one for each, as several threads may wait
        poller.register(self._socket, select.POLLOUT if writes else select.POLLIN)
        self._spin.wait(poller, self._capped(seconds))

    async def wait_async(self, *, writes: bool) -> None:
        """Have the event loop watch the socket."""
        from poolkit import waiting  # noqa: PLC0415 -- few workers need it, and it takes 10 ms

        self._arena.trim()
        await waiting.wait_ready(self.fd, writes=writes)

    def is_closed(self) -> bool:
        """Look at the socket."""
        poller = poll()
        poller.register(self._socket, _HANG_UP)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Shut one way; of a forked child's copy, nothing."""
        self._shut(socket.SHUT_WR)

    def shut(self) -> None:
        """Shut both ways; what has come can be received."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):  # the other end is gone
                self._socket.shutdown(how)

    def __del__(self) -> None:
        """Close it; what comes with a packet that nobody has loaded, too."""
        for each in self._back:
            if type(each) is tuple:
                with contextlib.suppress(OSError):
                    Come(each).open(self._seen)
        self._socket.close()


class _Spin(Spin):
    """Looks first only while that alone is enough, and now and then whether it is again.

    Who looks while other processes want the CPU loses his turn to them, and a message takes a thousand times as long.
    """

    __slots__ = ()

    def slept(self, seconds: float) -> None:  # noqa: ARG002 -- any sleep was in vain
        """It took a sleep."""
        self.in_vain += 1
        self.seconds = SPIN if self.in_vain < GIVE_UP or not self.in_vain % _TRY_EVERY else 0.0


def _given(message: object) -> object:
    """What a message to a worker is packed as an argument of."""
    return message


class _Regions(dict):  # type: ignore[type-arg]
    """The memory that came with parts of the script, as `script.define` asks for it."""

    take = dict.pop


# ===== on the way to the worker =====


class Handle:
    """Stands in a call for the worker's end of a channel, which arrives as a `SocketChannel`."""

    def __init__(self, fd: int, threshold: float) -> None:
        self._fd = fd
        self._threshold = threshold
        buffers.memory_in_use = True  # so that who packs the call has descriptors go along

    def __reduce__(self) -> Any:
        """A descriptor that goes along."""
        assert handover.send_along is not None  # noqa: S101 -- `_memory` is imported
        return _opened, (handover.send_along(self._fd, is_loaded_once=True), self._threshold)


def _opened(descriptor: Any, threshold: float) -> SocketChannel:
    return SocketChannel(descriptor.detach(), threshold)


def _as_wanted(seconds: float | None) -> float | None:
    return seconds


def socket_pair(threshold: float, sent: Callable[[], Sent]) -> tuple[SocketChannel, socket.socket, Handle]:
    """Make a channel: the owner's end, and the worker's, which is closed once its handle was packed.

    Raises OSError: there are no descriptors, or the system has no such sockets.
    """
    from poolkit._waits import capped  # noqa: PLC0415 -- for owners

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):  # what is usual: what bounds messages is not to depend on the machine
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    channel = SocketChannel(ours.detach(), threshold, sent)
    channel._capped = capped  # noqa: SLF001 -- its own; a worker's main thread sleeps on
    return channel, theirs, Handle(theirs.fileno(), threshold)
