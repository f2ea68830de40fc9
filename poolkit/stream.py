"""Stream: what `Pool.stream` returns, an iterator and an async iterator over what a generator in a worker yields.

Guarantees: items come in order, each as soon as it was made, and all that were yielded before a crash; no more than a
window of them is made and not taken. A wait that was interrupted or cancelled loses nothing. Once nobody wants more,
the generator is closed, or its worker killed.
Owner: one thread or coroutine at a time. `close` is for any thread.

How it sits: a stream is one task, which runs `run_stream` (`_child/stream.py`); its items come to `task.incoming`
(`incoming.py`) beside its outcome. They are taken in portions of at most half a window, each of which the worker is
told of afterwards (CREDIT), so it goes on while the next one is read.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from poolkit._child.stream import iterate
from poolkit._core.options import wait_seconds
from poolkit._engine.interface import PoolEngine
from poolkit.at_hand import AtHand
from poolkit.incoming import Incoming, Portions
from poolkit.outcome import CANCELLED, Outcome
from poolkit.task import Task

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = Any  # for those who look at the annotations; not in CPython 3.10

T = TypeVar("T")

GRACE = 1.0  # seconds that a generator has for its `finally`


class Stream(AtHand[T]):
    """The items of a generator that runs in a worker: an iterator, an async iterator, and a context manager of each.

    Attributes:
        task: the task that the stream is: its identity, state and callbacks. `task.result()` is what the generator
            returned; nobody takes items by that, so it may never come.
    """

    task: Task[Any]

    def __init__(self, task: Task[Any], items: _Items[T] | _Local[T]) -> None:
        """Take the items of `task`."""
        self.task = task
        self._items = items
        self._feed_from(items)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """The next item, without blocking the event loop. A wait that is cancelled loses no item."""
        await self._items.wait_async()
        return next(self)

    def close(self, grace: float = GRACE) -> None:
        """Have the generator closed at its `yield`, so that its `finally` runs, and drop what was not taken.

        If it has not ended after `grace` seconds, its worker is killed; 0: at once. The state of the task is then
        "cancelled". Idempotent; thread-safe; does not block.
        """
        seconds = wait_seconds("grace", grace)
        self._items.close(GRACE if seconds is None else seconds)

    async def aclose(self) -> None:
        """Do the same as `close`, and wait until the generator has ended; for the thread that reads it."""
        self.close()
        await self._items.ended()

    def __enter__(self) -> Self:
        """Use the stream as a context manager."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close it, and wait until the generator has ended."""
        self.close()
        self._items.wait_for_end()

    async def __aenter__(self) -> Self:
        """Use the stream as an asynchronous context manager."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close it, and wait until the generator has ended."""
        await self.aclose()

    def __reduce__(self) -> NoReturn:
        """Refuse: a stream belongs to the process that began it."""
        msg = f"the stream of {self.task!r} cannot be copied or pickled: send its items, or a list of them"
        raise TypeError(msg)

    def __repr__(self) -> str:
        """Show its task."""
        return f"<poolkit.Stream of {self.task!r}>"

    def __del__(self) -> None:
        """Close the generator, as nobody will ask for more. Takes no lock: it may be called at any moment."""
        items = getattr(self, "_items", None)
        if items is not None:  # else its making was interrupted
            self._feed.clear()  # it holds the waiter, which holds it
            items.drop()


