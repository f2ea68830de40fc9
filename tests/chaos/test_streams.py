"""Streams whose workers die at any moment: what comes is the beginning of what was made, whole, and then the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support
import support_streams as made
from chaos import faults
from chaos import traps as trapping
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow


def taken_until_it_dies(stream: poolkit.Stream[Any]) -> list[int]:
    """The numbers that come; an array has to be full of one."""
    got: list[int] = []
    with pytest.raises(poolkit.WorkerCrashed):
        for item in stream:
            got += [item] if isinstance(item, int) else {*item.tolist()}
    assert [*stream] == []
    return got


@pytest.mark.parametrize("nbytes", [1, 1 << 20])
@pytest.mark.parametrize("fn", [trapping.stream_to, trapping.stream_to_async])
@pytest.mark.parametrize("step", ["before", "pack", "item", "yield", "credit", "finally", "send"])
@pytest.mark.every_nth(7)
def test_a_kill_at_every_step_loses_nothing_that_was_yielded(
    step: str, fn: Any, nbytes: int, traps: Path, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """Half of the last item is none; of one that is whole, nothing is missing. Others do not notice."""
    ledger = faults.Ledger()
    ran = Journal(f"{journal.path}-ran")
    env = {"POOLKIT_TEST_TRAPS": os.fspath(traps)}
    with faults.new_pool(2, preload=["chaos.faults", "chaos.traps"], env=env) as pool:
        ledger.submit(pool, 20, ran)
        victim = pool.options(name="victim", buffersize=trapping.LAST + 1)
        stream = victim.stream(fn, traps, step, journal, nbytes)
        ledger.submit(pool, 20, ran)
        if step == "credit":  # else there may be room
            support.wait_until(stream.task.done, "it is killed")
        got: list[Any] = []
        with pytest.raises(poolkit.WorkerCrashed) as caught:
            got.extend(iter(stream))
        assert [*stream] == []
        assert (caught.value.signal, stream.task.state) == ("SIGKILL", "failed")
        whole = trapping.LAST + (step not in {"before", "pack", "item"})
        assert [(number, len(array)) for number, array, _ in got] == [(number, nbytes) for number in range(whole)]
        gone_on = whole - (step in {"yield", "credit"})
        assert journal.lines() == [str(number) for number in range(gone_on)]
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
    assert trapping.unsprung(traps) == []
    assert len(faults.check_ran_once(ran)) == 40


@pytest.mark.parametrize("fn", [made.keep, made.keep_arrays])
@pytest.mark.parametrize("buffersize", [1, 3, None])
def test_a_kill_at_a_random_moment_loses_nothing_that_was_yielded(
    tmp_path: Path, buffersize: int | None, fn: Any, new_gate: Callable[[], Gate]
) -> None:
    """The generator writes an item down when it goes on behind it: so all of those have come.

    POOLKIT_CHAOS_SCALE=25 makes it 500 times for each.
    """
    rng = faults.new_rng()
    with faults.new_pool(1, preload=["chaos.faults", "numpy"]) as pool:
        for round_number in range(faults.scaled(20)):
            journal = Journal(tmp_path / f"journal{round_number}")
            stream = pool.options(buffersize=buffersize).stream(fn, journal)
            next(stream)
            pid = pool.workers()[0].pid
            assert pid is not None
            killer = threading.Timer(rng.random() * 0.004, os.kill, (pid, signal.SIGKILL))
            killer.start()
            got = [0, *taken_until_it_dies(stream)]
            killer.join()
            assert got == [*range(len(got))]
            gone_on = [int(line) for line in journal.lines()]
            assert gone_on == got[: len(gone_on)]
            assert len(got) - len(gone_on) <= 1
        faults.check_serves(pool, new_gate)


def test_a_kill_in_its_finally_is_an_end(tmp_path: Path, new_gate: Callable[[], Gate]) -> None:
    with faults.new_pool(1) as pool:
        for round_number in range(faults.scaled(10)):
            journal = Journal(tmp_path / f"journal{round_number}")
            with pool.stream(made.die_when_closed, journal) as stream:
                assert next(stream) == 0
            assert (journal.lines(), stream.task.state) == (["closing"], "cancelled")
        faults.check_serves(pool, new_gate)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_waits_for_an_item_that_are_cancelled_at_any_moment_lose_none(kind: str) -> None:
    """About when it comes. POOLKIT_CHAOS_SCALE=5 makes it a thousand of them."""
    rng, tries = faults.new_rng(), faults.scaled(200)

    async def read() -> list[int]:
        got: list[int] = []
        stream = pool.stream(made.tick, 0.001)
        for _ in range(tries):
            with contextlib.suppress(asyncio.TimeoutError):
                got.append(await asyncio.wait_for(anext(stream), rng.random() * 0.002))
        got.append(await anext(stream))
        await stream.aclose()
        return got

    with faults.new_pool(1, kind=kind) as pool:
        got = asyncio.run(read())
    assert got == [*range(len(got))]
    assert 1 < len(got) < tries, "some came, and some waits were cancelled"


def test_the_last_item_against_a_death() -> None:
    """All of it and the value, or the beginning and an error."""
    with faults.new_pool(2) as pool:
        for _ in range(faults.scaled(30)):
            stream = pool.stream(made.count_and_die_soon, 50)
            got: list[int] = []
            try:
                got.extend(iter(stream))
            except poolkit.WorkerCrashed:
                assert stream.task.state == "failed"
            else:
                assert (len(got), stream.task.result()) == (50, "counted")
            assert got == [*range(len(got))]
        # Not that it serves: a worker may be killed by what an earlier stream has left there.


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_streams_are_closed_dropped_cancelled_and_read_at_random(kind: str, new_gate: Callable[[], Gate]) -> None:
    """On one pool, by several threads: each ends, and the pool serves at full size."""
    seed = faults.new_rng().randrange(1 << 30)
    failures: list[BaseException] = []

    def act(pool: poolkit.Pool, number: int) -> None:
        rng = random.Random(seed + number)
        try:
            for _ in range(faults.scaled(40)):
                stream = pool.options(buffersize=rng.choice([None, 1, 2, 7])).stream(made.count, rng.randrange(40))
                got = [item for item, _ in zip(stream, range(rng.randrange(45)), strict=False)]
                assert got == [*range(len(got))]
                how = rng.randrange(5)
                if how == 0:
                    stream.close(rng.choice([0, 0.001, 1]))
                elif how == 1:
                    stream.task.cancel()
                elif how == 2:
                    rest = [*stream]
                    assert rest == [*range(rest[0], rest[0] + len(rest))] if rest else True
                    assert stream.task.result() == "counted"
                elif how == 3:
                    with stream:
                        pass
                del stream
        except BaseException as exc:
            failures.append(exc)

    with faults.new_pool(2, kind=kind) as pool:
        threads = [threading.Thread(target=act, args=(pool, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        faults.check_serves(pool, new_gate)
        stats = pool.stats()
        assert (stats.queued, stats.running) == (0, 0)
