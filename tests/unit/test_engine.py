"""The engine: what is left for whom, and who may not wait where."""

from __future__ import annotations

import contextlib
import dis
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from poolkit import Pool, PoolClosed, PoolkitError
from poolkit._engine.callbacks import Callbacks
from poolkit._engine.supervisor import Supervisor
from poolkit._engine.waiters import Waiter
from poolkit._kinds.peer import Peer
from poolkit._kinds.process import ProcessWorkforce
from poolkit._kinds.settings import PoolSettings
from poolkit._memory.owner import OwnerTransport
from poolkit._spawn import registry, templates
from poolkit._spawn.key import Start
from support import WATCHDOG, wait_until


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1, kind="thread") as made:
        yield made


def engine_of(pool: Pool) -> Supervisor:
    return pool._supervisor


def test_an_order_that_is_given_while_others_are_carried_out_is_not_left_lying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever clears the wake-up must look at the orders after that."""
    settings = PoolSettings(1, "process", None, None, (), (), None, None)
    workforce = ProcessWorkforce(
        threading.RLock(), settings, boot=bytes, inherited_fds=(), transport=OwnerTransport(None, "")
    )
    carried_out: list[Peer] = []

    def carry_out(peer: Peer, _reports: list[Any]) -> None:
        carried_out.append(peer)

    peer = Peer(1)
    monkeypatch.setattr(workforce.links, "read", lambda: workforce._order(carry_out, peer))
    workforce.act()
    monkeypatch.setattr(workforce.links, "read", list)
    assert carried_out == []
    assert workforce.wait(0.0, links=True)
    workforce.act()
    assert carried_out == [peer]
    assert not workforce.wait(0.0, links=True)
    workforce.close()


def test_outcomes_are_told_to_a_sleeping_leader_before_any_callback_runs(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    first = pool.submit(release.wait)
    second = pool.submit(release.wait)
    order = []
    monkeypatch.setattr(engine_of(pool)._reader, "awaited", first)
    monkeypatch.setattr(engine_of(pool)._reader, "published", lambda: order.append("published"))
    second.add_done_callback(lambda _: order.append("callback"))
    second.cancel()
    monkeypatch.undo()
    release.set()
    first.result()
    assert order == ["published", "callback"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="which instructions let no signal in is known up to 3.13")
def test_callbacks_whose_calls_are_interrupted_anywhere_are_called_all_the_same(pool: Pool) -> None:
    """A signal handler may raise between any two instructions, also before the first and behind the last of them."""

    class Rung(BaseException):
        pass

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code not in {Callbacks.call.__code__, Callbacks._call_each.__code__}:
            return None
        frame.f_trace_opcodes = True
        is_begun = (
            event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]
        )  # no signal comes there
        if event == "call" or (is_begun and frame.f_lineno not in ends):
            left -= 1
            if left == 0:
                raise Rung
        return trace

    release = threading.Event()
    held = pool.submit(release.wait)
    before, at, left = sys.gettrace(), 0, 0
    sys._getframe().f_trace_opcodes = True  # what CPython 3.12 looks at when tracing begins
    called: list[int] = []
    ends = last_lines_of(Callbacks.call)
    while left <= 0:
        at += 1
        left = at
        task = pool.submit(abs, -1)
        task.add_done_callback(lambda _, at=at: called.append(at))
        sys.settrace(trace)
        with contextlib.suppress(Rung):
            task.cancel()
        sys.settrace(before)
        wait_until(lambda at=at: at in called, f"the callback, interrupted at instruction {at}")  # type: ignore[misc]
    assert at > 50
    assert called == [*range(1, at + 1)]
    release.set()
    held.result()


def last_lines_of(function: Callable[..., object]) -> set[int]:
    """The lines of its `finally`, where it calls nothing in which a signal could come before all is put right."""
    source, first = inspect.getsourcelines(function)
    return set(range(first + source.index("        finally:\n"), first + len(source)))


def test_who_was_interrupted_while_reading_must_not_wait(pool: Pool) -> None:
    """A signal handler that waits for the pool would wait for the lock that its own thread holds."""
    engine = engine_of(pool)
    task = pool.submit(abs, -1)
    task.result()
    release = threading.Event()
    held = pool.submit(release.wait)
    engine._reader.taking = threading.get_ident()
    try:
        with pytest.raises(PoolkitError, match="must not wait"):
            held.result()
        with pytest.raises(PoolkitError, match="must not wait"):
            pool.warm_up()
        pool.shutdown()  # comes later
    finally:
        engine._reader.taking = 0
    release.set()
    pool.shutdown()
    assert held.result() is True


def test_a_copy_in_a_forked_child_does_not_read_what_is_its_parents(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(pool)
    led = []
    monkeypatch.setattr(engine._reader, "lead", lambda *args: led.append(args))
    release = threading.Event()
    task = pool.submit(release.wait)
    with monkeypatch.context() as patch:
        patch.setattr(engine._reader, "links", object())  # a pool of threads has none
        engine.lead(task, 0.0)
        assert led
        del led[:]
        patch.setattr(engine, "pid", -1)
        with pytest.raises(PoolClosed, match="forked"):
            engine.lead(task, 0.0)
        assert led == []
    release.set()
    task.result()


def test_nothing_is_read_once_the_links_are_closed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that submits may pass by while another one ends the pool."""
    engine = engine_of(pool)
    monkeypatch.setattr(engine._reader, "links", types.SimpleNamespace(wake=int))  # without `read`
    engine._reader.close()
    assert engine._take()


