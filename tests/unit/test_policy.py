"""The rules with numbers in them."""

from __future__ import annotations

import random

import pytest

from poolkit._core import policy
from poolkit._core.options import CallOptions
from poolkit.errors import TaskTimeout, WorkerCrashed


@pytest.mark.parametrize(("retries", "attempts", "left"), [(0, 1, False), (1, 1, True), (1, 2, False), (3, 3, True)])
def test_retries_count_the_runs_after_the_first(retries: int, attempts: int, left: bool) -> None:
    """With `retries=n` a task begins at most n + 1 times."""
    assert policy.retries_left(CallOptions(retries=retries), attempts) is left


def test_a_crash_always_counts_and_others_when_named() -> None:
    """`retry_on` adds to what is retried."""
    plain, named = CallOptions(retries=1), CallOptions(retries=1, retry_on=(OSError,))
    assert policy.counts_for_retry(plain, WorkerCrashed())
    assert not policy.counts_for_retry(plain, TaskTimeout())
    assert not policy.counts_for_retry(plain, ConnectionError())
    assert policy.counts_for_retry(named, ConnectionError())
    assert policy.counts_for_retry(named, WorkerCrashed())


def test_backoff_doubles_up_to_its_cap_with_jitter_of_a_half() -> None:
    """However often it failed, the delay is positive and bounded."""
    rng = random.Random(1)
    for failures in (1, 2, 5, 20, 5000):
        longest = min(policy.RETRY_CAP, policy.RETRY_BASE * 2.0 ** min(failures - 1, 60))
        delays = [policy.backoff(failures, rng) for _ in range(50)]
        assert all(longest / 2 <= delay <= longest for delay in delays)
        assert len(set(delays)) > 1, "tasks that failed together would come back together"


def test_a_worker_gets_at_most_its_tasks_and_at_most_a_tenth_fewer() -> None:
    """The jitter never gives more, and never nothing."""
    rng = random.Random(1)
    assert policy.recycle_after(None, rng) is None
    assert {policy.recycle_after(1, rng) for _ in range(50)} == {1}
    limits = {policy.recycle_after(100, rng) for _ in range(500)}
    assert limits <= set(range(90, 101))
    assert len(limits) > 5


def test_a_replacement_starts_before_the_last_task() -> None:
    """For large limits a twentieth ahead; a small limit is kept exactly."""
    assert policy.replace_ahead(1) == policy.replace_ahead(19) == 0
    assert policy.replace_ahead(20) == 1
    assert policy.replace_ahead(1000) == 50
