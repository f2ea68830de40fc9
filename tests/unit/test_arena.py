"""The arena: a block has one user at a time, comes back by a byte, and free memory is bounded and given back.

Longer than most: taking, freeing and giving back have one clock and one memory between them.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

import support
from poolkit import _os
from poolkit._memory import arena as arenas
from poolkit._memory.arena import HEADER, IDLE, MOST_FOR, Arena, Lease, class_of
from poolkit._memory.out_of_band import OutOfBand

MIB = 1 << 20


class Clock:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def arena(clock: Clock) -> Arena:
    made = Arena(clock)
    yield made
    made.close()


def take(arena: Arena, nbytes: int) -> Lease:
    lease = arena.take(nbytes)
    assert lease is not None
    return lease


def see(lease: Lease, worker_id: int = 1) -> None:
    """As a worker that was sent it."""
    lease.segment.borrowers[lease.index] = worker_id
    lease.segment.bytes[lease.index] = 1


def place(lease: Lease) -> tuple[int, int]:
    return lease.segment.id, lease.index


@pytest.mark.parametrize("nbytes", [1, 4096, 4097, 65_536, 65_537, 10**6, 2**26, 2**26 + 1, 10**9])
def test_a_block_is_at_most_an_eighth_larger_than_asked_for_apart_from_whole_pages(nbytes: int) -> None:
    block = class_of(nbytes)
    assert nbytes <= block <= max(nbytes * 9 / 8, nbytes + HEADER)
    assert block % 4096 == 0
    assert class_of(block) == block


def test_a_block_belongs_to_one_lease_until_it_is_freed(arena: Arena) -> None:
    leases = [take(arena, 100_000) for _ in range(1500)]  # more than one segment has
    assert len({place(lease) for lease in leases}) == 1500
    assert arena.alive()[0] == 1500
    freed = place(leases.pop(700))
    assert place(take(arena, 100_000)) == freed


def test_the_lowest_free_block_is_taken_so_that_pages_stay_warm(arena: Arena) -> None:
    leases = [take(arena, 70_000) for _ in range(6)]
    assert [lease.index for lease in leases] == [0, 1, 2, 3, 4, 5]
    for number in (5, 3, 1, 2):
        if number == 2:
            see(leases[number])
        leases[number] = take(arena, 80_000)
    assert [take(arena, 70_000).index for _ in range(2)] == [1, 1]
    again = [take(arena, 70_000) for _ in range(3)]
    assert [lease.index for lease in again] == [1, 3, 5]
    assert arena.reserved == 6 * class_of(70_000) + 4 * class_of(80_000)


def test_a_block_is_free_when_neither_its_lease_nor_a_reader_is_left(arena: Arena) -> None:
    for is_first in (True, False):
        lease = take(arena, 70_000)
        see(lease)
        at, states = place(lease), lease.segment.bytes
        if is_first:
            states[at[1]] = 0
        else:
            del lease
        assert arena.alive()[0] == 1
        assert place(take(arena, 70_000)) != at
        lease, states[at[1]] = None, 0
        assert arena.alive()[0] == 0
        assert place(take(arena, 70_000)) == at


@pytest.mark.parametrize("aside", [False, True])
def test_what_is_written_stands_in_the_block_in_one_piece(arena: Arena, aside: bool) -> None:
    """With the interpreter's lock or without."""
    pieces = [os.urandom(3), memoryview(bytearray(os.urandom(3 * MIB))), b"", os.urandom(100_000)]
    nbytes = sum(map(len, pieces))
    lease = take(arena, nbytes)
    call = arenas.write_aside if aside else lambda fn, *args: fn(*args)
    offset = call(lease.write, pieces, nbytes)
    for too_many in (nbytes - 1, nbytes + 1):
        with pytest.raises(ValueError, match=r"size|structures"):
            call(take(arena, nbytes).write, pieces, too_many)
    assert not arenas._writing_aside
    assert lease.segment.bytes[offset : offset + nbytes] == b"".join(pieces)


def test_what_was_transferred_is_freed_by_its_reader_alone(arena: Arena) -> None:
    lease = take(arena, 70_000)
    OutOfBand([lease], (), b"", [], 0).transfer()
    segment = lease.segment
    del lease
    assert segment.alive() == 1
    segment.bytes[0] = 0
    assert segment.alive() == 0


def test_the_death_of_a_worker_frees_what_it_saw_and_nothing_else(arena: Arena) -> None:
    leases = [take(arena, 70_000) for _ in range(6)]
    for number, lease in enumerate(leases[:4]):
        see(lease, 1 + number % 2)
    del lease
    leases[0].segment.borrowers[leases[0].index] = 2  # after it was taken back from worker 1
    arena.take_back(1)
    assert [lease.segment.bytes[lease.index] for lease in leases] == [1, 1, 0, 1, 0, 0]
    assert arena.alive()[0] == 6
    leases.clear()
    assert arena.alive()[0] == 3
    arena.take_back(2)
    assert arena.alive()[0] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_without_memory_there_is_no_block_and_none_is_lost(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: int, offset: int, nbytes: int) -> None:
        if offset:
            raise OSError(number, "none left")

    monkeypatch.setattr(_os, "reserve", refuse)
    assert arena.take(70_000) is None
    assert arena.is_short
    monkeypatch.undo()
    assert take(arena, 70_000).index == 0
    assert arena.reserved == class_of(70_000)


