"""Processes are killed at random moments: a task suffers only when it ran at that moment, and nothing runs twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

import poolkit
import support
import support_functions as work
from chaos import faults
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow


def settle(tasks: list[poolkit.Task[object]]) -> tuple[set[object], list[poolkit.WorkerCrashed]]:
    """The values that came, and the crashes; nothing else may come."""
    values, crashes = set(), []
    for task in tasks:
        error = task.exception()
        if error is None:
            values.add(task.result())
        else:
            assert isinstance(error, poolkit.WorkerCrashed), error
            crashes.append(error)
    return values, crashes


@pytest.mark.long
@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_random_kills_under_small_tasks(method: str, journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """Each kill costs at most the one task that ran there; with POOLKIT_CHAOS_SCALE=5 there are 100,000 tasks."""
    rng = faults.new_rng()
    count = faults.scaled(20_000 if method == "forkserver" else 2_000)
    with faults.new_pool(3, start_method=method) as pool:
        with faults.Killer(pool, rng) as killer:
            tasks = [pool.submit(work.write_line, journal, number) for number in range(count)]
            errors = [task.exception() for task in tasks]
        faults.check_serves(pool, new_gate)
    crashes = [error for error in errors if isinstance(error, poolkit.WorkerCrashed)]
    print(f"{count} tasks, {killer.kills} kills, {len(crashes)} crashes")
    assert len(crashes) == sum(error is not None for error in errors)
    written = faults.check_ran_once(journal)
    for number, (task, error) in enumerate(zip(tasks, errors, strict=True)):
        assert error is not None or (task.result() == number and number in written)  # none is lost
        assert task.attempts == 1
    assert {crash.signal for crash in crashes} <= {"SIGKILL"}
    assert Counter(crash.pid for crash in crashes) <= killer.victims  # a batch in flight is no part of the crash


def test_random_kills_with_retries_lose_nothing(new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    count = faults.scaled(3_000)
    with faults.new_pool(3, retries=100) as pool:
        with faults.Killer(pool, rng):
            tasks = [pool.submit(work.identity, number) for number in range(count)]
            assert [task.result() for task in tasks] == list(range(count))
        faults.check_serves(pool, new_gate)


@pytest.mark.long
def test_random_kills_under_map(new_gate: Callable[[], Gate]) -> None:
    """With retries every chunk comes, in order."""
    rng = faults.new_rng()
    count = faults.scaled(1_000)
    with faults.new_pool(2, retries=100) as pool:
        with faults.Killer(pool, rng):
            assert list(pool.map(work.square, range(count))) == [number * number for number in range(count)]
        faults.check_serves(pool, new_gate)


def test_kills_of_idle_workers_touch_no_task(new_gate: Callable[[], Gate]) -> None:
    """Also when the task is sent to a worker whose death nobody has noticed yet."""
    rng = faults.new_rng()
    with faults.new_pool(2) as pool:
        pool.warm_up()
        for number in range(faults.scaled(40)):
            for pid in rng.sample(pids := faults.worker_pids(pool, "idle"), rng.randint(0, len(pids))):
                faults.kill_worker(pool, pid)
            tasks = [pool.submit(work.identity, number) for _ in range(rng.randint(1, 3))]
            assert [task.result() for task in tasks] == [number] * len(tasks)
        faults.check_serves(pool, new_gate)


def test_kills_of_idle_workers_under_load(new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    count = faults.scaled(1_000)
    with faults.new_pool(4) as pool:
        with faults.Killer(pool, rng, "idle", every=0.005):
            crashes = 0
            for number in range(count):  # one by one, so that three are idle at any time
                error = pool.submit(work.identity, number).exception()
                crashes += error is not None  # it was idle when looked at, and was killed a moment later
        assert crashes < count / 10
        faults.check_serves(pool, new_gate)


def test_kills_of_the_template_process(journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """Running tasks crash with their workers, what was sent or queued runs elsewhere, and a new template serves."""
    arrived, never = new_gate(), new_gate()
    with faults.new_pool(2) as pool:
        for turn in range(faults.scaled(8)):
            held = [pool.submit(work.arrive_and_wait, arrived, never) for _ in range(2)]
            tasks = [pool.submit(work.write_line, journal, turn * 100 + number) for number in range(20)]
            arrived.wait(2)
            os.kill(faults.template_pid(pool), signal.SIGKILL)
            for task in held:
                error = task.exception()
                assert isinstance(error, poolkit.WorkerCrashed)
                assert "template process" in str(error)
            assert [task.result() for task in tasks] == [turn * 100 + number for number in range(20)]
        faults.check_serves(pool, new_gate)
        assert pool.stats().crashed == 2 * faults.scaled(8)
    assert len(faults.check_ran_once(journal)) == 20 * faults.scaled(8)


def test_kills_of_the_template_process_at_any_moment(journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """Also while it starts, and while workers boot: a task crashes only when it had begun."""
    rng = faults.new_rng()
    count = faults.scaled(500)
    with faults.new_pool(2) as pool:
        tasks: list[poolkit.Task[object]] = []
        kills = 0
        while len(tasks) < count:
            tasks += [pool.submit(work.write_line, journal, len(tasks) + number) for number in range(100)]
            support.wait_until(tasks[rng.randrange(len(tasks) - 100, len(tasks))].done)
            os.kill(template := faults.template_pid(pool), signal.SIGKILL)
            kills += 1
        support.wait_for_exit(template)  # until then its workers live, and what they begin dies with them
        values, crashes = settle(tasks)
        faults.check_serves(pool, new_gate)
    assert len(crashes) <= 2 * kills
    assert values <= faults.check_ran_once(journal)


def test_a_worker_that_dies_while_it_sends_its_result(
    monkeypatch: pytest.MonkeyPatch, new_gate: Callable[[], Gate]
) -> None:
    """Half a frame is no outcome; that task crashed, the others go on."""
    arrived, release = new_gate(), new_gate()
    with faults.new_pool(2, shm_threshold=None) as pool:
        for at_call in (1, 2, 40):
            other = pool.submit(work.arrive_and_wait, arrived, release, "other")
            arrived.wait()
            pid = pool.submit(work.pid).result()
            meddling = faults.MeddlingOs("readv", at_call, lambda pid=pid: os.kill(pid, signal.SIGKILL))
            with monkeypatch.context() as patch:
                patch.setattr("poolkit._wire.link.os", meddling)
                error = pool.submit(faults.make_bytes, 50_000_000).exception()
            assert isinstance(error, poolkit.WorkerCrashed)
            assert (error.signal, error.pid) == ("SIGKILL", pid)
            release.signal()
            assert other.result() == "other"
            faults.check_serves(pool, new_gate)


@pytest.mark.long
def test_a_worker_that_dies_while_it_is_sent_an_argument(
    monkeypatch: pytest.MonkeyPatch, new_gate: Callable[[], Gate]
) -> None:
    """It had not begun the task, which runs elsewhere; the owner does not block."""
    arrived, release = new_gate(), new_gate()
    argument = bytes(100_000_000)
    with faults.new_pool(2, shm_threshold=None) as pool:
        for at_call in (1, 2, 40):
            other = pool.submit(work.arrive_and_wait, arrived, release, "other")
            arrived.wait()
            pid = pool.submit(work.pid).result()
            meddling = faults.MeddlingOs("write", at_call, lambda pid=pid: os.kill(pid, signal.SIGKILL))
            with monkeypatch.context() as patch:
                patch.setattr("poolkit._wire.link.os", meddling)
                assert pool.submit(len, argument).result() == len(argument)
            assert not support.is_alive(pid)
            release.signal()
            assert other.result() == "other"
            faults.check_serves(pool, new_gate)
        assert pool.stats().crashed == 0
