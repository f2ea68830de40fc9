"""Orders of events that no real run would show, driven through the rules of a cluster with scripted workers.

Each step is something that a worker, a caller or the clock could do next. Each order is checked as it is given, and
after each step everything that always holds; at the end, with workers that behave, all get ready, and then all go.
"""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from unit.scripted_cluster import ScriptedCluster, Worker

RARELY = st.sampled_from([False] * 11 + [True])
PICK = st.integers(0, 20)
SECONDS = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.1, 0.3, 0.5, 1.0, 1.1, 3.0, 10.0, 70.0])


class ClusterMachine(RuleBasedStateMachine):
    """A cluster, its callers, its workers and the clock."""

    @initialize(
        size=st.integers(1, 4),
        grace=st.sampled_from([0.0, 0.5, 5.0]),
        boot_timeout=st.sampled_from([0.5, 2.0, 60.0]),
        seed=st.integers(0, 3),
        warm=st.booleans(),
    )
    def make(self, size: int, grace: float, boot_timeout: float, seed: int, warm: bool) -> None:
        self.cluster = ScriptedCluster(size, grace=grace, boot_timeout=boot_timeout, seed=seed)
        if warm:
            self.cluster.behave()

    def _pick(self, pick: int, workers: list[Worker]) -> int | None:
        return workers[pick % len(workers)].member.number if workers else None

    # ===== workers =====

    @rule(picks=st.lists(PICK, min_size=1, max_size=4))
    def boot(self, picks: list[int]) -> None:
        """Some that start are ready, also such as are to end."""
        for pick in picks:
            able = [one for one in self.cluster.live.values() if one.ready_at is None and one.killed_at is None]
            number = self._pick(pick, able)
            if number is not None:
                self.cluster.ready(number)

    @precondition(lambda self: self.cluster.live)
    @rule(pick=PICK)
    def say_ready_at_any_time(self, pick: int) -> None:
        """Ready for a second time, or when it was killed."""
        number = self._pick(pick, list(self.cluster.live.values()))
        assert number is not None
        self.cluster.ready(number)

    @precondition(lambda self: self.cluster.live)
    @rule(pick=PICK, raised=RARELY)
    def die(self, pick: int, raised: bool) -> None:
        number = self._pick(pick, list(self.cluster.live.values()))
        assert number is not None
        self.cluster.gone(number, raised=raised)

    @rule(raised=RARELY, count=st.integers(1, 4))
    def die_in_boot(self, raised: bool, count: int) -> None:
        for number in [one.member.number for one in self.cluster.live.values() if one.ready_at is None][:count]:
            self.cluster.gone(number, raised=raised)

    @rule(count=st.integers(1, 9), seconds=SECONDS)
    def crash_in_a_loop(self, count: int, seconds: float) -> None:
        """Whoever starts, or is ready, dies; and time passes."""
        for _ in range(count):
            for number in list(self.cluster.live):
                self.cluster.gone(number)
            self.cluster.wait(seconds)

    @rule(pick=PICK)
    def obey(self, pick: int) -> None:
        """One that was told to stop, or was killed, is gone."""
        ending = [one for one in self.cluster.live.values() if (one.stopped_at, one.killed_at) != (None, None)]
        number = self._pick(pick, ending)
        if number is not None:
            self.cluster.gone(number)

    @precondition(lambda self: self.cluster.live)
    @rule(pick=PICK)
    def hang(self, pick: int) -> None:
        number = self._pick(pick, list(self.cluster.live.values()))
        assert number is not None
        self.cluster.hung(number)

    @precondition(lambda self: self.cluster.live)
    @rule(picks=st.lists(PICK, min_size=1, max_size=4))
    def be_due(self, picks: list[int]) -> None:
        for pick in picks:
            number = self._pick(pick, list(self.cluster.live.values()))
            assert number is not None
            self.cluster.due(number)

    # ===== callers =====

    @rule(timeout=st.sampled_from([None, None, 0.0, 0.2, 1.0, 60.0]))
    def reload(self, timeout: float | None) -> None:
        self.cluster.reload(timeout)

    @rule(size=st.integers(1, 4))
    def resize(self, size: int) -> None:
        self.cluster.resize(size)

    @rule(kill=st.booleans(), really=RARELY)
    def stop(self, kill: bool, really: bool) -> None:
        if really:
            self.cluster.end(kill=kill)

    # ===== time =====

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.cluster.wait(seconds)

    @rule(seconds=SECONDS)
    def tick_late(self, seconds: float) -> None:
        self.cluster.now += seconds
        self.cluster.tick()

    @rule(seconds=SECONDS)
    def be_busy(self, seconds: float) -> None:
        """Time passes, and the clock is not looked at."""
        self.cluster.now += seconds

    @rule()
    def behave(self) -> None:
        self.cluster.behave()

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.finish()


TestCluster = pytest.mark.slow(ClusterMachine.TestCase)
TestCluster.settings = hypothesis.settings(hypothesis.settings.get_profile("stateful"))
