"""Incoming: what a running task has sent and nobody has taken, in the process that owns the pool.

One adds to it at a time: whoever reads the worker's link, or the worker thread. One takes from it at a time. It can be
waited for like a task, by the same readers and event loops: it is `done` when there is something to take, or nothing
will come any more. Cancelling such a wait loses nothing.
No lock: each step is atomic, and both sides do theirs in an order in which one of them sees the other. Who adds looks
for a waker afterwards; who waits leaves its waker, and looks again whether there is something.
"""

from __future__ import annotations

import abc
import contextlib
import math
import pickle
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat, starmap
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from poolkit import waiting
from poolkit._owner import TaskOwner
from poolkit._waits import until

T = TypeVar("T")

MOST_COUNTED = 4096  # marks that are kept before they are added up
_FIRST = itemgetter(0)


class Packed(NamedTuple):
    """An item that is more than a pickle in bytes: what loads it, and how many bytes it is."""

    payload: Any
    load: Callable[[Any], Any]
    nbytes: int


class Incoming:
    """What one running task has sent."""

    __slots__ = (
        "_owner",
        "_waker",
        "_watcher",
        "by_reference",
        "closed",
        "come",
        "counted",
        "ended",
        "items",
        "keeps",
        "plain",
        "portion",
        "sizable",
        "small",
        "to_take",
    )

    def __init__(self, owner: TaskOwner | None, small: float = math.inf, *, keeps: bool = False) -> None:
        self.keeps = keeps  # what has come also when the task is cancelled
        self._owner = owner  # until it has ended: what is kept does not keep the pool
        self._waker: Callable[[Any], object] | None = None  # of who waits
        self._watcher: Callable[[Any], object] | None = None  # called each time
        self.items: deque[Any] = deque()  # payloads; of those not `plain`, with what loads each, and the bytes
        self.portion: deque[Any] = deque()  # what its reader has at hand
        self.to_take: Iterator[deque[Any]] = iter(())  # says `portion` once for each of them
        self.small = small  # bytes; larger ones make it `sizable`
        self.by_reference = False  # they are the objects themselves
        self.plain = True  # each is a whole pickle in bytes
        self.sizable = False  # some are so large that they are taken by their bytes
        self.come = 0  # how many have come, in all
        self.counted = 0  # of them, in the counts of the pool
        self.closed = False  # nobody will take any more
        self.ended = False  # nothing more comes

    def count(self, received: list[int]) -> None:
        """Add what has come since the last time to these counts, of items and of messages."""
        before, self.counted = self.counted, self.come
        received[self.keeps] += self.counted - before

    def ring(self) -> None:
        """Wake who waits: something has come, or will not."""
        waker, self._waker = self._waker, None
        if waker is not None:
            waker(self)
        if self._watcher is not None:
            self._watcher(self)

    def end(self, task: Any) -> None:
        """Nothing more comes, as the task is done. A waker of its task."""
        if self.closed or (task.cancelled() and not self.keeps):
            self.drop()
        self.ended = True
        self._owner = None
        self.ring()

    def close(self) -> None:
        """Nobody takes any more: drop what is here, and what comes."""
        self.closed = True
        self.drop()
        self.ring()

    def drop(self) -> None:
        """Drop what is here."""
        deque(self.to_take, maxlen=0)
        self.portion.clear()
        self.items.clear()

    def handed_out(self) -> int:
        """How many items their reader has got."""
        return self.come - len(self.items) - len(self.portion)

    def leave_parent(self) -> None:
        """Be a copy in a forked child: what has come is the parent's."""
        self._waker = self._watcher = None
        self.drop()

    # ===== as something that is waited for =====

    def done(self) -> bool:
        """Whether there is something to take, or nothing will come."""
        return bool(self.items) or self.ended or self.closed

    def add_waker(self, waker: Callable[[Any], object]) -> TaskOwner | None:
        """Call `waker` when it is done, as `Task.add_waker` does; there is one at a time."""
        owner = self._owner
        self._waker = waker
        if owner is None or self.done():
            self.ring()
            return None
        return owner

    def watch(self, waker: Callable[[Any], object]) -> None:
        """Call `waker` each time that something comes, and when nothing will any more."""
        self._watcher = waker

    def remove_done_callback(self, _waker: object) -> int:
        """Call nobody any more."""
        self._waker = None
        return 1

    def wait(self) -> None:
        """Wait until it is done, reading links meanwhile where nobody else does. Blocks."""
        owner = self._owner
        if owner is not None:
            owner.lead(self, None)
        if self.done():
            return
        lock = allocate_lock()
        lock.acquire()

        def wake(_self: object) -> None:
            with contextlib.suppress(RuntimeError):  # it was woken
                lock.release()

        try:
            if self.add_waker(wake) is not None:
                until(partial(lock.acquire, True))
        finally:
            self._waker = None

    def cancel(self) -> bool:
        """Wait no more."""
        self._waker = None
        return True

    def cancelled(self) -> bool:
        """False: a wait that is cancelled is just over."""
        return False

    def exception(self) -> None:
        """None: how the task ended is for its reader to say."""

    def result(self) -> None:
        """None: what has come is to be taken."""

    def __repr__(self) -> str:
        """What is waited for."""
        return "<the next item of a stream>"

    __await__ = waiting.begin  # until it is done, without blocking the event loop


