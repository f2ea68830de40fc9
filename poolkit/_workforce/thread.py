"""Thread workforce: workers that are threads of this process.

Guarantees: a sent task goes to exactly one of its worker and a reclaim (a deque hands out each item once); a task that
is to stop is asked by `current_task().cancelled` and by an asynchronous exception; a thread that does not stop within
STOP_GRACE seconds is abandoned: reported dead, replaced, and silent whenever it does end.
Guarded by: the pool's one lock: `_members`, `_condemned`. By each member's own lock, taken inside nothing but itself
and held for a few instructions: `running`, `doomed`, `ended`: the asynchronous exception may only be raised while the
task it is meant for runs, and the thread takes back one that came too late.
Owner: the supervisor thread: `_dying`.
"""

from __future__ import annotations

import sys
import threading
import traceback
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit import errors
from poolkit._child.loop import run_call
from poolkit._clock import monotonic
from poolkit._core.workforce import AnyTask, Begun, BootFailed, Died, Drained, Finished, Glance, Ready, Report
from poolkit._workforce.driven import DrivenWorkforce
from poolkit._workforce.logs import mark_records
from poolkit._workforce.references import by_reference
from poolkit._workforce.thread_member import Member, StopTask, stop_task_of
from poolkit.context import TaskContext

STOP_GRACE = 0.25  # seconds: a hundred times the interpreter's switch interval, for a busy machine

_GO, _DROPPED, _STOP = "go", "dropped", "stop"


