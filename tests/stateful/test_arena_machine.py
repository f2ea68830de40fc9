"""Any order of taking, lending, freeing, dying and trimming: blocks never overlap, and every lease comes back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from poolkit._wire.arena import IDLE, Arena, Lease

WORKERS = st.integers(1, 3)


class ArenaMachine(RuleBasedStateMachine):
    """The arena beside the simplest model: which lease, or which worker, sees which bytes."""

    own = Bundle("own")
    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.arena = Arena(lambda: self.now)
        self.seen: dict[tuple[int, int], int] = {}  # (segment, index) -> worker, or 0 for a lease of our own
        self.mark = 0
        self.marks: dict[tuple[int, int], tuple[Lease, int]] = {}

    def teardown(self) -> None:
        self.marks.clear()
        self.arena.close()

    @staticmethod
    def at(lease: Lease) -> tuple[int, int]:
        return lease.segment.id, lease.index

    def forget(self, lease: Lease) -> None:
        self.seen.pop(self.at(lease), None)
        self.marks.pop(self.at(lease), None)

    @rule(target=own, nbytes=st.sampled_from([1, 4096, 5000, 70_000, 300_000, 1 << 20, 3 << 20]))
    def take(self, nbytes: int) -> object:
        lease = self.arena.take(nbytes)
        assert lease is not None
        assert self.at(lease) not in self.seen
        self.seen[self.at(lease)] = 0
        self.mark += 1
        view = memoryview(lease.segment.mapping)[lease.offset : lease.offset + nbytes]
        view[0], view[-1] = self.mark % 256, self.mark % 251
        self.marks[self.at(lease)] = (lease, self.mark)
        view.release()
        return lease

    @rule(lease=consumes(own))
    def drop(self, lease: Lease) -> None:
        self.forget(lease)
        lease.__del__()  # the machine holds what it made; a second time is as harmless as the first
        lease.is_lent = True

    @rule(target=sent, lease=consumes(own), worker=WORKERS)
    def lend(self, lease: Lease, worker: int) -> object:
        lease.lend(worker)
        self.seen[self.at(lease)] = worker
        return lease, worker

    @rule(target=own, pair=consumes(sent))
    def reclaim(self, pair: tuple[Lease, int]) -> object:
        lease, worker = pair
        if self.seen.get(self.at(lease)) != worker or self.marks.get(self.at(lease), (None, 0))[0] is not lease:
            return multiple()  # the worker died, and the block is somebody else's
        lease.reclaim()
        self.seen[self.at(lease)] = 0
        return lease

    @rule(pair=consumes(sent))
    def reader_frees(self, pair: tuple[Lease, int]) -> None:
        lease, _ = pair
        if self.marks.get(self.at(lease), (None, 0))[0] is lease:
            self.forget(lease)
            lease.segment.mapping[lease.index] = 0

    @rule(worker=WORKERS)
    def dies(self, worker: int) -> None:
        self.arena.take_back(worker)
        for place in [place for place, who in self.seen.items() if who == worker]:
            del self.seen[place]
            self.marks.pop(place, None)

    @rule(seconds=st.sampled_from([0.5, IDLE, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.arena.trim()

    @invariant()
    def leases_balance(self) -> None:
        assert self.arena.lent()[0] == len(self.seen)

    @invariant()
    def nobody_wrote_to_what_another_sees(self) -> None:
        for lease, mark in self.marks.values():
            assert lease.segment.mapping[lease.offset] in {mark % 256, mark % 251}
            assert lease.segment.mapping[lease.offset + lease.nbytes - 1] == mark % 251

    @invariant()
    def what_is_lent_has_memory(self) -> None:
        assert self.arena.reserved >= self.arena.lent()[1]


ArenaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestArena = ArenaMachine.TestCase
