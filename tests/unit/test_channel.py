"""The descriptor channel: memory is handed over once, kept until it is gone, and told of in order."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from unit.memory_pair import Pair, pair

from poolkit import shared
from poolkit._memory import memory as memories
from poolkit._memory.memory import Memory, known_memory


@pytest.fixture
def ends() -> Iterator[Pair]:
    with pair() as made:
        yield made


@contextmanager
def no_room_for_descriptors() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def apart(memory: Memory) -> tuple[int, int]:
    """Let go of memory in this process, as if only the other one had it; its id, and another descriptor of it."""
    return memory.id, os.dup(memory.fd)


def test_the_other_side_keeps_a_segment_until_it_is_told_that_it_is_gone(
    ends: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        ends.trip(np.zeros(20_000))
    (number,) = ends.into.memories
    assert ends.out.told == {number}
    ends.into.memories.clear()  # in one process, both sides have the same one
    assert ends.arena.trim_at is not None
    later = ends.arena.trim_at + 10
    monkeypatch.setattr(ends.arena, "_clock", lambda: later)
    ends.arena.trim()
    assert ends.out.forget()
    assert not ends.out.forget()
    assert not ends.out.told
    ends.into.memories[number] = Memory(os.open(os.devnull, os.O_RDONLY), number, 0)  # as another process would have it
    ends.into.forget_theirs()
    assert not ends.into.memories


def test_whoever_was_told_of_memory_is_told_when_it_is_gone_unless_it_came_back(ends: Pair) -> None:
    memory, wakes = Memory.create(10), []
    ends.out.wake = lambda: wakes.append(1)
    ends.out.tell([memory])
    number, fd = apart(memory)
    del memory
    assert (list(ends.out.gone), wakes) == ([number], [1])
    memory = Memory(fd, number, 10)  # a worker that kept a handle has sent it back
    assert not ends.out.forget()
    assert ends.out.told == {number}
    del memory
    assert ends.out.forget()
    assert wakes == [1, 1]
    ends.into.forget_theirs()
    assert not ends.into.memories


def test_an_owner_takes_what_a_worker_hands_over_for_one_message(ends: Pair) -> None:
    memory = Memory.create(10)
    for _ in range(3):
        ends.into.tell([memory])
        assert ends.out.take(memory.id) is memory
    assert not ends.out.memories
    assert not ends.into.told
    ends.out.tell([memory])
    assert ends.into.take(memory.id) is ends.into.take(memory.id) is memory


@pytest.mark.parametrize("is_worker", [True, False])
def test_a_side_without_room_for_descriptors_is_broken(ends: Pair, *, is_worker: bool) -> None:
    memory = Memory.create(10)
    sender, receiver = (ends.out, ends.into) if is_worker else (ends.into, ends.out)
    sender.tell([memory])
    with no_room_for_descriptors(), pytest.raises(EOFError, match="no room for descriptors"):
        receiver.take(memory.id)
    assert receiver.is_broken
    assert not sender.is_broken


def test_a_worker_that_has_more_to_hand_over_than_there_is_room_for_is_broken(ends: Pair) -> None:
    memory = Memory.create(10)
    with pytest.raises(EOFError, match="no room to hand shared memory over"):
        while True:
            ends.into.tell([memory])
    assert ends.into.is_broken


def test_more_descriptors_than_the_system_takes_at_once_arrive(ends: Pair) -> None:
    handles = [shared.SharedBuffer(10) for _ in range(450)]
    for number, handle in enumerate(handles):
        handle[0] = number % 256
    got = ends.trip(handles)
    assert [handle[0] for handle in got] == [number % 256 for number in range(450)]


def test_as_many_are_forgotten(ends: Pair) -> None:
    made = [Memory.create(10) for _ in range(450)]
    ends.out.tell(made)
    ends.into.memory(made[-1].id)
    ends.into.memories.clear()
    del made
    gc.collect()
    records = 0
    while ends.out.forget():
        records += 1
    assert records == 3
    for _ in range(records):
        ends.into.forget_theirs()
    assert not ends.out.told


def test_nobody_finds_memory_whose_descriptor_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another thread would that takes in a handle on the same one."""
    memory = Memory.create(10)
    number, found = memory.id, []

    def look_and_close(fd: int) -> None:
        found.append(known_memory(number))
        os.close(fd)

    monkeypatch.setattr(memories._Closer.__del__, "__defaults__", (look_and_close,))
    del memory
    assert found == [None]


def test_descriptors_that_the_socket_has_no_room_for_are_sent_later_in_order(ends: Pair) -> None:
    made = [Memory.create(10) for _ in range(8)]
    while ends.out.flush():
        ends.out.told.clear()
        ends.out.tell(made[:1])
    for memory in made:
        ends.out.tell([memory])
    assert not ends.out.flush()
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(ends.into.memory(memory.id) for memory in made))
    reader.start()
    while not ends.out.flush():
        os.sched_yield() if hasattr(os, "sched_yield") else None
    reader.join()
    assert len(got) == len(made)
