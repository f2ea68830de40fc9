"""Calls: those to an object that a dedicated worker hosts, in the owner.

    call ──> queue ──> in flight: one, sent to the worker ──> its answer is taken, the task settled, the next is sent

One is in flight at a time: so what waits can be cancelled, a call has begun when it is sent, and there is always room.
Who waits for the task in flight takes the answer itself, as the leader; else the watcher does (`services.py`).
A step does what can be done at once: send what is next, take an answer if there is one. Where an exception of a signal
handler ends it, the next one goes on: what was taken is noted by the instruction that takes it, a task is published
again, and a call that was sent twice has the same number, by which the worker knows it.
Guarded by: `_lock`: steps and `cancel`. `_leading`: who may take an answer. Lock order: `_leading`, `_lock`.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from itertools import starmap
from typing import Any

from poolkit._child.port import ChannelEnd
from poolkit._clock import monotonic
from poolkit._engine.life import Life
from poolkit._engine.services import services
from poolkit._locks import RLock
from poolkit.errors import PoolClosed
from poolkit.outcome import Outcome
from poolkit.task import Task


class _Flight:
    """The call that is sent; its fields are filled one after the other."""

    __slots__ = ("is_sent", "taken", "task")

    def __init__(self) -> None:
        self.task: list[Task[Any]] = []
        self.is_sent = False
        self.taken: list[Any] = []  # its answer


class Calls:
    """The owner of the tasks that the calls are. Thread-safe."""

    def __init__(self, life: Life) -> None:
        self._life, self._channel = life, life.channel
        self._lock, self._leading = RLock(), RLock()
        self._queue: deque[Task[Any]] = deque()
        self._flight = _Flight()
        self._numbers = itertools.count(1)
        self._is_closing = self._has_ended = self._has_left = False
        services.enter(self._channel)
        life.ended = self._look  # beside the watcher: a worker that is a thread may be stopped while it is to tell

    def call(self, name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task[Any]:
        """Have the method called. Raises SerializationError, PoolClosed. Does not block."""
        self._channel.check_process()
        number = next(self._numbers)
        packed = self._channel.pack((number, method, kwargs or None, *args))
        task: Task[Any] = Task(self, name, packed, None)
        task.id, task.worker_id, task.submitted_at = number, self._life.number, monotonic()
        self._queue.append(task)
        if not self._flight.task:
            self._step()
            self._watch()
        return task

    def close(self) -> None:
        """Close the channel behind the calls that are left."""
        if os.getpid() == self._life.engine.pid:  # a forked child's copy of the socket is this one's, too
            self._is_closing = True
            self._step()

    # ===== steps =====

    def _step(self, *, takes: bool = False) -> None:
        """Do what can be done at once; an answer is taken by the leader alone."""
        settled: list[tuple[Task[Any], Any]] = []  # kept until the lock is released: dropping one may run a `__del__`
        try:
            with self._lock:
                self._go_on(settled, takes=takes)
        finally:
            for task, callbacks in settled:
                if callbacks:
                    services.call(task.call_back, callbacks)

    def _go_on(self, settled: list[tuple[Task[Any], Any]], *, takes: bool) -> None:
        try:
            while self._send_next() and takes:
                flight = self._flight
                if not (flight.taken or self._channel.try_take(flight.taken)):
                    return
                task = flight.task[0]
                task.ended_at = monotonic()
                self._publish(task, self._outcome(flight.taken), settled)
                if self._flight is flight:  # else a signal handler has done it
                    self._flight = _Flight()
        except ChannelEnd:
            if not self._has_ended:
                self._has_ended = True
                self._life.task.add_waker(self._end)
            elif self._life.task.done():
                self._end(self._life.task)

    def _send_next(self) -> bool:
        """Send what is next; false where nothing is in flight then. Raises ChannelEnd."""
        flight = self._flight
        try:
            if not flight.task:
                flight.task += starmap(self._queue.popleft, ((),))
        except IndexError:
            if self._life.task.done():
                raise ChannelEnd from None
            if self._is_closing:
                self._channel.close()
            return False
        if not flight.is_sent:
            task = flight.task[0]
            if self._has_ended:
                raise ChannelEnd
            if not self._channel.try_send(task.call):
                return False
            flight.is_sent, task.attempts, task.started_at = True, 1, monotonic()
        return True

    def _end(self, ended: Task[Any]) -> None:
        """The worker has ended, and all answers are taken: the others get what ended it. A waker of its task."""
        settled: list[tuple[Task[Any], Any]] = []
        with self._lock:
            while self._flight.task or self._queue:
                flight = self._flight
                if not flight.task:
                    flight.task += starmap(self._queue.popleft, ((),))
                cancelled = ended.cancelled()
                load = None if cancelled else self._life.end_of_call
                self._publish(flight.task[0], Outcome(None, ok=False, load=load, cancelled=cancelled), settled)
                self._flight = _Flight()
            has_left, self._has_left = self._has_left, True
        for task, callbacks in settled:
            if callbacks:
                services.call(task.call_back, callbacks)
        if not has_left:
            services.leave()

    def _outcome(self, taken: list[Any]) -> Outcome:
        try:
            return Outcome(taken, ok=not self._channel.has_failed(taken), load=self._channel.load)
        except OSError as exc:  # there was no room for what came with it
            return Outcome.failure(exc)

    def _publish(self, task: Task[Any], outcome: Outcome, settled: list[tuple[Task[Any], Any]]) -> None:
        settled.append((task, None))
        settled[-1] = task, task.publish(outcome)

    # ===== who takes answers =====

    def _watch(self) -> None:
        """Have the watcher take the answer, unless somebody leads, who does this when he leaves."""
        flight = self._flight
        if flight.task:
            services.watch(self._channel, self._look, writes=not flight.is_sent)

    def _look(self) -> None:
        """Take what has come, unless somebody leads. By the watcher, and others who must not wait."""
        held: list[bool] = []
        try:
            held += map(self._leading.acquire, (False,))
            if True not in held:
                return
            self._step(takes=True)
        finally:
            if True in held:
                self._leading.release()
                self._watch()

    def lead(self, task: Task[Any], timeout: float | None) -> None:
        """Take the answer to `task` if it is in flight, for at most `timeout` seconds. Blocks."""
        self._check_owner(task)
        give_up = None if timeout is None else monotonic() + timeout
        held: list[bool] = []
        is_nested = self._leading._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 -- in a signal handler
        try:
            held += map(self._leading.acquire, (False,))
            if True in held:
                services.unwatch(self._channel)
                self._lead(task, give_up, is_nested=is_nested)
        finally:
            if True in held:
                self._leading.release()
                self._watch()

    def _lead(self, task: Task[Any], give_up: float | None, *, is_nested: bool) -> None:
        """Apart from `lead`: see the rule for loops in `_locks.py`. A handler that interrupted a leader leads on."""
        while True:
            self._step(takes=True)
            flight = self._flight
            if task.done() or self._has_ended or not (is_nested or task in flight.task):
                return
            left = None if give_up is None else give_up - monotonic()
            if left is not None and left <= 0.0:
                return
            self._channel.wait(left, writes=not flight.is_sent)

    def _check_owner(self, task: Task[Any]) -> None:
        pid = self._life.engine.pid
        if os.getpid() != pid:
            msg = (
                f"{task.name} was called in process {pid}, which forked this one: its outcome is to be had there alone"
            )
            raise PoolClosed(msg)

    # ===== what tasks ask =====

    def cancel(self, task: Task[Any]) -> bool:
        """Take back a call that has not begun; false of one that has."""
        if os.getpid() != self._life.engine.pid:
            return False
        with self._lock:
            try:
                self._queue.remove(task)
            except ValueError:
                return False
            callbacks = task.publish(Outcome(None, ok=False, cancelled=True))
        if callbacks:
            task.call_back(callbacks)
        return True

    def has_begun(self, task: Task[Any]) -> bool:
        """Whether it was sent."""
        return task in self._flight.task

    def note_progress(self, task: Task[Any]) -> None:
        """Calls report none."""

    def send(self, task: Task[Any], message: object) -> bool:  # noqa: ARG002 -- as pools have it
        """Calls get no messages."""
        return False

    def deliver(self, exchange: Any, entry: Any) -> None:
        """They send none either."""

    def say_if_stuck(self, task: Task[Any]) -> None:
        """So they never wait for who reads them."""

    def end_lease(self) -> None:
        """The watcher sees to it."""

    def watch(self, task: Task[Any]) -> None:
        """An event loop need not watch anything."""
