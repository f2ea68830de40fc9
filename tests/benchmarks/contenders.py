"""The pools that are compared, each behind the same few verbs.

A contender is opened in a process of its own, before that process has any thread, so that `fork` is safe.
Those that are not installed do not take part.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.functions import nap, noop

Call = Callable[..., object]


class Contender:
    """One open pool. What a contender cannot do raises AttributeError, and its trial is printed as failed."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit(self, fn: Call, *args: object) -> Any:
        """Hand in one call; returns a handle."""
        return self.pool.submit(fn, *args)

    def result(self, handle: Any) -> object:
        """Wait for the value of a call."""
        return handle.result()

    def call(self, fn: Call, *args: object) -> object:
        """Hand in one call and wait for its value."""
        return self.result(self.submit(fn, *args))

    def submit_limited(self, seconds: float, fn: Call, *args: object) -> Any:
        """Hand in one call with a time limit."""
        return self.pool.options(timeout=seconds).submit(fn, *args)

    def error(self, handle: Any) -> BaseException | None:
        """Wait for the exception of a call."""
        error: BaseException | None = handle.exception()
        return error

    def burst(self, fn: Call, count: int, *args: object) -> None:
        """Hand in `count` calls, then read all results."""
        for handle in [self.submit(fn, *args) for _ in range(count)]:
            self.result(handle)

    def map(self, fn: Call, items: Iterable[object]) -> list[object]:
        """Call `fn` with every item, with the chunks that the contender chooses itself."""
        return list(self.pool.map(fn, items))

    def warm_up(self, workers: int) -> None:
        """Come back when the workers run and have done something."""
        for handle in [self.submit(nap, 0.05) for _ in range(workers)]:
            self.result(handle)
        self.burst(noop, 100)

    def close(self) -> None:
        """Finish and release everything."""
        self.pool.shutdown()

    def drop(self) -> None:
        """Give up what has not begun, and release everything."""
        self.pool.shutdown(cancel_futures=True)


class PoolkitContender(Contender):
    """poolkit itself."""

    def warm_up(self, workers: int) -> None:
        self.pool.warm_up()
        super().warm_up(workers)


class MultiprocessingContender(Contender):
    """multiprocessing.Pool."""

    def submit(self, fn: Call, *args: object) -> Any:
        return self.pool.apply_async(fn, args)

    def result(self, handle: Any) -> object:
        return handle.get()

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def drop(self) -> None:
        self.pool.terminate()
        self.pool.join()


class PebbleContender(Contender):
    """pebble.ProcessPool."""

    def submit(self, fn: Call, *args: object) -> Any:
        return self.pool.schedule(fn, args=args)

    def submit_limited(self, seconds: float, fn: Call, *args: object) -> Any:
        return self.pool.schedule(fn, args=args, timeout=seconds)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def drop(self) -> None:
        self.pool.stop()
        self.pool.join()


class MpireContender(Contender):
    """mpire.WorkerPool."""

    def submit(self, fn: Call, *args: object) -> Any:
        return self.pool.apply_async(fn, args=args)

    def result(self, handle: Any) -> object:
        return handle.get()

    def close(self) -> None:
        self.pool.stop_and_join()

    def drop(self) -> None:
        self.pool.terminate()


class JoblibContender(Contender):
    """joblib.Parallel: it has no handles, only calls that are made and waited for together."""

    def call(self, fn: Call, *args: object) -> object:
        import joblib

        return self.pool([joblib.delayed(fn)(*args)])[0]

    def burst(self, fn: Call, count: int, *args: object) -> None:
        import joblib

        self.pool(joblib.delayed(fn)(*args) for _ in range(count))

    def map(self, fn: Call, items: Iterable[object]) -> list[object]:
        import joblib

        return list(self.pool(joblib.delayed(fn)(item) for item in items))

    def warm_up(self, workers: int) -> None:
        import joblib

        self.pool(joblib.delayed(nap)(0.05) for _ in range(workers))
        self.burst(noop, 100)

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


@dataclass(frozen=True)
class Entry:
    """How a contender is called, at length and in tables; what must be installed; how so many workers are opened.

    What must be installed are modules, `a and b`, or a `program a`.
    """

    title: str
    short: str
    needs: str
    open: Callable[[int], Contender]


def _poolkit(workers: int, kind: str = "process") -> Contender:
    import poolkit

    return PoolkitContender(poolkit.Pool(workers, kind=kind))


def _executor(start_method: str) -> Callable[[int], Contender]:
    context = multiprocessing.get_context(start_method)
    return lambda workers: Contender(ProcessPoolExecutor(workers, mp_context=context))


def _pebble(workers: int) -> Contender:
    import pebble

    context = multiprocessing.get_context("fork")
    return PebbleContender(pebble.ProcessPool(max_workers=workers, context=context))


