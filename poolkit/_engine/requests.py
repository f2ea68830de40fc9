"""Requests: what callers ask of a pool, from any thread, until its end; that is the supervisor's (`supervisor.py`).

Guarantees: an accepted task is known to the scheduler or posted to the inbox, whatever interrupts its submitter;
what a signal handler or finalizer asks that interrupted a step of its own thread is postponed, or refused.
Guarded by: the pool's one lock, which each request takes by itself; see `engine.py`.
"""

from __future__ import annotations

import abc
import os
import threading
from _thread import allocate_lock
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from poolkit._core.scheduler import OPEN
from poolkit._core.workforce import BUSY, AnyTask
from poolkit._engine.callbacks import publishing
from poolkit._engine.engine import Engine
from poolkit._engine.listeners import Listener
from poolkit._engine.waiters import Waiter
from poolkit._kinds.loggers import log
from poolkit._waits import until, wait_for
from poolkit.errors import PoolkitError, QueueFull
from poolkit.exchange import MOST_MAIL, Exchange
from poolkit.future import WaitTimeout
from poolkit.outcome import Outcome
from poolkit.task import SENT, SETTLED

if TYPE_CHECKING:
    from poolkit._core.stats import PoolStats, WorkerInfo

PASSES_BY = 0x7F  # one submit in 128 takes in what is on the links


