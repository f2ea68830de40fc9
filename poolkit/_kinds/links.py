"""Links: the owner's ends of all workers' links as one set, to be waited on and read.

Who may read at a moment is for `_engine/reader.py` to say; the set itself knows nobody.
Owner: whoever holds the reader's lock: `read`, `drain`, `remove`, `pause`. `poll`, `wake` and `resume` are for any
thread.
"""

from __future__ import annotations

import functools
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit import _os, errors
from poolkit._core.workforce import (
    AnyTask,
    Asked,
    Begun,
    BootFailed,
    Drained,
    Finished,
    Logged,
    Progressed,
    Ready,
    Report,
)
from poolkit._kinds.peer import Peer
from poolkit._wire import codec, messages
from poolkit._wire.codec import load_value
from poolkit._wire.messages import ITEM, VALUE
from poolkit._wire.pickles import STOP
from poolkit.incoming import Incoming, Packed
from poolkit.task import Progress

_OUTCOMES = (messages.VALUE, messages.OUT_OF_BAND, messages.ERROR, messages.CLOSED)
_MESSAGES = (messages.MESSAGE, messages.MESSAGE_OUT_OF_BAND)
_ITEMS = (messages.ITEM, messages.ITEM_OUT_OF_BAND)
_SIZE, _unpack = messages.FRAME_TO_OWNER.size, messages.FRAME_TO_OWNER.unpack_from
_NO_GATE = [True]
_BROKEN = (EOFError, OSError, MemoryError, OverflowError)  # closed, or nonsense