def test_who_waits_for_something_else_than_a_task_gets_the_standby_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that submits has just lease it, and now waits for room, for the workers or for the end."""
    leases_ended = []
    release = threading.Event()
    with Pool(1, kind="thread", max_queue=1) as pool:
        engine = engine_of(pool)
        monkeypatch.setattr(engine._reader, "end_lease", lambda: leases_ended.append(True))
        pool.warm_up()
        assert leases_ended
        pool.submit(release.wait)
        pool.submit(abs, -1)
        del leases_ended[:]
        called = threading.Event()
        assert not engine.submit(pool._task(abs, (-2,), {}, None)[0], waiter=Waiter(called.set))
        assert leases_ended
        del leases_ended[:]
        release.set()
        called.wait()
    assert leases_ended


def test_the_links_can_be_read_while_a_template_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes as long as what it is to preload; a second one is started when the first has died."""
    starting, go_on = threading.Event(), threading.Event()
    acquire = registry.acquire

    def acquire_late(start: Start, user: object, *, waits: bool = True) -> templates.Template | None:
        if waits:
            starting.set()
            go_on.wait(WATCHDOG)
        return acquire(start, user, waits=waits)

    monkeypatch.setattr(registry, "acquire", acquire_late)
    with Pool(1) as pool:
        task = pool.submit(abs, -1)
        assert starting.wait(WATCHDOG)
        lock = engine_of(pool)._reader.lock
        is_free = lock.acquire(blocking=False)
        go_on.set()
        assert is_free
        lock.release()
        assert task.result() == 1


def test_a_waiter_that_has_its_place_is_not_woken_in_the_place_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where who has woken it has not taken it out yet, and its task, or another, is done."""
    from poolkit._engine import engine

    wake_each = engine.wake_each
    woken, goes_on, releases = threading.Event(), threading.Event(), [threading.Event() for _ in range(3)]

    def wake_and_be_slow(waiters: list[Waiter]) -> int:
        count = wake_each(waiters)
        if waiters and not woken.is_set():
            woken.set()
            assert goes_on.wait(WATCHDOG)
        return count

    with Pool(2, kind="thread", max_queue=1) as pool:
        held = [pool.submit(release.wait, WATCHDOG) for release in releases[:2]]
        wait_until(lambda: pool.stats().running == 2, "both run")
        pool.submit(int)  # the queue is full
        monkeypatch.setattr(engine, "wake_each", wake_and_be_slow)
        submitters = [threading.Thread(target=pool.submit, args=(releases[2].wait, WATCHDOG)) for _ in range(2)]
        for number, thread in enumerate(submitters, 1):
            thread.start()
            wait_until(lambda number=number: len(engine_of(pool)._waiters) == number, "it waits")  # type: ignore[misc]
        releases[0].set()
        assert woken.wait(WATCHDOG)  # by the thread of that worker, which does nothing else meanwhile
        submitters[0].join(WATCHDOG)
        releases[1].set()
        submitters[1].join(WATCHDOG / 6)
        was_woken = not submitters[1].is_alive()
        goes_on.set()
        releases[2].set()
        if not was_woken:
            pool.shutdown(kill=True, wait=False)
        assert was_woken
        assert [task.result() for task in held] == [True, True]
