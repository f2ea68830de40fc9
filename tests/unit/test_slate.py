"""The page that a cluster and its worker share: fields of one writer, counts that nothing loses."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import threading
from typing import Any

import pytest

from poolkit import _os
from poolkit._wire.slate import Slate


def test_each_side_sees_what_the_other_has_written() -> None:
    fd = _os.shared_page(mmap.PAGESIZE)
    with mmap.mmap(fd, mmap.PAGESIZE) as ours, mmap.mmap(fd, mmap.PAGESIZE) as theirs:
        os.close(fd)
        owner, worker = Slate(ours), Slate(theirs)
        assert (owner.no_more, owner.is_waited_for, owner.ready) == (False, False, False)
        assert (owner.alive, owner.served, owner.taken, owner.closed) == (0.0, 0, 0, 0)
        owner.no_more = owner.is_waited_for = True
        assert worker.no_more is True
        assert worker.is_waited_for is True
        owner.no_more = False
        assert worker.no_more is False
        worker.ready, worker.alive = True, 12.5
        worker.count(7)
        worker.count()
        worker.took()
        worker.took()
        worker.closed_one()
        assert (owner.ready, owner.alive, owner.served, owner.taken, owner.closed) == (True, 12.5, 8, 2, 1)
        owner.close()
        worker.close()


def test_many_additions_make_their_sum() -> None:
    slate = Slate(bytearray(Slate.SIZE))
    for number in range(1000):
        slate.count(number)
    assert slate.served == sum(range(1000))
    assert max(map(len, slate._counts.values())) <= 65


def test_threads_lose_no_count() -> None:
    slate = Slate(bytearray(Slate.SIZE))

    def run() -> None:
        for _ in range(500):
            slate.took()
            slate.closed_one()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (slate.taken, slate.closed) == (2000, 2000)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_signal_handlers_that_interrupt_a_count_lose_none() -> None:
    slate, handled = Slate(bytearray(Slate.SIZE)), []

    def handle(*_: object) -> None:
        handled.append(None)
        slate.closed_one()
        assert slate.closed == counted + len(handled) or is_counting

    before = signal.signal(signal.SIGPROF, handle)
    counted, is_counting = 0, False
    signal.setitimer(signal.ITIMER_PROF, 0.0005, 0.0005)
    try:
        while len(handled) < 20:
            is_counting = True
            slate.closed_one()
            counted += 1
            is_counting = False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert slate.closed == counted + len(handled)


def test_a_finalizer_that_interrupts_a_count_is_seen_at_once() -> None:
    """At the worst moment: between the sum and its being written."""
    slate = Slate(bytearray(Slate.SIZE))

    class Words(list[int]):
        def __setitem__(self, field: Any, value: Any) -> None:
            if not interrupted:
                interrupted.append(None)
                slate.closed_one()
            super().__setitem__(field, value)

    interrupted: list[None] = []
    slate._words = Words(slate._words)  # type: ignore[assignment]
    slate.closed_one()
    assert interrupted
    assert slate.closed == 2


def test_one_that_interrupts_the_putting_together_of_many_is_not_lost() -> None:
    slate = Slate(bytearray(Slate.SIZE))

    class Late(int):
        def __radd__(self, other: int) -> int:
            if slate._is_folding and not interrupted:
                interrupted.append(None)
                for _ in range(100):
                    slate.closed_one()
            return int(self) + other

    interrupted: list[None] = []
    for _ in range(65):
        slate.closed_one([Late(1)])
    assert interrupted
    assert slate.closed == 165


def test_what_is_taken_out_of_its_list_is_counted_once() -> None:
    slate, once = Slate(bytearray(Slate.SIZE)), [1]
    slate.closed_one(once)
    slate.closed_one(once)
    assert (slate.closed, once) == (1, [])


def test_a_forked_child_counts_nothing() -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    slate = Slate(page)
    pid = os.fork()
    if pid == 0:
        try:
            slate.took()
            slate.closed_one()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (slate.taken, slate.closed) == (0, 0)
    slate.close()
    page.close()


def test_after_closing_nothing_is_written_and_nothing_raised() -> None:
    memory = bytearray(Slate.SIZE)
    slate = Slate(memory)
    slate.took()
    slate.close()
    slate.close()
    before = bytes(memory)
    slate.took()
    slate.no_more = True
    assert (slate.taken, slate.no_more) == (2, True)
    assert bytes(memory) == before
    memory.append(0)  # nobody exports it any more
    gc.collect()
