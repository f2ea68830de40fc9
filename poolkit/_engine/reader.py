"""Reader: which thread reads the workers' links at a moment.

    leader     a thread that waits for a task reads by itself, until that task is done: no other thread has to be
               woken, and none wakes it. There is one at a time.
    follower   a thread that waits for a task while another leads sleeps until its task is done, or the leader leaves,
               who wakes the first of them: it leads on.
    standby    the supervisor thread reads when nobody else does, so callbacks and dispatch need no waiter.
    passer-by  a thread that submits in quick succession takes in what is there now and then, without waiting; so does
               an event loop that watches the links, when there is something. A loop neither spins nor sleeps here.

How the standby knows that it is not needed, at no cost for each task: leaders and passers-by set `_until`, a moment
ahead, each time they look; the standby leaves the links alone until then, wakes, and looks again. A leader that sleeps
for long looks LONG_LEASE ahead, and wakes the standby when it leaves. Who wants to be called back instead of waiting
calls `end_lease`, which ends the lease at once.

Nothing is lost between the two, also when a signal handler's exception ends a leader's wait: the standby
polls the links itself from `_until` on, whatever the leader does; the leader's lock is re-entrant, so that the same
thread may lead again; and a leader looks up by itself before its lease ends. What it was taking in is taken in by the
next reader (`_kinds/links.py`).

What is read is decided upon before the next read (`lock`): an outcome never comes after the death of its worker.
Lock order: `_leader`, `lock`, the pool's lock. No code of the user runs under them.
"""

from __future__ import annotations

import contextlib
import math
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._waits import until
from poolkit._wire.spin import Spin

if TYPE_CHECKING:
    from poolkit._kinds.links import Links
    from poolkit.task import Task

LEADING = "leading" not in _os.SWITCHED_OFF  # False: the standby reads everything
WATCHING = "watching" not in _os.SWITCHED_OFF  # False: event loops are woken by whoever reads
LEASE = 0.002  # seconds; how late a callback may be right after a leader left
FIRST_SLEEP = 0.005  # seconds that a leader sleeps before it takes the long lease, for which it has to pay at the end
LONG_LEASE = 0.5  # seconds
PAUSE = 0.001  # seconds that a leader waits for another thread that is reading just now
CLOSE_GRACE = 0.1  # seconds that the end of the pool waits for a leader to leave; a late one finds the links closed


