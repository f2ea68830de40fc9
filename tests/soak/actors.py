"""Who uses a pool in the soak, all at once: threads that submit, map and wait, an event loop, and those who meddle.

Each actor is a function of the round and its own random choices, runs in a thread of its own, and ends soon after
`stage.over` is set, or with PoolClosed once the round has closed the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait
from concurrent.futures import TimeoutError as WaitTimeout  # a class of its own before CPython 3.11
from typing import TYPE_CHECKING, Any

import poolkit
import support_functions as work
from chaos import faults
from soak import jobs
from soak.ledger import Entry

if TYPE_CHECKING:
    from soak.stage import Stage

Actor = Callable[["Stage", random.Random], None]
WINDOW = 60  # tasks that one actor has under way


# ===== threads that use the pool =====


def submit_and_cancel(stage: Stage, rng: random.Random) -> None:
    """Calls of any sort; now and then one of those under way is cancelled: queued, sent, running or done."""
    window: deque[Entry] = deque()
    while not stage.over.is_set():
        entry = stage.submit(stage.new_entry(rng), _callback(stage, rng))
        if entry.task is not None:
            window.append(entry)
        if window and rng.random() < 0.15:
            rng.choice(window).cancel()
        while len(window) > rng.randint(0, WINDOW):
            stage.ledger.close(window.popleft())


def _callback(stage: Stage, rng: random.Random) -> Callable[[Any], None] | None:
    """What a task's callback does, if it has one: submits, cancels, or raises."""
    kind = rng.choices(["", "submit", "cancel", "look", "raise"], [80, 5, 5, 5, 1])[0]
    own = random.Random(rng.random())
    recent = stage.ledger.entries[-5:]

    def call_back(_task: Any) -> None:
        if kind == "submit":
            stage.submit(stage.new_entry(own, callback=True))
        elif kind == "cancel":
            for entry in recent:
                entry.cancel()
        elif kind == "look":
            stage.pool.stats()
            stage.pool.workers()
        else:
            raise ZeroDivisionError("a callback of the soak")

    return call_back if kind else None


def submit_and_wait(stage: Stage, rng: random.Random) -> None:
    """Groups of tasks, waited for with what the standard library has."""
    while not stage.over.is_set():
        entries = [stage.submit(stage.new_entry(rng)) for _ in range(rng.randint(1, 20))]
        tasks: list[Any] = [entry.task for entry in entries if entry.task is not None]
        if rng.random() < 0.5:
            wait(tasks, timeout=rng.choice([0.0, 0.01, None]), return_when=FIRST_COMPLETED)
        else:
            with contextlib.suppress(WaitTimeout):
                for task in as_completed(tasks, timeout=rng.choice([0.01, None])):
                    assert task.done()
        for entry in entries:
            stage.ledger.close(entry)


