"""Acceptor: the thread that accepts a cluster's connections and passes each on to a worker, unless the kernel does.

    listeners ── accept ──> a schedule picks among the ready ──> the hand of that worker, a pair of sockets
    a worker dies, or is to stop ──> what it has not accepted is taken out of its hand, and passed to another

A worker has at most MOST_PASSED that it has not accepted; what nobody has room for waits in the kernel, and `sticky`
keeps up to MOST_HELD for their slots before that.
Owner: the thread; `_inbox` takes one atomic operation at a time, from anywhere.
"""

from __future__ import annotations

import array
import contextlib
import errno
import hashlib
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._cluster.logger import log
from poolkit._engine.services import OwnThread
from poolkit._select import poll
from poolkit._wire.slate import Slate

Address = Any  # what `getpeername` gives
Schedule = Callable[[Address, Sequence[int]], int]

SCHEDULES = ("kernel", "round_robin", "least_busy", "sticky")
MOST_PASSED = 16  # connections that a worker has not accepted
MOST_HELD = 256  # connections that wait for their slots
_PATIENCE = 0.5  # seconds that who waits for a worker which is full waits for one that goes on taking
_PAUSE = 0.1  # seconds until another try, where there are no descriptors
_LOOK = 0.05  # seconds until another look, where all are full: a ring may have been missed
_WARN_EVERY = 60.0  # seconds
_END_GRACE = 1.0  # seconds
_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_KIND = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class Hand:
    """The way of connections to one worker: a pair of sockets for each listener, whose other ends stay here, too."""

    def __init__(self, slot: int, slate: Slate, count: int) -> None:
        """Raises OSError: there are no descriptors."""
        self.slot, self.slate = slot, slate
        self.passed = 0  # and not taken back
        self.slow_at = -1  # what it had taken when nobody waited for it any more
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            for _ in range(count):
                pair = socket.socketpair(socket.AF_UNIX, _KIND)
                self._pairs.append(pair)
                for end in pair:
                    end.setblocking(False)
        except BaseException:
            self.close()
            raise

    def theirs(self) -> list[int]:
        """The worker's ends."""
        return [theirs.fileno() for _, theirs in self._pairs]

    def has_room(self) -> bool:
        """Whether it may be passed one more."""
        return self.passed - self.slate.taken < MOST_PASSED

    def open_count(self) -> int:
        """How many it has, and is to have."""
        return self.passed - self.slate.closed

    def give(self, place: int, connection: socket.socket) -> bool:
        """Pass a connection of the listener at this place; False where that cannot be done now."""
        rights = array.array("i", (connection.fileno(),))
        try:
            self._pairs[place][0].sendmsg([b"\1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:  # there is no room, or too many descriptors are on their way
            return False
        self.passed += 1
        return True

    def take_back(self) -> list[tuple[int, socket.socket]]:
        """Take out what the worker has not accepted."""
        found: list[tuple[int, socket.socket]] = []
        for place, (_, theirs) in enumerate(self._pairs):
            with contextlib.suppress(OSError):
                while True:
                    data, fds = _os.receive_fds(theirs, 1, 1)
                    if not data:
                        break
                    found += [(place, socket.socket(fileno=fd)) for fd in fds]
        self.passed -= len(found)
        return found

    def close(self) -> None:
        """Close both ends. Idempotent."""
        for pair in self._pairs:
            for end in pair:
                end.close()


class _Waiting(NamedTuple):
    """A connection that nobody has yet."""

    place: int
    connection: socket.socket
    address: Address


class Acceptor:
    """See the file's header. All but `_run` and what it calls is for the cluster's thread."""

    def __init__(self, name: str, listeners: list[socket.socket], schedule: str | Schedule, size: int) -> None:
        """Raises OSError: there are no descriptors."""
        self.passed = self.passed_again = 0
        self.bell = _os.Wakeup()
        self._listeners = listeners
        self._schedule = schedule
        self._slots = range(size)
        self._inbox: deque[tuple[Callable[..., object], Any]] = deque()
        self._hands: dict[int, Hand] = {}  # of those that are ready, by their slots
        self._waiting: deque[_Waiting] = deque()  # for anybody
        self._held: dict[int, deque[_Waiting]] = {}  # for their slots
        self._last = -1  # the slot that round robin has chosen last
        self._turn: tuple[_Waiting, int, float] | None = None  # who waits, for which slot, until when
        self._paused_until = 0.0
        self._warned_at = -_WARN_EVERY
        self._is_over = self._has_ended = False
        self._thread = OwnThread(target=self._run, name=f"poolkit-accept-{name}", daemon=True)

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError where there is none to be had."""
        self._thread.start()

    def enter(self, hand: Hand) -> None:
        """A worker is ready."""
        self._order(self._enter, hand)

    def leave(self, hand: Hand) -> None:
        """It is to get nothing more, or is gone: others get what it has not accepted, and its hand is closed."""
        self._order(self._leave, hand)

    def resize(self, size: int) -> None:
        """There is another number of slots."""
        self._order(self._resize, size)

    def end(self) -> None:
        """Accept nothing more, and close what nobody has accepted. Blocks until that is so, for a second at most."""
        self._order(Acceptor._end, self)
        if self._thread.ident is not None:
            self._thread.join(_END_GRACE)  # a schedule of the user's may hang

    def give_up(self) -> None:
        """Let go of what it has, where it was not begun."""
        self.bell.close()

    def in_forked_child(self) -> None:
        """Close the copies that a forked child has."""
        self.bell.close()
        waiting = [*self._waiting, *(one for held in [*self._held.values()] for one in [*held])]
        for each in waiting:
            each.connection.close()
        for hand in [*self._hands.values()]:
            hand.close()

    def _order(self, what: Callable[..., object], subject: Any) -> None:
        self._inbox.append((what, subject))
        self.bell.set()
        if self._has_ended:
            self._take_inbox()

    # ===== the thread =====

    def _run(self) -> None:
        poller = poll()
        poller.register(self.bell.fileno(), select.POLLIN)
        watched = False
        while True:
            self._take_inbox()
            if self._is_over:
                break
            is_free = self._pass_waiting() and self._accept_all()
            if is_free != watched:
                watched = is_free
                for listener in self._listeners:
                    poller.register(listener, select.POLLIN) if watched else poller.unregister(listener)
            is_idle = not self._hands or (is_free and not any(self._held.values()))
            poller.poll(None if is_idle else 1000 * max(_LOOK, self._paused_until - monotonic()))
            self.bell.clear()
        self._has_ended = True
        self._take_inbox()
        self.bell.close()

    def _take_inbox(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                what, subject = self._inbox.popleft()
                what(subject)
        if self._is_over:  # nobody gets these
            for each in (*self._waiting, *(one for held in self._held.values() for one in held)):
                each.connection.close()
            self._waiting.clear()
            self._held.clear()

    def _enter(self, hand: Hand) -> None:
        self._hands[hand.slot] = hand

    def _leave(self, hand: Hand) -> None:
        if self._hands.get(hand.slot) is hand:
            del self._hands[hand.slot]
        for place, connection in hand.take_back():
            self.passed_again += 1
            self._keep(_Waiting(place, connection, _peer(connection)), again=True)
        hand.close()

    def _resize(self, size: int) -> None:
        self._slots = range(size)
        for slot in [slot for slot in self._held if slot not in self._slots]:
            self._waiting.extend(self._held.pop(slot))

    def _end(self) -> None:
        self._is_over = True

    def _keep(self, one: _Waiting, *, again: bool = False) -> None:
        slot = self._slot_of(one.address) if self._schedule == "sticky" else None
        where = self._waiting if slot is None else self._held.setdefault(slot, deque())
        where.appendleft(one) if again else where.append(one)

    # ----- accepting -----

    def _accept_all(self) -> bool:
        """Accept what is there, as far as somebody has room; whether more may be accepted."""
        if self._paused_until > monotonic():
            return False
        for place, listener in enumerate(self._listeners):
            while True:
                if not self._has_room():
                    return False
                try:
                    connection, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as exc:
                    if exc.errno in _LACKS:
                        self._pause(exc)
                        return False
                    if exc.errno in {errno.EBADF, errno.EINVAL}:  # it is being closed
                        break
                    continue  # the client is gone
                self._keep(_Waiting(place, connection, address))
                if not self._pass_waiting():
                    return False
        return True

    def _has_room(self) -> bool:
        """Whether one more can be passed now, or be held for its slot or its turn."""
        if self._waiting:
            return False
        if self._schedule == "sticky":
            return sum(map(len, self._held.values())) < MOST_HELD
        if any(hand.has_room() for hand in self._hands.values()):
            return True
        for hand in self._hands.values():  # who takes one from now on rings
            hand.slate.is_waited_for = True
        return any(hand.has_room() for hand in self._hands.values())

    def _pause(self, error: OSError) -> None:
        now = monotonic()
        self._paused_until = now + _PAUSE
        if now >= self._warned_at + _WARN_EVERY:
            self._warned_at = now
            log.warning("connections wait in the kernel: they cannot be accepted: %s; raise `ulimit -n`", error)

    # ----- passing -----

    def _pass_waiting(self) -> bool:
        """Pass on what waits; false where some of that waits for anybody still."""
        for slot, held in self._held.items():
            hand = self._hands.get(slot)
            while held and hand is not None and self._give(hand, held[0]):
                held.popleft()
            if held and hand is not None:
                hand.slate.is_waited_for = True
        while self._waiting:
            if not self._pass(self._waiting[0]):
                return False
            self._waiting.popleft()
        return True

    def _pass(self, one: _Waiting) -> bool:
        free = [slot for slot, hand in self._hands.items() if hand.has_room()]
        if not free:
            for hand in self._hands.values():
                hand.slate.is_waited_for = True
            return False
        slot = self._slot_for(one)
        if slot is None:  # those that were waited for stay behind
            slot = self._next(sorted(free))
        hand = self._hands[slot]
        if self._give(hand, one):
            self._turn = None
            return True
        hand.slate.is_waited_for = True
        return self._give(hand, one)

    def _slot_for(self, one: _Waiting) -> int | None:
        """Whose turn it is; None where that worker is full, and takes nothing for too long."""
        ready = sorted(slot for slot, hand in self._hands.items() if hand.slow_at != hand.slate.taken)
        now = monotonic()
        if self._turn is None or self._turn[0] is not one or self._turn[1] not in self._hands:
            if not ready:
                return None
            self._turn = one, self._choose(one.address, ready), now + _PATIENCE
        elif self._turn[2] <= now:
            hand = self._hands[self._turn[1]]
            if not hand.has_room():
                hand.slow_at = hand.slate.taken
                return None
        return self._turn[1]

    def _give(self, hand: Hand, one: _Waiting) -> bool:
        if not hand.has_room() or not hand.give(one.place, one.connection):
            return False
        hand.slate.is_waited_for = False
        one.connection.close()
        self.passed += 1
        self._last = hand.slot
        return True

    def _choose(self, address: Address, free: list[int]) -> int:
        if self._schedule == "least_busy":
            after = self._last
            return min(free, key=lambda slot: (self._hands[slot].open_count(), slot <= after, slot))
        if callable(self._schedule):
            try:
                chosen = self._schedule(address, tuple(free))
            except Exception:
                log.exception("the schedule raised for a client at %r; it is passed on in turn", address)
            else:
                if chosen in free:
                    return chosen
                log.error("the schedule chose slot %r for a client at %r; ready were %r", chosen, address, free)
        return self._next(free)

    def _next(self, free: list[int]) -> int:
        return next((slot for slot in free if slot > self._last), free[0])

    def _slot_of(self, address: Address) -> int | None:
        """The slot of a client, by rendezvous hashing (Thaler and Ravishankar, 1998); None: it has no address."""
        if not isinstance(address, tuple) or not address:
            return None
        client = str(address[0]).encode()
        return max(self._slots, key=lambda slot: hashlib.blake2b(b"%d/%s" % (slot, client), digest_size=8).digest())


def _peer(connection: socket.socket) -> Address:
    try:
        return connection.getpeername()
    except OSError:  # it has gone; whoever gets it finds that
        return ""