class Links:
    """The links of one pool's workers."""

    def __init__(self, cut_off: Callable[[], None]) -> None:
        self._poller = _os.LinkPoller()
        self._workers: dict[int, Peer] = {}  # by the descriptor of their outcomes
        self._paused: dict[int, Peer] = {}  # by their ids; not read until they are resumed
        self._resumed: deque[int] = deque()  # of `_paused`, to be read again
        self.broken: deque[Peer] = deque()  # workers whose link is of no use any more
        self._cut_off = cut_off  # called while there are any, to take them out
        self.reports: deque[Report] = deque()  # read, and not taken into account
        self.logged: deque[Logged] = deque()  # the same, of log records
        self.find: Callable[[int, int], AnyTask | None] = lambda _worker_id, _task_id: None  # what a worker runs
        self.may_pause: Callable[[], bool] = lambda: True  # whether a link is left alone for messages
        self.talking: dict[int, Any] = {}  # the `Exchange` for which a worker's link was paused last
        self.came: list[Incoming] = []  # to which something came
        self.received = [0, 0]  # items and messages, in all
        self._current: Peer | None = None  # whose link is being read
        self._wakeup = _os.Wakeup()
        self._poller.register(self._wakeup.fileno())
        self.fileno = self._poller.fileno  # readable when a link is; None where there is no such thing
        self.poll = self._poller.poll  # for at most so many seconds; true when there is something to read

    def add(self, peer: Peer) -> None:
        """Read this worker's link from now on."""
        self._workers[peer.outcomes_fd] = peer
        self._poller.register(peer.outcomes_fd)

    def remove(self, peer: Peer) -> None:
        """Read it no more. Idempotent."""
        is_read = self._paused.pop(peer.id, None) is None
        if self._workers.pop(peer.outcomes_fd, None) is not None and is_read:
            self._poller.unregister(peer.outcomes_fd)

    def pause(self, worker_id: int) -> bool:
        """Leave a link alone until `resume`, so that its worker waits once it is full. False if it is not read.

        Only where there is `fileno`: elsewhere, the supervisor thread waits for links in another way beside.
        """
        peer = next((each for each in self._workers.values() if each.id == worker_id), None)
        if peer is None or worker_id in self._paused or self.fileno is None:
            return False
        self._paused[worker_id] = peer
        self._poller.unregister(peer.outcomes_fd)
        return True

    def resume(self, worker_id: int) -> None:
        """Have a link read again, from the next `read` on."""
        self._resumed.append(worker_id)

    def wake(self) -> None:
        """Make whoever polls look up. From any thread."""
        self._wakeup.set()

    def read(  # noqa: C901, PLR0912 -- on the way of every task
        self, ready: Sequence[tuple[int, int]] | None = None
    ) -> deque[Report]:
        """Read once from every link that has something, or that was found `ready`; returns `reports`. Does not block.

        Where an exception interrupts it, the next call goes on: nothing that was read is lost, and nothing taken twice.
        """
        if self.broken:
            self._cut_off()
        while self._resumed:
            resumed = self._paused.pop(self._resumed.popleft(), None)
            if resumed is not None:  # else it is gone
                self._poller.register(resumed.outcomes_fd)
        interrupted = self._current
        found = self.poll(0.0) if ready is None else ready
        for fd, _ in found if interrupted is None else [(interrupted.outcomes_fd, 0), *found]:
            self._current = peer = self._workers.get(fd)
            if peer is None or peer.reader is None:
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
                continue
            try:
                if interrupted is not None:
                    self.take(peer)
                if peer.reader.fill():
                    self.take(peer)
            except BlockingIOError:
                pass
            except _BROKEN as exc:
                # A worker without a link is of no use. Most often it is ending by itself just now.
                self.broken.append(peer)
                if isinstance(exc, EOFError) and exc.args:
                    peer.hint = f"poolkit had to end it, as {exc}"
            self._current = None
        while self.came:
            self.came[-1].count(self.received)
            self.came[-1].ring()
            self.came.pop()
        if self.broken:
            self._cut_off()
        return self.reports

    def drain(self, peer: Peer) -> None:
        """Read what a dead worker left."""
        try:
            self.take(peer)
            while peer.reader is not None:
                if peer.reader.fill():
                    self.take(peer)
        except _BROKEN:  # BlockingIOError is an OSError
            return

    def take(self, peer: Peer) -> None:
        """Turn the whole frames that were read into reports. Each is taken by stores alone, so once and for ever."""
        reader, channel = peer.reader, peer.channel
        assert reader is not None  # noqa: S101 -- a link is added when all of it is open
        assert channel is not None  # noqa: S101 -- see above
        if reader.read:
            reader.fill()
        into: Any
        report: Any
        if reader.large is not None and reader.is_complete:
            into, report, gate = self._report_of(peer, reader.fields, reader.large)
            into += (report,)
            gate[0] = True
            reader.large = None
        reports, came = self.reports, self.came
        worker_id, data, pos, end = peer.id, reader.data, reader.pos, len(reader.data)
        while end - pos >= _SIZE:
            fields = _unpack(data, pos)
            kind, task_id, started, ended, rss, nbytes = fields
            start = pos + _SIZE
            if end - start < nbytes:
                reader.begin_large(fields, start)
                return
            payload, after = data[start : start + nbytes], start + nbytes
            if kind == VALUE:
                load = pickle.loads if payload and payload[-1] == STOP else load_value
                if channel.calls:
                    channel.calls.pop(task_id, None)
                report = Finished(worker_id, task_id, started, ended, rss, payload, True, load)
                into, gate = reports, _NO_GATE
            elif kind == ITEM and payload and payload[-1] == STOP:
                stream = peer.stream
                incoming = stream[1] if stream[0] == task_id else self._incoming(peer, task_id)
                if not came or came[-1] is not incoming:
                    came.append(incoming)
                incoming.come += 1
                if rss > incoming.small:
                    incoming.sizable = True
                into, report, gate = incoming.items, payload, _NO_GATE
            else:
                into, report, gate = self._report_of(peer, fields, payload)
            # From here on it is taken: an in-place addition and stores, between which no exception comes.
            into += (report,)
            gate[0] = True
            reader.pos = pos = after

    def _report_of(self, peer: Peer, fields: tuple[Any, ...], payload: Any) -> tuple[Any, Any, list[bool]]:
        """Return where what a frame says goes, that, and what is to be set once it is taken: see `_memory/holds.py`."""
        kind, task_id, _, _, rss, _ = fields
        if kind in _MESSAGES:
            return self._message(peer, fields, payload)
        if kind not in _ITEMS:
            report, gate = _report_of(peer, fields, payload)
            return self.logged if type(report) is Logged else self.reports, report, gate
        load: Any = load_value
        channel, transport, gate = peer.channel, peer.transport, _NO_GATE
        if kind == messages.ITEM_OUT_OF_BAND and channel is not None and transport is not None:
            payload, load, gate = transport.receive(channel, payload)
        incoming = self._incoming(peer, task_id)
        incoming.come += 1
        incoming.plain = False
        incoming.sizable |= rss > incoming.small
        return incoming.items, Packed(payload, load, rss), gate

    def _message(self, peer: Peer, fields: tuple[Any, ...], payload: Any) -> tuple[Any, Any, list[bool]]:
        """The same of a message of a task."""
        kind, task_id, _, _, nbytes, _ = fields
        load: Any = load_value
        gate = _NO_GATE
        if kind == messages.MESSAGE_OUT_OF_BAND and peer.channel is not None and peer.transport is not None:
            payload, load, gate = peer.transport.receive(peer.channel, payload)
        if peer.said[0] != task_id:
            task = self.find(peer.id, task_id)
            peer.said = task_id, task and task.open_exchange()
        exchange = peer.said[1]
        if exchange is None:
            return [], None, gate
        if exchange.note(nbytes) and self.may_pause() and self.pause(peer.id):
            exchange.resume = functools.partial(self.resume_soon, peer.id)
            self.talking[peer.id] = exchange
        incoming, exchange.worker_id = exchange.incoming, peer.id
        incoming.come += 1
        if not self.came or self.came[-1] is not incoming:
            self.came.append(incoming)
        if incoming.closed:
            incoming.items.clear()
        if type(payload) is bytes and payload[-1] == STOP and nbytes == len(payload):
            return incoming.items, payload, gate
        incoming.plain = False
        return incoming.items, Packed(payload, load, nbytes), gate

    def let_talk(self) -> None:
        """Have all read again that were paused for messages. From any thread."""
        while self.talking:
            _, exchange = self.talking.popitem()
            exchange.go_on()

    def resume_soon(self, worker_id: int) -> None:
        """Have a link read again, by whoever reads next. From any thread."""
        self.resume(worker_id)
        self.wake()

    def _incoming(self, peer: Peer, task_id: int) -> Incoming:
        """Where what this task of this worker sends goes."""
        if peer.stream[0] != task_id:
            task = self.find(peer.id, task_id)
            peer.stream = task_id, (Incoming(None) if task is None else task.incoming)
            peer.stream[1].closed |= task is None
        incoming: Incoming = peer.stream[1]
        if incoming not in self.came:
            self.came.append(incoming)
        if incoming.closed:
            incoming.items.clear()
        return incoming

    def close(self) -> None:
        """Close it. Idempotent."""
        self.let_talk()
        self._workers.clear()
        self.broken.clear()
        self._paused.clear()
        self._poller.close()
        self._wakeup.close()