class Portions(abc.ABC, Generic[T]):
    """What comes to an `Incoming`, taken in portions of at most half of what it may hold; for `AtHand`.

    Owner: one thread or coroutine at a time.
    """

    def __init__(self, task: Any, incoming: Incoming, most: int, most_bytes: float) -> None:
        self._task = task
        self._incoming = incoming
        self._half, self._half_bytes = max(1, most // 2), most_bytes / 2
        self._is_whole: list[None] = []  # empty before the portion is iterated over, and once all of it was
        self._counted: tuple[int, list[None]] = (0, [])  # items in portions, in all: so many, and one more for each
        self._credited = 0  # of them the sender knows
        self._owed = 0.0  # bytes of those that it does not know
        self.reader: object = None  # who just waits: a thread by its number, or a wait of a coroutine

    def wait(self) -> bool:
        """Wait until something is at hand; false at the end. Raises how the task ended, once. Blocks."""
        with _Reading(self, threading.get_ident()):
            if self._is_whole:  # the iterator has ended before it
                self._is_whole = []
                msg = f"an item of {self._task!r} raised StopIteration when it was unpickled"
                raise RuntimeError(msg)
            while not self._take():
                if self._is_at_end():
                    return self._end()
                self._credit_all()
                self._incoming.wait()
        return True

    async def wait_async(self) -> None:
        """Wait until something is at hand, without blocking the event loop. Raises StopAsyncIteration at the end."""
        if self._incoming.portion:
            return
        with _Reading(self, object()):
            while not self._take():
                if self._is_at_end():
                    self._end()
                    raise StopAsyncIteration
                self._credit_all()
                await self._incoming

    def at_hand(self) -> Iterator[T]:
        """What is at hand now, taken out one by one."""
        incoming = self._incoming
        whole: list[None] = []
        self._is_whole = whole
        # Its first part fills `whole` and gives nothing; its last, asked once more than there are items, empties it.
        begins: Any = filter(None, map(whole.append, (None,)))
        incoming.to_take = chain(begins, repeat(incoming.portion, len(incoming.portion)), iter(whole.pop, None))
        if incoming.closed or self._is_cancelled():  # meanwhile: else what was dropped would be taken
            incoming.drop()
        taken = map(deque.popleft, incoming.to_take)
        if incoming.by_reference:
            return taken
        return map(pickle.loads if incoming.plain else load_entry, taken)

    def _take(self) -> bool:
        """Take a portion of what has come; false where there is nothing."""
        incoming = self._incoming
        items, portion = incoming.items, incoming.portion
        if portion:  # what was taken by `wait_async`, or is left of one that ended so
            return True
        if self._taken() - self._credited >= self._half or self._owed >= self._half_bytes:
            self._credit()
        if not items or incoming.closed or self._is_cancelled():
            return False
        count, nbytes = min(len(items), self._half), 0
        try:
            if not incoming.sizable:
                self._move(count)
            else:
                while count and nbytes < self._half_bytes:
                    nbytes += size_of(items[0])
                    self._owed += nbytes
                    self._move(1)
                    count -= 1
        except IndexError:  # it was closed meanwhile
            return bool(portion)
        self._took(len(portion), nbytes)
        return True

    def _move(self, count: int) -> None:
        """Move items to the portion, and count them, in one call in C: no exception of a handler comes in between."""
        incoming, counted = self._incoming, self._counted[1]
        taken = starmap(incoming.items.popleft, repeat((), count))
        incoming.portion.extend(map(_FIRST, zip(taken, map(counted.append, repeat(None)))))  # noqa: B905 -- endless

    def _taken(self) -> int:
        """How many items are in portions, in all."""
        known, more = self._counted
        if len(more) > MOST_COUNTED:
            self._counted = known + len(more), []
        return known + len(more)

    def _took(self, count: int, nbytes: int) -> None:
        """A portion was taken; `nbytes` of it, where some are large."""

    def _credit_all(self) -> None:
        """Before a wait: large items count by bytes, which an interrupt may have lost count of."""
        if self._incoming.sizable and self._taken() > self._credited:
            self._credit()

    def _credit(self) -> None:
        """Have the sender know what was taken."""
        self._credited, self._owed = self._taken(), 0.0

    def _is_at_end(self) -> bool:
        incoming = self._incoming
        return incoming.closed or (incoming.ended and (not incoming.items or self._is_cancelled()))

    def _is_cancelled(self) -> bool:
        """Whether what has come is of no use; a worker may have sent something since."""
        return not self._incoming.keeps and self._task.cancelled()

    @abc.abstractmethod
    def _end(self) -> bool:
        """Say how the task ended: false, or raise its error, once."""


class _Reading:
    """Refuses a second reader while one waits."""

    __slots__ = ("_portions", "_reader")

    def __init__(self, portions: Portions[Any], reader: object) -> None:
        self._portions = portions
        self._reader = reader

    def __enter__(self) -> None:
        if self._portions.reader not in {None, self._reader}:  # its own is left of a wait that was interrupted
            msg = f"{self._portions._task!r} is read by another thread or coroutine: one at a time"  # noqa: SLF001
            raise RuntimeError(msg)
        self._portions.reader = self._reader

    def __exit__(self, *_exc: object) -> None:
        self._portions.reader = None


def size_of(entry: Any) -> int:
    """Bytes of one item; 0 of an object that comes as it is."""
    return len(entry) if type(entry) is bytes else entry[2] if type(entry) is Packed else 0


def load_entry(entry: Any) -> Any:
    """Unpickle an item."""
    return pickle.loads(entry) if type(entry) is bytes else entry.load(entry.payload)
