"""Reader: which thread reads the workers' links at a moment.

    leader     a thread that waits for a task reads by itself, until that task is done: no other thread has to be
               woken, and none wakes it. There is one at a time; who comes second waits to be woken.
    standby    the supervisor thread reads when nobody leads, so callbacks, `await` and dispatch need no waiter.
    passer-by  a thread that submits in quick succession takes in what is there now and then, without waiting.

How the standby knows that it is not needed, at no cost for each task: leaders and passers-by set `_until`, LEASE
seconds from now, each time they look; the standby leaves the links alone until then, wakes, and looks again. A leader
that has slept for long says so (`_until` is infinite) and wakes the standby when it leaves. Who wants to be called back
instead of waiting calls `relinquish`, which ends the lease at once.

Nothing is lost between the two: the standby polls the links itself from `_until` on, whatever the leader does.

What is read is decided upon before the next read (`lock`): an outcome never comes after the death of its worker.
Lock order: `_leader`, `lock`, the pool's lock. No code of the user runs under them, but for the unpickling of a failure
that may be retried.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit import _os
from poolkit._wire.spin import Spin

if TYPE_CHECKING:
    from poolkit._workforce.links import Links
    from poolkit.task import Task

LEADING = "leading" not in _os.SWITCHED_OFF  # False: the standby reads everything
LEASE = 0.002  # seconds; how late a callback may be right after a leader left
LONGEST_SLEEP = 86400.0  # seconds; system calls refuse much longer ones
SETTLED_IN = 0.005  # seconds after which a leader that sleeps lets the standby sleep too


class Reader:
    """Who reads the links of one pool.

    `take` reads once what is there and publishes what it says, without waiting; `wake` wakes the supervisor thread.
    """

    def __init__(self, links: Links | None, take: Callable[[], None], wake: Callable[[], None]) -> None:
        self._links = links if LEADING and links is not None and links.fileno is not None else None
        self._take = take
        self._wake = wake
        self._spin = Spin()  # owner: the leader
        self._leader = threading.Lock()  # held by the leader while it waits
        self._awaited: Task[Any] | None = None  # what a sleeping leader waits for; owner: the leader
        self._settled_in = False  # whether it slept so long that the standby may sleep for ever; owner: the leader
        self._until = -math.inf  # the standby is not needed before; set by anybody, the last word counts
        self.lock = threading.Lock()  # held while links are read and what they say is decided upon
        self.taking = 0  # the thread that does so as a leader or passer-by; 0: none

    # ===== the standby =====

    def spared(self) -> float:
        """For how many seconds the standby may leave the links alone; 0.0: it is needed."""
        until = self._until
        return max(0.0, until - time.monotonic()) if until > 0.0 else 0.0

    def relinquish(self) -> None:
        """Somebody is to be called back, and does not wait: the standby is needed now."""
        if self._until > 0.0:
            self._until = -math.inf
            self._wake()

    # ===== the others =====

    def pass_by(self) -> None:
        """Take in what is there, if nobody else reads. Does not block."""
        if self._links is not None:
            until = time.monotonic() + LEASE
            if self._until < until:  # noqa: PLR1730 -- not `max`: infinity is for the leader alone to write
                self._until = until
            self._take()

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
            self._lead(task, math.inf if timeout is None else time.monotonic() + timeout)
        finally:
            settled_in, self._settled_in = self._settled_in, False
            self._until = time.monotonic() + LEASE
            self._leader.release()
            if settled_in:  # and so did the standby
                self._wake()

    def _lead(self, task: Task[Any], give_up: float) -> None:
        looked_up = time.monotonic()  # when something came last
        while (links := self._links) is not None and not task.done():
            now = time.monotonic()
            self._until = now + LEASE
            if links.poll(0):
                self._take()
                looked_up = time.monotonic()
            elif now >= give_up:
                return
            elif now < looked_up + self._spin.seconds:
                _os.yield_cpu()
            else:
                self._sleep(task, links, give_up - now)
                self._spin.slept(time.monotonic() - looked_up)

    def _sleep(self, task: Task[Any], links: Links, left: float) -> None:
        """Wait until there is something to read, or `published` says that another thread has settled the task."""
        self._awaited = task
        try:
            self._until = time.monotonic() + SETTLED_IN + LEASE
            if task.done() or links.poll(min(SETTLED_IN, left)) or left <= SETTLED_IN:
                return
            self._until, self._settled_in = math.inf, True
            if not task.done():
                links.poll(min(left - SETTLED_IN, LONGEST_SLEEP))
        finally:
            self._awaited = None

    def close(self) -> None:
        """Let nobody lead any more. Blocks until whoever does has left; no task is left to wait for."""
        links, self._links = self._links, None
        if links is not None:
            links.nudge()
        with self._leader:
            return
