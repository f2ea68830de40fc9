"""The task among futures of the standard library, awaited, and dropped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import threading
import weakref

import pytest
from unit.lonely_tasks import Owner, in_thread, new_task, value

from poolkit import TaskCancelled
from poolkit.outcome import CANCELLED, Outcome

# ===== as a future of the standard library =====


@pytest.mark.parametrize("published_first", [True, False])
def test_wait_and_as_completed(published_first: bool) -> None:
    tasks = [new_task() for _ in range(4)]
    outcomes = [value(0), Outcome.failure(ValueError()), CANCELLED]

    def publish() -> None:
        for task, outcome in zip(tasks, outcomes, strict=False):
            task.publish(outcome)

    if published_first:
        publish()
        thread = None
    else:
        thread, _ = in_thread(publish)
    done, pending = concurrent.futures.wait(tasks[:3])
    assert (done, pending) == (set(tasks[:3]), set())
    assert set(concurrent.futures.as_completed(tasks[:3])) == set(tasks[:3])
    if thread is not None:
        thread.join()
    done, pending = concurrent.futures.wait(tasks, timeout=0)
    assert (done, pending) == (set(tasks[:3]), {tasks[3]})
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed(tasks, timeout=0))


@pytest.mark.parametrize("mode", [concurrent.futures.FIRST_COMPLETED, concurrent.futures.FIRST_EXCEPTION])
def test_wait_for_the_first(mode: str) -> None:
    tasks = [new_task() for _ in range(3)]
    thread, found = in_thread(lambda: concurrent.futures.wait(tasks, return_when=mode))
    tasks[1].publish(Outcome.failure(ValueError()))
    thread.join()
    (result,) = found
    assert result.done == {tasks[1]}  # type: ignore[attr-defined]


def test_awaiting() -> None:
    async def main() -> None:
        done = new_task()
        done.publish(value("done"))
        assert await done == "done"
        later = new_task()
        threading.Timer(0, later.publish, [value("later")]).start()
        assert await later == "later"
        failed = new_task()
        failed.publish(Outcome.failure(KeyError("no")))
        with pytest.raises(KeyError):
            await failed
        cancelled = new_task()
        cancelled.publish(CANCELLED)
        with pytest.raises(TaskCancelled):
            await cancelled

    asyncio.run(main())


def test_cancelling_the_awaiter_cancels_the_task() -> None:
    owner = Owner()

    async def main() -> None:
        task = new_task(owner)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.001)
        assert owner.cancels == [task]

    asyncio.run(main())


# ===== what is kept alive =====


class Thing:
    pass


def test_a_task_that_was_read_keeps_no_more_than_its_value() -> None:
    task = new_task()
    payload = Thing()
    kept = weakref.ref(payload)
    made = Thing()
    task.publish(Outcome(payload, ok=True, load=lambda _payload: made))
    del payload
    assert task.result() is made
    gc.collect()
    assert kept() is None


def test_raising_an_error_makes_no_cycle() -> None:
    """The traceback of a raised error must not hold the task that holds the error."""
    gc.collect()
    gc.disable()
    try:
        task = new_task()
        thing = Thing()
        error = weakref.ref(thing)
        failure = ValueError(thing)
        task.publish(Outcome.failure(failure))
        del failure, thing
        with contextlib.suppress(ValueError):
            task.result()
        del task
        assert error() is None
    finally:
        gc.enable()
