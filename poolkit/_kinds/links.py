"""Links: the owner's ends of all workers' links as one set, to be waited on and read.

Who may read at a moment is for `_engine/reader.py` to say; the set itself knows nobody.
Owner: whoever holds the reader's lock: `read`, `drain`, `remove`, `pause`. `poll`, `wake` and `resume` are for any
thread.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Sequence

from poolkit import _os
from poolkit._core.workforce import Begun, BootFailed, Drained, Finished, Logged, Ready, Report
from poolkit._kinds.peer import Peer
from poolkit._wire import codec, messages
from poolkit._wire.codec import load_value
from poolkit._wire.messages import VALUE
from poolkit._wire.pickles import STOP

_OUTCOMES = (messages.VALUE, messages.OUT_OF_BAND, messages.ERROR)
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
        self.reports: list[Report] = []  # read, and not handed on
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

    def read(self, ready: Sequence[tuple[int, int]] | None = None) -> list[Report]:  # noqa: C901 -- see `receive`
        """Read once from every link that has something, or that was found `ready`; returns `reports`. Does not block.

        A link whose reading was interrupted is `broken`, as part of what it said is lost.
        """
        if self.broken:
            self._cut_off()
        while self._resumed:
            resumed = self._paused.pop(self._resumed.popleft(), None)
            if resumed is not None:  # else it is gone
                self._poller.register(resumed.outcomes_fd)
        for fd, _ in self.poll(0.0) if ready is None else ready:
            peer = self._workers.get(fd)
            if peer is None:
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
                continue
            try:
                receive(peer, self.reports)
            except BlockingIOError:
                continue
            except BaseException as exc:
                # A worker without a link is of no use. Most often it is ending by itself just now.
                self.broken.append(peer)
                if isinstance(exc, EOFError) and exc.args:
                    peer.hint = f"poolkit had to end it, as {exc}"
                if not isinstance(exc, _BROKEN):
                    raise
        if self.broken:
            self._cut_off()
        return self.reports

    def close(self) -> None:
        """Close it. Idempotent."""
        self._workers.clear()
        self.broken.clear()
        self._paused.clear()
        self._poller.close()
        self._wakeup.close()


def drain(peer: Peer, reports: list[Report]) -> None:
    """Read what a dead worker left."""
    try:
        while True:
            receive(peer, reports)
    except _BROKEN:  # BlockingIOError is an OSError
        return


def receive(peer: Peer, reports: list[Report]) -> None:  # noqa: C901 -- one branch for each kind of message
    """Turn what one read of a worker's link gives into reports; raises what the reader raises."""
    assert peer.reader is not None  # noqa: S101 -- a link is added when all of it is open
    worker_id, channel, transport = peer.id, peer.channel, peer.transport
    assert channel is not None  # noqa: S101 -- see above
    for (kind, task_id, started, ended, rss, _), payload in peer.reader.receive():
        if channel.calls and kind in _OUTCOMES:
            channel.calls.pop(task_id, None)
        if kind == VALUE:
            load = pickle.loads if payload and payload[-1] == STOP else load_value
            reports.append(Finished(worker_id, task_id, started, ended, rss, payload, True, load))
        elif kind == messages.OUT_OF_BAND and transport is not None:
            received = transport.receive(channel, payload)
            reports.append(Finished(worker_id, task_id, started, ended, rss, *received))
        elif kind == messages.ERROR:
            reports.append(Finished(worker_id, task_id, started, ended, rss, payload, False, codec.load_error))
        elif kind == messages.TRACKER and transport is not None:
            transport.wants_tracker(channel, payload)
        elif kind == messages.FORGOTTEN:
            channel.forget_theirs()
        elif kind == messages.LOG:
            reports.append(Logged(worker_id, task_id, payload))
        elif kind == messages.DRAINED:
            channel.calls.clear()  # what it was sent and has not begun
            reports.append(Drained(worker_id))
        elif kind == messages.READY and peer.pid is None:  # said once; later, only a hostile task says it
            peer.pid = task_id
            reports.append(Ready(worker_id, task_id))
        elif kind == messages.BEGUN:
            channel.begun(task_id)
            reports.append(Begun(worker_id, task_id))
        elif kind == messages.BOOT_FAILED:
            reports.append(BootFailed(worker_id, codec.load_error(payload)))
