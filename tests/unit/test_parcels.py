"""Parcels: one copy in, none out; a block is seen by whoever keeps a view of it, and is free when nobody does.

Longer than most: the two sides are built once, and packing, passing and opening are tested through both.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from unit.memory_pair import Pair, pair

from poolkit import shared
from poolkit._child.freight import Freight as WorkerFreight
from poolkit._wire import codec, holds, passage, regions
from poolkit._wire.parcels import Arrived, Parcel
from poolkit._wire.regions import Region, known_region
from poolkit._workforce.freight import Freight


@pytest.fixture
def ends() -> Iterator[Pair]:
    with pair() as made:
        yield made


def parcel_of(ends: Pair, value: Any) -> Parcel:
    packed = ends.pack(value)
    assert isinstance(packed, Parcel)
    return packed


def test_an_array_arrives_as_a_view_and_is_writable(ends: Pair) -> None:
    array = np.arange(20_000.0)
    got = ends.trip({"a": [array]})["a"][0]
    assert np.array_equal(got, array)
    assert got.flags.writeable
    assert not got.flags.owndata
    got[0] = 7.0
    assert array[0] == 0.0


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_read_only_array_arrives_writable_whatever_its_size(ends: Pair, size: int) -> None:
    array = np.arange(float(size))
    array.flags.writeable = False
    first, second, other = ends.trip((array, array, np.arange(3)))
    assert first is second
    assert first.flags.writeable
    assert other.flags.writeable
    assert np.array_equal(first, array)


def test_a_read_only_array_beside_what_goes_by_value_arrives_writable(ends: Pair) -> None:
    array = np.arange(20_000.0)
    array.flags.writeable = False
    got, fn = ends.trip((array, lambda: 3))
    assert got.flags.writeable
    assert not got.flags.owndata
    assert fn() == 3


KEEPERS: dict[str, Any] = {
    "array": lambda got: got,
    "slice": lambda got: got[100:200],
    "memoryview": memoryview,
    "buffer": lambda got: np.frombuffer(got[5:]),
    "reshaped": lambda got: got.reshape(100, 200).T,
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_block_is_free_when_the_last_view_of_it_is_gone(ends: Pair, keeper: str) -> None:
    got = ends.trip(np.arange(20_000.0))
    kept: Any = KEEPERS[keeper](got)
    before = bytes(memoryview(np.ascontiguousarray(kept)))
    del got
    gc.collect()
    assert ends.arena.lent()[0] == 1
    others = [ends.trip(np.zeros(20_000)) for _ in range(10)]
    assert bytes(memoryview(np.ascontiguousarray(kept))) == before
    del kept, others
    gc.collect()
    assert ends.arena.lent()[0] == 0


def test_a_bare_memoryview_of_a_view_does_not_keep_it_which_is_why_buffers_are_wrapped() -> None:
    import mmap
    import weakref

    memory = mmap.mmap(-1, 8192)
    for wrap, kept in ((pickle.PickleBuffer, True), (lambda view: view, False)):
        view = memoryview(memory)[:4096]
        gone = weakref.ref(view)
        array = np.frombuffer(wrap(view), "u1")
        del view
        assert (gone() is not None) is kept
        del array
    memory.close()


def test_a_parcel_that_is_never_sent_frees_its_blocks(ends: Pair) -> None:
    parcel = parcel_of(ends, [np.zeros(20_000), np.zeros(30_000)])
    assert ends.arena.lent()[0] == 2
    del parcel
    assert ends.arena.lent()[0] == 0


def test_a_parcel_that_is_never_opened_frees_its_blocks(ends: Pair) -> None:
    arrived = ends.send(parcel_of(ends, np.zeros(20_000)))
    assert ends.arena.lent()[0] == 1
    del arrived
    assert ends.arena.lent()[0] == 0


def test_a_parcel_may_be_opened_twice(ends: Pair) -> None:
    arrived = ends.send(parcel_of(ends, np.arange(20_000.0)))
    first, second = arrived.load(codec.load_value), arrived.load(codec.load_value)
    assert np.array_equal(first, second)
    del arrived, first
    assert ends.arena.lent()[0] == 1
    del second
    assert ends.arena.lent()[0] == 0


class RaisesWhenLoaded:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_an_unpickling_that_fails_half_way_frees_the_blocks(ends: Pair) -> None:
    with pytest.raises(ValueError, match="not a number"):
        ends.trip([np.zeros(20_000), RaisesWhenLoaded(), np.zeros(20_000)])
    gc.collect()
    assert ends.arena.lent()[0] == 0


def test_copies_leave_the_blocks_to_their_writer_so_that_each_run_sees_the_same(ends: Pair) -> None:
    parcel = parcel_of(ends, [np.arange(20_000.0), "x" * 100_000])
    for _ in range(3):
        arrived = ends.send(parcel, copies=True)
        array, text = arrived.load(codec.load_value)
        assert array[1] == 1.0
        assert text == "x" * 100_000
        array[:] = -1
    del arrived, array
    assert ends.arena.lent()[0] == 2
    del parcel
    assert ends.arena.lent()[0] == 0


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("wrap", [lambda large: large, lambda large: [1, large], lambda large: ("a", large, 2)])
def test_large_bytes_are_copied_into_a_block_and_their_own_memory(ends: Pair, kind: Any, wrap: Any) -> None:
    large = kind(os.urandom(300_000))
    packed = parcel_of(ends, wrap(large))
    assert len(packed.body) < 1000  # what goes by the link
    got = ends.send(packed).load(codec.load_value)
    assert got == wrap(large)
    assert ends.arena.lent()[0] == 0


@pytest.mark.parametrize("value", ["ü" * 100_000, list(range(100_000)), [b"x" * 1000] * 3 + [bytes(1000)] * 100])
def test_a_pickle_that_is_large_as_a_whole_goes_into_a_block(ends: Pair, value: Any) -> None:
    packed = ends.pack(value)
    if isinstance(packed, Parcel):
        assert len(packed.body) < 1000
    assert ends.trip(value) == value


def test_large_bytes_beside_what_goes_by_value(ends: Pair) -> None:
    large, fn = ends.trip((b"x" * 100_000, lambda: 5))
    assert large == b"x" * 100_000
    assert fn() == 5


def test_what_is_small_stays_what_it_was(ends: Pair) -> None:
    for value in (None, 1, b"x" * 1000, np.arange(100)):
        assert isinstance(ends.pack(value), bytes)


def test_without_memory_all_of_it_goes_by_the_link(ends: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends.arena, "take", lambda _: None)
    value = [np.arange(20_000.0), b"x" * 100_000, np.asfortranarray(np.ones((300, 300)))]
    got = ends.trip(value)
    assert np.array_equal(got[0], value[0])
    assert got[0].flags.writeable
    assert got[1] == value[1]
    assert np.array_equal(got[2], value[2])
    assert ends.trip(b"x" * 100_000) == b"x" * 100_000


def test_no_threshold_means_never() -> None:
    with pair(float("inf")) as ends:
        assert isinstance(ends.pack([np.zeros(100_000), bytes(10**6)]), bytes)


def test_a_bytearray_that_changes_its_size_while_it_is_packed_is_an_error_not_a_crash(ends: Pair) -> None:
    large = bytearray(100_000)
    lease = ends.arena.take(100_000)
    assert lease is not None
    with pytest.raises(ValueError):  # noqa: PT011 -- the memoryview's own words
        lease.write([large[:-1]], [100_000])


def test_the_other_side_keeps_a_segment_until_it_is_told_that_it_is_gone(
    ends: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        ends.trip(np.zeros(20_000))
    assert len(ends.into._maps) == 1
    assert ends.arena.idle_at is not None
    later = ends.arena.idle_at + 10
    monkeypatch.setattr(ends.arena, "_clock", lambda: later)
    ends.arena.trim()
    assert not ends.arena.segments
    ends.trip(np.zeros(50_000))
    assert list(ends.into._maps) == list(ends.arena.segments)


@contextmanager
def no_room_for_descriptors() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not passage._PEEK, reason="the link ends")
def test_a_process_without_room_for_a_descriptor_gets_an_error_until_it_has_room(ends: Pair) -> None:
    for _ in range(2):
        parcel = parcel_of(ends, [np.zeros(20_000), np.zeros(500_000)])
        parcel.hand_over(ends.out, ends.arena)
        with no_room_for_descriptors(), pytest.raises(OSError, match="could not be received"):
            ends.send(parcel)
        del parcel
    assert ends.arena.lent()[0] == 4
    assert ends.trip(np.ones(20_000))[0] == 1  # the same segment
    gc.collect()
    assert ends.arena.lent()[0] == 0  # what could not be seen is free too


@pytest.mark.skipif(not passage._PEEK, reason="the link ends")
def test_regions_that_could_not_be_received_are_not_kept(ends: Pair) -> None:
    """By an owner: a worker keeps those that were sent with other calls, too."""
    parcel = parcel_of(ends, [shared.SharedBuffer(10) for _ in range(3)])
    parcel.hand_over(ends.into, ends.arena)
    with no_room_for_descriptors(), pytest.raises(OSError, match="could not be received"):
        Arrived(parcel.body, ends.out, copies=False)
    parcel = parcel_of(ends, [shared.SharedBuffer(10)])
    parcel.hand_over(ends.into, ends.arena)
    assert len(Arrived(parcel.body, ends.out, copies=False).load(codec.load_value)) == 1
    assert not ends.out._owed
    assert not ends.out._regions


@pytest.mark.parametrize("peeks", [True, False])
def test_more_descriptors_than_the_system_takes_at_once_arrive(
    ends: Pair, monkeypatch: pytest.MonkeyPatch, *, peeks: bool
) -> None:
    if not peeks:
        monkeypatch.setattr(passage, "_PEEK", 0)
    handles = [shared.SharedBuffer(10) for _ in range(450)]
    for number, handle in enumerate(handles):
        handle[0] = number % 256
    got = ends.trip(handles)
    assert [handle[0] for handle in got] == [number % 256 for number in range(450)]


def test_a_worker_that_has_more_to_hand_over_than_there_is_room_for_gets_an_error_and_goes_on(ends: Pair) -> None:
    region = Region.create(10)
    told = 0
    with pytest.raises(BlockingIOError):
        while True:
            ends.into.tell([], [region], ends.arena)
            told += 1
    for _ in range(told):
        ends.out.region(region.number)
    ends.into.tell([], [region], ends.arena)
    assert ends.out.region(region.number) is region
    assert not ends.out._regions


def test_what_no_parcel_looks_like_breaks_the_link_and_nothing_else(ends: Pair) -> None:
    from poolkit._wire.parcels import _BLOCK, _HEAD

    parcel = parcel_of(ends, np.zeros(20_000))
    parcel.hand_over(ends.out, ends.arena)
    number = parcel.leases[0].segment.id
    ends.into.mapping(number)
    for entry in [(number, 0, 0, 10), (number, 10**6, 4096, 10), (number, 0, 4096, 1 << 40)]:
        with pytest.raises(EOFError):
            Arrived(_HEAD.pack(1, 0) + _BLOCK.pack(*entry), ends.into, copies=False)
    with pytest.raises(EOFError):
        Arrived(b"", ends.into, copies=False)
    assert ends.arena.lent()[0] == 1


@pytest.mark.skipif(not passage._PEEK, reason="the link ends")
def test_a_region_that_is_gone_is_let_go_of_whether_or_not_it_was_taken_in(ends: Pair) -> None:
    taken, unread, no_room = (Region.create(10) for _ in range(3))
    for region in (taken, unread, no_room):
        ends.out.tell([], [region], ends.arena)
        assert ends.out.forget(region.number)
        assert not ends.out.forget(region.number)
    assert ends.into.region(taken.number) is taken
    taken.kept = "an object"
    ends.into.let_go(taken.number)
    assert taken.kept is None
    ends.into.let_go(unread.number)
    with no_room_for_descriptors():
        ends.into.let_go(no_room.number)
    ends.out.tell([], [no_room], ends.arena)  # somebody has it again
    assert ends.into.region(no_room.number) is no_room
    assert list(ends.into._regions) == [no_room.number]
    assert not ends.into._owed


def test_a_region_that_came_back_is_not_said_to_be_gone_before_it_is_gone_again() -> None:
    """From a worker that kept a handle: a call may be on its way that needs what the worker has."""
    freight, gone = Freight(65_536, "pool"), []
    freight.gone = gone.append
    region = Region.create(10)
    number, fd = region.number, os.dup(region.fd)
    freight._watch(region)
    del region
    assert gone == [number]
    region = Region(fd, number, 10)
    assert not freight.is_gone(number)
    del region
    assert gone == [number, number]
    assert freight.is_gone(number)
    freight.close()


def test_nobody_finds_a_region_whose_descriptor_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another thread would that takes in a handle on the same one."""
    region = Region.create(10)
    number, found = region.number, []

    def look_and_close(fd: int) -> None:
        found.append(known_region(number))
        os.close(fd)

    monkeypatch.setattr(regions._Closer.__del__, "__defaults__", (look_and_close,))
    del region
    assert found == [None]