def _report_of(peer: Peer, fields: tuple[Any, ...], payload: Any) -> tuple[Report, list[bool]]:  # noqa: C901, PLR0911, PLR0912
    """Return what a frame says, and what is to be set once that is taken: see `_memory/holds.py`."""
    kind, task_id, started, ended, rss, _ = fields
    worker_id, channel, transport = peer.id, peer.channel, peer.transport
    assert channel is not None  # noqa: S101 -- see above
    if kind in _OUTCOMES:
        channel.calls.pop(task_id, None)
    if kind == VALUE:
        return Finished(worker_id, task_id, started, ended, rss, payload, True, load_value), _NO_GATE
    if kind == messages.OUT_OF_BAND and transport is not None:
        received, load, gate = transport.receive(channel, payload)
        return Finished(worker_id, task_id, started, ended, rss, received, True, load), gate
    if kind == messages.ERROR:
        return Finished(worker_id, task_id, started, ended, rss, payload, False, codec.load_error), _NO_GATE
    if kind == messages.CLOSED:
        report = Finished(worker_id, task_id, started, ended, rss, payload.decode("utf-8", "replace"), False)
        report.cancelled = True
        return report, _NO_GATE
    if kind == messages.LOG:
        return Logged(worker_id, task_id, payload), _NO_GATE
    if kind == messages.PROGRESS:
        return Progressed(worker_id, task_id, Progress.reported(started, ended)), _NO_GATE
    if kind == messages.DRAINED:
        channel.calls.clear()  # what it was sent and has not begun
        return Drained(worker_id), _NO_GATE
    if kind == messages.READY and peer.pid in {None, task_id}:  # said once; later, only a hostile task says it
        peer.pid = task_id
        return Ready(worker_id, task_id), _NO_GATE
    if kind == messages.HEAR:
        return Asked(worker_id, task_id), _NO_GATE
    if kind == messages.BEGUN:
        channel.begun(task_id)
        return Begun(worker_id, task_id), _NO_GATE
    if kind == messages.BOOT_FAILED:
        errors.InitializerFailed  # noqa: B018 -- made at its first use, which is not to be under the pool's lock
        return BootFailed(worker_id, codec.load_error(payload)), _NO_GATE
    if kind == messages.TRACKER and transport is not None:
        transport.wants_tracker(channel, payload)
    elif kind == messages.FORGOTTEN:
        channel.forget_theirs()
    return Begun(worker_id, 0), _NO_GATE  # which says nothing
