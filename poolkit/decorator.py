"""`@offload`, and the default pools that its calls run on.

The module is not called `offload`: importing a submodule binds its name in the package, where the function stands.
Guarded by: `_lock`: the default pools. `use_pool` is a context variable, so each thread and coroutine has its own.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import operator
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from typing import Any, Concatenate, Generic, Literal, NoReturn, ParamSpec, Protocol, TypeVar, overload

from poolkit import _child
from poolkit._core.options import UNSET, CallOptions
from poolkit._kinds.settings import KINDS
from poolkit._locks import RLock
from poolkit._wire.modules import MAIN
from poolkit.context import current_task
from poolkit.face import PoolView
from poolkit.in_place import Here, run_in_place
from poolkit.pool import Pool
from poolkit.results import Results
from poolkit.stream import Stream, stream_here
from poolkit.task import Task

P = ParamSpec("P")
R = ParamSpec("R")
T = TypeVar("T")
Q = TypeVar("Q", bound="Offloaded[Any, Any]")

_lock = RLock()
_defaults: dict[str, Pool] = {}  # guarded by: _lock
_installed: list[Pool] = []  # guarded by: _lock
_used: contextvars.ContextVar[Pool | PoolView | None] = contextvars.ContextVar("poolkit_pool", default=None)


def default_pool(kind: Literal["process", "thread"] = "process") -> Pool:
    """The process-wide pool of a kind, made on first use. Thread-safe; lives until the interpreter exits.

    Does not wait for workers, which start with the first call.

    A forked child gets a default pool of its own; but one that a preloaded module has set, and not used, is that of the
    workers too. One that was shut down is replaced.
    """
    with _lock:
        pool = _defaults.get(kind)
        is_open = pool is not None and pool._supervisor.is_open()  # noqa: SLF001 -- of this library
        if pool is None or not (is_open or pool in _installed):
            pool = _defaults[kind] = Pool(kind=kind, name=f"default-{kind}")
        return pool


def set_default_pool(pool: Pool | None, kind: Literal["process", "thread"] | None = None) -> None:
    """Make `pool` the default one of its kind, or of `kind`; None forgets it. The old one is left as it is.

    Thread-safe; does not block.

    Raises:
        TypeError: not a pool; or None without a kind.
    """
    if pool is None:
        if kind is None:
            msg = "set_default_pool(None) needs the kind of the pool to be forgotten"
            raise TypeError(msg)
        with _lock:
            _defaults.pop(kind, None)
        return
    if not isinstance(pool, Pool):
        msg = f"the default pool must be a Pool, was {pool!r}"
        raise TypeError(msg)
    with _lock:
        _defaults[kind or pool.kind] = pool


@contextmanager
def installed(pool: Pool) -> Iterator[Pool]:
    """Make `pool` the default pool of every kind, for all threads and coroutines, while the block runs.

    Shut down meanwhile, it stays that: none of another kind takes its place.
    """
    with _lock:
        _installed.append(pool)
        before = dict(_defaults)
        _defaults.update(dict.fromkeys(KINDS, pool))
    try:
        yield pool
    finally:
        with _lock:
            _installed.remove(pool)
            for kind in KINDS:
                if kind in before:
                    _defaults[kind] = before[kind]
                else:
                    _defaults.pop(kind, None)


def pool_in_use() -> Pool | PoolView | None:
    """Return the pool of `use_pool` here, else the default process pool, if there is one."""
    return _used.get() or _defaults.get("process")


def current_pool(kind: Literal["process", "thread"]) -> Pool | PoolView:
    """Return the pool of `use_pool` here, else the default one of this kind."""
    return _used.get() or default_pool(kind)


class use_pool:  # noqa: N801 -- used like a function, and a class lets every exception pass as it is: frozen ones, too
    """Run the offloaded calls made inside on `pool`, in this context (thread or coroutine) only. Does not block."""

    def __init__(self, pool: Pool | PoolView) -> None:
        if not isinstance(pool, (Pool, PoolView)):
            msg = f"use_pool needs a Pool or a view of one, was given {pool!r}"
            raise TypeError(msg)
        self._pool = pool
        self._tokens: list[contextvars.Token[Pool | PoolView | None]] = []  # owner: the context that enters it

    def __enter__(self) -> Pool | PoolView:
        """Begin."""
        self._tokens.append(_used.set(self._pool))
        return self._pool

    def __exit__(self, *_exc: object) -> None:
        """End."""
        _used.reset(self._tokens.pop())


def _forget_in_child() -> None:
    global _lock  # noqa: PLW0603 -- another thread may have held it when the process forked
    _lock = RLock()
    for kind, pool in list(_defaults.items()):
        if not (_child.makes_worker and pool._supervisor.is_unused()):  # noqa: SLF001 -- of this library
            del _defaults[kind]
    _installed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class Offloaded(Generic[P, T]):
    """A function whose calls run on a pool and return a `Task`. Made by `@offload`; see its attributes.

    Inside a task of a pool a call runs in place and returns a task that is done, so nested calls cannot deadlock.
    """

    __qualname__: str

    def __init__(
        self,
        fn: Callable[P, T],
        kind: Literal["process", "thread"],
        pool: Pool | PoolView | None,
        given: dict[str, Any],
    ) -> None:
        # What has no sense is refused here, not at the first call.
        if kind not in KINDS:
            msg = f"kind must be one of {', '.join(map(repr, KINDS))}, was {kind!r}"
            raise ValueError(msg)
        if pool is not None and not isinstance(pool, (Pool, PoolView)):
            msg = f"pool must be a Pool, a view of one or None, was {pool!r}"
            raise TypeError(msg)
        CallOptions().changed(**given)
        if pool is not None:
            pool.options(**given).check_memory_limit()
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._kind = kind
        self._target = pool
        self._given = given

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Submit a call; blocks and raises as `Pool.submit` does. Thread-safe."""
        if _runs_here():
            return run_in_place(self._given.get("name") or self.__qualname__, self._fn, args, kwargs)
        return self._pool().submit(self._poolkit_sent(), *args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function here and now: blocks as long as it runs. Thread-safe."""
        return self._fn(*args, **kwargs)

    def map(
        self,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | str | Callable[..., Any] = False,
    ) -> Results[T]:
        """Call it for the items of the iterables, as `Pool.map` does; inside a task, one by one, without a bar.

        Thread-safe; the result belongs to one thread, and reading it blocks. Raises as `Pool.map` does.
        """
        if _runs_here():
            return Results(
                Here(self.__qualname__),
                self._fn,
                zip(*iterables),  # noqa: B905 -- the shortest ends it, as with the built-in map
                name=self.__qualname__,
                starred=True,
                chunksize=1,
                buffersize=1,
                workers=1,
                ordered=True,
                timeout=None,
            )
        return self._pool().map(
            self._poolkit_sent(),
            *iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
        )

    def options(  # noqa: PLR0913, PYI019 -- those of `Pool.options`; CPython 3.10 has no Self
        self: Q,
        *,
        timeout: float | None = UNSET,
        queue_timeout: float | None = UNSET,
        deadline: float | None = UNSET,
        memory_limit: float | None = UNSET,
        priority: int = UNSET,
        retries: int = UNSET,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = UNSET,
        block: bool = UNSET,
        name: str | None = UNSET,
        buffersize: int | None = UNSET,
    ) -> Q:
        """The same function with other options, those of `Pool.options`. Thread-safe; does not block.

        Raises:
            TypeError, ValueError: an option has no sense.
        """
        given = {**self._given, **_given(locals())}
        return type(self)(self._fn, self._kind, self._target, given)

    @overload
    def __get__(self: Q, instance: None, owner: type | None = None) -> Q: ...
    @overload
    def __get__(
        self: Offloaded[Concatenate[Any, R], T], instance: object, owner: type | None = None
    ) -> Offloaded[R, T]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance, or to the class for a class method, as functions do."""
        bound = self._fn.__get__(instance, owner) if hasattr(self._fn, "__get__") else self._fn
        if bound is self._fn:
            return self
        return type(self)(bound, self._kind, self._target, self._given)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle by name where the name leads here, else by value."""
        named = _named(self)
        if named is self:
            return self.__qualname__
        if named is not None:
            return _again, (self.__module__, self.__qualname__, self._given)
        method = self._method()
        if method is not None:
            return _get_method, (*method, self._given)
        return type(self), (self._fn, self._kind, None, self._given)

    def __repr__(self) -> str:
        """Show the function."""
        return f"<poolkit.offload {getattr(self._fn, '__qualname__', self._fn)!r}>"

    def _pool(self) -> Pool | PoolView:
        pool = self._target or current_pool(self._kind)
        return pool.options(**self._given) if self._given else pool

    def _poolkit_sent(self) -> Callable[..., T]:
        """What goes to the worker: the plain function, unless another process would find it decorated by its name.

        Also when somebody hands this to a pool: there the pool's own options count.
        """
        named = _named(self)
        if named is not None:
            sent = _Sent(named.local)
        elif (method := self._method()) is not None:
            sent = _Sent(_call_method, *method)
        else:
            return self._fn
        sent.__qualname__ = self.__qualname__
        return sent

    def _method(self) -> tuple[Any, str] | None:
        """The object or class and the attribute of it that this is, when it is a method: its name leads here too."""
        owner = getattr(self._fn, "__self__", None)
        name = getattr(self._fn, "__name__", "")
        return (owner, name) if owner is not None and isinstance(getattr(owner, name, None), Offloaded) else None


class OffloadedStream(Offloaded[P, T]):
    """A generator function whose calls run on a pool and return a `Stream`. Made by `@offload`.

    Inside a task of a pool a call runs in place, an item when it is taken. `.local` is the plain generator.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:  # type: ignore[override]
        """Begin a stream; blocks and raises as `Pool.stream` does. Thread-safe."""
        if _runs_here():
            return stream_here(self._given.get("name") or self.__qualname__, self._fn, args, kwargs)
        sent: Any = self._poolkit_sent()
        return self._pool().stream(sent, *args, **kwargs)

    @overload
    def __get__(self: Q, instance: None, owner: type | None = None) -> Q: ...
    @overload
    def __get__(
        self: OffloadedStream[Concatenate[Any, R], T], instance: object, owner: type | None = None
    ) -> OffloadedStream[R, T]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind as functions do."""
        return super().__get__(instance, owner)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return the plain generator. Thread-safe; does not block."""
        return self._fn(*args, **kwargs)

    def map(self, *_iterables: Any, **_options: Any) -> NoReturn:
        """Refuse: there is one stream for each call, also for threads."""
        msg = f"{self!r} is a generator function: map() takes functions that return one value; begin streams instead"
        raise TypeError(msg)


def _given(named: dict[str, Any]) -> dict[str, Any]:
    """The options among these that were given."""
    return {option: value for option, value in named.items() if option in CallOptions.NAMES and value is not UNSET}


def _runs_here() -> bool:
    """Whether this is a task whose worker others may wait for, so that it must not wait for another one."""
    task = current_task()
    return task is not None and not task.is_dedicated


def _yields(function: Any) -> bool:
    """Whether this is a generator function, or an asynchronous one, also of a class."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code is not None and bool(code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))


class _Sent(functools.partial[Any]):
    """A call under the name of the function that the user knows."""

    __qualname__: str


def plain_function(fn: Any) -> Any:
    """What a user means by a function, or by what was sent for it: of one that is offloaded, the plain one."""
    if isinstance(fn, _Sent):
        fn = getattr(*fn.args) if fn.func is _call_method else fn.func
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, Offloaded):  # its method `local`
        fn = owner
    return fn._fn if isinstance(fn, Offloaded) else fn  # noqa: SLF001 -- of this file


def _get_method(owner: Any, name: str, given: dict[str, Any]) -> Any:
    return getattr(owner, name).options(**given)


def _call_method(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Run in a worker: call a method of an object or class, whose attribute is an `Offloaded`."""
    return getattr(owner, name).local(*args, **kwargs)


def _again(module: str, name: str, given: dict[str, Any]) -> Any:
    """Unpickle: a function that is found by its name, with other options, or made anew each time it is looked up."""
    return operator.attrgetter(name)(importlib.import_module(module)).options(**given)


def _named(offloaded: Offloaded[Any, Any]) -> Offloaded[Any, Any] | None:
    """What another process that imports the module finds by the name: this object, or the one it is a variant of."""
    module = getattr(offloaded, "__module__", None)
    if module is None or module in MAIN:
        return None
    found: Any = sys.modules.get(module)
    for part in getattr(offloaded, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    same = isinstance(found, Offloaded) and found._fn is offloaded._fn  # noqa: SLF001 -- of this class
    return found if same else None


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Generator[T, Any, Any]], /) -> OffloadedStream[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncGenerator[T, Any]], /) -> OffloadedStream[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, Iterator[T]], /) -> OffloadedStream[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[T]], /) -> OffloadedStream[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> Offloaded[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Offloaded[P, T]: ...


@overload
def offload(fn: Callable[P, Generator[T, Any, Any]], /) -> OffloadedStream[P, T]: ...
@overload
def offload(fn: Callable[P, AsyncGenerator[T, Any]], /) -> OffloadedStream[P, T]: ...
@overload
def offload(fn: Callable[P, Iterator[T]], /) -> OffloadedStream[P, T]: ...
@overload
def offload(fn: Callable[P, AsyncIterator[T]], /) -> OffloadedStream[P, T]: ...
@overload
def offload(fn: Callable[P, Coroutine[Any, Any, T]], /) -> Offloaded[P, T]: ...
@overload
def offload(fn: Callable[P, T], /) -> Offloaded[P, T]: ...
@overload
def offload(
    *,
    timeout: float | None = ...,
    queue_timeout: float | None = ...,
    deadline: float | None = ...,
    memory_limit: float | None = ...,
    priority: int = ...,
    retries: int = ...,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = ...,
    block: bool = ...,
    name: str | None = ...,
    buffersize: int | None = ...,
    kind: Literal["process", "thread"] = ...,
    pool: Pool | PoolView | None = ...,
) -> _Decorator: ...
def offload(  # noqa: PLR0913 -- the contract
    fn: Callable[..., Any] | None = None,
    /,
    *,
    timeout: float | None = UNSET,
    queue_timeout: float | None = UNSET,
    deadline: float | None = UNSET,
    memory_limit: float | None = UNSET,
    priority: int = UNSET,
    retries: int = UNSET,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = UNSET,
    block: bool = UNSET,
    name: str | None = UNSET,
    buffersize: int | None = UNSET,
    kind: Literal["process", "thread"] = "process",
    pool: Pool | PoolView | None = None,
) -> Any:
    """Make the calls of a function run on a pool, and return a `Task`; those of a generator function, a `Stream`.

    They run on `pool`, else on the innermost `with use_pool(pool):`, else on the default pool of `kind`. The options
    are those of `Pool.options`. The decorated function keeps `.local(...)`, which runs here, `.map(...)` and
    `.options(...)(...)`. Works on methods too. Thread-safe; a call blocks while a bounded queue is full.

    Raises:
        TypeError, ValueError: an option has no sense.
    """
    given = _given(locals())

    def decorate(function: Callable[..., Any]) -> Any:
        if not callable(function) and not isinstance(function, (classmethod, staticmethod)):
            msg = f"offload decorates functions, was given {function!r}"
            raise TypeError(msg)
        return (OffloadedStream if _yields(function) else Offloaded)(function, kind, pool, given)

    return decorate if fn is None else decorate(fn)
