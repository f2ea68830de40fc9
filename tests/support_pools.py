"""The pools that `dropin/programs.py` is run with, as one class: which one, the environment says.

Workers import this module too, so it imports what it makes pools from only when it makes one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

POOL = "POOLKIT_TEST_POOL"
POOLS = {
    "fork": "`ProcessPoolExecutor`, `fork`",
    "spawn": "`ProcessPoolExecutor`, `spawn`",
    "loky": "loky",
    "pebble": "pebble",
    "poolkit": "poolkit",
}
PATIENCE = 10.0  # seconds that a program waits for one result


def Executor(max_workers: int = 1, **options: Any) -> Any:  # noqa: N802 -- it stands for a class
    """A pool, made as `ProcessPoolExecutor` is."""
    kind = os.environ[POOL]
    if kind == "poolkit":
        import poolkit

        return poolkit.Pool(max_workers, **options)
    if kind == "loky":
        import loky

        return loky.ProcessPoolExecutor(max_workers, **options)
    if kind == "pebble":
        return _Pebble(max_workers, **options)
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    options.setdefault("mp_context", multiprocessing.get_context(kind))
    return ProcessPoolExecutor(max_workers, **options)


class _Pebble:
    """The verbs of an Executor over those of pebble."""

    def __init__(self, max_workers: int, **options: Any) -> None:
        from pebble import ProcessPool

        self._pool = ProcessPool(max_workers, **options)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._pool.schedule(function, args, kwargs)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
        handles = [self.submit(function, *args) for args in zip(*iterables, strict=False)]
        return (handle.result() for handle in handles)

    def shutdown(self, wait: bool = True) -> None:
        self._pool.close()
        if wait:
            self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def told(found: object, expected: object = True) -> None:
    """Say what a program found; once, at its end."""
    text = " ".join(str(found).split())
    print("right" if found == expected else f"found {text if len(text) < 60 else text[:57] + '...'}", flush=True)


def outcome(future: Any) -> object:
    """The result of a task, or the name of its exception."""
    try:
        return future.result(PATIENCE)
    except Exception as exc:
        return type(exc).__name__
