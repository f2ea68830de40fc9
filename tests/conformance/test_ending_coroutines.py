"""How tasks end that are coroutines: CancelledError at their await first; killed if that does not end them soon."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import support_coroutines as coroutines
from poolkit import DeadlineExceeded, Pool, TaskCancelled, TaskTimeout
from support import wait_until
from support_gates import Gate, Journal

pytestmark = pytest.mark.needs("kill_running")
NewGate = Callable[[], Gate]
MakePool = Callable[..., Pool]


def ran_here(pool: Pool) -> tuple[int, int]:
    return pool.submit(coroutines.who).result()


@pytest.mark.each_start_method
def test_a_cancel_is_raised_at_the_await_and_the_worker_goes_on(
    pool: Pool, new_gate: NewGate, journal: Journal
) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.submit(coroutines.wait_in_a_coroutine, gate, journal)
    gate.wait()
    assert task.cancel()
    with pytest.raises(TaskCancelled):
        task.result()
    assert ran_here(pool) == worker
    assert journal.lines() == ["cancelled True", "closed"]


@pytest.mark.each_start_method
def test_a_limit_is_raised_at_the_await_and_the_worker_goes_on(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.options(timeout=0.3).submit(coroutines.wait_in_a_coroutine, gate, journal)
    with pytest.raises(TaskTimeout, match=r"0\.3 s and was stopped; it was at") as caught:
        task.result()
    assert journal.lines() == ["cancelled True", "closed"]  # before anybody sees the error
    inner, outer = caught.value.stack.split("wait_in_a_coroutine")[0], caught.value.stack
    assert "wait_for_the_end" in inner
    assert outer.endswith("wait_in_a_coroutine")
    assert ran_here(pool) == worker
    assert pool.stats().timed_out == 1


def test_a_deadline_is_the_same(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.options(deadline=0.3).submit(coroutines.wait_for_the_end, gate, journal)
    with pytest.raises(DeadlineExceeded):
        task.result()
    assert journal.lines() == ["cancelled True", "closed"]
    assert ran_here(pool) == worker


@pytest.mark.needs("process")  # a thread that does not end cannot be ended
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_one_that_does_not_end_is_killed(how: str, pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    worker, gate = ran_here(pool), new_gate()
    timeout = 0.2 if how == "timeout" else None
    task = pool.options(timeout=timeout).submit(coroutines.never_end, gate, journal)
    gate.wait()
    if how == "cancel":
        task.cancel()
    with pytest.raises(TaskCancelled if how == "cancel" else TaskTimeout):
        task.result()
    assert ran_here(pool) != worker
    assert journal.lines() == ["cancelled"]


def test_one_that_awaits_nothing_is_killed(pool: Pool, new_gate: NewGate) -> None:
    worker = ran_here(pool)
    task = pool.options(timeout=0.2).submit(coroutines.block, new_gate())
    with pytest.raises(TaskTimeout) as caught:
        task.result()
    assert "block" in caught.value.stack
    assert ran_here(pool) != worker


def test_one_that_looks_sees_that_it_is_to_end(pool: Pool, new_gate: NewGate) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.submit(coroutines.watch_itself, gate)
    gate.wait()
    task.cancel()
    assert ran_here(pool) == worker
    assert task.cancelled()


def test_a_value_that_comes_after_the_limit_comes_too_late(pool: Pool, new_gate: NewGate) -> None:
    worker = ran_here(pool)
    with pytest.raises(TaskTimeout):
        pool.options(timeout=0.2).submit(coroutines.give_a_value_at_the_end, new_gate()).result()
    assert ran_here(pool) == worker


def test_what_its_finally_raises_is_logged(pool: Pool, new_gate: NewGate, caplog: pytest.LogCaptureFixture) -> None:
    gate = new_gate()
    with caplog.at_level(logging.ERROR, "poolkit"):
        task = pool.options(name="raiser").submit(coroutines.raise_at_the_end, gate)
        gate.wait()
        task.cancel()
        wait_until(lambda: "task raiser raised when it was cancelled" in caplog.text)
    assert "LookupError: from its finally" in caplog.text


def test_the_next_run_is_not_ended_for_the_first(pool: Pool, journal: Journal) -> None:
    worker = ran_here(pool)
    limited = pool.options(timeout=1.0, retries=1, retry_on=TaskTimeout)
    assert limited.submit(coroutines.wait_in_the_first_run, journal).result() == "second"
    assert journal.lines() == ["1", "2"]
    assert ran_here(pool) == worker


def test_what_it_left_running_is_gone_before_the_next_task(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    gate = new_gate()
    task = pool.submit(coroutines.leave_one_behind, gate, journal)
    gate.wait()
    task.cancel()
    ran_here(pool)
    assert journal.lines() == ["gone"]


def test_a_chunk_of_a_map_ends_as_one(pool: Pool) -> None:
    worker = ran_here(pool)
    results = pool.options(timeout=0.2).map(coroutines.wait_for_number, range(6), chunksize=6)
    with pytest.raises(TaskTimeout):
        list(results)
    assert ran_here(pool) == worker


@pytest.mark.needs("process")  # a thread that waits in a loop of its own does not see that it is to stop
def test_a_function_that_runs_a_loop_of_its_own_is_killed(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.submit(coroutines.run_one, gate, journal)
    gate.wait()
    task.cancel()
    assert ran_here(pool) != worker


def test_a_pool_that_ends_waits_for_the_end_of_what_was_cancelled(
    make_pool: MakePool, new_gate: NewGate, journal: Journal
) -> None:
    gate = new_gate()
    with make_pool() as pool:
        task = pool.submit(coroutines.wait_for_the_end, gate, journal)
        gate.wait()
        task.cancel()
    assert journal.lines() == ["cancelled True", "closed"]


@pytest.mark.needs("process")
@pytest.mark.parametrize("ends_it", [True, False])
def test_programs_that_it_leaves_end_with_its_worker(
    ends_it: bool, pool: Pool, new_gate: NewGate, journal: Journal
) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.submit(coroutines.start_a_program, gate, journal, ends_it=ends_it)
    gate.wait()
    task.cancel()
    assert (ran_here(pool) == worker) == ends_it
    (pid,) = map(int, journal.lines())
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.needs("process")
def test_threads_that_it_leaves_end_with_its_worker(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    worker, gate, release = ran_here(pool), new_gate(), new_gate()
    task = pool.submit(coroutines.start_a_thread, gate, release, journal)
    gate.wait()
    task.cancel()
    assert ran_here(pool) != worker
    release.signal()
    release.wait()  # nobody else has taken it
    assert journal.lines() == []


@pytest.mark.needs("process")
def test_threads_of_the_loop_that_are_idle_are_kept(pool: Pool, new_gate: NewGate) -> None:
    worker, gate = ran_here(pool), new_gate()
    task = pool.submit(coroutines.have_used_a_thread, gate)
    gate.wait()
    task.cancel()
    assert ran_here(pool) == worker


@pytest.mark.parametrize("function", [coroutines.catch_all_of_it, coroutines.look_at_its_error])
def test_a_task_that_runs_one_in_place_ends_with_it(
    function: Callable[..., str], pool: Pool, new_gate: NewGate
) -> None:
    worker = ran_here(pool)
    with pytest.raises(TaskTimeout) as caught:
        pool.options(timeout=0.3).submit(function, new_gate()).result()
    assert "wait_for_ever" in caught.value.stack
    assert ran_here(pool) == worker


@pytest.mark.needs("process")
def test_programs_that_were_there_before_do_not_count(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    pool.submit(coroutines.leave_one_that_has_ended).result()
    pool.submit(coroutines.leave_one_that_runs, journal).result()
    worker, gate = ran_here(pool), new_gate()
    task = pool.submit(coroutines.wait_for_ever, gate)
    gate.wait()
    task.cancel()
    assert ran_here(pool) == worker


@pytest.mark.needs("by_reference")
def test_a_thread_does_not_wait_for_threads_that_one_has_left(pool: Pool, new_gate: NewGate, journal: Journal) -> None:
    gate, release = new_gate(), new_gate()
    task = pool.submit(coroutines.start_a_thread, gate, release, journal)
    gate.wait()
    task.cancel()
    ran_here(pool)
    pool.shutdown()  # while that goes on
    release.signal()
    wait_until(lambda: journal.lines() == ["went on"])


@pytest.mark.needs("recall")
def test_one_that_is_cancelled_as_it_begins_costs_no_worker(pool: Pool) -> None:
    worker = ran_here(pool)
    for _ in range(100):
        pool.submit(coroutines.just_wait).cancel()
    assert ran_here(pool) == worker
