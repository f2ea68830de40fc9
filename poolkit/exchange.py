"""Exchange: what a task and whoever has its handle say to each other while it runs.

    current_task().send(obj)   -> task.messages(), task.on_message(callback)    kept in `incoming`, bounded
    task.send(obj)             -> current_task().receive()                      kept in `mail`, until the task asks

Made when somebody asks for it, or when the first message comes. Nothing that a worker sends ever waits for a reader
who never asked: then the oldest messages are dropped, and counted. Where somebody reads, or has a callback, the worker
waits instead: its link is not read.
Guarded by: the pool's lock: `asked`; what is appended and taken is so by one atomic step each.
"""

from __future__ import annotations

import logging
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

from poolkit.at_hand import AtHand
from poolkit.future import _LOCK
from poolkit.incoming import Incoming, Portions, load_entry, size_of

MOST = 10_000  # messages of one task that are kept
MOST_BYTES = 16 << 20
DROPPED: Any = object()  # instead of a message: some were dropped
MOST_MAIL = 1000  # messages to a task that it has not asked for


class Exchange:
    """What one task and its owner say to each other."""

    def __init__(self, task: Any) -> None:
        self.incoming = Incoming(task._owner, MOST_BYTES // MOST, keeps=True)  # noqa: SLF001 -- its own half
        self._owner, self._named = task._owner, (task.id, task.name)  # noqa: SLF001 -- see above
        self.task_id: int = task.id
        self.incoming.sizable = True  # each counts by its bytes
        self.mail: deque[Any] = deque()  # packed, for the task
        self.asked = 0  # the run of the task that asks for mail and has not got any
        self.dropped = 0  # messages that nobody took in time
        self.has_reader = False
        self.callbacks: list[Callable[[Any], object]] = []
        self.resume: Callable[[], object] | None = None  # has the worker go on that waits for the reader
        self.come = self.gone = 0  # messages; those that callbacks are to get are on their way
        self.nbytes_come = self.nbytes_gone = 0
        self._messages: Callable[[], Messages | None] = lambda: None
        self.worker_id = 0  # that sent the last message
        self._handing = allocate_lock()  # held by who hands messages on: they are to stay in order

    def listen(self, callback: Callable[[Any], object], deliver: Callable[[Exchange, Any], object]) -> None:
        """Have `callback` called with each message, those that are kept first; `deliver` sees to that."""
        self.callbacks.append(callback)
        self._deliver = deliver
        self._hand_on()

    def _hand_on(self, _incoming: object = None) -> None:
        """Leave what has come to the callback thread. A waker of `incoming`, whoever adds to that."""
        items = self.incoming.items
        self.incoming.watch(self._hand_on)
        while items and self._handing.acquire(blocking=False):  # else who has it looks again
            try:
                while items:
                    self._deliver(self, items.popleft())
            finally:
                self._handing.release()

    def call_back(self, entry: Any) -> None:
        """Call the callback with a message. On the callback thread."""
        if entry is DROPPED:
            logging.getLogger("poolkit").warning(
                "task %d (%s) sends messages for which nobody asks: the oldest are dropped, see messages().dropped",
                *self._named,
            )
            return
        nbytes = size_of(entry)
        try:
            message = entry if self.incoming.by_reference else load_entry(entry)
            for callback in self.callbacks:
                callback(message)
        finally:
            self.taken(1, nbytes)

    def read(self, task: Any) -> Messages:
        """Return what reads the messages: the same as long as somebody has it."""
        found = self._messages()
        if found is None:
            found = Messages(task, self)
            self._messages = weakref.ref(found)
        return found

    def note(self, nbytes: int) -> bool:
        """A message of so many bytes comes: drop what is too much; true where its sender has to wait instead."""
        items = self.incoming.items
        self.come += 1
        self.nbytes_come += nbytes
        if self.incoming.closed:
            self.forget()
        if self.come - self.gone <= MOST and self.nbytes_come - self.nbytes_gone <= MOST_BYTES:
            return False
        if self.has_reader or self.callbacks:
            return True
        owner = self._owner
        if not self.dropped and owner is not None:
            owner.deliver(self, DROPPED)
        while items and (len(items) >= MOST or self.nbytes_come - self.nbytes_gone > MOST_BYTES):
            self.gone += 1
            self.nbytes_gone += size_of(items.popleft())
            self.dropped += 1
        return False

    def forget(self) -> None:
        """Nobody asks for messages any more, so none waits to be taken."""
        self.has_reader = False
        self.gone, self.nbytes_gone = self.come, self.nbytes_come
        self.go_on()

    def end(self, task: Any) -> None:
        """The task is done. A waker of it."""
        self.incoming.end(task)
        self._owner = None

    def leave_parent(self) -> None:
        """Be a copy in a forked child."""
        self.incoming.leave_parent()

    def taken(self, count: int, nbytes: int) -> None:
        """Messages were taken."""
        self.gone += count
        self.nbytes_gone += nbytes
        if self.resume is not None and self.has_room():
            self.go_on()

    def has_room(self) -> bool:
        """Whether a sender that waits may go on."""
        return self.come - self.gone <= MOST // 2 and self.nbytes_come - self.nbytes_gone <= MOST_BYTES // 2

    def go_on(self) -> None:
        """Have a sender go on that waits."""
        resume, self.resume = self.resume, None
        if resume is not None:
            resume()


class Messages(AtHand[Any]):
    """What a task sends while it runs, as an iterator and an async iterator that ends, quietly, with the task.

    Attributes:
        dropped: how many messages were dropped as nobody had asked for them.
    """

    def __init__(self, task: Any, exchange: Exchange) -> None:
        """Take what comes; made by `Task.messages`."""
        self._exchange = exchange
        self._source = _Taken(task, exchange)
        self._feed_from(self._source)

    @property
    def dropped(self) -> int:
        """How many messages were dropped, as there were too many of them and nobody had asked."""
        return self._exchange.dropped

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        """The next message, without blocking the event loop."""
        await self._source.wait_async()
        return next(self)

    def close(self) -> None:
        """Ask for no more messages: they are dropped. Thread-safe; does not block."""
        self._exchange.incoming.close()
        self._exchange.forget()

    def __del__(self) -> None:
        """Nobody reads any more: what comes is kept for the next reader, as far as there is room."""
        exchange = getattr(self, "_exchange", None)
        if exchange is not None:  # else its making was interrupted
            self._feed.clear()  # it holds the waiter, which holds it
            exchange.has_reader = False
            exchange.go_on()

    def __reduce__(self) -> NoReturn:
        """Refuse: messages belong to the process that has the task."""
        msg = "the messages of a task cannot be copied or pickled: send them, or a list of them"
        raise TypeError(msg)


class _Taken(Portions[Any]):
    """Where the messages come from."""

    def __init__(self, task: Any, exchange: Exchange) -> None:
        super().__init__(task, exchange.incoming, MOST, MOST_BYTES)
        self._exchange = exchange

    def wait(self) -> bool:
        """Wait for the next, and have the task wait from now on where there are too many."""
        self._exchange.has_reader = not self._incoming.closed
        return super().wait()

    async def wait_async(self) -> None:
        """Do the same without blocking the event loop."""
        self._exchange.has_reader = not self._incoming.closed
        await super().wait_async()

    def _took(self, count: int, nbytes: int) -> None:
        self._exchange.taken(count, nbytes)

    def _end(self) -> bool:
        return False


def exchange_of(task: Any) -> Exchange:
    """Return the exchange of a task, which is made when it is first asked for. Thread-safe."""
    found: Exchange | None = task.exchange
    if found is None:
        made = Exchange(task)
        with _LOCK:
            found = task.exchange = task.exchange or made
        if found is made:
            task.add_waker(made.end)
    return found
