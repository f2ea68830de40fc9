"""Any order of taking, sending, seeing, settling, dying and trimming: no block has two users, and each comes back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from poolkit._memory.arena import IDLE, Arena, Lease, Segment

WORKERS = st.integers(1, 3)


class View:
    """What a worker sees."""

    def __init__(self, lease: Lease, worker: int, mark: int) -> None:
        self.segment: Segment = lease.segment
        self.index = lease.index
        self.worker, self.mark = worker, mark
        self.is_gone = False
        self.segment.bytes[self.index] = 1

    def end(self) -> None:
        if not self.is_gone:
            self.segment.bytes[self.index] = 0
        self.is_gone = True


class ArenaMachine(RuleBasedStateMachine):
    """The arena beside the simplest model: which lease, and which worker, sees which bytes."""

    own = Bundle("own")
    seen = Bundle("seen")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.arena = Arena(lambda: self.now)
        self.leases: dict[int, tuple[Lease, int]] = {}  # by the mark that was written; with the worker it was sent to
        self.views: list[View] = []
        self.mark = 0
        self.sizes: dict[int, int] = {}

    def teardown(self) -> None:
        self.leases.clear()
        self.views.clear()
        self.arena.close()

    def places(self) -> set[tuple[int, int]]:
        of_leases = {(lease.segment.id, lease.index) for lease, _ in self.leases.values()}
        return of_leases | {(view.segment.id, view.index) for view in self.views if not view.is_gone}

    @rule(target=own, nbytes=st.sampled_from([1, 4096, 5000, 70_000, 300_000, 1 << 20, 3 << 20]))
    def take(self, nbytes: int) -> int:
        before = self.places()
        lease = self.arena.take(nbytes)
        assert lease is not None
        assert (lease.segment.id, lease.index) not in before
        self.mark += 1
        lease.write([bytes([self.mark % 256]) * nbytes], nbytes)
        self.leases[self.mark] = lease, 0
        self.sizes[self.mark] = nbytes
        return self.mark

    @rule(mark=own, worker=WORKERS)
    def send(self, mark: int, worker: int) -> None:
        """Perhaps again, after it was taken back from another."""
        if mark in self.leases and not any(view.mark == mark and not view.is_gone for view in self.views):
            lease, _ = self.leases[mark]
            lease.segment.borrowers[lease.index] = worker
            self.leases[mark] = lease, worker

    @rule(target=seen, mark=own)
    def begin(self, mark: int) -> View | None:
        lease, worker = self.leases.get(mark, (None, 0))
        if lease is None or not worker or any(view.mark == mark for view in self.views):
            return None
        self.views.append(View(lease, worker, mark))
        return self.views[-1]

    @rule(mark=consumes(own))
    def settle(self, mark: int) -> None:
        self.leases.pop(mark, None)

    @rule(target=seen, mark=consumes(own))
    def transfer(self, mark: int) -> View | None:
        """As a worker does with a result, whose reader never dies; it sends nothing to workers."""
        lease, _ = self.leases.pop(mark, (None, 0))
        if lease is None or lease.index in lease.segment.borrowers:
            return None
        lease.segment.bytes[lease.index] = 1
        self.views.append(View(lease, 0, mark))
        return self.views[-1]

    @rule(view=consumes(seen))
    def reader_frees(self, view: View | None) -> None:
        if view is not None:
            view.end()

    @rule(worker=WORKERS)
    def dies(self, worker: int) -> None:
        self.arena.take_back(worker)
        for view in self.views:
            if view.worker == worker:
                view.is_gone = True
        for mark, (lease, sent_to) in self.leases.items():
            if sent_to == worker:
                self.leases[mark] = lease, 0

    @rule(seconds=st.sampled_from([0.5, 1.0, IDLE, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.arena.trim()

    @invariant()
    def leases_balance(self) -> None:
        assert self.arena.alive()[0] == len(self.places())

    @invariant()
    def nobody_wrote_to_what_another_sees(self) -> None:
        shown = [(lease.segment, lease.index, self.sizes[mark], mark) for mark, (lease, _) in self.leases.items()]
        shown += [
            (view.segment, view.index, self.sizes[view.mark], view.mark) for view in self.views if not view.is_gone
        ]
        for segment, index, nbytes, mark in shown:
            assert segment.bytes[segment.at(index)] == segment.bytes[segment.at(index) + nbytes - 1] == mark % 256

    @invariant()
    def what_is_alive_has_memory(self) -> None:
        assert self.arena.reserved >= self.arena.alive()[1]


ArenaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestArena = ArenaMachine.TestCase
