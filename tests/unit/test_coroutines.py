"""The event loop of a worker that is dropped, as those of fakes are that nobody has shut down."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import pytest

from poolkit._child.coroutines import Coroutines, run_coroutine


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
