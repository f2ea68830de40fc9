"""The channel of sockets, both ends of it in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit import SharedBuffer
from poolkit._child import socket_channel
from poolkit._child.port import Port
from poolkit._child.socket_channel import SocketChannel, socket_pair
from poolkit._memory import arena as arenas
from poolkit._wire.plans import Sent
from poolkit._wire.spin import GIVE_UP, SPIN

LARGE = 1 << 20  # bytes
Pair = tuple[SocketChannel, Port, Port]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The channel that sends, and what both ends are to users."""
    ours, end, _ = socket_pair(64 * 1024, Sent)
    theirs = SocketChannel(end.detach(), 64 * 1024)
    yield ours, Port(ours), Port(theirs)
    for channel in (ours, theirs):
        channel._socket.close()
        channel._arena.close()
        channel._seen.clear()


def message(number: int) -> bytearray:
    return bytearray([number]) * LARGE


def fill(port: Port) -> int:
    """Send as much as there is room for; returns how many."""
    count = 0
    with pytest.raises(TimeoutError):
        while True:
            port.send(message(count), timeout=0)
            count += 1
    return count


def test_who_waits_looks_first_only_while_that_alone_is_enough() -> None:
    """A sleep was in vain however short: where others want the CPU, who looks loses his turn to them."""
    spin = socket_channel._Spin()
    for _ in range(GIVE_UP):
        assert spin.seconds == SPIN
        spin.slept(0.0)
    looks = []
    for _ in range(3 * socket_channel._TRY_EVERY):
        spin.slept(0.0)
        looks.append(spin.seconds == SPIN)
    assert sum(looks) == 3, "now and then, whether it is again"


def test_memory_of_messages_that_were_let_go_of_is_used_again(pair: Pair) -> None:
    ours, port, other = pair
    for number in range(20):
        port.send(message(number))
        assert other.recv() == message(number)
    assert len({id(segment) for segment in ours._arena._all()}) == 1
    assert ours._arena.reserved <= 2 * LARGE


def test_what_a_receiver_keeps_is_not_written_to(pair: Pair) -> None:
    ours, port, other = pair
    numpy = pytest.importorskip("numpy")
    kept: list[Any] = []
    for number in range(20):
        port.send(numpy.full(LARGE, number, "u1"))
        kept.append(other.recv())
        kept[-1][0] = 99
    assert [int(array[1]) for array in kept] == [*range(20)]
    assert ours._arena.alive()[0] == 20
    kept.clear()
    assert ours._arena.alive()[0] == 0


def test_what_was_not_sent_leaves_its_memory(pair: Pair) -> None:
    ours, port, other = pair
    count = fill(port)
    assert ours._arena.alive()[0] == count
    for number in range(count):
        assert other.recv() == message(number)
    assert ours._arena.alive()[0] == 0
    assert fill(port) == count


def test_what_nobody_loads_leaves_its_memory(pair: Pair) -> None:
    """As the answer to a call does of which nobody asks for the result."""
    ours, port, other = pair
    port.send(message(1))
    taken: list[Any] = []
    assert other._channel.try_take(taken)
    assert not other._channel.has_failed(taken)
    assert ours._arena.alive()[0] == 1
    del taken
    assert ours._arena.alive()[0] == 0


def test_memory_that_was_not_needed_for_a_while_is_given_back_by_who_waits(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, port, other = pair
    port.send(message(1))
    other.recv()
    assert ours._arena.reserved >= LARGE
    monkeypatch.setattr(arenas, "IDLE", 0.0)
    ours._arena.trim_at = 0.0
    with pytest.raises(TimeoutError):
        port.recv(0.001)
    assert ours._arena.reserved == 0


def test_without_memory_a_large_message_is_refused_and_the_channel_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, port, other = pair
    with monkeypatch.context() as patch:
        patch.setattr(ours._arena, "take", lambda _nbytes: None)
        with pytest.raises(OSError, match="no shared memory for a message of"):
            port.send(message(1))
    port.send(2)
    assert other.recv() == 2


@pytest.mark.parametrize("size", [59_000, 61_000, 200_000])
def test_many_small_buffers_and_large_tables_go_through_a_block(pair: Pair, size: int) -> None:
    _, port, other = pair
    sent = [bytearray(b"x" * 1000) for _ in range(size // 1000)]
    port.send(sent)
    assert other.recv() == sent
    port.send([bytearray(message(1)) for _ in range(3)] + sent)
    assert other.recv()[3:] == sent


def test_of_shared_memory_a_handle_travels(pair: Pair) -> None:
    ours, port, other = pair
    with SharedBuffer(LARGE) as shared:
        _, packet = ours.pack(shared)
        assert len(packet.data) < 1000
        port.send(shared)
        with other.recv() as theirs:
            theirs[0] = 7
        assert shared[0] == 7
    assert ours._arena.alive()[0] == 0


def test_the_largest_packet_is_one_that_the_socket_takes(pair: Pair) -> None:
    _, port, other = pair
    numpy = pytest.importorskip("numpy")
    port.send((numpy.zeros(64 << 20, "u1"), b"x" * 59_000))
    array, beside = other.recv()
    assert (array.nbytes, beside) == (64 << 20, b"x" * 59_000)


def test_a_forked_child_frees_no_memory_of_what_was_not_sent(pair: Pair) -> None:
    ours, _, _ = pair
    packed = ours.pack(message(1))
    pid = os.fork()
    if not pid:
        del packed
        os._exit(0)
    os.waitpid(pid, 0)
    assert [segment.bytes[0] for segment in ours._arena._all()] == [1]
