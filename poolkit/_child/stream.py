"""Stream: the part of `Pool.stream` that runs in a worker: sends each item of an iterable as it is made.

An item leaves inside its `yield`: the generator goes on when the whole item is with the owner, or in its pipe, and
there is room for another. Once the owner wants no more, it is closed at its `yield`, and its `finally` runs.
Imports next to nothing.
"""

from __future__ import annotations

from types import CoroutineType

from poolkit._child.coroutines import Ended, run_coroutine, tell
from poolkit._typing import TYPE_CHECKING, Any
from poolkit.context import current_task

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


def run_stream(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], window: tuple[int, float]) -> Any:
    """Call `fn` and send the items of what it returns; returns what its generator returns.

    Raises:
        TypeError: it returns nothing that can be iterated over.
        SerializationError: an item cannot be pickled.
        Ended: nobody wants more of them.
    """
    context = current_task()
    assert context is not None  # noqa: S101 -- only tasks call this
    assert context.end is not None  # noqa: S101 -- see above
    out = context.end.begin_stream(context.id, *window)
    try:
        made = _made(fn(*args, **kwargs))
        if hasattr(type(made), "__aiter__"):
            return run_coroutine(_send_async(made, out))
        return _send(_iterator(fn, made), out)
    except Exception as exc:
        if not out.is_to_end:
            raise
        _tell(exc)  # the owner has its outcome
        raise Ended from exc
    finally:
        out.finish()


def iterate(fn: Callable[..., Any], made: Any, run: Callable[[Any], Any] | None = None) -> Any:
    """Return an iterator over what `fn` has returned, also over what is asynchronous: `run` runs its coroutines."""
    run = run or run_coroutine
    made = run(made) if type(made) is CoroutineType else made
    return _in_steps(made, run) if hasattr(type(made), "__aiter__") else _iterator(fn, made)


def _in_steps(made: Any, run: Callable[[Any], Any]) -> Generator[Any, None, None]:
    items = aiter(made)

    async def step() -> Any:
        return await anext(items)

    try:
        while True:
            try:
                item = run(step())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(_aclose(items))


def _made(made: Any) -> Any:
    return run_coroutine(made) if type(made) is CoroutineType else made


def _iterator(fn: Callable[..., Any], made: Any) -> Iterator[Any]:
    try:
        return iter(made)
    except TypeError:
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        msg = (
            f"{name}() was called by stream() and returned {made!r:.200}, which is not iterable: it takes generator "
            "functions; submit() is for one value"
        )
        raise TypeError(msg) from None


def _send(items: Any, out: Any) -> Any:
    put, number = out.put, 0
    while True:
        try:
            item = next(items)
        except StopIteration as end:
            if out.is_to_end:
                raise Ended from None
            return end.value
        number += 1
        try:
            if put(item):
                continue
        except BaseException as exc:
            close_generator(items)
            _number(exc, number)
            raise
        close_generator(items)
        raise Ended


async def _send_async(made: Any, out: Any) -> None:
    items, number = aiter(made), 0
    while True:
        try:
            item = await anext(items)
        except StopAsyncIteration:
            if out.is_to_end:
                raise Ended from None
            return
        number += 1
        try:
            if await out.put_async(item):
                continue
        except BaseException as exc:
            await _aclose(items)
            _number(exc, number)
            raise
        await _aclose(items)
        raise Ended


def _number(exc: BaseException, number: int) -> None:
    from poolkit.errors import SerializationError  # noqa: PLC0415 -- only where something is wrong

    if type(exc) is SerializationError:
        exc.args = (f"item {number} of the stream: {exc}",)


def close_generator(items: Any) -> None:
    """Close a generator at its `yield`; what that raises is told to the log."""
    try:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    except BaseException as exc:  # noqa: BLE001 -- the owner has its outcome; this is told to the log
        _tell(exc)


async def _aclose(items: Any) -> None:
    try:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
    except BaseException as exc:  # noqa: BLE001 -- see above
        _tell(exc)


def _tell(exc: BaseException) -> None:
    tell(exc, "the generator of stream %s raised when it was closed")