def test_a_size_that_no_system_has_is_no_block(arena: Arena) -> None:
    assert arena.take(1 << 62) is None


def test_an_entry_from_within_is_refused_instead_of_tearing_the_arena(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, inner = arena._clock, []
    with monkeypatch.context() as patch:
        patch.setattr(arena, "_clock", lambda: inner.append(arena.take(70_000)) or real())
        outer = take(arena, 70_000)
    assert inner == [None]
    assert arena.take(70_000) is not None
    del outer


def test_an_entry_from_within_giving_back_is_refused(
    arena: Arena, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be given a block whose memory is just being given back."""
    take(arena, 70_000)
    clock.now += IDLE
    real = _os.give_back
    inner: list[Lease | None] = []

    def enter(*args: Any) -> bool:
        inner.append(arena.take(70_000))
        return real(*args)

    monkeypatch.setattr(_os, "give_back", enter)
    arena.trim()
    assert inner == [None]
    assert arena.reserved == 0


def test_only_taking_waits_for_another_thread(arena: Arena, clock: Clock) -> None:
    lease = take(arena, 70_000)
    see(lease)
    del lease
    clock.now += IDLE
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with arena._lock:
            locked.set()
            done.wait(60)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    locked.wait()
    reserved = arena.reserved
    arena.trim()
    assert arena.alive() == (1, class_of(70_000))
    arena.take_back(1)
    assert arena.alive()[0] == 0
    assert arena.reserved == reserved
    assert arena.trim_at is not None
    assert arena.trim_at <= clock.now + 1.0
    done.set()
    thread.join()
    clock.now = arena.trim_at
    arena.trim()
    assert arena.reserved == 0


def test_closing_waits_for_nobody(arena: Arena) -> None:
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with arena._lock:
            locked.set()
            done.wait(60)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    locked.wait()
    arena.close()
    done.set()
    thread.join()


@pytest.mark.parametrize("where", ["shared_memory", "_give_back", "_most_alive", "_clock", "reserve"])
def test_an_interrupt_in_the_midst_of_taking_loses_no_block(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Wherever taking calls something; with a block in use, so that the next one has to be reserved."""
    held = None if where == "shared_memory" else take(arena, 70_000)

    def interrupt(*_args: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arena if where.startswith("_") else _os, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            arena.take(70_000)
    del held
    assert arena.alive()[0] == 0
    assert take(arena, 70_000)


def test_memory_is_reserved_piece_by_piece_as_each_signal_makes_a_call_begin_anew(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    real = os.posix_fallocate

    def note(fd: int, offset: int, nbytes: int) -> None:
        pieces.append(nbytes)
        real(fd, offset, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", note)
    lease = take(arena, 9 * MIB)
    assert max(pieces) <= 2 * MIB
    assert sum(pieces) >= 9 * MIB
    assert os.fstat(lease.segment.fd).st_blocks * 512 >= 9 * MIB


def test_idle_memory_is_given_back_and_then_nothing_is_due(arena: Arena, clock: Clock) -> None:
    leases = [take(arena, 3 * MIB) for _ in range(4)]
    segments = {lease.segment.id: lease.segment for lease in leases}.values()
    assert sum(os.fstat(segment.fd).st_blocks * 512 for segment in segments) >= 12 * MIB
    assert all(os.fstat(segment.fd).st_mode & 0o777 == 0o600 for segment in segments)
    del leases, segments
    clock.now += MOST_FOR
    arena.trim()
    assert arena.reserved == 4 * class_of(3 * MIB)
    while arena.trim_at is not None:
        assert arena.trim_at >= clock.now + 0.99
        clock.now = arena.trim_at
        arena.trim()
    assert clock.now <= 100.0 + IDLE + 1.0
    assert arena.reserved == 0
    assert not any(arena.segments.values())


def test_memory_stays_under_twice_the_most_that_was_lent_in_the_last_ten_seconds(arena: Arena, clock: Clock) -> None:
    """Whatever sizes come, in whatever order; also when few are lent after many were."""
    rng = random.Random(4)
    held: list[Lease] = []
    alive: list[tuple[float, int]] = []  # when, and how many bytes
    for step in range(3000):
        most_held = 8 if step % 1000 < 500 else 1
        del held[: max(0, len(held) - rng.randrange(most_held))]
        held.append(take(arena, rng.choice([MIB // 8, MIB, 2 * MIB, 3 * MIB, 5 * MIB, rng.randrange(70_000, 4 * MIB)])))
        alive.append((clock.now, sum(lease.segment.block for lease in held)))
        clock.now += rng.choice([0.0, 0.01, 0.1])
        if arena.trim_at is not None and clock.now >= arena.trim_at:
            arena.trim()
        most = max(nbytes for when, nbytes in alive[-1200:] if when > clock.now - 10.0)
        assert arena.reserved <= 1.2 * most
    held.clear()
    clock.now += 10.0
    arena.trim()
    assert arena.reserved == 0


@pytest.mark.parametrize("before", [0.0, 0.5, 1.3, 3.9, 4.6, 7.7])
def test_memory_of_many_is_given_back_in_ten_seconds_while_one_of_them_is_used_on_and_on(
    arena: Arena, clock: Clock, before: float
) -> None:
    """Their segment is never idle, and what is taken has memory already. Whenever many were alive."""
    nbytes = MIB // 16
    held = [take(arena, nbytes)]

    def use_one_until(end: float) -> None:
        while clock.now < end:
            held.clear()
            held.append(take(arena, nbytes))
            clock.now += 0.1
            if arena.trim_at is not None and clock.now >= arena.trim_at:
                arena.trim()

    use_one_until(clock.now + before)
    held += [take(arena, nbytes) for _ in range(11)]
    assert len(arena.segments) == 1
    use_one_until(clock.now + 10.0)
    if hasattr(os, "memfd_create") and not _os.PORTABLE:
        assert arena.reserved == class_of(nbytes)


def test_sizes_that_come_again_find_their_memory(arena: Arena, clock: Clock) -> None:
    sizes = [MIB, 2 * MIB, 3 * MIB]
    reserved = 0
    for turn in range(100):
        held = [take(arena, nbytes) for nbytes in sizes]
        del held
        clock.now += 0.2
        arena.trim()
        reserved = reserved or arena.reserved
        assert arena.reserved == reserved, f"turn {turn}"


def test_looks_at_what_is_lent_for_long_become_rare(arena: Arena, clock: Clock) -> None:
    held, other = take(arena, 3 * MIB), take(arena, 3 * MIB)
    del other
    times = []
    while clock.now < 1100.0:
        assert arena.trim_at is not None
        clock.now = max(clock.now, arena.trim_at)
        arena.trim()
        times.append(clock.now)
    assert all(later - sooner >= 1.0 for sooner, later in itertools.pairwise(times[1:]))
    assert len(times) < 210
    if hasattr(os, "memfd_create") and not _os.PORTABLE:
        assert arena.reserved == class_of(3 * MIB)  # the held one; the other was given back
    del held
    clock.now = arena.trim_at
    arena.trim()
    assert arena.reserved == 0


def test_given_back_memory_is_free_for_readers_that_have_it_mapped(arena: Arena, clock: Clock) -> None:
    first, second = take(arena, 3 * MIB), take(arena, 3 * MIB)
    fd = os.dup(first.segment.fd)  # as a mapping elsewhere would keep it
    del second
    clock.now += IDLE
    arena.trim()
    if hasattr(os, "memfd_create") and not _os.PORTABLE:
        assert 3 * MIB <= os.fstat(fd).st_blocks * 512 < 4 * MIB
    os.close(fd)
    again = take(arena, 3 * MIB)
    again.write([b"x" * MIB], MIB)  # reserved anew
    assert arena.reserved == 2 * class_of(3 * MIB)


def test_free_memory_is_bounded_while_sizes_change(arena: Arena) -> None:
    most = 0
    for nbytes in range(5 * MIB, 40 * MIB, MIB):
        lease = take(arena, nbytes)
        del lease
        most = max(most, arena.reserved)
    assert most <= 64 * MIB + class_of(40 * MIB)


def test_a_block_larger_than_the_bound_is_had_all_the_same(arena: Arena) -> None:
    lease = take(arena, 80 * MIB)
    assert lease.segment.count == 1
    del lease
    take(arena, MIB)
    assert arena.reserved <= 64 * MIB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_frees_nothing_and_gets_nothing(arena: Arena) -> None:
    lease = take(arena, 70_000)
    pid = os.fork()
    if pid == 0:
        refused = arena.take(70_000) is None
        del lease
        os._exit(0 if refused else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert arena.alive()[0] == 1


def test_a_closed_arena_gives_nothing_and_its_leases_stay_harmless(clock: Clock) -> None:
    arena = Arena(clock)
    lease = take(arena, 70_000)
    arena.close()
    lease.write([b"abc"], 3)
    assert arena.take(70_000) is None
    del lease


def test_no_name_is_left_anywhere(arena: Arena) -> None:
    names = names_in_shared_memory()
    leases = [take(arena, 5 * MIB) for _ in range(3)]
    support.wait_until(lambda: names_in_shared_memory() <= names, "all others to go, of tests beside this one")
    assert len(leases) == 3


def names_in_shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("poolkit*")}  # noqa: S108 -- looked at


def test_segments_have_room_for_a_state_byte_of_each_block() -> None:
    assert arenas.MOST_BLOCKS < arenas.SIZE_AT


def test_a_descriptor_stays_open_while_somebody_may_reserve_memory_with_it(clock: Clock) -> None:
    arena = Arena(clock)
    lease = take(arena, 70_000)
    fd = lease.segment.fd
    arena.close()
    os.fstat(fd)
    del lease
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
