"""Reader: which thread reads the workers' links at a moment.

    leader     a thread that waits for a task reads by itself, until that task is done: no other thread has to be
               woken, and none wakes it. There is one at a time; who comes second waits to be woken.
    standby    the supervisor thread reads when nobody else does, so callbacks and dispatch need no waiter.
    passer-by  a thread that submits in quick succession takes in what is there now and then, without waiting; so does
               an event loop that watches the links, when there is something.

How the standby knows that it is not needed, at no cost for each task: leaders and passers-by set `_until`, a moment
ahead, each time they look; the standby leaves the links alone until then, wakes, and looks again. A leader that sleeps
for long looks LONG_LEASE ahead, and wakes the standby when it leaves. Who wants to be called back instead of waiting
calls `relinquish`, which ends the lease at once.

Nothing is lost between the two, also when a signal handler's exception tears a leader away while it waits: the standby
polls the links itself from `_until` on, whatever the leader does; the leader's lock is re-entrant, so that the same
thread may lead again; and a leader looks up by itself before its lease ends. While it takes something in, signals are
put off (`_workforce/interrupts.py`).

What is read is decided upon before the next read (`lock`): an outcome never comes after the death of its worker.
Lock order: `_leader`, `lock`, the pool's lock. No code of the user runs under them, but for the unpickling of a failure
that may be retried.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._wire.spin import Spin

if TYPE_CHECKING:
    from poolkit._workforce.links import Links
    from poolkit.task import Task

LEADING = "leading" not in _os.SWITCHED_OFF  # False: the standby reads everything
WATCHING = "watching" not in _os.SWITCHED_OFF  # False: event loops are woken by whoever reads
LEASE = 0.002  # seconds; how late a callback may be right after a leader left
FIRST_SLEEP = 0.005  # seconds that a leader sleeps before it takes the long lease, for which it has to pay at the end
LONG_LEASE = 0.5  # seconds
PAUSE = 0.001  # seconds that a leader or a loop waits for another thread that is reading just now
CLOSE_GRACE = 0.1  # seconds that the end of the pool waits for a leader to leave; a late one finds the links closed


class Reader:
    """Who reads the links of one pool.

    `wake` wakes the supervisor thread. `take` reads once what is there, or the links that it is given, and publishes
    what they say, without waiting; false when another thread is reading.
    """

    def __init__(self, links: Links | None, wake: Callable[[], None], take: Callable[..., bool]) -> None:
        self._links = links if LEADING and links is not None and links.fileno is not None else None
        self._wake = wake
        self._take = take
        self._spin = Spin()  # owner: the leader
        self._loop_spin = Spin()  # for event loops; several in one process may spoil each other's guess, no more
        self._watched_at = 0.0  # when one began to wait for the task that it awaits; 0: it has something since
        self._leader = threading.RLock()  # held by the leader while it waits
        self._awaited: Task[Any] | None = None  # what a sleeping leader waits for; owner: the leader
        self._has_long_lease = False  # owner: the leader
        self._until = -math.inf  # the standby is not needed before; set by anybody, the last word counts
        self.lock = threading.Lock()  # held while links are read and what they say is decided upon
        self._never = threading.Event()
        self.taking = 0  # the thread that does so as a leader or passer-by; 0: none

    @property
    def closed(self) -> bool:
        """Whether nobody but the supervisor thread reads any more."""
        return self._links is None

    # ===== the standby =====

    def spared(self) -> float:
        """For how many seconds the standby may leave the links alone; 0.0: it is needed."""
        until = self._until
        return max(0.0, until - monotonic()) if until > 0.0 else 0.0

    def patience(self) -> float:
        """For how many seconds the standby may leave alone what falls due: a leader that is awake looks at that too."""
        return LEASE if self._awaited is None else 0.0

    def relinquish(self) -> None:
        """Somebody is to be called back, and does not wait: the standby is needed now."""
        if self._until > 0.0:
            self._until = -math.inf
            self._wake()

    # ===== the others =====

    def pass_by(self) -> bool:
        """Take in what is there; false if somebody else reads, or there are no links. Does not block."""
        if self._links is None:
            return False
        self._until = max(self._until, monotonic() + LEASE)
        return self._take()

    def watch(self, task: Task[Any]) -> int | None:
        """The descriptor that an event loop is to watch from now on, after a spin; None where there is none."""
        links = self._links
        if links is None or not WATCHING:
            return None
        began = now = monotonic()
        end = began + self._loop_spin.seconds
        try:
            while now < end and not task.done():
                self._until = now + LEASE
                ready = links.poll(0.0)
                if not ready:
                    _os.yield_cpu()
                elif self._take(ready) and task.done():
                    self._loop_spin.paid()
                now = monotonic()
        except ValueError:  # what a closed epoll raises
            return None
        self._watched_at = 0.0 if task.done() else began
        self._until = max(self._until, now + LEASE)
        return links.fileno

    def look_in(self) -> None:
        """Take in what is there, on the thread of an event loop that was told so."""
        if self._watched_at:
            self._loop_spin.slept(monotonic() - self._watched_at)
            self._watched_at = 0.0
        if not self.pass_by():
            self._never.wait(PAUSE)  # somebody reads: the loop must not spin until that is over

    def published(self) -> None:
        """Some thread has published outcomes: a leader that sleeps for one of them is to look up."""
        awaited = self._awaited
        if awaited is not None and awaited.done() and self._links is not None:
            self._links.nudge()

    def lead(self, task: Task[Any], timeout: float | None) -> None:
        """Read until `task` is done, for at most `timeout` seconds; returns at once where another thread leads.

        Blocks; may be interrupted by what a signal handler raises.
        """
        if self._links is None or not self._leader.acquire(blocking=False):
            return
        try:
            self._lead(task, math.inf if timeout is None else monotonic() + timeout)
        except ValueError:  # what a closed epoll raises
            if self._links is not None:
                raise
        finally:
            self._leader.release()  # first, as nothing comes between
            self._until = monotonic() + LEASE
            if self._has_long_lease:  # and the standby sleeps as long
                self._has_long_lease = False
                self._wake()

    def _lead(self, task: Task[Any], give_up: float) -> None:
        now = looked_up = monotonic()  # the latter: when something came last
        while (links := self._links) is not None and not task.done():
            self._until = now + LEASE
            if ready := links.poll(0.0):
                if now < looked_up + self._spin.seconds:
                    self._spin.paid()
                if not self._take(ready):
                    self._never.wait(PAUSE)
                now = looked_up = monotonic()
                continue
            now = monotonic()
            if now >= give_up:
                return
            if now < looked_up + self._spin.seconds:
                _os.yield_cpu()
            else:
                long = now >= looked_up + FIRST_SLEEP
                self._sleep(task, links, min(LONG_LEASE / 2 if long else FIRST_SLEEP, give_up - now), long=long)
                now = monotonic()
                self._spin.slept(now - looked_up)

    def _sleep(self, task: Task[Any], links: Links, seconds: float, *, long: bool) -> None:
        """Wait until there is something to read, or `published` says that another thread has settled the task."""
        self._until = monotonic() + (LONG_LEASE if long else FIRST_SLEEP + LEASE)
        self._has_long_lease |= long
        self._awaited = task
        try:
            if not task.done():
                links.poll(seconds)
        finally:
            self._awaited = None

    def close(self) -> None:
        """Let nobody lead any more. Blocks until whoever does has left; no task is left to wait for."""
        links, self._links = self._links, None
        if links is not None:
            links.nudge()
        if self._leader.acquire(timeout=CLOSE_GRACE):  # else its holder was torn away, or a handler interrupted it
            self._leader.release()