def test_descriptors_that_the_socket_has_no_room_for_are_sent_later_in_order(ends: Pair) -> None:
    parcels = [parcel_of(ends, np.zeros(100_000 << number, "u1")) for number in range(8)]
    segments = [parcel.leases[0].segment for parcel in parcels]
    while ends.out.flush():
        for number, segment in enumerate(segments):
            ends.out._told.clear()
            ends.out._post(1, [10**6 + number], [segment.fd])
    for parcel in parcels:
        parcel.hand_over(ends.out, ends.arena)
    assert not ends.out.flush()
    import threading

    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(ends.into.mapping(segment.id) for segment in segments))
    reader.start()
    while not ends.out.flush():
        os.sched_yield() if hasattr(os, "sched_yield") else None
    reader.join()
    assert len(got) == len(parcels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_forked_child_sees_stays_unchanged_until_the_child_is_gone(ends: Pair) -> None:
    got = ends.trip(np.arange(20_000.0))
    unread = ends.send(parcel_of(ends, np.arange(20_000.0)))
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)
        right = np.array_equal(got, np.arange(20_000.0))
        right = right and np.array_equal(unread.load(codec.load_value), np.arange(20_000.0))
        del got, unread
        os._exit(0 if right else 1)
    del got, unread
    gc.collect()
    assert ends.arena.lent()[0] == 2
    for _ in range(5):
        ends.trip(np.zeros(20_000))
    os.close(theirs)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ours)
    assert not holds.release_pins()
    assert ends.arena.lent()[0] == 0


