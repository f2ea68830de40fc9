"""Out-of-band messages: one copy in, none out; a block is seen by whoever keeps a view, and is free when nobody does.

Longer than most: the two sides are built once, and packing, passing and opening are tested through both.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from unit.memory_pair import Pair, pair

from poolkit._memory.out_of_band import OutOfBand, Received
from poolkit._memory.owner import OwnerTransport, load_value
from poolkit._memory.worker import WorkerTransport
from poolkit._wire import codec


@pytest.fixture
def ends() -> Iterator[Pair]:
    with pair() as made:
        yield made


def message_of(ends: Pair, value: Any) -> OutOfBand:
    packed = ends.pack(value)
    assert isinstance(packed, OutOfBand)
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
    assert ends.leased() == 1
    others = [ends.trip(np.zeros(20_000)) for _ in range(10)]
    assert bytes(memoryview(np.ascontiguousarray(kept))) == before
    del kept, others
    gc.collect()
    assert ends.leased() == 0


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


def test_a_message_that_is_never_sent_frees_its_blocks(ends: Pair) -> None:
    message = message_of(ends, [np.zeros(20_000), np.zeros(30_000)])
    assert ends.leased() == 2
    del message
    assert ends.leased() == 0


def test_a_message_that_is_never_opened_frees_its_blocks(ends: Pair) -> None:
    received = ends.send(message_of(ends, np.zeros(20_000)))
    assert ends.leased() == 1
    del received
    assert ends.leased() == 0


def test_what_was_sent_and_is_never_received_is_its_writers(ends: Pair) -> None:
    """As a call that was taken back before it was begun."""
    message = message_of(ends, np.zeros(20_000))
    message.hand_over(ends.out)
    message.note_borrower(1)
    ends.arena.take_back(1)
    assert ends.leased() == 1
    del message
    assert ends.leased() == 0


def test_a_result_is_its_readers_before_it_is_received(ends: Pair) -> None:
    message = message_of(ends, np.arange(20_000.0))
    message.hand_over(ends.out)
    message.transfer()
    body = message.body
    del message
    assert ends.leased() == 1
    got = load_value(Received(body, ends.into, copies=False))
    assert got[7] == 7
    del got
    assert ends.leased() == 0


def test_a_message_may_be_opened_twice(ends: Pair) -> None:
    received = ends.send(message_of(ends, np.arange(20_000.0)))
    first, second = load_value(received), load_value(received)
    assert np.array_equal(first, second)
    del received, first
    assert ends.leased() == 1
    del second
    assert ends.leased() == 0


class RaisesWhenLoaded:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_an_unpickling_that_fails_half_way_frees_the_blocks(ends: Pair) -> None:
    with pytest.raises(ValueError, match="not a number"):
        ends.trip([np.zeros(20_000), RaisesWhenLoaded(), np.zeros(20_000)])
    gc.collect()
    assert ends.leased() == 0


def test_copies_leave_the_blocks_to_their_writer_so_that_each_run_sees_the_same(ends: Pair) -> None:
    message = message_of(ends, [np.arange(20_000.0), "x" * 100_000])
    for _ in range(3):
        received = ends.send(message, copies=True)
        array, text = load_value(received)
        assert array[1] == 1.0
        assert text == "x" * 100_000
        array[:] = -1
    del received, array
    assert ends.leased() == 2
    del message
    assert ends.leased() == 0


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("wrap", [lambda large: large, lambda large: [1, large], lambda large: ("a", large, 2)])
def test_large_bytes_are_copied_into_a_block_and_their_own_memory(ends: Pair, kind: Any, wrap: Any) -> None:
    large = kind(os.urandom(300_000))
    packed = message_of(ends, wrap(large))
    assert len(packed.body) < 1000  # what goes by the link
    got = load_value(ends.send(packed))
    assert got == wrap(large)
    del packed
    assert ends.leased() == 0


@pytest.mark.parametrize("value", ["ü" * 100_000, list(range(100_000)), [b"x" * 1000] * 3 + [bytes(1000)] * 100])
def test_a_pickle_that_is_large_as_a_whole_goes_into_a_block(ends: Pair, value: Any) -> None:
    packed = ends.pack(value)
    if isinstance(packed, OutOfBand):
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
    with pytest.raises(ValueError, match="changed its size"):
        lease.write([large[:-1]], 100_000)
    with pytest.raises(ValueError, match="memoryview"):
        lease.write([large + b"1"], 100_000)


def test_what_no_message_looks_like_breaks_the_link_and_nothing_else(ends: Pair) -> None:
    from poolkit._memory.out_of_band import _HEAD, BLOCK

    message = message_of(ends, np.zeros(20_000))
    message.hand_over(ends.out)
    number = message.leases[0].segment.id
    ends.into.memory(number)
    for entry in [(number, 0, 0, 10), (number, 10**6, 4096, 10), (number, 0, 4096, 1 << 40)]:
        with pytest.raises(EOFError):
            Received(_HEAD.pack(1, 0) + BLOCK.pack(*entry), ends.into, copies=False)
    with pytest.raises(EOFError):
        Received(b"", ends.into, copies=False)
    assert ends.leased() == 1


def test_arrow_buffers_are_views_too(ends: Pair) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": list(range(20_000)), "b": ["x" * 10] * 20_000})
    got = ends.trip(table)
    assert got.equals(table)
    assert ends.leased() > 0
    column = got["a"]
    del got
    gc.collect()
    assert column.to_pylist() == list(range(20_000))
    del column
    gc.collect()
    assert ends.leased() == 0


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
        ours = OwnerTransport(65_536, "pool")
        (_, call, _), _ = ours.pack(textwrap.dedent, (value,), {})
        assert isinstance(call, OutOfBand)
        call.hand_over(ends.out)
        call.note_borrower(1)
        assert load_value(Received(call.body, ends.into, copies=False)) == ((value,), {})
        ours.close()
    one, other = socket.socketpair()
    theirs = WorkerTransport(one.detach())
    theirs.begin(65_536)
    assert isinstance(theirs.pack_value(value), OutOfBand)
    theirs.channel.close()
    theirs.arena.close()
    other.close()
    assert pickled == ["pack_call", "pack_value"]
