"""Supervisor: the one thread that waits for the workforce, and the end of a pool.

    any thread         Requests: submit, cancel ... ──> Engine (lock) ──> Scheduler ──> orders to the workforce
    supervisor thread  Workforce.wait(), act() ──> reports ──> Engine (lock) ──> Scheduler
    either, afterwards publish what was decided -- without the lock

Owner: the supervisor thread: `workforce.wait` and `act`. What is guarded by the lock is said in `engine.py`.
A kind whose workers report from their own threads calls `post` from there.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterable
from typing import Any

from poolkit import errors
from poolkit._core.policy import MANY_STALLED
from poolkit._core.scheduler import CLOSED, OPEN
from poolkit._core.workforce import Died, Report
from poolkit._engine import lifetime
from poolkit._engine.callbacks import Callbacks, Caller, publishing
from poolkit._engine.log_records import Records
from poolkit._engine.reader import Reader
from poolkit._engine.requests import Requests
from poolkit._engine.waiters import Waiters, wake_each
from poolkit._kinds.loggers import log
from poolkit._waits import until
from poolkit.errors import PoolClosed, PoolkitError
from poolkit.outcome import Outcome

SHORT_WAIT = 0.02  # seconds; what falls due in so short a wait may come late by as much
LONGEST_END = 30.0  # seconds that the end of a pool waits for failures to be unpickled
HANDLERS_GRACE = 1.0  # seconds that an end that is to be quick waits for handlers of records
LONGEST_WAIT = 86400.0  # seconds; system calls refuse much longer ones, and one wake-up a day is nothing


class SupervisorThread(threading.Thread):
    """The supervisor's thread; its own class, so that poolkit knows its own."""


