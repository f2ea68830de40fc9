"""Holds and forks: what a child may see stays as it is until the child is gone."""

from __future__ import annotations

import gc
import os
import select
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import pytest
from unit.memory_pair import Pair, pair

from poolkit._memory import holds
from poolkit._memory.owner import load_value

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def ends() -> Iterator[Pair]:
    with pair() as made:
        yield made


def test_what_a_forked_child_sees_stays_unchanged_until_the_child_is_gone(ends: Pair) -> None:
    got = ends.trip(np.arange(20_000.0))
    message = ends.pack(np.arange(20_000.0))
    assert not isinstance(message, bytes)
    unread = ends.send(message)
    del message
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)
        right = np.array_equal(got, np.arange(20_000.0))
        right = right and np.array_equal(load_value(unread), np.arange(20_000.0))
        del got, unread
        os._exit(0 if right else 1)
    del got, unread
    gc.collect()
    assert ends.leased() == 2
    for _ in range(5):
        ends.trip(np.zeros(20_000))
    assert holds.unpin()
    os.close(theirs)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ours)
    assert not holds.unpin()
    assert ends.leased() == 0


def test_an_interrupt_while_children_are_looked_for_lets_go_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    monkeypatch.setattr(holds, "pins", [(ours, [])])

    def interrupt() -> NoReturn:
        assert holds.pins
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(holds, "poll", interrupt)
        holds.unpin()
    assert holds.unpin(), "the child is there"
    os.close(theirs)
    assert not holds.unpin()


def test_who_comes_late_to_a_child_that_is_gone_takes_nothing_from_who_has_the_number_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads may look at once."""
    ours, theirs = os.pipe()
    os.close(theirs)
    monkeypatch.setattr(holds, "pins", [(ours, [])])
    real = select.poll

    others: list[int] = []

    def late() -> select.poll:
        if not others:
            others.extend((0, 0))
            assert not holds.unpin()
            others[:] = os.pipe()
            assert others[0] == ours
            os.write(others[1], b"x")
        return real()

    real = holds.poll
    monkeypatch.setattr(holds, "poll", late)
    assert not holds.unpin()
    assert os.read(others[0], 2) == b"x"
    for fd in others:
        os.close(fd)


def test_without_views_a_fork_costs_no_descriptor(ends: Pair) -> None:
    ends.trip(np.arange(20_000.0))
    gc.collect()
    assert not holds._holds
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert not holds.pins
