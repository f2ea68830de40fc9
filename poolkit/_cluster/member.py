"""Member: one worker of a cluster as the owner has it: a dedicated worker, its page, and its hand.

Owner: the cluster's thread; `at_end` and `at_message` are called by others.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from poolkit import _os, errors
from poolkit._child.serving import ClusterContext, Handed, Setup, serve
from poolkit._child.stopping import Stopping
from poolkit._clock import monotonic
from poolkit._cluster.acceptor import Hand
from poolkit._core.cluster import Member
from poolkit._core.records import record
from poolkit._core.workforce import WorkerExited
from poolkit._memory.memory import Memory
from poolkit._os import close_fd
from poolkit._wire.slate import Slate
from poolkit.worker import Worker

_THREAD_GRACE = 0.5  # seconds that a thread has to end by itself: an exception in its midst may leave things behind


@record(frozen=True)
class Why:
    """What a member ended of."""

    worker_id: int
    error: BaseException | None
    text: str
    raised: bool  # its target raised, or could not be loaded: another one would do no better


class Running:
    """A member that was started."""

    def __init__(
        self,
        member: Member,
        setup: dict[str, Any],
        target: Callable[[Any], object],
        options: dict[str, Any],
        listeners: list[int],
        *,
        passes: Any,
    ) -> None:
        """Start it. `passes`: the acceptor's bell, where connections are passed on; else None.

        Raises:
            Exception: it cannot be started.
        """
        self.member = member
        self.worker_id = member.slot
        self.is_thread = options["kind"] == "thread"
        self.stopping = Stopping() if self.is_thread else None
        self.rss = 0
        self.began = monotonic()
        self.is_listed = False  # by the acceptor
        self.hand: Hand | None = None
        self._context: ClusterContext | None = None  # of a thread
        try:
            page = Memory.create(Slate.SIZE)
            self.slate = Slate(page.mapping())
            if passes is not None:
                self.hand = Hand(member.slot, self.slate, len(listeners))
            theirs: Any = Setup(
                **setup,
                worker_id=member.slot,
                generation=member.generation,
                page=page,
                listeners=[Handed(fd) for fd in listeners],
                hands=[Handed(fd) for fd in self.hand.theirs()] if self.hand is not None else [],
                acceptor_bell=None if passes is None else Handed(passes.writing_end()),
                stopping=self.stopping,
            )
            if self.is_thread:  # which may be stopped between a descriptor and its owner
                theirs = self._context = ClusterContext(None, theirs)
            self.worker: Worker[bool] = Worker(serve, theirs, target, **options)
        except BaseException:
            self.close()
            raise

    def at_end(self, call: Callable[[], object]) -> None:
        """Have this called once it is gone, by whoever finds that; at once, if it is."""
        life = self.worker._life  # noqa: SLF001 -- its own half
        life.at_end = call
        if life.gone.is_set():
            call()

    @property
    def pid(self) -> int | None:
        """Its process id, once it is up."""
        return self.worker.pid

    def stop(self) -> None:
        """Tell it to stop."""
        if self.stopping is not None:
            self.stopping.set()
        else:
            self.worker._life.engine.signal(self.worker.task, signal.SIGTERM)  # noqa: SLF001 -- its own half

    def kill(self, too_long: float | None) -> None:
        """Kill it; as one that took longer than so many seconds, its task tells its stack."""
        if self.stopping is not None:
            self.stopping.set()
        engine = self.worker._life.engine  # noqa: SLF001 -- its own half
        if too_long is not None:
            engine.time_out(self.worker.task, too_long)
        elif self.is_thread:
            engine.cancel_after(self.worker.task, _THREAD_GRACE)
        else:
            self.worker.task.cancel()

    def exited(self, cause: str) -> WorkerExited:
        """The record of its end."""
        found = self.worker._life.exited  # noqa: SLF001 -- its own half
        if found is None:
            return WorkerExited(self.worker_id, None, None, None, cause)
        return WorkerExited(self.worker_id, found.pid, found.exitcode, found.signal, cause)

    def why(self) -> Why:
        """What it ended of, once it is gone."""
        task = self.worker.task

        def told(text: str, error: BaseException | None = None, *, raised: bool = False) -> Why:
            return Why(self.worker_id, error, text, raised)

        try:
            error = task.exception(0)
        except (CancelledError, TimeoutError):
            return told("was stopped")
        except BaseException as exc:  # noqa: BLE001 -- what it ended of cannot be unpickled
            error = exc
        if error is None:
            is_right = bool(task.result(0))
            return told("has ended" if is_right else "returned, and was not told to stop")
        if isinstance(error, errors.TaskTimeout):
            stack = (error.stack or "").rstrip()
            late = "was not ready in time, and " if self.member.cause == "unresponsive" else ""
            return told(f"{late}was killed; " + (f"its stack then:\n{stack}" if stack else "it told no stack"), error)
        if isinstance(error, errors.WorkerCrashed):
            return told(_death(error), error)
        if isinstance(error, errors.InitializerFailed) and error.__cause__ is not None:
            error = error.__cause__
            return told(f"could not import its preload: {type(error).__name__}: {error}", error, raised=True)
        return told(f"raised {type(error).__name__}: {error}", error, raised=True)

    def memory(self) -> int:
        """Its resident memory in bytes; 0: unknown."""
        pid = None if self.is_thread else self.pid
        if pid is not None:
            with contextlib.suppress(OSError):
                self.rss = _os.resident_bytes(pid) or self.rss
        return self.rss

    def in_forked_child(self) -> None:
        """Close the copies that a forked child has. Its copies of threads that wait are none."""
        if self.hand is not None:
            self.hand.close()
        if self.stopping is not None:
            close_fd(self.stopping.fileno())

    def close(self) -> None:
        """Let go of what it had. Idempotent."""
        if self.hand is not None and not self.is_listed:  # else the acceptor does
            self.hand.close()
        if self._context is not None:
            self._context.close()
        if self.stopping is not None:
            self.stopping.close()


def _death(error: errors.WorkerCrashed) -> str:
    """What is known of a worker that died, without the numbers that it has in its hidden pool."""
    how = f"was killed by {error.signal}" if error.signal else "has died"
    if not error.signal and error.exitcode is not None:
        how = f"exited with code {error.exitcode}"
    if error.peak_rss is not None:
        how += f", with a peak of {error.peak_rss / 1e6:.1f} MB"
    text = "; ".join([how, *([error.hint] if error.hint else [])])
    for what, lines in (("its stack", error.stack), ("the last that it printed", error.output)):
        text += f"\n{what}:\n{lines.rstrip()}" if lines.strip() else ""
    return text
