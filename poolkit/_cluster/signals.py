"""Signals: what a cluster makes of them while `run` handles them, and how its wait for them misses none.

A wait for a lock sleeps over the signal that comes just before it, whose handler waits for the end of that wait. So the
interpreter writes each signal into a pipe, and the main thread polls that.
Owner: the main thread, in `Cluster.run`; a handler leaves a step for the cluster's thread, and wakes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._cluster.thread import ClusterThread
from poolkit._core.cluster import STOPPING
from poolkit._select import poll

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = Any  # for those who look at the annotations; not in CPython 3.10

Handler = Callable[[int, "FrameType | None"], object]


def _handlers(thread: ClusterThread) -> dict[str, Handler]:
    def leave(step: Callable[[], object]) -> Handler:
        return lambda _number, _frame: thread.post(step)

    def stop() -> None:
        thread.rules.stop(monotonic(), kill=thread.rules.state == STOPPING)

    def resize_by(change: int) -> Callable[[], object]:
        return lambda: thread.resize(max(1, thread.rules.size + change))

    return {
        "SIGTERM": leave(stop),
        "SIGINT": leave(stop),
        "SIGQUIT": leave(lambda: thread.rules.stop(monotonic(), kill=True)),
        "SIGHUP": lambda _number, _frame: thread.reload(None),
        "SIGUSR1": leave(thread.log_table),
        "SIGTTIN": leave(resize_by(1)),
        "SIGTTOU": leave(resize_by(-1)),
    }


@contextlib.contextmanager
def handling(thread: ClusterThread) -> Iterator[None]:
    """Have signals mean what `Cluster.run` says, and then what they meant before. In the main thread."""
    handlers = {getattr(signal, name): each for name, each in _handlers(thread).items() if hasattr(signal, name)}
    before = {number: signal.getsignal(number) for number in handlers}
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


class Waking:
    """Waits for signals, and for the end. In the main thread."""

    def __init__(self) -> None:
        """Raises OSError: there are no descriptors."""
        self._read, self._write = os.pipe()
        try:
            self.end = _os.Wakeup()
        except BaseException:
            self._close_pipe()
            raise
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Give back what it has."""
        signal.set_wakeup_fd(self._before)
        self.end.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def wait(self) -> None:
        """Return when there was a signal, or the end. Blocks."""
        poller = poll()
        for fd in (self._read, self.end.fileno()):
            poller.register(fd, select.POLLIN)
        poller.poll()
        self.end.clear()
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