def map_items(stage: Stage, rng: random.Random) -> None:
    """Maps of any shape; some are left early, some have an item that raises."""
    while not stage.over.is_set():
        count = rng.randint(1, 300)
        tokens = [stage.ledger.new_token() for _ in range(count)]
        bad = rng.choice(tokens) if rng.random() < 0.2 else -1
        retries = rng.choice([0, 0, 0, 2])
        leave_after = rng.randint(0, count) if rng.random() < 0.2 else count
        stage.ledger.items.update(dict.fromkeys(tokens, 1 + retries))
        shape = {"chunksize": rng.choice([None, 1, 7]), "buffersize": rng.choice([None, 1, 40])}
        view = stage.pool.options(retries=retries, priority=rng.randint(-1, 1))
        results = _map(stage, rng, view, tokens, bad, ordered=(ordered := rng.random() < 0.7), **shape)
        came = _take(stage, results, leave_after, bad)
        results.close()
        wrong = came != [token * 3 for token in tokens[: len(came)]] if ordered else len(set(came)) != len(came)
        if wrong or not {value / 3 for value in came} <= set(tokens):
            stage.ledger.blame(f"a map of {tokens[0]} to {tokens[-1]} ({shape}, {ordered=}) gave {came[:20]}")
        stage.ledger.came.update(value // 3 for value in came)
        stage.ledger.count("items of maps", len(came))


def _map(
    stage: Stage, rng: random.Random, view: poolkit.PoolView, tokens: list[int], bad: int, **shape: Any
) -> poolkit.Results[int]:
    journal = stage.ledger.journal
    if bad < 0 and rng.random() < 0.5:
        return view.starmap(jobs.triple, ((journal, token) for token in tokens), **shape)
    journals, bads = [journal] * len(tokens), [bad] * len(tokens)
    return view.map(jobs.triple_or_raise, journals, tokens, bads, **shape)


def _take(stage: Stage, results: Iterator[int], count: int, bad: int) -> list[int]:
    """The values up to `count`, or to the first error, which must be one that may come."""
    came: list[int] = []
    try:
        while len(came) < count:
            came.append(next(results))
    except StopIteration:
        stage.ledger.blame(f"a map ended after {len(came)} of {count}")
    except (Exception, CancelledError) as exc:
        own = isinstance(exc, LookupError) and exc.args == (bad,)
        if not own and not stage.is_excused(exc):
            stage.ledger.blame(f"a map ended with {exc!r}")
        if isinstance(exc, poolkit.PoolClosed):
            raise
    return came


# ===== an event loop =====


def run_loop(stage: Stage, rng: random.Random) -> None:
    """Coroutines that submit, await, gather, lose patience and iterate over maps."""
    asyncio.run(_use_in_loop(stage, rng))


async def _use_in_loop(stage: Stage, rng: random.Random) -> None:
    while not stage.over.is_set():
        async with _group() as group:
            for _ in range(rng.randint(1, 6)):
                group.append(asyncio.create_task(_await_one(stage, rng)))
            if rng.random() < 0.2:
                group.append(asyncio.create_task(_map_in_loop(stage, rng)))
            if rng.random() < 0.3:
                group.append(asyncio.create_task(_run_in_executor(stage, rng)))


@contextlib.asynccontextmanager
async def _group() -> Any:
    """Await what was put into the list; the first exception goes on, when all are done."""
    group: list[asyncio.Task[None]] = []
    yield group
    for error in await asyncio.gather(*group, return_exceptions=True):
        if error is not None:
            raise error


async def _await_one(stage: Stage, rng: random.Random) -> None:
    entry = stage.new_entry(rng, in_loop=True)
    patience = rng.choice([None, None, 0.001, 0.05])
    await stage.submit_async(entry)
    task = entry.task
    if task is None:
        return
    if patience is not None:  # else somebody may have cancelled it by now, and noted that
        entry.may_be_cancelled = True
    with contextlib.suppress(Exception, asyncio.CancelledError):  # judged by the ledger
        await asyncio.wait_for(task, patience)
    stage.ledger.close(entry)  # done, or cancelled by then


async def _map_in_loop(stage: Stage, rng: random.Random) -> None:
    tokens = [stage.ledger.new_token() for _ in range(rng.randint(1, 50))]
    stage.ledger.items.update(dict.fromkeys(tokens, 1 + stage.retries))
    results = stage.pool.map(jobs.triple, [stage.ledger.journal] * len(tokens), tokens)
    try:
        came = [value async for value in results]
    except (Exception, asyncio.CancelledError) as exc:
        if not stage.is_excused(exc):
            stage.ledger.blame(f"a map in a loop ended with {exc!r}")
        return
    if came != [token * 3 for token in tokens]:
        stage.ledger.blame(f"a map in a loop of {tokens[0]} to {tokens[-1]} gave {came[:20]}")
    stage.ledger.came.update(tokens)
    stage.ledger.count("items of maps", len(tokens))


async def _run_in_executor(stage: Stage, rng: random.Random) -> None:
    number = rng.random()
    try:
        value = await asyncio.get_running_loop().run_in_executor(stage.pool, work.identity, number)
    except (Exception, asyncio.CancelledError) as exc:
        if not stage.is_excused(exc):
            stage.ledger.blame(f"run_in_executor ended with {exc!r}")
        return
    stage.ledger.count("run_in_executor")
    if value != number:
        stage.ledger.blame(f"run_in_executor gave {value!r} for {number!r}")


# ===== those who meddle =====


def look_and_resize(stage: Stage, rng: random.Random) -> None:
    """stats(), workers(), warm_up(), resize(), listeners, some of which raise; seldom cancel_all()."""
    pool = stage.pool

    def listen(_event: Any) -> None:
        if rng.random() < 0.05:
            raise ZeroDivisionError("a listener of the soak")

    for event in ("worker_started", "worker_exited", "task_started", "task_done", "task_retried"):
        pool.on(event, listen)
    while not stage.over.wait(rng.uniform(0.001, 0.05)):
        stats = pool.stats()
        if stats.submitted != stats.queued + stats.running + stats.succeeded + stats.failed + stats.cancelled:
            stage.ledger.blame(f"stats do not add up: {stats}")
        pool.workers()
        if rng.random() < 0.1:
            pool.resize(rng.randint(1, 4))
        if rng.random() < 0.05:
            with contextlib.suppress(TimeoutError, poolkit.WorkerCrashed):  # the latter where templates are killed
                pool.warm_up(timeout=rng.choice([0.01, 5.0]))
        if stage.may_cancel_all and rng.random() < 0.02:
            stage.ledger.all_cancelled = True
            pool.cancel_all()
    for event in ("worker_started", "task_done"):
        pool.off(event, listen)


def kill_workers(stage: Stage, rng: random.Random) -> None:
    """Workers that have done something are killed from outside, at any moment."""
    with faults.Killer(stage.pool, rng, every=rng.choice([0.02, 0.1])) as killer:
        stage.over.wait()
    stage.ledger.count("kills of workers", killer.kills)


def kill_template(stage: Stage, rng: random.Random) -> None:
    """The template process is killed, and all its workers with it. Seldom: each pool needs a moment to come back."""
    while not stage.over.wait(rng.uniform(0.4, 1.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(faults.template_pid(stage.pool), signal.SIGKILL)
            stage.ledger.count("kills of templates")