def _loky(workers: int) -> Contender:
    import loky

    return Contender(loky.ProcessPoolExecutor(workers))


def _mpire(workers: int) -> Contender:
    import mpire

    return MpireContender(mpire.WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True))


def _joblib(workers: int) -> Contender:
    import joblib

    return JoblibContender(joblib.Parallel(n_jobs=workers))


def _no_pool(_workers: int) -> Contender:
    return Contender(None)  # what it works with is none of pools: see `awaiting.py`, `serving.py`, `servers.py`


ENTRIES = {
    "poolkit": Entry("poolkit", "poolkit", "poolkit", _poolkit),
    "poolkit-asyncio": Entry("poolkit, asyncio", "poolkit, asyncio", "poolkit", _poolkit),
    "poolkit-thread": Entry("poolkit, threads", "poolkit", "poolkit", lambda workers: _poolkit(workers, "thread")),
    "ppe-fork": Entry("ProcessPoolExecutor, fork", "PPE", "concurrent.futures", _executor("fork")),
    "ppe-spawn": Entry("ProcessPoolExecutor, spawn", "PPE spawn", "concurrent.futures", _executor("spawn")),
    "mp-fork": Entry(
        "multiprocessing.Pool, fork",
        "mp",
        "multiprocessing",
        lambda workers: MultiprocessingContender(multiprocessing.get_context("fork").Pool(workers)),
    ),
    "threads": Entry(
        "ThreadPoolExecutor", "TPE", "concurrent.futures", lambda workers: Contender(ThreadPoolExecutor(workers))
    ),
    "pebble": Entry("pebble.ProcessPool", "pebble", "pebble", _pebble),
    "loky": Entry("loky", "loky", "loky", _loky),
    "mpire": Entry("mpire.WorkerPool", "mpire", "mpire", _mpire),
    "mp-queue": Entry("multiprocessing.Queue", "mp queue", "multiprocessing", _no_pool),
    "mp-pipe": Entry("multiprocessing.Pipe", "mp pipe", "multiprocessing", _no_pool),
    "manager-queue": Entry("Manager().Queue", "manager queue", "multiprocessing", _no_pool),
    "tqdm": Entry("tqdm.contrib.concurrent", "tqdm", "tqdm", _executor("fork")),  # which is its pool
    "joblib": Entry("joblib.Parallel", "joblib", "joblib", _joblib),
    "starlette": Entry("Starlette's threads", "Starlette", "starlette", _no_pool),
    "in-loop": Entry("in the loop itself", "loop", "starlette", _no_pool),
    "subprocess": Entry("subprocess", "subprocess", "subprocess", _no_pool),
    "asyncio-subprocess": Entry("asyncio's subprocesses", "asyncio", "asyncio", _no_pool),
    "trio-parallel": Entry("trio-parallel", "trio-parallel", "trio_parallel", _no_pool),
    "poolkit-preload": Entry("poolkit, preload", "poolkit, preload", "uvicorn", _no_pool),
    "poolkit-round-robin": Entry("poolkit, round_robin", "poolkit, round_robin", "uvicorn", _no_pool),
    "poolkit-least-busy": Entry("poolkit, least_busy", "poolkit, least_busy", "uvicorn", _no_pool),
    "uvicorn": Entry("uvicorn, one process", "uvicorn", "uvicorn", _no_pool),
    "uvicorn-workers": Entry("uvicorn --workers", "uvicorn --workers", "uvicorn", _no_pool),
    "uvicorn-nodelay": Entry("uvicorn --workers, no delay", "uvicorn, no delay", "uvicorn", _no_pool),
    "gunicorn": Entry("gunicorn, uvicorn worker", "gunicorn", "gunicorn and uvicorn_worker", _no_pool),
    "gunicorn-preload": Entry("gunicorn --preload", "gunicorn --preload", "gunicorn and uvicorn_worker", _no_pool),
    "gunicorn-asgi": Entry("gunicorn, asgi worker", "gunicorn asgi", "gunicorn.workers.gasgi", _no_pool),
    "granian": Entry("granian", "granian", "granian", _no_pool),
    "hypercorn": Entry("hypercorn", "hypercorn", "hypercorn", _no_pool),
    "node-cluster": Entry("node:cluster", "node", "program node", _no_pool),
}
MACHINE = "machine"


def is_installed(name: str) -> bool:
    """Whether a contender can take part here."""
    return name == MACHINE or all(map(_is_there, ENTRIES[name].needs.split(" and ")))


def _is_there(needed: str) -> bool:
    if needed.startswith("program "):
        return shutil.which(needed.removeprefix("program ")) is not None
    try:
        return importlib.util.find_spec(needed) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False
