"""Descriptor channel: the socket beside each link, through which two processes hand each other memory.

    record    what happened (here, gone), how many, the ids; with the descriptors of what is here

Memory without a name is handed over by its descriptor, before the first frame that refers to it. The other side keeps
it until it is told that it is gone: a record on the channel, and behind it, on the link, a FORGET frame, at which the
other side reads up to that record. What a worker hands over beside its segments, an owner takes out for the one message
that refers to it, and so does a worker with what is for one loading only (`ONCE`).

Sending never blocks, as the other side reads only when it meets an id that it does not know. What has no room is kept
by the owner for `flush`. Where anything else goes wrong, for want of room, descriptors or address space, the channel is
broken, and with it the worker, which is replaced.
Owner: on the worker's side its main thread; `send` is for any. On the owner's side `tell`, `forget` and `flush` are
guarded by the pool's lock, `memory`, `take` and `forget_theirs` by the reader's. `gone` is filled by finalizers.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections import deque
from itertools import starmap

from poolkit import _os
from poolkit._memory.memory import ONCE, Memory, channels, known_memory, new_id

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_HEAD = struct.Struct("<BxxxI")  # kind, how many ids
_HERE, _GONE = 1, 2  # with descriptors; without
_MOST = 200  # ids in a record; the system takes 253 descriptors at once
_ROOM_FOR_FDS, _CLOEXEC = socket.CMSG_LEN(_MOST * 4), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class DescriptorChannel:
    """One end of the socket through which a worker and its owner hand each other memory."""

    def __init__(self, fd: int, *, is_worker: bool) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(is_worker)
        self._is_worker = is_worker  # receiving blocks, and sending fails rather than wait
        self.is_broken = False
        self.who = "it" if is_worker else "the owner"  # in what is said of the worker
        self.memories: dict[int, Memory] = {}  # what came from the other side
        self.told: set[int] = set()  # what the other side was told of, and keeps
        self.gone: deque[int] = deque()  # what of that is gone
        self.wake: Callable[[], None] = lambda: None  # called when something is
        self._record: list[Any] = []  # of a record that is being received
        self.pending: deque[tuple[bytes, list[int]]] = deque()  # not sent yet, with descriptors that belong to it
        channels.add(self)

    # ----- out -----

    def tell(self, memories: Iterable[Memory]) -> None:
        """Hand over memory, unless the other side keeps it already. Raises EOFError on a worker's side: no room."""
        told = self.told
        news = {memory.id: memory for memory in memories if memory.id not in told}
        if news:
            self._post(_HERE, list(news), [memory.fd for memory in news.values()])
            told.update(number for number, memory in news.items() if memory.is_segment or not self._is_worker)

    def send(self, fd: int) -> int:
        """Hand over a descriptor of any kind, from a worker; returns its id. Raises OSError: no room."""
        number = new_id(once=True)
        self._send(_packed(_HERE, [number]), [fd])
        return number

    def forget(self) -> bool:
        """Tell the other side what is gone; if there was something, a FORGET frame has to follow, and another call."""
        gone: list[int] = []
        while self.gone and len(gone) < _MOST:
            number = self.gone.popleft()
            if number in self.told and known_memory(number) is None:  # else it has come back, to be told of later
                self.told.discard(number)
                gone.append(number)
        if gone:
            self._post(_GONE, gone, [])
        return bool(gone)

    def _post(self, kind: int, numbers: list[int], fds: list[int]) -> None:
        for start in range(0, len(numbers), _MOST):
            data, theirs = _packed(kind, numbers[start : start + _MOST]), fds[start : start + _MOST]
            if self._is_worker:
                try:
                    self._send(data, theirs)
                except OSError as exc:
                    raise self._break(f"{self.who} has no room to hand shared memory over: {exc}") from exc
            elif self.pending or not self._try_to_send(data, theirs):
                own: list[int] = []
                try:
                    own.extend(os.dup(fd) for fd in theirs)
                except OSError:  # the other side would wait for ever
                    for fd in own:
                        os.close(fd)
                    self.close()
                    return
                self.pending.append((data, own))

    def flush(self) -> bool:
        """Send what is pending, as far as it goes. True when nothing is left."""
        while self.pending:
            data, fds = self.pending[0]
            if not self._try_to_send(data, fds):
                return False
            self.pending.popleft()
            for fd in fds:
                _os.close_fd(fd)
        return True

    def _try_to_send(self, data: bytes, fds: list[int]) -> bool:
        try:
            self._send(data, fds)
        except OSError as exc:  # a closed one is the death of its worker, which is reported elsewhere
            return exc.errno not in {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
        return True

    def _send(self, data: bytes, fds: list[int]) -> None:
        """Send a record, which is so small that it goes as a whole or not at all."""
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], attached, _NO_SIGNAL | socket.MSG_DONTWAIT)

    # ----- in -----

    def memory(self, number: int) -> Memory:
        """A segment that the other side has told of, or is about to. Raises EOFError: the channel is broken."""
        while (found := self.memories.get(number)) is None:
            self._receive()
        return found

    def take(self, number: int) -> Memory:
        """Anything else, for the one message that refers to it. A worker keeps it. Raises as `memory`."""
        found = self.memory(number)
        if number & ONCE or not self._is_worker:
            self.memories.pop(number, None)
        return found

    def forget_theirs(self) -> None:
        """Let go of what the other side says is gone. Blocks a worker until that has come. Raises as `memory`."""
        while self._receive() != _GONE:
            pass

    def _receive(self) -> int:
        """Take in one record; returns its kind. Where an exception interrupts it, the next call goes on."""
        record = self._record  # what was read of it: noted by the instructions that read
        try:
            if not record:
                record += starmap(self._socket.recvmsg, ((_HEAD.size, _ROOM_FOR_FDS, _CLOEXEC),))
            kind, count = _HEAD.unpack(record[0][0])
            if len(record) == 1:
                record += map(self._socket.recv, (8 * count,))
            if len(record) == 2:  # noqa: PLR2004 -- then what is left to take of it
                numbers = list(struct.unpack(f"<{count}Q", record[1]))
                record += [(numbers, _os.fds_of(record[0][1]))]
            self._take_record(kind, *record[2])
        except (OSError, struct.error) as exc:  # its end, or nonsense; an owner finds what it needs, or never will
            self.is_broken = True
            raise EOFError from exc
        self._record = []
        return int(kind)

    def _take_record(self, kind: int, numbers: list[int], fds: list[int]) -> None:
        """Take what is left of a record, and take it out. A descriptor that is lost on the way breaks the channel."""
        while numbers:
            number = numbers[0]
            if kind == _HERE:
                if len(fds) < len(numbers):
                    raise self._break(f"{self.who} has no room for descriptors")
                fd = fds[0]
                del fds[0]
                memory = known_memory(number)
                if memory is None:
                    memory = Memory(fd, number, os.fstat(fd).st_size)
                else:
                    os.close(fd)
                self.memories[number] = memory
            elif (gone := self.memories.pop(number, None)) is not None:
                gone.kept = None
            del numbers[0]
        while fds:
            os.close(fds.pop())

    def _break(self, why: str) -> EOFError:
        self.is_broken = True
        return EOFError(why)

    def close(self) -> None:
        """Close it. Idempotent. Mappings stay for as long as something of them is seen."""
        channels.discard(self)
        self._socket.close()
        for fd in self._record[2][1] if len(self._record) > 2 else ():  # noqa: PLR2004 -- see `_receive`
            _os.close_fd(fd)
        self._record = []
        while self.pending:
            for fd in self.pending.popleft()[1]:
                _os.close_fd(fd)
        self.memories.clear()


def _packed(kind: int, numbers: list[int]) -> bytes:
    return _HEAD.pack(kind, len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)
