"""Calls that a worker cannot even receive."""

from __future__ import annotations

import pytest

import support_arrays
import support_functions as work
import support_objects
from poolkit import Pool, WorkerCrashed


@pytest.mark.slow
def test_a_call_too_large_for_the_memory_of_a_worker_fails_and_the_pool_goes_on() -> None:
    """Each worker dies of it before it begins it, so it must not be sent out for ever."""
    limits = {"initializer": support_objects.limit_memory, "initargs": (64 * 2**20,)}
    with Pool(1, shm_threshold=None, **limits) as pool:
        too_large = pool.submit(len, bytes(160 * 2**20))
        after = pool.submit(work.add, 1, 2)
        with pytest.raises(
            WorkerCrashed, match=r"3 workers in a row died while they received task 1 \(len\)"
        ) as caught:
            too_large.result()
        assert caught.value.exitcode == 1
        assert too_large.attempts == 0
        assert after.result() == 3
        assert pool.stats().crashed == 1


@pytest.mark.slow
def test_a_call_too_large_for_the_address_space_of_a_worker_crashes_it_and_smaller_ones_do_not() -> None:
    with Pool(1, initializer=support_objects.limit_memory, initargs=(100 * 2**20,)) as pool:
        for crashed in (1, 2):
            error = pool.submit(len, bytes(160 * 2**20)).exception()
            assert isinstance(error, WorkerCrashed)
            assert "no room for shared memory" in error.output
            assert pool.submit(len, bytes(20 * 2**20)).result() == 20 * 2**20
            assert len(pool.submit(bytes, 20 * 2**20).result()) == 20 * 2**20
            assert pool.stats().crashed == crashed
        assert pool.stats().arena_blocks_leased == 0


@pytest.mark.slow
def test_a_result_for_which_the_owner_has_no_descriptor_left_crashes_its_worker_and_the_pool_goes_on() -> None:
    with Pool(1) as pool:
        assert len(pool.submit(bytes, 10).result()) == 10
        limit = support_arrays.limit_descriptors(3)
        try:
            error = pool.submit(bytes, 200_000).exception()
        finally:
            support_arrays.limit_descriptors(limit)
        assert isinstance(error, WorkerCrashed)
        assert "the owner has no room for descriptors" in error.hint
        assert len(pool.submit(bytes, 200_000).result()) == 200_000