class Reader:
    """Who reads the links of one pool.

    `wake` wakes the supervisor thread. `take` reads once what is there, or the links that it is given, and publishes
    what they say, without waiting; false when another thread is reading.
    """

    def __init__(self, links: Links | None, wake: Callable[[], None], take: Callable[..., bool]) -> None:
        self.links = links if LEADING and links is not None and links.fileno is not None else None
        self._wake = wake
        self._take = take
        self.look: Callable[[Task[Any]], object] = lambda _: None  # at a task that was long in coming
        self._spin = Spin()  # owner: the leader
        self._leader = RLock()  # held by the leader while it waits
        self._followers: deque[Callable[[], object]] = deque()  # what wakes each; for any thread
        self.awaited: Task[Any] | None = None  # what a sleeping leader waits for; owner: the leader
        self._has_long_lease = False  # owner: the leader
        self._until = -math.inf  # the standby is not needed before; set by anybody, the last word counts
        self.lock = threading.Lock()  # held while links are read and what they say is decided upon
        self._never = allocate_lock()  # an Event's wait that is interrupted raises an error of its own
        self._never.acquire()
        self.taking = 0  # the thread that does so as a leader or passer-by; 0: none

    @property
    def closed(self) -> bool:
        """Whether nobody but the supervisor thread reads any more."""
        return self.links is None

    # ===== the standby =====

    def lease_left(self) -> float:
        """For how many seconds the standby may leave the links alone; 0.0: it is needed."""
        until = self._until
        return max(0.0, until - monotonic()) if until > 0.0 else 0.0

    def timeout(self) -> float:
        """For how many seconds the standby may leave alone what falls due: a leader that is awake looks at that too."""
        return LEASE if self.awaited is None else 0.0

    def end_lease(self) -> None:
        """Somebody is to be called back, and does not wait: the standby is needed now."""
        if self._until > 0.0:
            self._until = -math.inf
            self._wake()

    # ===== the others =====

    def pass_by(self) -> bool:
        """Take in what is there; false if somebody else reads, or there are no links. Does not block."""
        if self.links is None:
            return False
        self._until = max(self._until, monotonic() + LEASE)
        return self._take()

    def watch(self) -> int | None:
        """The descriptor that an event loop is to watch from now on; None where there is none."""
        links = self.links
        if links is None or not WATCHING:
            return None
        self._until = max(self._until, monotonic() + LEASE)
        return links.fileno

    def published(self) -> None:
        """Some thread has published outcomes: a leader that sleeps for one of them is to look up."""
        awaited = self.awaited
        if awaited is not None and awaited.done() and self.links is not None:
            self.links.wake()

    def lead(self, task: Task[Any], timeout: float | None) -> None:
        """Read until `task` is done, for at most `timeout` seconds, or wait while another thread does.

        Blocks; may be interrupted by what a signal handler raises. Returns at once where there are no links.
        """
        if self.links is None:
            return
        give_up = math.inf if timeout is None else monotonic() + timeout
        if not self._leader.acquire(blocking=False) and not self._follow(task, give_up):
            return
        try:
            self._lead(task, give_up)
        except ValueError:  # what a closed epoll raises
            if self.links is not None:
                raise
        finally:
            self._leader.release()  # first, as nothing comes between
            self._until = monotonic() + LEASE
            if self._has_long_lease:  # and the standby sleeps as long
                self._has_long_lease = False
                self._wake()
            if self._followers:
                self._call_next()

    def _follow(self, task: Task[Any], give_up: float) -> bool:
        """Wait while another thread leads; true when this one has the lead, and `task` is not done."""
        turn = allocate_lock()
        turn.acquire()

        def wake(_task: object = None) -> None:
            with contextlib.suppress(RuntimeError):  # a leader and a task that is done may both do it
                turn.release()

        if task.add_waker(wake) is None:
            return False
        leads = False
        try:
            leads = self._wait_for_lead(task, wake, turn, give_up)
        finally:
            try:
                self._followers.remove(wake)
            except ValueError:  # it was woken by a leader, or for its task alone
                if not leads:
                    self._call_next()
            task.remove_done_callback(wake)
        return leads

    def _wait_for_lead(self, task: Task[Any], wake: Callable[..., object], turn: Any, give_up: float) -> bool:
        while self.links is not None and not task.done():
            if wake not in self._followers:  # before it is looked whether there is a leader, who will see it
                self._followers.append(wake)
            if self._leader.acquire(blocking=False):
                return True
            left = give_up - monotonic()
            if left <= 0.0:
                return False
            until(partial(turn.acquire, True), left)
        return False

    def _lead(self, task: Task[Any], give_up: float) -> None:
        """Poll and read, as the leader. Apart from `lead`: see the rule for loops in `_locks.py`."""
        spin, now = self._spin, monotonic()
        looked_up = now  # when something came last
        while (links := self.links) is not None:
            self._until = now + LEASE
            if ready := links.poll(0.0):
                if now < looked_up + spin.seconds:
                    spin.in_vain = 0
                if not self._take(ready):
                    self._never.acquire(timeout=PAUSE)
                    self.look(task)
                    if monotonic() >= give_up:
                        return
                if task.done():
                    return
                now = looked_up = monotonic()
                continue
            now = monotonic()
            if now >= give_up:
                return
            if now < looked_up + spin.seconds:
                _os.yield_cpu()
            elif task.done():
                return
            else:
                long = now >= looked_up + FIRST_SLEEP
                self._sleep(task, links, min(LONG_LEASE / 2 if long else FIRST_SLEEP, give_up - now), long=long)
                now = monotonic()
                spin.slept(now - looked_up)
                self.look(task)

    def _call_next(self) -> None:
        """Have a follower lead on."""
        with contextlib.suppress(IndexError):  # there is none
            self._followers.popleft()()

    def _sleep(self, task: Task[Any], links: Links, seconds: float, *, long: bool) -> None:
        """Wait until there is something to read, or `published` says that another thread has settled the task."""
        self._until = monotonic() + (LONG_LEASE if long else FIRST_SLEEP + LEASE)
        self._has_long_lease |= long
        self.awaited = task
        try:
            if not task.done():  # since it is known who is to be woken
                links.poll(seconds)
        finally:
            self.awaited = None

    def close(self) -> None:
        """Let nobody lead any more. Blocks until whoever does has left; no task is left to wait for."""
        links, self.links = self.links, None
        if links is not None:
            links.wake()
        if self._leader.acquire(timeout=CLOSE_GRACE):  # else its holder was interrupted, or a handler interrupted it
            self._leader.release()