class Requests(Engine):
    """What callers ask of one pool. All methods are thread-safe."""

    _thread: threading.Thread | None = None  # the supervisor's, which starts with the first task

    @abc.abstractmethod
    def _start_thread(self) -> None:
        """Start the supervisor's thread, if it is not there."""

    # ===== tasks =====

    def submit(  # noqa: C901, PLR0912 -- on the way of every task
        self, task: AnyTask, error: BaseException | None = None, waiter: Waiter | None = None
    ) -> bool:
        """Accept a task; with `error` it fails at once. Does not block.

        False says that there is no room and that `waiter`, where it is given, waits for it: to try again when woken.

        Raises:
            PoolClosed, InitializerFailed, QueueFull: it was not accepted.
        """
        if self.forked or os.getpid() != self.pid:  # as `_is_copy` does, without a call for each task
            self._check_owner()
        if self._all_busy and error is None and task.options.unhurried:
            task.id = next(self._scheduler.numbers)
            task.submitted_at = self.clock()
            self._posted_tasks.append(task)
            if self._all_busy:  # still: see the header of `engine.py`
                if not task.id & PASSES_BY and not self._is_reentrant() and not self._reader.pass_by():
                    self._decide(lambda _now: None)  # lest too many are left here
                return True
        # Written out, as `_decide` for each task would cost a twentieth of what handing it in does.
        if self._reader.taking == threading.get_ident() or self._owns_lock():  # as `_is_reentrant` has it
            self._postpone(lambda now: self._submit_late(task, error, now))
            return True
        if self._thread is None:
            self._start_thread()
        try:
            with self._lock:
                self._all_busy = False  # as in `_take_in`
                looks = self._inconsistent or self._posted_tasks or self._scheduler.is_changing
                now = self._enter() if looks else self.clock()
                accepted = waiter is None or error is not None or not self._has_to_wait(task, waiter)
                if accepted and not task.id and error is None:
                    self._scheduler.submit(task, now)
                elif accepted:
                    self._accept(task, error, now)
                if accepted and waiter is not None:
                    waiter.gone = True  # while it may still be among those who wait: see `waiters.py`
                settled = self._decided()
            if settled or self.workforce.unstarted or self._waiters.waiting or self.callbacks.queue:
                self._publish(settled)
            if self._posted_reports:
                self._take_posted()
            if not task.id & PASSES_BY:
                self._reader.pass_by()
        except PoolkitError:  # it was refused
            raise
        except BaseException:
            self._inconsistent = True  # as in `_decide`
            self.workforce.wake()
            raise
        return accepted

    def submit_waiting(self, task: AnyTask, error: BaseException | None) -> None:
        """Do the same as `submit`, but wait while the queue is full, if the task's options say so."""
        turn = allocate_lock()  # an interrupted waiter may keep that of a Condition, which who wakes it needs
        turn.acquire()
        waiter = Waiter(turn.release)
        try:
            while not self.submit(task, error, waiter):
                until(partial(turn.acquire, True))
        except BaseException:
            self.stop_waiting(waiter)
            raise

    def _accept(self, task: AnyTask, error: BaseException | None, now: float) -> None:
        """Hand a task to the scheduler.

        One that was posted may have been taken in since, when somebody may have been idle. Else it is not left posted.
        """
        if task.id:
            try:
                self._posted_tasks.remove(task)
            except ValueError:
                self._scheduler.tick(now)
                return
        if error is None:
            self._scheduler.submit(task, now)
        else:
            self._scheduler.refuse(task, error, now)

    def _submit_late(self, task: AnyTask, error: BaseException | None, now: float) -> None:
        """Accept a task that was submitted within another step; what would have been raised there is its outcome."""
        try:
            self._accept(task, error, now)
        except PoolkitError as exc:
            task.phase = SETTLED
            self._scheduler.settled.append((task, Outcome.failure(exc)))

    def _has_to_wait(self, task: AnyTask, waiter: Waiter) -> bool:
        """Return True if a submitter has to wait for room. Nobody passes those who wait."""
        full = self._scheduler.is_full()
        waits = task.options.block and self.bounded and self._scheduler.phase is OPEN
        if not waits or not (full or self._waiters.precedes(waiter)):
            return False
        if getattr(publishing, "depth", 0) or threading.current_thread() is self._thread:
            if not full:
                return False
            msg = (
                f"cannot submit {task.name}: the queue is full, and a callback must not wait for room: "
                "it runs on a thread that makes the room"
            )
            raise QueueFull(msg)
        self._waiters.add(waiter)
        self._reader.end_lease()
        return True

    def cancel(self, task: AnyTask) -> bool:
        """Cancel a task; False when it was settled already."""
        if self._is_copy():
            return False
        if self._is_reentrant():
            self.cancel_soon(task)
            return task.phase is not SETTLED
        return self._decide(lambda now: self._scheduler.cancel(task, now))

    def cancel_soon(self, task: AnyTask) -> None:
        """Have the supervisor thread cancel a task. For finalizers, which should not wait for a lock."""
        self._postpone(lambda now: self._scheduler.cancel(task, now))

    def credit(self, task: AnyTask, taken: int) -> None:
        """So many items of a stream were taken, in all: its worker may go on."""
        self._do_soon(lambda now: self._scheduler.credit(task, taken, now))

    def end(self, task: AnyTask, grace: float) -> None:
        """Have a stream closed, and after `grace` seconds its worker killed."""
        if grace:
            self._do_soon(lambda now: self._scheduler.end(task, grace, now))
        else:
            self.cancel(task)

    def end_soon(self, task: AnyTask, grace: float) -> None:
        """Do the same, on the supervisor thread. For finalizers."""
        self._postpone(lambda now: self._scheduler.end(task, grace, now))

    def _do_soon(self, step: Callable[[float], object]) -> None:
        """Do what needs no answer: now, or after the step that this thread was interrupted in."""
        if self._is_reentrant():
            self._postpone(step)
        elif not self._is_copy():
            self._decide(step)

    def send(self, task: AnyTask, message: object) -> bool:
        """Send a message to a task; see `Task.send`."""
        self._check_owner()
        exchange = task.open_exchange()
        if len(exchange.mail) >= MOST_MAIL:
            msg = f"cannot send {task!r} a message: it has not asked for the last {MOST_MAIL}"
            raise QueueFull(msg)
        packed = self.workforce.pack_mail(message)
        if task.done():
            return False
        exchange.mail.append(packed)
        self._do_soon(lambda _now: self._scheduler.mail(task))
        return True

    def deliver(self, exchange: Exchange, entry: Any) -> None:
        """Have a message handed to its callback, on the callback thread. By whoever adds it, or has it all called."""
        self.records.add_call(exchange, entry)

    def finish(self, task: AnyTask, grace: float) -> None:
        """Have a command end, by SIGKILL after `grace` seconds, and deliver what it did."""
        self._do_soon(lambda now: self._scheduler.finish(task, grace, now))

    def open_programs(self) -> None:
        """Be ready for commands. Raises RuntimeError where no thread is to be had."""
        from poolkit._kinds.commands import ProgramForce  # noqa: PLC0415 -- for those who run programs
        from poolkit._spawn.programs import programs  # noqa: PLC0415 -- see above

        self._check_owner()
        programs()
        if self.workforce.programs is None:
            with self._lock:
                if self.workforce.programs is None:
                    self.workforce.programs = ProgramForce(self.post_all, self.leave, self.warn)

    def spawner(self) -> None:
        """What runs the programs of `spawn` in its place: none does."""

    def warn(self, text: str) -> None:
        """Log a warning, on the callback thread. Does not block."""
        self.callbacks.queue.append((log.warning, f"pool {self.name}: {text}"))
        if not self.callbacks.thread.wake():
            self.workforce.wake()

    def cancel_all(self) -> None:
        """Cancel all that is queued and running."""
        self._check_owner()
        if self._is_reentrant():
            self._postpone(lambda now: self._scheduler.cancel_all(begun=True, now=now))
        else:
            self._decide(lambda now: self._scheduler.cancel_all(begun=True, now=now))

    def resize(self, size: int) -> None:
        """Change the number of workers."""
        self._check_owner()
        self._refuse_reentrant("resize")

        def step(now: float) -> None:
            self._scheduler.check_open("resize")
            self._scheduler.resize(size, now)

        self._decide(step)

    def warm_up(self, timeout: float | None) -> None:
        """Start all workers and wait until they are up.

        Raises:
            TimeoutError: they are not after `timeout` seconds.
            OSError: there are not enough descriptors for them.
            InitializerFailed, WorkerCrashed, PoolClosed: they will not be.
        """
        self._check_owner()
        self._refuse_reentrant("warm up")
        if self._thread is None:
            self._start_thread()
        scheduler = self._scheduler
        boots, counted = 0, False

        def step(now: float) -> None:
            nonlocal boots, counted
            scheduler.check_open("warm up")
            self.workforce.lacks = None  # it is said anew
            scheduler.warm_up(now)
            boots = scheduler.boots_failed
            scheduler.roster.warming += 1
            counted = True

        def over() -> bool:
            roster = scheduler.roster
            return (
                scheduler.phase is not OPEN
                or self.workforce.lacks is not None
                # Not all `size` at once: with a short idle timeout the first are gone before the last are up.
                or (roster.starting == 0 and roster.counted >= roster.wanted)
                or scheduler.boots_failed > boots
            )

        try:
            self._decide(step)
            with self._lock:
                self._reader.end_lease()
                if not wait_for(self._changed, over, timeout):
                    ready, size = scheduler.roster.ready_count(), scheduler.roster.size
                    msg = f"{ready} of {size} workers are up after {timeout} s"
                    raise WaitTimeout(msg)
                scheduler.check_open("warm up")
                if (lacks := self.workforce.lacks) is not None:
                    raise OSError(*lacks.args)
                if scheduler.boots_failed > boots and scheduler.last_boot_error is not None:
                    raise scheduler.last_boot_error
        finally:
            with self._lock:
                scheduler.roster.warming -= counted

    # ===== looking =====

    def stats(self) -> PoolStats:
        """A snapshot of the counts."""
        from poolkit._core import snapshots  # noqa: PLC0415 -- most programs never look, and it takes 15 ms

        with self._lock:
            workforce = self.workforce
            received, use = workforce.received(), workforce.memory_use()
            posted = len(self._posted_tasks)
            return snapshots.pool_stats(self._scheduler, posted, received, workforce.link_bytes(), use)

    def workers(self) -> list[WorkerInfo]:
        """A snapshot of the workers."""
        import dataclasses  # noqa: PLC0415 -- see above

        from poolkit._core import snapshots  # noqa: PLC0415 -- see above

        with self._lock:
            found = snapshots.workers(self._scheduler, self.clock())
        return [dataclasses.replace(info, rss=self.workforce.resident_bytes(info.id)) for info in found]

    def stacks(self, timeout: float) -> dict[int, str]:
        """Where the busy workers are. Blocks for at most `timeout` seconds."""
        self._check_owner()
        self._refuse_reentrant("look at stacks")
        with self._lock:
            busy = [each.id for each in self._scheduler.roster if each.state is BUSY and not each.is_program]
        return self.workforce.stacks(busy, timeout)

    def queued(self) -> int:
        """How many tasks wait in the queue."""
        with self._lock:
            return len(self._scheduler.queue) + len(self._posted_tasks)

    def listen(self, name: str, listener: Listener) -> None:
        """Call `listener` with each event of that name."""
        with self._lock:
            self._scheduler.listened = self._listeners.add(name, listener)

    def unlisten(self, name: str, listener: Listener) -> None:
        """Undo one `listen`. Raises ValueError when it was not listening."""
        with self._lock:
            self._scheduler.listened = self._listeners.remove(name, listener)

    def note_progress(self, task: AnyTask) -> None:
        """Note what this task has reported."""
        if not self._is_copy():
            with self._lock:
                self._scheduler.note_progress(task)

    def say_if_stuck(self, task: AnyTask) -> None:
        """Log what waits for whom, if that is nobody; see `TaskOwner`."""
        items, messages = task.incoming, task.exchange
        with self._lock:
            runs = task.phase is SENT and task.worker_id is not None
            is_stalled = runs and self.workforce.status(task.worker_id or 0).is_stalled(task.id)
        if is_stalled and not items.closed:
            what = "is stalled: nobody takes its items, and somebody waits for its result, which comes behind them"
        elif messages is not None and messages.has_reader and messages.resume is not None:
            what = "waits for who reads its messages, who has stopped, while its result is waited for"
        elif self.workforce.is_own_thread() and not self.has_begun(task):
            what = (
                "is queued, and a task of the same pool waits for it in one of the threads that are to run it; if all "
                "of them wait like this, none ever ends: use another pool for it, or @poolkit.offload, which runs it "
                "in place"
            )
        else:
            return
        task.told = True
        log.warning("task %d %s (%s, pool %s)", task.id, what, task.name, self.name)

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker runs this task."""
        if self._is_copy():
            return False
        with self._lock:
            return self._scheduler.has_begun(task)
