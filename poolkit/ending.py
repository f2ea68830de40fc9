"""Ending: how a pool, or a view of it, is shut down: by a call, and by `with` and `async with`.

Every method is thread-safe.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Executor
from types import TracebackType
from typing import NoReturn, TypeVar

from poolkit import waiting
from poolkit._core import options as checks

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from poolkit._engine.interface import PoolEngine

Some = TypeVar("Some", bound="Ending")  # typing.Self is not in CPython 3.10


class Ending(Executor):
    """What ends a pool."""

    name: str
    if TYPE_CHECKING:
        _supervisor: PoolEngine

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
        kill: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Accept no more tasks, finish the accepted ones and release everything. Idempotent, from any thread.

        Called in a callback it does not wait, as it would wait for itself.

        Args:
            wait: block until all is finished and released.
            cancel_futures: cancel what has not begun.
            kill: stop what runs, too.
            timeout: seconds for the graceful part; what is left then is killed.
        """
        self._supervisor.shutdown(
            wait=wait, cancel_queued=cancel_futures, kill=kill, timeout=checks.wait_seconds("timeout", timeout)
        )

    def __reduce__(self) -> NoReturn:
        """Refuse: a pool belongs to the process that made it."""
        msg = (
            f"{self!r} cannot be copied or pickled: it belongs to the process that made it; in a task use "
            "poolkit.default_pool(), or functions with @poolkit.offload"
        )
        raise TypeError(msg)

    def kill_workers(self) -> None:
        """Stop all that runs, cancel the rest and release everything: `shutdown(kill=True)`, by CPython 3.14's name.

        Thread-safe; blocks until all is released.
        """
        self.shutdown(kill=True)

    def terminate_workers(self) -> None:
        """Do the same as `kill_workers`: `shutdown(kill=True)`, by CPython 3.14's other name. Thread-safe; blocks."""
        self.shutdown(kill=True)

    def __enter__(self: Some) -> Some:  # noqa: PYI019 -- see there
        """Use the pool as a context manager."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Finish the accepted work; after a Ctrl-C, stop it instead."""
        interrupted = waiting.is_interruption(exc)
        try:
            self.shutdown(cancel_futures=interrupted, kill=interrupted)
        except KeyboardInterrupt:  # while it waited
            self.shutdown(cancel_futures=True, kill=True)
            raise

    async def __aenter__(self: Some) -> Some:  # noqa: PYI019 -- see there
        """Use the pool as an asynchronous context manager."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Do the same as `__exit__`, without blocking the event loop; when the body was cancelled, stop the work."""
        stopped = waiting.is_interruption(exc)
        self.shutdown(wait=False, cancel_futures=stopped, kill=stopped)
        name = f"poolkit-{self.name}-exit"
        try:
            with waiting.shield() if stopped else contextlib.nullcontext():
                await waiting.run_in_thread(self.shutdown, name=name)
        except waiting.interruptions():
            self.shutdown(wait=False, cancel_futures=True, kill=True)
            with waiting.shield():
                await waiting.run_in_thread(self.shutdown, name=name)
            raise
