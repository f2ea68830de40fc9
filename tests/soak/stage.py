"""The stage of one round: a pool, a ledger, and the actors that use the one and write into the other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import poolkit
from chaos import faults
from soak import actors, calls, clusters, exchanges, services
from soak.ledger import Entry, Ledger
from support import WATCHDOG
from support_gates import Gate, Journal

T = TypeVar("T")

REFUSALS = (poolkit.QueueFull, poolkit.PoolClosed)


def new_pool(rng: random.Random, kind: str) -> poolkit.Pool:
    """A pool with any settings."""
    settings: dict[str, Any] = {
        "max_queue": rng.choice([None, None, 1, 40]),
        "max_tasks_per_child": rng.choice([None, None, 30]),
        "retries": rng.choice([0, 0, 0, 1]),
    }
    if rng.random() < 0.2:
        settings |= {"idle_timeout": 0.02, "min_workers": 1}
    if kind == "process":
        settings["start_method"] = rng.choices(["forkserver", "fork", "spawn"], [8, 1, 1])[0]
        settings["shm_threshold"] = rng.choice([64 * 1024, 1_000, None])
        settings["max_memory_per_child"] = rng.choice([None, None, 100_000_000])
        settings["preload"] = ["soak.calls"]  # else importing it takes longer than most workers live
    workers = rng.randint(1, 4)
    try:
        return poolkit.Pool(workers, kind=kind, **settings)
    except RuntimeError:  # fork, and a pool of threads is there
        return poolkit.Pool(workers, kind=kind, **settings | {"start_method": "forkserver"})


class Stage:
    """One round. `over` ends the actors, `closing` says that the pool may be closed under them."""

    def __init__(self, seed: str, pool: poolkit.Pool, folder: Path, always: Sequence[str] = ()) -> None:
        self.pool = pool
        self.over = threading.Event()
        self.closing = False
        self.ledger = Ledger(Journal(folder / "journal"))
        self.folder = folder
        self.rng = random.Random(seed)
        self._seed = seed
        self._gates = 0
        self.retries = pool._options.retries
        self.may_cancel_all = self.rng.random() < 0.2
        table = np.arange(40_000)
        shared = poolkit.SharedArray.copy_of(table)
        total = int(table.sum())
        self._handles = [shared]
        self._shared = [(pool.broadcast(table), total), (shared, total)]
        self._actors = self._cast(always)
        self._local = threading.local()

    def _cast(self, always: Sequence[str]) -> list[actors.Actor]:
        rng = self.rng
        found: list[actors.Actor] = [actors.submit_and_cancel, actors.look_and_resize]
        choices = [actors.submit_and_cancel, actors.submit_and_wait, actors.map_items, actors.run_loop]
        found += [one for one in choices if rng.random() < 0.6]
        for name, others in (*exchanges.ACTORS.items(), *services.ACTORS.items(), *clusters.ACTORS.items()):
            found += [one for one in others if name in always or rng.random() < 0.3]
        forked = self.pool.kind == "process" and self.pool._supervisor.workforce._settings.start_method != "spawn"
        if forked and rng.random() < 0.4:
            found.append(actors.kill_workers)
        if forked and rng.random() < 0.1:
            found.append(actors.kill_template)
        if actors.kill_workers in found or actors.kill_template in found:
            self.ledger.excused |= {"WorkerCrashed"}
        return found

    # ===== what actors call =====

    def new_entry(self, rng: random.Random, *, callback: bool = False, in_loop: bool = False, sort: str = "") -> Entry:
        """A call that is not handed in yet."""
        desk = calls.Desk(rng, self.ledger.journal, self.pool.kind, self._shared)
        token = self.ledger.new_token()
        call = desk.new_call(token, in_loop=in_loop, sort=sort)
        if callback:
            call.options["block"] = False
        runs = 1 + call.options.get("retries", self.retries)
        return Entry(token, call, runs)

    def submit(self, entry: Entry, callback: Callable[[Any], None] | None = None) -> Entry:
        """Hand it in; refused, its task stays None."""
        self.begin(entry, lambda view: view.submit(entry.call.fn, *entry.call.args), callback)
        return entry

    def begin(
        self, entry: Entry, hand_in: Callable[[poolkit.PoolView], T], callback: Callable[[Any], None] | None = None
    ) -> T | None:
        """Hand it in by that; returns its task, or its stream, or None when it is refused."""
        self.ledger.enter(entry)
        try:
            handle = hand_in(self.pool.options(**entry.call.options))
        except REFUSALS as exc:
            self._refused(entry, exc)
            return None
        self._accepted(entry, handle.task if isinstance(handle, poolkit.Stream) else handle, callback)
        return handle

    async def submit_async(self, entry: Entry) -> None:
        """Hand it in without blocking the loop."""
        self.ledger.enter(entry)
        try:
            task = await self.pool.options(**entry.call.options).submit_async(entry.call.fn, *entry.call.args)
        except REFUSALS as exc:
            self._refused(entry, exc)
        else:
            self._accepted(entry, task, None)

    def _accepted(self, entry: Entry, task: poolkit.Task[Any], callback: Callable[[Any], None] | None) -> None:
        entry.task = task
        if callback is not None:
            task.add_done_callback(callback)
        task.add_done_callback(entry.count)  # the last one: what the other has handed in is in the ledger by then

    def _refused(self, entry: Entry, error: Exception) -> None:
        self.ledger.count(f"refused: {type(error).__name__}")
        if isinstance(error, poolkit.PoolClosed):
            if not self.closing:
                self.ledger.blame(f"{entry.call.name}: {error!r}, but nobody has closed it")
            self.over.set()

    def is_excused(self, error: BaseException) -> bool:
        """Whether any call may end so now."""
        name = type(error).__name__
        if isinstance(error, (CancelledError, asyncio.CancelledError)):
            return self.ledger.all_cancelled
        if isinstance(error, poolkit.PoolClosed):
            return self.closing
        return name in self.ledger.excused or isinstance(error, poolkit.QueueFull)

    # ===== the round =====

    def play(self, seconds: float, *, finish: str) -> None:
        """Have all actors act for so long, then end the round in one of the ways; see ENDS."""
        threads = [
            threading.Thread(target=self._act, args=(actor, number), name=f"{actor.__name__}-{number}", daemon=True)
            for number, actor in enumerate(self._actors)
        ]
        for thread in threads:
            thread.start()
        self.over.wait(seconds)
        try:
            ENDS[finish](self, threads)
        except Exception as exc:
            self.ledger.blame("".join(traceback.format_exception(exc)))
        self._join(threads)
        self.ledger.check_tokens()
        self._check_crashes()
        for handle in self._handles:
            handle.close()

    def _act(self, actor: actors.Actor, number: int) -> None:
        try:
            actor(self, random.Random(f"{self._seed}/{number}"))
        except BaseException as exc:
            if not self.is_excused(exc):
                self.ledger.blame(f"{actor.__name__}: {''.join(traceback.format_exception(exc))}")

    def _check_crashes(self) -> None:
        """Nobody suffers but those whose worker was killed."""
        counts = self.ledger.counts
        most = counts["kills of workers"] + 8 * counts["kills of templates"]
        if self.ledger.innocent_crashes > most:
            self.ledger.blame(f"{self.ledger.innocent_crashes} crashes by {most} kills")

    def check_serves(self) -> None:
        """It runs as many tasks at once as it has workers, and its stats add up."""
        with contextlib.ExitStack() as stack:

            def new_gate() -> Gate:
                self._gates += 1
                gate = Gate.create(self.folder / f"gate-{self._gates}")
                stack.callback(gate.close)
                return gate

            faults.check_serves(self.pool, new_gate)

    def _join(self, threads: list[threading.Thread]) -> None:
        self.over.set()
        for thread in threads:
            thread.join(WATCHDOG * 3)
            if thread.is_alive():
                self.ledger.blame(f"still there: {thread.name}")


# ===== how a round ends =====

End = Callable[[Stage, "list[threading.Thread]"], None]


def settle(stage: Stage, threads: list[threading.Thread]) -> None:
    """Everybody stops; all tasks settle; the pool serves at full size, and stays open."""
    stage._join(threads)
    stage.ledger.close_all()
    stage.check_serves()


def settle_and_close(stage: Stage, threads: list[threading.Thread]) -> None:
    settle(stage, threads)
    stage.pool.shutdown()


def drop(stage: Stage, threads: list[threading.Thread]) -> None:
    """Without shutdown: what was accepted is finished, and there is a warning."""
    stage._join(threads)
    del stage.pool
    gc.collect()


def closed_while_used(**how: Any) -> End:
    """shutdown() while all the others go on."""

    def end(stage: Stage, threads: list[threading.Thread]) -> None:
        stage.closing = True
        stage.ledger.all_cancelled |= "timeout" in how or "kill" in how or "cancel_futures" in how
        stage.pool.shutdown(**how)
        stage._join(threads)
        stage.pool.shutdown()

    return end


def closed_by_several(stage: Stage, threads: list[threading.Thread]) -> None:
    """Two threads and a callback at once."""
    stage.closing = True
    others = [threading.Thread(target=stage.pool.shutdown) for _ in range(2)]
    with contextlib.suppress(*REFUSALS):
        stage.pool.options(block=False).submit(int).add_done_callback(lambda _: stage.pool.shutdown())
    for thread in others:
        thread.start()
    stage._join([*others, *threads])
    stage.pool.shutdown()


ENDS: dict[str, End] = {
    "settle": settle,
    "settle and close": settle_and_close,
    "drop": drop,
    "shutdown": closed_while_used(),
    "shutdown, cancel_futures": closed_while_used(cancel_futures=True),
    "shutdown, kill": closed_while_used(kill=True),
    "shutdown, timeout": closed_while_used(timeout=0.05),
    "shutdown, no wait": closed_while_used(wait=False),
    "shutdown by several": closed_by_several,
}


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Without what callbacks and listeners of the soak raise, on purpose."""
    import logging

    logger = logging.getLogger("poolkit")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
