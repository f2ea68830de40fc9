"""Links: the owner's ends of all workers' links as one set, to be waited on and read.

Who may read at a moment is for `_workforce/reader.py` to say; the set itself knows nobody.
Owner: whoever holds the reader's lock: `read`, `drain`, `remove`, `pause`. `poll`, `nudge` and `resume` are for any
thread.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Sequence

from poolkit import _os
from poolkit._core.workforce import Begun, BootFailed, Drained, Finished, Logged, Ready, Report
from poolkit._wire import codec, messages
from poolkit._wire.codec import load_value
from poolkit._wire.messages import VALUE
from poolkit._wire.pickles import STOP
from poolkit._workforce.member import Member

_OUTCOMES = (messages.VALUE, messages.OUT_OF_BAND, messages.ERROR)
_BROKEN = (EOFError, OSError, MemoryError, OverflowError)  # closed, or nonsense


class Links:
    """The links of one pool's workers."""

    def __init__(self, cut_off: Callable[[], None]) -> None:
        self._poller = _os.LinkPoller()
        self._members: dict[int, Member] = {}  # by the descriptor of their outcomes
        self._paused: dict[int, Member] = {}  # by their ids; not read until they are resumed
        self._resumed: deque[int] = deque()  # of `_paused`, to be read again
        self.broken: deque[Member] = deque()  # workers whose link is of no use any more
        self._cut_off = cut_off  # called while there are any, to take them out
        self.reports: list[Report] = []  # read, and not handed on
        self._nudge = _os.Wakeup()
        self._poller.register(self._nudge.fileno())
        self.fileno = self._poller.fileno  # readable when a link is; None where there is no such thing
        self.poll = self._poller.poll  # for at most so many seconds; true when there is something to read

    def add(self, member: Member) -> None:
        """Read this worker's link from now on."""
        self._members[member.outcomes_fd] = member
        self._poller.register(member.outcomes_fd)

    def remove(self, member: Member) -> None:
        """Read it no more. Idempotent."""
        is_read = self._paused.pop(member.id, None) is None
        if self._members.pop(member.outcomes_fd, None) is not None and is_read:
            self._poller.unregister(member.outcomes_fd)

    def pause(self, worker_id: int) -> bool:
        """Leave a link alone until `resume`, so that its worker waits once it is full. False if it is not read.

        Only where there is `fileno`: elsewhere, the supervisor thread waits for links in another way beside.
        """
        member = next((each for each in self._members.values() if each.id == worker_id), None)
        if member is None or worker_id in self._paused or self.fileno is None:
            return False
        self._paused[worker_id] = member
        self._poller.unregister(member.outcomes_fd)
        return True

    def resume(self, worker_id: int) -> None:
        """Have a link read again, from the next `read` on."""
        self._resumed.append(worker_id)

    def nudge(self) -> None:
        """Make whoever polls look up. From any thread."""
        self._nudge.set()

    def read(self, ready: Sequence[tuple[int, int]] | None = None) -> list[Report]:  # noqa: C901 -- see `receive`
        """Read once from every link that has something, or that was found `ready`; returns `reports`. Does not block.

        A link whose reading was torn is `broken`, as part of what it said is lost.
        """
        if self.broken:
            self._cut_off()
        while self._resumed:
            resumed = self._paused.pop(self._resumed.popleft(), None)
            if resumed is not None:  # else it is gone
                self._poller.register(resumed.outcomes_fd)
        for fd, _ in self.poll(0.0) if ready is None else ready:
            member = self._members.get(fd)
            if member is None:
                if fd == self._nudge.fileno():
                    self._nudge.clear()
                continue
            try:
                receive(member, self.reports)
            except BlockingIOError:
                continue
            except BaseException as exc:
                # A worker without a link is of no use. Most often it is ending by itself just now.
                self.broken.append(member)
                if isinstance(exc, EOFError) and exc.args:
                    member.hint = f"poolkit had to end it, as {exc}"
                if not isinstance(exc, _BROKEN):
                    raise
        if self.broken:
            self._cut_off()
        return self.reports

    def close(self) -> None:
        """Close it. Idempotent."""
        self._members.clear()
        self.broken.clear()
        self._paused.clear()
        self._poller.close()
        self._nudge.close()


def drain(member: Member, reports: list[Report]) -> None:
    """Read what a dead worker left."""
    try:
        while True:
            receive(member, reports)
    except _BROKEN:  # BlockingIOError is an OSError
        return


def receive(member: Member, reports: list[Report]) -> None:  # noqa: C901 -- one branch for each kind of message
    """Turn what one read of a worker's link gives into reports; raises what the reader raises."""
    assert member.reader is not None  # noqa: S101 -- a link is added when all of it is open
    worker_id, channel, transport = member.id, member.channel, member.transport
    assert channel is not None  # noqa: S101 -- see above
    for (kind, task_id, started, ended, rss, _), payload in member.reader.receive():
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
        elif kind == messages.READY and member.pid is None:  # said once; later, only a hostile task says it
            member.pid = task_id
            reports.append(Ready(worker_id, task_id))
        elif kind == messages.BEGUN:
            channel.begun(task_id)
            reports.append(Begun(worker_id, task_id))
        elif kind == messages.BOOT_FAILED:
            reports.append(BootFailed(worker_id, codec.load_error(payload)))
