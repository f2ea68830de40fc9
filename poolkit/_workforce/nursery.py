"""Nursery, the owner's side: what one pool has of a template process. Hands it orders, reads its notices.

Owner: the supervisor thread, alone. Orders that do not fit the socket are kept and sent later; nothing here blocks
but `start`, and `close`, which waits for the end of the pool's workers. Which template that is, and who else has it,
is the business of `_workforce/templates.py`.

The control socket must have no copies: the pool's workers end when the owner's side of it closes, and the owner knows
the template's end by the other side. A fork in another thread copies everything. So the pair is made under the pool's
lock, which every fork takes, and is known to the pool from then on: a forked child closes its copies. And no fork
happens while `start` runs (FORKING): a copy of Popen's own pipes would keep it waiting for as long as that child lives.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import contextlib
import errno
import math
import os
from collections import deque
from collections.abc import Sequence

from poolkit._clock import monotonic
from poolkit._wire import messages
from poolkit._workforce import launch, templates
from poolkit._workforce.launch import socket_pair
from poolkit._workforce.logs import log
from poolkit._workforce.templates import ANSWER_GRACE, Template

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from poolkit._workforce.settings import PoolSettings

_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)
_REFUSALS = {
    messages.PRELOAD_FAILED: "could not import what it was to preload",
    messages.REFUSED: "has too few descriptors left to serve one more pool",
}
END_GRACE = 5.0  # seconds the template process gets to kill a pool's workers
SECOND_LOOK = 0.5  # seconds more, lest a pause of the whole machine is taken for its own


class Nursery:
    """A pool's handle on its template process."""

    def __init__(self) -> None:
        self.pid = -1  # of the template process, once it is started
        self._template: Template  # from then on
        self._control, self._theirs = socket_pair()
        self._control.setblocking(False)
        self._buffer = b""
        self._orders: deque[tuple[bytes, list[int]]] = deque()
        self.refused: list[tuple[int, OSError]] = []  # workers whose order could not be sent, and why
        self._unanswered: deque[float] = deque()  # when each signal was ordered that was not carried out yet
        self._hangs = False  # it did not answer in time
        self._opened = False  # the template has begun with our orders
        self._refusal = ""  # why it does not serve this pool, in words

    def start(self, settings: PoolSettings) -> None:
        """Get a template process; start one where there is none that fits. Blocks for that.

        Raises:
            Exception: it could not be started; everything is closed.
        """
        try:
            if settings.start_method == "fork":
                self._template = Template(launch.fork(self._theirs, self._control, settings))
            else:
                self._template = templates.join(self._theirs, settings)
        except BaseException:
            self._control.close()
            raise
        finally:
            self._theirs.close()
        self.pid = self._template.pid
        self._unanswered.append(math.inf if self._template.is_importing() else monotonic())

    def fileno(self) -> int:
        """The control socket's descriptor, to wait for notices."""
        return self._control.fileno()

    def fork(self, worker_id: int, fds: Sequence[int]) -> None:
        """Order a worker; the descriptors are closed here once they are on their way."""
        self._orders.append((messages.ORDER.pack(messages.FORK, 0, len(fds), 0, worker_id), list(fds)))
        self.flush()

    def signal(self, worker_id: int, number: int, *, group: bool, up: bool = True) -> None:
        """Order a signal to a worker; `group`: SIGKILL to it, its process group, and all that it started.

        Where the worker is not up yet the template may be importing, and takes its time to answer.
        """
        self._orders.append((messages.ORDER.pack(messages.SIGNAL, group, 0, number, worker_id), []))
        self._unanswered.append(monotonic() if up else math.inf)
        self.flush()

    def is_importing(self) -> bool:
        """Whether the template is not yet prepared, so that no order of ours was carried out."""
        return not self._opened and self._template.is_importing()

    def answer_due(self) -> float | None:
        """When it must have carried out what it was told first; None when nothing is due."""
        due = min(self._unanswered, default=math.inf) + ANSWER_GRACE
        return None if due == math.inf else due

    def kill_if_it_hangs(self) -> None:
        """Kill the process if an answer is overdue; its workers die with it. Call this when all notices were read."""
        due, now = self.answer_due(), monotonic()
        if due is None or due > now:
            return
        if not self._hangs:
            self._hangs = True
            later = now - ANSWER_GRACE + SECOND_LOOK
            self._unanswered = deque(max(asked, later) for asked in self._unanswered)
        else:
            self._unanswered.clear()
            self._template.kill(hangs=True)

    def flush(self) -> bool:
        """Send what is pending, as far as it goes. True when nothing is left."""
        while self._orders:
            data, fds = self._orders[0]
            try:
                count = launch.send_order(self._control, data, fds)
            except BlockingIOError:
                return False
            except OSError as exc:
                count = len(data)
                if exc.errno not in _GONE and len(data) == messages.ORDER.size:  # if it is gone, its end-of-file tells
                    self.refused.append((messages.ORDER.unpack(data)[-1], exc))
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
            EOFError: the template process is gone, or does not serve this pool.
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
            if fields[0] in {messages.SIGNALLED, messages.OPENED}:
                self._answered(fields[0])
            else:
                self._refusal = self._refusal or _REFUSALS.get(fields[0], "")
                notices.append((fields, self._buffer[size:end]))
            self._buffer = self._buffer[end:]
        return notices

    def _answered(self, kind: int) -> None:
        if self._unanswered:
            self._unanswered.popleft()
        self._hangs = False
        self._opened = self._opened or kind == messages.OPENED

    def warn_of_threads(self, names: str, *, is_forked: bool) -> None:
        """Log that these modules have started threads in the template; once for each."""
        if self._template.is_first_warning():
            log.warning(
                "preload: threads run since %s was imported, and a forked worker has none of them, while what they "
                "hold stays locked there; %s; best leave that out of `preload`",
                names,
                "with start_method='fork' workers are forked all the same"
                if is_forked
                else "so each worker is a new interpreter, which imports it by itself",
            )

    def close(self) -> None:
        """Let go of it: it kills this pool's workers. Blocks until it has, unless it imports and there are none.

        After END_GRACE seconds no other pool gets it. It ends if none has it, else it finds that this one is gone when
        it goes on.
        """
        self._drop_orders()
        with contextlib.suppress(OSError):
            self._control.shutdown(_socket.SHUT_WR)
        self._control.settimeout(END_GRACE)
        is_over = False
        try:
            while not self.is_importing() and self._control.recv(65536):
                pass
        except OSError:  # a timeout too
            is_over = True
        self._control.close()
        templates.leave(self._template, is_over=is_over)

    def bury(self) -> str:
        """Let go of it after an EOFError; returns what became of it, in words.

        Blocks until it has ended: without a word, it closes this socket only when it does.
        """
        self._drop_orders()
        self._control.close()
        templates.leave(self._template, is_over=True)
        return self._refusal or self._template.end()

    def _drop_orders(self) -> None:
        for _, fds in self._orders:
            for fd in fds:
                os.close(fd)
        self._orders.clear()

    def close_in_forked_child(self) -> None:
        """Close the copies that a forked child of the owner has, so that both ends are the only ones."""
        for end in (self._control, self._theirs):
            with contextlib.suppress(OSError):
                end.close()
