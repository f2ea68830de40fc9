"""Chunk: several calls of `map` as one task; the part of `map` that runs in a worker.

Imports next to nothing: workers are forked from a template process that has this and not what the owner needs.
"""

from __future__ import annotations

import itertools

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


class ChunkStopped(Exception):
    """An item of a chunk of several raised; what the items before it gave goes along."""

    def __init__(self, results: list[Any]) -> None:
        super().__init__(results)
        self.results = results


def run_chunk(fn: Callable[..., T], items: list[Any], *, starred: bool) -> list[T]:
    """Run in a worker: call `fn` for each item, or with each item's parts, up to the first that raises."""
    results: list[T] = []
    try:
        # In C, item by item: a loop in Python takes four times as long. What was done before an exception is kept.
        results.extend(itertools.starmap(fn, items) if starred else map(fn, items))
        if len(results) < len(items):  # to `extend`, a StopIteration is the end
            raise RuntimeError(f"the call of map() for {items[len(results)]!r} raised StopIteration")
    except BaseException as exc:
        if len(items) == 1:
            raise
        raise ChunkStopped(results) from exc
    return results
