"""Other pools behind the same few verbs, as `compare.py` uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pains import functions

PATIENCE = 5.0  # seconds that a situation waits for one outcome


# ===== the pools, behind the same few verbs =====


class Peer:
    """A pool with `submit` that gives futures."""

    def __init__(self, library: str, workers: int = 2, **options: Any) -> None:
        self.library = library
        self.pool = self._open(workers, **options)

    def _open(self, workers: int, tasks: int | None = None) -> Any:
        if self.library == "poolkit":
            import poolkit

            return poolkit.Pool(workers, max_tasks_per_child=tasks)
        if self.library == "loky":
            import loky

            if tasks is not None:
                raise NotImplementedError
            return loky.ProcessPoolExecutor(workers)
        import concurrent.futures
        import multiprocessing

        context = multiprocessing.get_context("spawn") if tasks else None  # it takes no other with this
        return concurrent.futures.ProcessPoolExecutor(
            workers, context, **({"max_tasks_per_child": tasks} if tasks else {})
        )

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(function, *args)

    def limited(self, seconds: float, function: Callable[..., Any], *args: Any) -> Any:
        if self.library != "poolkit":
            raise NotImplementedError
        return self.pool.options(timeout=seconds).submit(function, *args)

    def value(self, handle: Any) -> Any:
        return handle.result(PATIENCE)

    def map(self, function: Callable[..., Any], items: Any) -> Any:
        return iter(self.pool.map(function, items))

    def cancel(self, handle: Any) -> bool:
        return bool(handle.cancel())


class MultiprocessingPeer(Peer):
    def _open(self, workers: int, tasks: int | None = None) -> Any:
        import multiprocessing

        return multiprocessing.Pool(workers, maxtasksperchild=tasks)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(function, args)

    def value(self, handle: Any) -> Any:
        return handle.get(PATIENCE)

    def map(self, function: Callable[..., Any], items: Any) -> Any:
        return self.pool.imap(function, items)

    def cancel(self, handle: Any) -> bool:
        raise NotImplementedError


class PebblePeer(Peer):
    def _open(self, workers: int, tasks: int | None = None) -> Any:
        import pebble

        return pebble.ProcessPool(workers, max_tasks=tasks or 0)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.schedule(function, args=args)

    def limited(self, seconds: float, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.schedule(function, args=args, timeout=seconds)

    def map(self, function: Callable[..., Any], items: Any) -> Any:
        return self.pool.map(function, items).result()


class MpirePeer(Peer):
    def _open(self, workers: int, tasks: int | None = None) -> Any:
        import mpire

        if tasks is not None:
            raise NotImplementedError  # for maps only
        return mpire.WorkerPool(workers)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(function, args=args)

    def limited(self, seconds: float, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(function, args=args, task_timeout=seconds)

    def value(self, handle: Any) -> Any:
        return handle.get(PATIENCE)

    def map(self, function: Callable[..., Any], items: Any) -> Any:
        return self.pool.imap(function, items)

    def cancel(self, handle: Any) -> bool:
        raise NotImplementedError


PEERS: dict[str, type[Peer]] = {"multiprocessing": MultiprocessingPeer, "pebble": PebblePeer, "mpire": MpirePeer}


def outcome(peer: Peer, submit: Callable[[], Any]) -> str:
    """What a call came to, in a word."""
    try:
        peer.value(submit())
    except NotImplementedError:
        raise
    except BaseException as error:
        kind = type(error)
        waited = kind.__name__ in {"TimeoutError", "_TimeoutError"} and not str(error)
        return "no answer" if waited else kind.__name__
    return "ok"


def later(peer: Peer) -> str:
    return outcome(peer, lambda: peer.submit(functions.add_one, 1))
