"""Socket channel: the channel of a worker that is a process, a pair of sockets that keep messages apart.

A message is one packet, so none is ever torn: neither by the death of who sends it, nor by an interrupt or a timeout.

    HEAD      what it is, how many ids, the manifest that it needs (`_wire/plans.py`), bytes in memory of its own
    id        of each piece of shared memory, or other descriptor, that the message refers to
    the pickle, where it is small; else it and its large buffers are in memory of its own, and here are as many bytes
    as are its share of the room in the socket: so what bounds the one bounds the other

Descriptors go with the packet. DEFINE brings what a manifest needs of the script, as the frame of a link does.
Guarded by: `_taking`: what is received and has to be taken in one by one. `_defining`: `_sent`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import pickle
import select
import socket
import struct
from itertools import starmap

from poolkit import _os
from poolkit._child import script
from poolkit._child.port import Channel, ChannelEnd
from poolkit._locks import RLock
from poolkit._memory.memory import Memory, fill_memory, known_memory, new_id, split_memory
from poolkit._select import poll
from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import buffers, codec, handover
from poolkit._wire.buffers import PLAIN, Found, found_from
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.spin import GIVE_UP, SPIN, Spin
from poolkit.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._wire.plans import Manifest, Sent

_HEAD = struct.Struct("<BxHxxxxQQ")
# The second is packed as the one argument of a call, so that it may need more; the last is what a call has raised.
_MESSAGE, _ARGUMENT, _DEFINE, _FAILURE = 1, 2, 3, 4
_SHORT = 16  # items of a tuple that are looked at one by one
_SMALL = 60 * 1024  # bytes of a pickle that goes in the packet
_MOST_IDS = 200  # the system takes 253 descriptors at once
_ROOM = 64 * 1024  # bytes, of the largest packet without its share
_ROOM_FOR_FDS = socket.CMSG_LEN((_MOST_IDS + 1) * 4)
_SHARE, _MOST_SHARE = 320, 200_000  # bytes of memory that count as one in the socket; the most that is counted
_COPIED = 1 << 20  # bytes of memory of a message up to which it is read, as each mapping needs a descriptor
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_TAKE_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_TRY_EVERY = 64  # sleeps
_HANG_UP = getattr(select, "POLLRDHUP", 0)
_PLAIN_HEAD, _NOTHING = _HEAD.pack(_MESSAGE, 0, 0, 0), Found()
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
        self._make_sent = sent
        self._sent: Sent | None = None
        self._defining = RLock()

    # ===== out =====

    def pack(self, message: object) -> tuple[Manifest | None, _Packet]:
        """Pickle a message; what is large of it into memory of its own."""
        if type(message) in PLAIN or (
            type(message) is tuple and len(message) <= _SHORT and PLAIN.issuperset(map(type, message))
        ):
            return None, _Packet(_MESSAGE, 0, pickle.dumps(message, PROTOCOL), _NOTHING)
        found, manifest, kind = self._found(), None, _MESSAGE
        found.look((message,))
        with found if buffers.memory_in_use or handover.is_loaded() else contextlib.nullcontext():
            if self._make_sent is None:
                body = codec.pack_value(message, found)
            else:
                kind = _ARGUMENT
                _, body, manifest = codec.pack_call(_given, (message,), {}, found)
        if len(found.memories) > _MOST_IDS:
            msg = f"the message refers to {len(found.memories)} pieces of shared memory; {_MOST_IDS} can be sent"
            raise SerializationError(msg)
        return manifest, _Packet(kind, manifest.number if manifest is not None else 0, body, found)

    def pack_failure(self, error: BaseException) -> tuple[None, _Packet]:
        """Pack an exception, with the frames of its traceback."""
        return None, _Packet(_FAILURE, 0, codec.pack_error(error), _NOTHING)

    def has_failed(self, taken: list[Any]) -> bool:
        """Look at the head. What came with it is taken in, as it may never be loaded."""
        if type(taken[0]) is not _Come and taken[0][0][: _HEAD.size] != _PLAIN_HEAD:
            taken[0] = _Come(taken[0])
        return type(taken[0]) is _Come and taken[0].kind == _FAILURE

    def try_send(self, packed: tuple[Manifest | None, _Packet]) -> bool:
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
            if not self._send(_Packet(_DEFINE, 0, payload, found)):
                return False
            sent.commit()
            return True

    def _send(self, packet: _Packet) -> bool:
        done: list[int] = []
        try:
            if packet.memories:
                done += starmap(self._socket.sendmsg, (([packet.data], packet.attached(), _SEND_FLAGS),))
            else:
                done += starmap(self._socket.send, ((packet.data, _SEND_FLAGS),))
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno == errno.ECONNRESET:  # told once, and not for what is sent
                return False
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
                    taken += starmap(self._socket.recvmsg, ((_ROOM, _ROOM_FOR_FDS, _TAKE_FLAGS),))
                except BlockingIOError:
                    return False
                except ConnectionResetError:  # the other end was closed with packets unread: told before what it sent
                    continue
                if not taken[0][0]:
                    del taken[:]
                    raise ChannelEnd
                if taken[0][0][0] != _DEFINE:
                    return True
                come = _Come(taken[0])
                memories: Any = _Regions((each.id, each) for each in come.memories)
                with _preparing:
                    script.define(come.whole()[0], memories)
                del taken[:]

    def load(self, taken: list[Any]) -> Any:
        """Unpickle a message."""
        if type(taken[0]) is not _Come:
            if taken[0][0][: _HEAD.size] == _PLAIN_HEAD:  # nothing comes with it
                return codec.load_value(memoryview(taken[0][0])[_HEAD.size :])
            taken[0] = _Come(taken[0])
        come: _Come = taken[0]
        body, parts = come.whole()
        if come.kind == _FAILURE:
            return codec.load_error(body)
        if come.manifest and come.manifest not in script.ready:
            with _preparing:
                script.prepare(come.manifest)
        value = codec.load_value(body, parts)
        return value[0][0] if come.kind == _ARGUMENT else value

    # ===== waiting, and the end =====

    def wait(self, seconds: float | None, *, writes: bool) -> None:
        """Look for a little while, then sleep."""
        poller = poll()  # one for each, as several threads may wait
        poller.register(self._socket, select.POLLOUT if writes else select.POLLIN)
        self._spin.wait(poller, seconds)

    async def wait_async(self, *, writes: bool) -> None:
        """Have the event loop watch the socket."""
        from poolkit import waiting  # noqa: PLC0415 -- few workers need it, and it takes 10 ms

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
                _Come(each)
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


class _Packet:
    """A message on its way out, with the memory that it refers to."""

    __slots__ = ("data", "memories")

    def __init__(self, kind: int, manifest: int, body: Any, found: Found) -> None:
        self.memories = list(found.memories)
        ids = struct.pack(f"<{len(self.memories)}Q", *[each.id for each in self.memories]) if self.memories else b""
        count, nbytes = len(self.memories), 0
        size = len(body) if type(body) is bytes else sum(map(len, body))
        if found or size > _SMALL:
            memory = fill_memory(body, [buffer.raw() for buffer in found])
            self.memories.insert(0, memory)
            nbytes, body = memory.nbytes, bytes(min(memory.nbytes // _SHARE, _MOST_SHARE))
        elif type(body) is not bytes:
            body = b"".join(body)
        self.data = _HEAD.pack(kind, count, manifest, nbytes) + ids + body

    def attached(self) -> list[Any]:
        """What goes along."""
        fds = array.array("i", [memory.fd for memory in self.memories])
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]


class _Come:
    """A packet that has come, with its memory."""

    def __init__(self, received: Any) -> None:
        self._data, attached, flags, _ = received
        fds = _os.fds_of(attached)
        self.kind, count, self.manifest, self._nbytes = _HEAD.unpack_from(self._data)
        self._start = _HEAD.size + 8 * count
        numbers = struct.unpack_from(f"<{count}Q", self._data, _HEAD.size)
        own = 1 if self._nbytes else 0
        self._lacks = flags & socket.MSG_CTRUNC or len(fds) != count + own
        self._memory: Memory | None = None
        self.memories: list[Memory] = []
        if self._lacks:
            for fd in fds:
                os.close(fd)
            return
        if own:
            self._memory = Memory(fds.pop(0), new_id(), self._nbytes)
        for number, fd in zip(numbers, fds, strict=True):
            memory = known_memory(number)
            if memory is None:
                memory = Memory(fd, number, os.fstat(fd).st_size)
            else:
                os.close(fd)
            self.memories.append(memory)

    def whole(self) -> tuple[Any, list[Any]]:
        """Return the pickle and its buffers."""
        if self._lacks:
            msg = "a message was lost: this process has no room for the descriptors that came with it"
            raise OSError(errno.EMFILE, msg)
        if self._memory is None:
            return memoryview(self._data)[self._start :], []
        if self._nbytes > _COPIED:
            return split_memory(memoryview(self._memory.mapping()))
        whole = bytearray(self._nbytes)
        os.preadv(self._memory.fd, [whole], 0)
        return split_memory(memoryview(whole))


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


def socket_pair(threshold: float, sent: Callable[[], Sent]) -> tuple[SocketChannel, socket.socket, Handle]:
    """Make a channel: the owner's end, and the worker's, which is closed once its handle was packed.

    Raises OSError: there are no descriptors, or the system has no such sockets.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return SocketChannel(ours.detach(), threshold, sent), theirs, Handle(theirs.fileno(), threshold)
