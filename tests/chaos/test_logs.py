"""Workers that are killed while they log: half a frame costs its own record, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

import poolkit
import support_functions as work
import support_logs as logs
from chaos import faults
from support_gates import Gate
from support_logs import Keeper

pytestmark = pytest.mark.slow


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    handler = Keeper()
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_worker_that_is_killed_in_the_midst_of_logging(
    keeper: Keeper, new_gate: Callable[[], Gate], size: int
) -> None:
    with faults.new_pool(2) as pool:
        for _ in range(faults.scaled(5)):
            victim = pool.submit(logs.say_until_killed, 10**6, size)
            others = [pool.submit(logs.say, "other") for _ in range(10)]
            error = victim.exception()
            assert isinstance(error, poolkit.WorkerCrashed)
            assert error.signal == "SIGALRM"
            for task in others:
                task.result()
            told = [record for record in keeper.records if record.poolkit_task == victim.id]  # type: ignore[attr-defined]
            assert [int(record.getMessage()) for record in told] == list(range(len(told)))
            assert keeper.messages.count("other") == 10
            keeper.records.clear()
        faults.check_serves(pool, new_gate)


@pytest.mark.long
def test_workers_that_are_killed_at_random_while_all_log(keeper: Keeper) -> None:
    """Each record is told once, in its task's order, and before the outcome of its task."""
    with faults.new_pool(2) as pool:
        pool.warm_up()
        with faults.Killer(pool, faults.new_rng()) as killer:
            tasks = [pool.submit(logs.say_many, 20) for _ in range(faults.scaled(500))]
            for task in tasks:
                error = task.exception()
                told = [record for record in keeper.records if record.poolkit_task == task.id]  # type: ignore[attr-defined]
                numbers = [int(record.getMessage()) for record in told]
                assert numbers == list(range(len(numbers)))
                assert isinstance(error, poolkit.WorkerCrashed) if error else len(numbers) == 20
        assert killer.kills
        assert pool.submit(work.square, 3).result() == 9