class ThreadWorkforce(DrivenWorkforce):
    """Threads behind the Workforce protocol.

    `leave` hands in what a worker reports, in the order in which it is called, without waiting: another thread takes it
    in if need be.
    """

    by_reference = True
    why_not_weighed = "threads share the memory of their process"
    max_batch = 1  # threads may wait for each other's tasks, so these begin in the order of the queue

    def __init__(
        self, *, name: str, prefix: str, initializer: Callable[[], object] | None, leave: Callable[[Report], None]
    ) -> None:
        mark_records()
        self._name = name
        self._prefix = prefix
        self._initializer = initializer
        self._leave = leave
        self._members: dict[int, Member] = {}
        self.unstarted: deque[Member] = deque()
        self._condemned: deque[tuple[Member, bool]] = deque()
        self._wakeup = allocate_lock()  # free: somebody has woken us; an Event takes many steps, and a lock of its own
        self._dying: list[tuple[float, Member]] = []
        self._ending: list[threading.Thread] = []  # reported their end and about to return; guarded by the pool's lock

    @staticmethod
    def pack(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        """A call goes to a thread as it is, but for arguments that are handles of broadcast objects."""
        return by_reference(fn, args, kwargs), 0

    # ===== orders, given under the pool's lock =====

    def start(self, worker_id: int) -> None:
        """Have whoever holds the lock start a thread when it lets go: at exit, CPython 3.12 lets nobody else do it."""
        if worker_id not in self._members:
            member = Member(worker_id)
            self.unstarted.append(member)
            self._members[worker_id] = member

    def send(self, worker_id: int, tasks: Sequence[AnyTask], *, announce: bool) -> None:
        """Hand tasks to the thread."""
        member = self._members[worker_id]
        member.claims.extend([(task, announce) for task in tasks])
        if member.resting:  # else it looks for claims before it rests
            member.inbox.put(_GO)

    def reclaim(self, worker_id: int) -> int:
        """Take back what the thread has not claimed."""
        member = self._members.get(worker_id)
        count = 0
        if member is not None:
            try:
                while True:
                    member.claims.pop()
                    count += 1
            except IndexError:
                pass
            if count:
                member.inbox.put(_DROPPED)
        return count

    def glance(self, worker_id: int) -> Glance:
        """What the thread runs."""
        member = self._members.get(worker_id)
        return Glance() if member is None else Glance(member.begun, member.since, member.done)

    def memory(self, _worker_id: int) -> None:
        """See `why_not_weighed`."""

    def stop(self, worker_id: int) -> None:
        """Tell the thread to leave."""
        self._members[worker_id].inbox.put(_STOP)

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """Have the supervisor thread stop what the thread runs, or give it up."""
        self._condemned.append((self._members[worker_id], want_stack))
        self.wake()

    def forget(self, worker_id: int) -> None:
        """Let go of a thread that ended, or was given up."""
        member = self._members.pop(worker_id, None)
        self._ending = [thread for thread in self._ending if thread.is_alive()]
        if member is not None and member.thread is not None and member.thread.ident and not member.abandoned:
            self._ending.append(member.thread)

    def start_now(self) -> list[Report]:
        """Start the threads that were ordered; without the lock. Reports those that could not be started."""
        reports: list[Report] = []
        while self.unstarted:
            try:
                member = self.unstarted.popleft()
            except IndexError:  # another thread was faster
                break
            if self._members.get(member.id) is not member:  # the order was torn, and given again
                continue
            # with a prefix, as the standard library names its threads
            name = f"{self._prefix}_{member.id - 1}" if self._prefix else f"poolkit-{self._name}-{member.id}"
            member.thread = thread = threading.Thread(target=self._main, args=(member,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no more threads to be had
                reports.append(Died(member.id, hint=f"its thread could not be started: {exc}"))
        return reports

    def is_own_thread(self) -> bool:
        """Whether this is one of the worker threads."""
        current = threading.current_thread()
        return any(member.thread is current for member in list(self._members.values()))

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        try:
            self._wakeup.release()
        except RuntimeError:  # it is free
            return

    # ===== the supervisor thread =====

    def wait(self, timeout: float, *, links: bool) -> bool:  # noqa: ARG002 -- there are none
        """Wait to be woken, for at most `timeout` seconds. Threads report by themselves."""
        if self._dying:
            timeout = min(timeout, max(0.0, min(at for at, _ in self._dying) - monotonic()))
        return self._wakeup.acquire(timeout=timeout) or bool(self._dying)

    def act(self) -> list[Report]:
        """Carry out the orders, and give those up that do not stop."""
        reports: list[Report] = []
        while self._condemned:
            self._stop(*self._condemned.popleft())
        now = monotonic()
        for at, member in self._dying:
            if at <= now and self._end(member):
                member.abandoned = True
                reports.append(Died(member.id, stack=member.stack, abandoned=True))
        self._dying = [(at, member) for at, member in self._dying if not member.ended]
        return reports

    def close(self) -> None:
        """Wait for the threads that are about to end; abandoned ones are left alone."""
        for thread in self._ending:
            if thread is not threading.current_thread():
                thread.join()

    def _stop(self, member: Member, want_stack: bool) -> None:
        if want_stack:
            member.stack = _stack_of(member.thread)
        context, thread = member.context, member.thread
        if context is not None:
            context.request_stop()
        with member.lock:
            member.doomed = True
            if member.running and not member.held and thread is not None and thread.ident is not None:
                stop_task_of(thread.ident)
        member.coroutines.wake()  # or an event loop would see it when its next timer is due
        member.inbox.put(_STOP)
        self._dying.append((monotonic() + STOP_GRACE, member))

    @staticmethod
    def _end(member: Member) -> bool:
        """Whether it is for the caller to report this member's end."""
        with member.lock:
            if member.ended:
                return False
            member.ended = True
            return True

    # ===== the worker threads =====

    def _main(self, member: Member) -> None:
        member.coroutines.keep()
        try:
            if self._boot(member):
                self._serve(member)
        except StopTask:  # it came too late for the task it was meant for
            pass
        finally:
            member.coroutines.close()
            if self._end(member):
                self._leave(Died(member.id, stack=member.stack))

    def _boot(self, member: Member) -> bool:
        if self._initializer is not None:
            try:
                self._initializer()
            except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
                errors.InitializerFailed  # noqa: B018 -- made at its first use, which is not to be under the pool's lock
                self._leave(BootFailed(member.id, exc))
                return False
        self._leave(Ready(member.id, threading.get_native_id()))
        return True

    def _serve(self, member: Member) -> None:
        claims = member.claims
        while True:
            try:
                task, announce = claims.popleft()
            except IndexError:
                if not self._rest(member):
                    return
                continue
            report = self._run(member, task, announce=announce)
            del task
            if report is None:
                return
            self._leave(report)
            del report

    def _rest(self, member: Member) -> bool:
        """Wait until there is something to do; false when it is to leave."""
        member.resting = True
        word = _GO if member.claims else member.inbox.get()  # who sends looks at `resting` after that
        member.resting = False
        if word is _DROPPED:
            self._leave(Drained(member.id))
        return word is not _STOP

    def _run(self, member: Member, task: AnyTask, *, announce: bool) -> Finished | None:
        """Run one task; None when the thread was doomed meanwhile, and must end without another word."""
        call = task.call
        if call is None:  # cancelled since it was claimed, and forgotten
            return None
        fn, args, kwargs = call
        started = monotonic()
        limit = task.options.timeout
        deadline = None if limit is None else started + limit
        context = TaskContext(task.id, task.name, task.attempts + 1, deadline, monotonic, member, member.id)
        member.context = context
        member.since = started
        member.done = 0  # it may have been this very task, in an earlier run
        member.begun = task.id
        if announce:
            self._leave(Begun(member.id, task.id))
        ok, value = False, None
        try:
            with member.lock:
                member.running = True
                doomed = member.doomed
            if not doomed:
                ok, value = run_call(context, fn, args, kwargs)
            with member.lock:
                member.running = False
                doomed = member.doomed
            if doomed:
                stop_task_of()
        except StopTask:
            doomed = True
        member.context = None
        if doomed:
            with member.lock:
                member.running = False
            del task, value  # see below
            return None
        member.done = task.id
        try:
            return Finished(member.id, task.id, started, monotonic(), 0, value, ok)
        finally:
            del task, value  # an exception's traceback holds this frame, and must not find itself or its task in it


def _stack_of(thread: threading.Thread | None) -> str:
    """The Python stack of a thread, most recent call first; poolkit's own frames left out."""
    frame = sys._current_frames().get(thread.ident) if thread is not None and thread.ident is not None else None  # noqa: SLF001
    lines = []
    for entry in reversed(traceback.extract_stack(frame)) if frame is not None else ():
        if entry.filename.replace("\\", "/").endswith("/poolkit/_child/loop.py"):
            break
        lines.append(f'  File "{entry.filename}", line {entry.lineno} in {entry.name}')
    return "\n".join(lines)
