"""Chunk: several calls of `map` as one task; the part of `map` that runs in a worker. Imports next to nothing."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator

from poolkit._child.coroutines import Ended, run_coroutine
from poolkit._typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    T = TypeVar("T")


class ChunkStopped(Exception):
    """An item of a chunk of several raised; what the items before it gave goes along."""

    def __init__(self, results: list[Any]) -> None:
        super().__init__(results)
        self.results = results


def run_chunk(fn: Callable[..., T], items: list[Any], *, starred: bool) -> list[T]:
    """Run in a worker: call `fn` for each item, or with each item's parts, up to the first that raises."""
    results: list[T] = []
    calls: Iterator[Any] = itertools.starmap(fn, items) if starred else map(fn, items)
    try:
        for first in calls:
            if type(first) is types.CoroutineType:  # then they all are: each is run before the next is made
                calls = map(run_coroutine, itertools.chain((first,), calls))
            else:
                results.append(first)
            break
        # In C, item by item: a loop in Python takes four times as long. What was done before an exception is kept.
        results.extend(calls)
        if len(results) < len(items):  # to `extend`, a StopIteration is the end
            raise RuntimeError(f"the call of map() for {items[len(results)]!r} raised StopIteration")
    except BaseException as exc:
        if len(items) == 1 or type(exc) is Ended:
            raise
        raise ChunkStopped(results) from exc
    return results
