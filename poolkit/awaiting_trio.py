"""Awaiting under trio; imported where trio runs, so poolkit does not depend on it.

    waiter   enlists a waker, sleeps in `wait_task_rescheduled`, and takes the result when it is woken
    waker    in whatever thread settles the task: has trio's thread call `resume`
    abort    called by trio in place of `resume`, when a scope is cancelled: cancels the task

`resume` and `abort` are both called in trio's thread, and one flag says whether the waiter sleeps: it is rescheduled
once, whichever comes first, and never after an exception has come between two lines here. A run that has ended is told
nothing any more; the task keeps its outcome. The pool's own thread reads the links.
Owner: the thread of the run: all but the waker, which is for any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from trio import RunFinishedError
from trio.lowlevel import Abort, checkpoint, current_task, current_trio_token, reschedule, wait_task_rescheduled

from poolkit._owner import Target, TaskOwner


def wait_for(
    task: Target[Any], add_waker: Callable[[Callable[[Any], object]], TaskOwner | None]
) -> Generator[Any, None, Any]:
    """Wait for `task` in a task of trio; cancelling the scope cancels it. For `add_waker` see `Task`."""
    return _wait_for(task, add_waker).__await__()


async def _wait_for(task: Target[Any], add_waker: Callable[[Callable[[Any], object]], TaskOwner | None]) -> Any:
    try:
        if task.done():
            await checkpoint()
        else:
            await _sleep_until_done(task, add_waker)
        return task.result()
    finally:
        del task, add_waker  # what is raised holds this frame


async def _sleep_until_done(
    task: Target[Any], add_waker: Callable[[Callable[[Any], object]], TaskOwner | None]
) -> None:
    waiter, token = current_task(), current_trio_token()
    asleep = True

    def wake(_task: object) -> None:
        try:
            token.run_sync_soon(resume)
        except RunFinishedError:  # nobody waits any more
            return

    def resume() -> None:
        nonlocal asleep
        if asleep:
            asleep = False
            reschedule(waiter)

    def abort(_raise_cancel: object) -> Abort:
        nonlocal asleep
        asleep = False
        task.cancel()
        return Abort.SUCCEEDED

    try:
        pool = add_waker(wake)
        if pool is not None:
            pool.end_lease()
        await wait_task_rescheduled(abort)
    finally:
        asleep = False
