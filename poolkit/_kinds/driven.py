"""What a supervisor asks of the workforce that it drives, beside the orders that the scheduler gives.

What has an answer here need not be answered by a kind that has no such thing: no links, no memory of its own.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit._core.workforce import Logged, Report, Workforce
from poolkit._kinds.links import Links

Pack = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], tuple[Any, int]]


class DrivenWorkforce(Workforce):
    """A workforce that the supervisor thread waits on.

    Attributes:
        links: what a waiting thread may read itself; None where there is no such thing.
        logged: what its workers have logged, not taken yet.
        unstarted: workers that were ordered and are to be started by whoever ordered them, in `start_now`.
        why_memory_unknown: why nobody can tell the memory of its workers; None where `memory` does, or they cannot
            use any.
        lacks: why not all workers can be had that were asked for, as far as that is for the user to mend.
        notes: what the supervisor is to log.
        by_reference: whether its workers get the caller's own objects.
        pack: turns function, arguments and keyword arguments into what `send` takes, and its size in bytes. On the
            caller's thread, without the lock. May raise SerializationError.
    """

    links: Links | None = None
    logged: deque[Logged] = deque()  # noqa: RUF012 -- nobody appends to this one
    unstarted: Sequence[object] = ()
    why_memory_unknown: str | None = None
    lacks: OSError | None = None
    notes: Sequence[str] = ()
    by_reference = False
    pack: Pack

    @staticmethod
    def pack_mail(message: object) -> Any:
        """Pack a message to a task; here, it goes as it is. On the caller's thread. May raise SerializationError."""
        return message

    def let_talk(self) -> None:
        """Have all go on that wait for who reads their messages. From any thread."""
        if self.links is not None:
            self.links.let_talk()

    def finish(self, worker_id: int, grace: float) -> None:
        """Not for workers: see `ProgramForce`."""

    @abc.abstractmethod
    def wait(self, timeout: float, *, links: bool) -> bool:
        """Wait until there is something to do, for at most `timeout` seconds; false when there was nothing.

        Without `links`, not for those.
        """

    def prepare(self) -> None:
        """Start what workers are forked from, if any are ordered. On the supervisor thread, without locks. Blocks."""

    @abc.abstractmethod
    def act(self) -> deque[Report]:
        """Carry out what was ordered and take in what happened.

        On the supervisor thread, by whoever holds the reader's lock. Does not block, but where `prepare` was in vain.
        """

    @abc.abstractmethod
    def wake(self) -> None:
        """Make `wait` return soon. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; workers that are left are ended. Blocks."""

    def close_in_forked_child(self) -> None:
        """Close the descriptors that a forked child of the owner has copies of."""

    def begin_anew(self) -> None:
        """In a forked child that takes over the pool, which is unused: share nothing with the parent any more.

        Raises:
            OSError: there are no descriptors.
        """

    def start_now(self) -> None:
        """Start what is in `unstarted`. Without the lock, on the thread that held it."""

    def is_own_thread(self) -> bool:
        """Whether the calling thread is one of the workers."""
        return False

    def link_bytes(self) -> tuple[int, int]:
        """Bytes sent to and received from the workers over links."""
        return 0, 0

    def received(self) -> Sequence[int]:
        """Items and messages that have come from the workers."""
        return (0, 0) if self.links is None else self.links.received

    def memory_use(self) -> tuple[int, int, int, int, int]:
        """Of shared memory: bytes sent and received, blocks that somebody sees, bytes in all, bytes that are free."""
        return 0, 0, 0, 0, 0

    def stacks(self, worker_ids: Sequence[int], timeout: float) -> dict[int, str]:  # noqa: ARG002
        """Where each of these workers is, as a Python stack; "" of one that does not say. Without the lock. Blocks."""
        return dict.fromkeys(worker_ids, "")

    def resident_bytes(self, worker_id: int) -> int | None:  # noqa: ARG002
        """Resident memory of a worker; None when not known."""
        return None