def stream_of(engine: PoolEngine, task: Task[Any]) -> Stream[Any]:
    """Return the stream of a task that is not submitted yet."""
    window = task.options.window
    task.incoming = Incoming(engine, window[1] // window[0])
    task.add_waker(task.incoming.end)
    return Stream(task, _Items(engine, task))


def stream_here(name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream[Any]:
    """Return a stream whose generator runs here, an item when it is taken; its task is done when the generator is."""
    task: Task[Any] = Task(None, name, None, None)
    return Stream(task, _Local(task, functools.partial(fn, *args, **kwargs)))


class _Items(Portions[T]):
    """Where the items of a stream come from."""

    def __init__(self, engine: PoolEngine, task: Task[Any]) -> None:
        most, most_bytes = task.options.window
        super().__init__(task, task.incoming, most, most_bytes)
        self._engine = engine
        self._is_over = False

    def _credit(self) -> None:
        if not self._task.done():
            self._engine.credit(self._task, self._taken())
        super()._credit()

    def _is_at_end(self) -> bool:
        return self._is_over or super()._is_at_end()

    def _end(self) -> bool:
        if not (self._is_over or self._incoming.closed):
            self._is_over = True
            error = None if self._task.cancelled() else self._task.exception()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # it holds this frame
            self._task.result()  # raises TaskCancelled, where that is how it ended
        return False

    # ===== the end =====

    def close(self, grace: float) -> None:
        """See `Stream.close`."""
        self._incoming.close()
        if not self._task.done():
            self._engine.end(self._task, grace)

    def drop(self) -> None:
        """Nobody has it any more. Without a lock."""
        self._incoming.closed = True
        if self._task.done():
            self._incoming.drop()
        else:
            self._engine.end_soon(self._task, GRACE)

    def wait_for_end(self) -> None:
        """Wait until the task is done. Blocks."""
        if not self._task.done():
            self._task._wait(None)  # noqa: SLF001 -- `exception` would unpickle it, and raise that it was cancelled

    async def ended(self) -> None:
        """Wait until the task is done, without blocking the event loop."""
        if not self._task.done():
            end = Incoming(self._task._owner)  # noqa: SLF001 -- see above
            self._task.add_waker(end.end)
            await end


class _Local(Generic[T]):
    """The same of a generator that runs here."""

    def __init__(self, task: Task[Any], call: Callable[[], Any]) -> None:
        self._task = task
        self._call = call
        self._made: Any = None  # what it has returned
        self._steps: Generator[Any, None, None] | None = None
        self._ready: list[T] = []  # by `wait_async`

    def wait(self) -> bool:
        """Begin it; false when it is over."""
        if self._steps is None and not self._task.done():
            self._steps = self._run()
            return True
        return bool(self._ready)

    def at_hand(self) -> Iterator[T]:
        """The items, each made when it is taken."""
        if self._ready:
            ready, self._ready = self._ready, []
            return iter(ready)
        assert self._steps is not None  # noqa: S101 -- it was begun
        return self._steps

    def _run(self) -> Generator[Any, None, None]:
        try:
            value: Any = yield from iterate(self._call, self._call())
        except GeneratorExit:
            self._task.publish(CANCELLED)
            raise
        except BaseException as exc:
            self._task.publish(Outcome.failure(exc))
            raise
        self._task.publish(Outcome(value, ok=True))

    async def wait_async(self) -> None:
        """Make the next item, if it is made by a coroutine. Raises StopAsyncIteration at the end."""
        if self._made is None and self._steps is None and not self._task.done():
            self._made = self._call()
        if not hasattr(type(self._made), "__aiter__"):
            if self._task.done() and self._steps is None:
                raise StopAsyncIteration
            made = self._made
            self._call = lambda: made
            return
        if self._task.done():
            raise StopAsyncIteration
        try:
            self._ready.append(await anext(self._made))
        except StopAsyncIteration:
            self._task.publish(Outcome(None, ok=True))
            raise
        except BaseException as exc:
            self._task.publish(Outcome.failure(exc))
            raise

    def close(self, _grace: float = 0.0) -> None:
        """Close the generator."""
        if self._steps is not None:
            self._steps.close()
        if not self._task.done():
            self._task.publish(CANCELLED)

    def drop(self) -> None:
        """Close the generator."""
        self.close()

    def wait_for_end(self) -> None:
        """Do nothing: it has ended."""

    async def ended(self) -> None:
        """Have what is asynchronous do what it has to do at its end."""
        close = getattr(self._made, "aclose", None)
        if close is not None:
            await close()
