"""What a supervisor asks of the workforce that it drives, beside the orders that the scheduler gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from poolkit._core.workforce import Report, Workforce
from poolkit._workforce.links import Links


class DrivenWorkforce(Workforce, Protocol):
    """A workforce that the supervisor thread waits on. `unstarted` is true when `start_now` is to be called."""

    @property
    def unstarted(self) -> Sequence[object]:
        """Workers that were ordered and are to be started by whoever ordered them."""

    @property
    def why_not_weighed(self) -> str | None:
        """Why nobody can tell the memory of its workers; None where `memory` does, or where they cannot use any."""

    @property
    def by_reference(self) -> bool:
        """Whether its workers get the caller's own objects."""

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        """Turn a call into what `send` takes, and its size in bytes. On the caller's thread, without the lock."""

    @property
    def links(self) -> Links | None:
        """What a waiting thread may read itself; None where there is no such thing."""

    def wait(self, timeout: float, *, links: bool) -> bool:
        """Wait until there is something to do, for at most `timeout` seconds; false when there was nothing.

        Without `links`, not for those.
        """

    def act(self) -> list[Report]:
        """Carry out what was ordered and take in what happened.

        On the supervisor thread, by whoever holds the reader's lock. Blocks only to start what workers are forked from.
        """

    def read(self, ready: Sequence[int] | None = None) -> list[Report]:
        """Read what is on the links, or on those that were found `ready`. Does not block.

        By whoever holds the reader's lock.
        """

    def wake(self) -> None:
        """Make `wait` return soon. From any thread."""

    def close(self) -> None:
        """Release everything; workers that are left are ended. Blocks."""

    def close_in_forked_child(self) -> None:
        """Close the descriptors that a forked child of the owner has copies of."""

    def start_now(self) -> list[Report]:
        """Start what is in `unstarted`. Without the lock, on the thread that held it."""

    def is_own_thread(self) -> bool:
        """Whether the calling thread is one of the workers."""

    def link_bytes(self) -> tuple[int, int]:
        """Bytes sent to and received from the workers over links."""

    def memory_use(self) -> tuple[int, int, int, int, int]:
        """Of shared memory: bytes sent and received, blocks that somebody sees, bytes in all, bytes that are free."""

    def resident_bytes(self, worker_id: int) -> int | None:
        """Resident memory of a worker; None when not known."""