class Supervisor(Requests):
    """Drives one pool; see the file's header. All methods are thread-safe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `Engine` takes."""
        super().__init__(*args, **kwargs)
        self._warned = False  # of many streams; owner: the thread
        self._supervised = False  # the thread runs; guarded by: the lock
        self._end_by = math.inf  # when the end is to wait for nothing any more; guarded by: the lock
        self._call_by = math.inf  # when it is to wait for no callback any more; guarded by: the lock
        lifetime.begin(self)

    # ===== the end =====

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Accept nothing more, and end; see `Pool.shutdown`."""
        if self._is_copy():
            return
        reentrant, waits = self._is_reentrant(), wait and self._may_wait()

        def step(now: float) -> bool:
            scheduler, takes_up = self._scheduler, waits and not reentrant
            scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=now, kill_after=timeout, lingers=True)
            self.workforce.let_talk()  # a reader of messages that has stopped must not keep it from its end
            if scheduler.lingers and not self.maps.end(leaves=not takes_up, warns=waits):
                scheduler.end_lingering(now)
            wait_for = 0.0 if kill else math.inf if timeout is None else timeout
            self._end_by = min(self._end_by, now + wait_for)
            if timeout is not None:
                self._call_by = min(self._call_by, now + timeout)
            return self._thread is None

        if reentrant:
            self._postpone(step)
        elif self._decide(step):  # it never started
            self._finish()
        elif waits:
            self._reader.end_lease()
            try:
                self.maps.finish()
                until(self._closed.wait)
            except KeyboardInterrupt:
                self.maps.stop_endless()
                raise
            thread = self._thread
            if thread is not None:
                thread.join()
                # Gone at once, not when the collector comes by: `threading` watches its threads with a weak reference,
                # and a Ctrl-C that arrives during a collection is raised in that one's callback, where it is lost.
                self._thread = None

    def end_with_interpreter(self) -> None:
        """Finish what was accepted, as the standard library's executors do. Blocks."""
        with self._lock:
            if self._scheduler.phase is OPEN:
                self._scheduler.why_closed = "the interpreter is ending, and every pool with it"
        self.shutdown(wait=True, cancel_queued=False, kill=False, timeout=None)

    def _may_wait(self) -> bool:
        """Whether this thread may wait for the pool's end: not one that the end itself waits for."""
        if threading.current_thread() is self._thread or getattr(publishing, "depth", 0) > 0:
            return False
        return not self.maps.is_here() and not self.workforce.is_own_thread()

    def drop(self) -> None:
        """The pool object is gone: finish what was accepted, then end. From a finalizer, so without the lock."""
        if self._thread is None and not self.forked:  # nobody but the finalizer knows this pool
            self.workforce.close()
            self._closed.set()
            self.traces.all = ()  # which their threads find, and stop
        else:
            self._postpone(lambda now: self._scheduler.shutdown(cancel_queued=False, kill=False, now=now))

    # ===== the thread =====

    def _start_thread(self) -> None:
        try:
            with self._lock:
                if self._thread is not None or self._scheduler.phase is not OPEN:
                    return
                lifetime.begin(self)
                thread = SupervisorThread(target=self._run, name=f"poolkit-{self.name}", daemon=True)
                self._thread = thread
            thread.start()
        except BaseException as exc:  # no more threads, or the interpreter is ending; the next call tries again
            with self._lock:
                if not self._supervised:
                    self._thread = None
            if type(exc) is not RuntimeError:  # a RecursionError is one, too
                raise
            msg = f"pool {self.name} cannot start its supervisor thread: {exc}"
            raise PoolClosed(msg) from exc

    def _run(self) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():  # who started it was told that this was in vain
                return
            self._supervised = True
        try:
            while self._step():
                pass
        except BaseException as exc:
            if self.forked:
                return
            log.critical("the supervisor of pool %s failed; its tasks fail with it", self.name, exc_info=True)
            self._abandon_tasks(f"the supervisor of pool {self.name} failed: {exc!r}; this is a bug in poolkit")
        finally:
            if not self.forked:
                self._finish()

    def _step(self) -> bool:
        """Do what is due, then wait for the workforce once; False when the pool is closed."""
        reader = self._reader
        with reader.lock, self._lock:
            now = self._enter()
            self._do_postponed(now)
            self._scheduler.tick(now)
            if self._scheduler.lingers and not self.maps.open:
                self._scheduler.end_lingering(now)
            self._sleeping_until = -math.inf
            settled = self._decided()
            closed = self._scheduler.phase is CLOSED
        self._publish(settled)
        del settled  # nothing is kept alive while it waits
        if self._scheduler.roster.stalled >= MANY_STALLED and not self._warned:
            self._warned = True
            log.warning("pool %s: %d streams wait for their readers, and each keeps a worker", self.name, MANY_STALLED)
        if self.callbacks.queue and not self.callbacks.thread.start():
            self.callbacks.call_all()
        if self._scheduler.unread and not self._error_reader.start():
            self._read_errors()
        self.maps.start_if_needed()
        if closed:
            return False
        self._wait()
        self.workforce.prepare()
        with reader.lock:
            reports = self.workforce.act()
            self._prepare_errors(reports)
            settled = self._handle(reports)
        self._publish(settled)
        if self.workforce.notes:
            self._say_what_was_noted()
        return True

    def _prepare_errors(self, reports: Iterable[Report]) -> None:
        """Import what a crash is told with. Not under the lock: who imports it just now may be about to want that."""
        for report in reports:
            if type(report) is Died:
                with self._lock:
                    wanted = self._scheduler.may_break(report.worker_id)
                if wanted:
                    errors.WorkerCrashed  # noqa: B018 -- made at its first use

    def _say_what_was_noted(self) -> None:
        notes, self.workforce.notes = self.workforce.notes, []
        for note in notes:
            log.info("pool %s: %s", self.name, note)

    def _wait(self) -> None:
        """Wait until there is something to do. While others read the links, look up now and then, without a lock."""
        while 0.0 < (lease := self._reader.lease_left()) < SHORT_WAIT:
            left = self._due - self.clock() + self._reader.timeout()
            if left <= 0.0 or self.workforce.wait(min(lease, left), links=False):
                return
        with self._lock:
            deadline = self._scheduler.next_deadline()
            due = self._sleeping_until = self._due = math.inf if deadline is None else deadline
        left = min(
            max(0.0, due - self.clock()),
            self.maps.warn_if_slow(),
            lease or math.inf,
            LONGEST_WAIT,
        )
        self.workforce.wait(left, links=not lease)

    def _finish(self) -> None:
        """Release everything. Once; by the thread, or by `shutdown` when there never was one."""
        with self._lock:
            if self._closed.is_set():
                return
        self._reader.close()
        try:
            with self._reader.lock:
                self.workforce.close()
            self._error_reader.close(min(LONGEST_END, self._end_by - self.clock()))
            self._close_callbacks()
        finally:
            lifetime.end(self)
            self.maps.close()
            self.traces.end()
            self._closed.set()
            if not self.callbacks.thread.wake():  # else a callback takes longer than the end may; it calls the others
                self.callbacks.call_all()

    def _close_callbacks(self) -> None:
        """Wait until all is called; at an end that is to be quick, not for handlers of records that take their time."""
        give_up = self._call_by
        if self.records.pending and not self.callbacks.thread.close(
            min(give_up, self._end_by + HANDLERS_GRACE) - self.clock()
        ):
            give_up = give_up if not self.records.pending else -math.inf
        self.callbacks.thread.close(give_up - self.clock())
        self.records.step_aside()

    def _abandon_tasks(self, why: str) -> None:
        def step(_now: float) -> None:
            for task in self._scheduler.give_up():
                self._scheduler.settled.append((task, Outcome.failure(PoolkitError(why))))

        # The tasks are given up, whatever has become of the rest.
        self._inconsistent = self._scheduler.is_changing = False
        self._decide(step)

    # ===== forks =====

    def is_unused(self) -> bool:
        """Whether it is open, and has had no task yet, nor anything else that began its thread."""
        scheduler = self._scheduler
        is_over = (
            scheduler.phase is not OPEN or self.forked or self._closed.is_set()
        )  # the last of one that was dropped
        has = self._thread or scheduler.accepted or self._posted_tasks or self._postponed
        return not (is_over or has or self.maps.open or self.traces.all)

    def after_fork_in_child(self, *, takes_over: bool) -> bool:
        """This copy of the pool has no thread and no workers: fail what was pending, close what was copied.

        Where it `takes_over`, an unused pool becomes one of this process instead; true when it has.
        """
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 -- as the standard library does
        if takes_over and self.is_unused():
            try:
                self.workforce.begin_anew()
                self._settle_in()
            except Exception:  # no descriptors are left, for example
                log.exception("this worker cannot take over pool %s, which is closed in it", self.name)
            else:
                return True
        self._be_a_copy()
        return False

    def _be_a_copy(self) -> None:
        self.forked = True
        self._closed = threading.Event()  # a thread that is not here may have been inside the old one
        self._reader = Reader(None, self.workforce.wake, self._take)
        self.callbacks = Callbacks(self.name, self.workforce.wake)
        self.records = Records(self.callbacks, self.name, self._publish, self.workforce.wake, None)
        self._error_reader = Caller(f"poolkit-{self.name}-errors", self._read_errors)
        self.maps.leave_parent()
        self.traces.leave_parent()
        with contextlib.suppress(Exception):
            self.workforce.close_in_forked_child()
        self._posted_reports.clear()  # of tasks that are not settled here
        self._scheduler.take_in(self._posted_tasks)
        waiters, self._waiters = self._waiters, Waiters()
        for task in self._scheduler.give_up():
            task.leave_parent()
            why = (
                f"task {task.id} ({task.name}) belongs to process {self.pid}, which forked this one ({os.getpid()}): "
                "its outcome is to be had there alone"
            )
            task.publish(Outcome.failure(PoolClosed(why)))
        wake_each(waiters.first(len(waiters)))  # a handler may have forked while its thread, which is here, waited
        self._closed.set()

    def hold(self) -> None:
        """Take the lock before a fork, so that the child sees a whole state."""
        self._lock.acquire()

    def let_go(self) -> None:
        """Release the lock after a fork, in the parent."""
        self._lock.release()
