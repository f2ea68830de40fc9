"""The messages of a task of a fake pool.

Owner: the thread whose turn it is.
"""

from __future__ import annotations

from typing import Any, NoReturn

from poolkit._core.workforce import AnyTask
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit.errors import PoolkitError
from poolkit.incoming import Packed


class FakeMail:
    """What the task that runs says, and is told."""

    def __init__(self, task: AnyTask, timeline: object, *, by_reference: bool) -> None:
        self._task = task
        self._timeline = timeline
        self.received = [0, 0]  # the pool's counts of items and messages
        self._by_reference = by_reference

    # As the end of a worker, see `context.py`.

    def mail(self) -> FakeMail:
        """Return this."""
        return self

    def is_told_to_end(self, _task_id: int) -> bool:
        """A call that is no stream is stopped without a word."""
        return False

    def send(self, _task_id: int, message: object) -> None:
        """Keep a message for its reader."""
        exchange = self._task.open_exchange()
        entry: Any = message
        nbytes = 0
        if self._by_reference:
            exchange.incoming.by_reference = True
        else:
            with Found() as found:
                packed = codec.pack_value(message, found)
            nbytes = len(packed)
            entry = Packed((packed, found.memories), lambda both: codec.load_value(both[0]), nbytes)
            exchange.incoming.plain = False
        exchange.note(nbytes)
        self.received[1] += 1
        exchange.incoming.items.append(entry)
        exchange.incoming.ring()

    def receive(self, _task_id: int, seconds: float | None) -> Any:
        """Return the next message that was sent before. PoolkitError: it would wait for ever, as nothing else runs."""
        mail = self._task.open_exchange().mail
        if mail:
            packed = mail.popleft()
            return packed if self._by_reference else codec.load_call(*packed[:2])[1][0]
        if seconds is not None:
            raise TimeoutError(f"no message came within {seconds} s")
        return self._never()

    async def receive_async(self, task_id: int) -> Any:
        """Do the same."""
        return self.receive(task_id, None)

    def _never(self) -> NoReturn:
        raise PoolkitError(f"receive() of {self._task!r} would wait for ever\n{self._timeline}")
