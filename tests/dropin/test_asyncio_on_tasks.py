"""What asyncio does with futures it does with tasks: in normal and in debug mode, and with CPython's newer code."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, functools, sys, time
import poolkit

KIND, DEBUG = sys.argv[1], sys.argv[2] == "True"

async def waits(pool, gate):
    a, b, slow = pool.submit(abs, -1), pool.submit(abs, -2), pool.submit(gate)
    done, pending = await asyncio.wait([a, b])
    assert {task.result() for task in done} == {1, 2} and not pending
    if sys.version_info >= (3, 11):
        assert done == {a, b}
    done, pending = await asyncio.wait([pool.submit(abs, -3), slow], return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [3] and len(pending) == 1
    done, pending = await asyncio.wait([pool.submit(int, "x"), slow], return_when=asyncio.FIRST_EXCEPTION)
    assert [type(task.exception()) for task in done] == [ValueError] and len(pending) == 1
    done, pending = await asyncio.wait([slow], timeout=0.05)
    assert not done and len(pending) == 1
    waiting = asyncio.ensure_future(asyncio.wait([slow, pool.submit(abs, -4)]))
    await asyncio.sleep(0.05)
    waiting.cancel()
    try:
        await waiting
    except asyncio.CancelledError:
        print("cancelled")
    slow.cancel()
    done, pending = await asyncio.wait([slow])  # it is done, or about to be
    assert [task.cancelled() for task in done] == [True]

async def others(pool, gate):
    assert await asyncio.gather(*[pool.submit(abs, -n) for n in range(5)]) == list(range(5))
    [caught] = await asyncio.gather(pool.submit(int, "x"), return_exceptions=True)
    assert type(caught) is ValueError
    found = [await each for each in asyncio.as_completed([pool.submit(abs, -n) for n in range(5)])]
    assert sorted(found) == list(range(5))
    assert await asyncio.shield(pool.submit(abs, -1)) == 1
    assert await asyncio.wait_for(pool.submit(abs, -1), 30) == 1
    slow = pool.submit(gate)
    awaited = asyncio.ensure_future(slow)
    try:
        await asyncio.wait_for(asyncio.shield(awaited), 0.05)
    except asyncio.TimeoutError:
        assert not slow.done()
    try:
        await asyncio.wait_for(slow, 0.05)
    except asyncio.TimeoutError:
        assert slow.cancelled()
    [error] = await asyncio.gather(awaited, return_exceptions=True)  # it was cancelled, and not who awaits it
    assert type(error) is poolkit.TaskCancelled
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(pool, functools.partial(abs, -1)) == 1
    assert await asyncio.wrap_future(pool.submit(abs, -1)) == 1
    for make in (lambda: loop.run_in_executor(pool, int, "x"), lambda: asyncio.wrap_future(pool.submit(int, "x"))):
        try:
            raise SystemExit(await make())
        except ValueError:
            pass
    wrapped = asyncio.wrap_future(task := pool.submit(gate))
    wrapped.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    wrapped = asyncio.wrap_future(task := pool.submit(gate))
    task.cancel()
    try:
        await wrapped
    except asyncio.CancelledError:
        print("told")

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # debug mode has a word on what takes longer
    with poolkit.Pool(3, kind=KIND) as pool:
        gate = functools.partial(nap, 20)
        await asyncio.wait_for(waits(pool, gate), 20)
        await asyncio.wait_for(others(pool, gate), 20)

def nap(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

asyncio.run(main(), debug=DEBUG)
"""

NEWER = """
import asyncio.futures

def _copy_future_state(source, dest):
    # as in CPython from gh-134174 on
    if dest.cancelled():
        return
    assert not dest.done()
    done, cancelled, result, exception = source._get_snapshot()
    assert done
    if cancelled:
        dest.cancel()
    elif exception is not None:
        dest.set_exception(exception)
    else:
        dest.set_result(result)

asyncio.futures._copy_future_state = _copy_future_state
"""


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_whatever_waits_for_futures_waits_for_tasks(kind: str, *, debug: bool) -> None:
    assert run(PROGRAM, kind, str(debug)) == ["cancelled", "told"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_asyncio_that_copies_a_futures_state_at_once_gets_the_value(kind: str) -> None:
    assert run(NEWER + PROGRAM, kind, "False") == ["cancelled", "told"]


def test_a_snapshot_before_the_end_and_after_it() -> None:
    import threading

    import poolkit

    with poolkit.Pool(1, kind="thread") as pool:
        go_on = threading.Event()
        task = pool.submit(go_on.wait)
        assert task._get_snapshot() == (False, False, None, None)
        go_on.set()
        task.result()
        assert task._get_snapshot() == (True, False, True, None)
        go_on.clear()
        task = pool.submit(go_on.wait)
        task.cancel()
        task.exception() if not task.cancelled() else None
        assert task._get_snapshot() == (True, True, None, None)


def test_a_callback_is_taken_back_as_asyncios_futures_do_it() -> None:
    import threading

    import poolkit

    called: list[str] = []

    class Each:
        def one(self, _task: object) -> None:
            called.append("one")

        def other(self, _task: object) -> None:
            called.append("other")

    each = Each()
    with poolkit.Pool(1, kind="thread") as pool:
        go_on = threading.Event()
        task = pool.submit(go_on.wait)
        for callback in (each.one, each.other, each.one):
            task.add_done_callback(callback)
        assert task.remove_done_callback(each.one) == 2
        assert task.remove_done_callback(each.one) == 0
        go_on.set()
    assert called == ["other"]
    assert task.remove_done_callback(each.other) == 0
