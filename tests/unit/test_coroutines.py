"""The event loop of a worker: dropped, as those of fakes are that nobody has shut down; and told to end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import pytest

from poolkit._child.coroutines import Coroutines, Ended, Running, run_coroutine
from poolkit._child.loop import run_call
from poolkit.context import TaskContext


async def leave_a_timer() -> None:
    """It is cancelled, and stays with its context in the loop until its time has come."""
    await asyncio.wait_for(asyncio.sleep(0.001), 3600)


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_loop_is_closed_without_a_word_wherever_the_collector_begins(
    monkeypatch: pytest.MonkeyPatch, in_a_cycle: bool
) -> None:
    """Here the loop is older than what owns it, so it and its sockets would come first."""
    loops = [asyncio.new_event_loop()]
    loop = weakref.ref(loops[0])
    monkeypatch.setattr(asyncio, "new_event_loop", loops.pop)
    coroutines = Coroutines()
    context = contextvars.Context()
    context.run(coroutines.keep)
    context.run(run_coroutine, leave_a_timer())
    assert not loops, "it was used"
    owner = weakref.ref(coroutines)
    closed: list[bool] = []
    original = type(loop()).close  # type: ignore[attr-defined]
    monkeypatch.setattr(type(loop()), "close", lambda self: (original(self), closed.append(self.is_closed())))
    if in_a_cycle:
        coroutines.me = coroutines  # type: ignore[attr-defined]
    del coroutines, context
    gc.collect()
    assert owner() is None
    assert closed == [True]


class Host:
    """A worker that tells what it runs to end."""

    def __init__(self) -> None:
        self.closed: Ended | None = None
        self.running: Running | None = None

    def begin_coroutine(self, running: Running) -> Running:
        self.running = running
        return running

    def end_coroutine(self, running: Running) -> None:
        assert self.running is running


def test_one_that_is_told_to_end_again_tidies_up_in_peace() -> None:
    host, seen = Host(), []

    async def wait() -> None:
        try:
            host.running.end()
            await asyncio.sleep(3600)
        finally:
            host.running.end()
            await asyncio.sleep(0.01)
            seen.append("tidied up")

    context = contextvars.copy_context()
    coroutines = Coroutines(host)
    context.run(coroutines.keep)
    ok, ended = context.run(run_call, TaskContext(1, "wait", 1, None), wait, (), {})
    coroutines.close()
    assert not ok
    assert seen == ["tidied up"]
    assert host.closed is ended
    assert "in wait" in ended.stack