def test_an_interrupt_while_children_are_looked_for_lets_go_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does who comes meanwhile, as a signal handler may, take it that there is nothing."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    monkeypatch.setattr(holds, "_pins", [(ours, [])])

    def interrupt(_fd: int, _count: int) -> bytes:
        assert holds._pins
        assert holds.release_pins()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "read", interrupt)
        holds.release_pins()
    assert holds.release_pins(), "the child is there"
    os.close(theirs)
    assert not holds.release_pins()


def test_without_views_a_fork_costs_no_descriptor(ends: Pair) -> None:
    ends.trip(np.arange(20_000.0))
    gc.collect()
    assert not holds._watches
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert not holds._pins


def test_arrow_buffers_are_views_too(ends: Pair) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": list(range(20_000)), "b": ["x" * 10] * 20_000})
    got = ends.trip(table)
    assert got.equals(table)
    assert ends.arena.lent()[0] > 0
    column = got["a"]
    del got
    gc.collect()
    assert column.to_pylist() == list(range(20_000))
    del column
    gc.collect()
    assert ends.arena.lent()[0] == 0


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, "é" * 100_000, 1 << 1_000_000, ["short", "x" * 100_000]],
    ids=["ascii", "utf8", "int", "list"],
)
def test_what_is_large_and_has_no_buffers_is_pickled_once(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    pickled: list[str] = []
    for name in ("pack_call", "pack_value"):
        real = getattr(codec, name)
        monkeypatch.setattr(
            codec, name, lambda *args, real=real, name=name, **kwargs: pickled.append(name) or real(*args, **kwargs)
        )
    with pair() as ends:
        ours = Freight(65_536, "pool")
        (_, call, _), _ = ours.pack(textwrap.dedent, (value,), {})
        assert isinstance(call, Parcel)
        call.hand_over(ends.out, ours.arena)
        call.lend(1)
        assert Arrived(call.body, ends.into, copies=False).load(codec.load_value) == ((value,), {})
        ours.close()
    one, other = socket.socketpair()
    theirs = WorkerFreight(one.detach())
    theirs.begin(65_536)
    assert isinstance(theirs.pack_value(value), Parcel)
    theirs.passage.close()
    theirs.arena.close()
    other.close()
    assert pickled == ["pack_call", "pack_value"]
