"""Large values, shared arrays and broadcasts, in every kind of worker: as API.md says, and nothing stays behind.

Longer than most: one promise a test, and all are checked by the same look at what is left.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import subprocess
import sys
from collections import deque
from typing import Any

import numpy as np
import pytest
from conformance.conftest import MakePool

import poolkit
import support
import support_arrays as work

MIB = 1 << 20


def leased(pool: poolkit.Pool) -> int:
    gc.collect()
    return pool.stats().arena_blocks_leased


def wait_until_all_is_back(pool: poolkit.Pool) -> None:
    support.wait_until(lambda: leased(pool) == 0, "every lease to return")


# ===== arguments and results =====


@pytest.mark.parametrize("size", [0, 10, 16_383, 16_384, 16_385, 300_000])
def test_arrays_of_any_size_come_back_as_they_went(pool: poolkit.Pool, size: int) -> None:
    array = np.arange(size, dtype="u4")
    assert np.array_equal(pool.submit(work.echo, array).result(), array)
    nested = {"a": [array, (array[::2], np.asfortranarray(array.reshape(-1, 1)))]}
    got = pool.submit(work.echo, nested).result()
    assert np.array_equal(got["a"][1][0], array[::2])


@pytest.mark.parametrize("large", [b"x" * 300_000, bytearray(b"y" * 300_000), "ü" * 200_000])
def test_large_bytes_and_text_come_back_as_they_went(pool: poolkit.Pool, large: Any) -> None:
    assert pool.submit(work.echo, large).result() == large
    assert pool.submit(work.echo, [large, 1]).result() == [large, 1]


@pytest.mark.needs("by_value")
@pytest.mark.parametrize("size", [10, 300_000])
def test_a_read_only_array_arrives_writable_both_ways(pool: poolkit.Pool, size: int) -> None:
    array = np.arange(size)
    array.flags.writeable = False
    assert pool.submit(work.is_writable, array).result()
    assert pool.submit(work.echo, array).result().flags.writeable


@pytest.mark.needs("by_value")
def test_what_a_task_does_to_its_argument_stays_with_it(pool: poolkit.Pool) -> None:
    array = work.numbered(1)
    tasks = [pool.submit(work.double, array) for _ in range(5)]
    assert [int(task.result()[0]) for task in tasks] == [2] * 5
    assert array[0] == 1


@pytest.mark.needs("by_value")
def test_what_the_caller_changes_after_submit_the_task_does_not_see(pool: poolkit.Pool) -> None:
    array = work.numbered(3)
    tasks = []
    for number in range(20):
        array[:] = number
        tasks.append(pool.submit(work.checksum, array))
    array[:] = 0
    assert [task.result() for task in tasks] == [number * array.size for number in range(20)]


def test_map_of_arrays(pool: poolkit.Pool) -> None:
    results = pool.map(work.echo, (work.numbered(number) for number in range(40)))
    assert [int(array[0]) for array in results] == list(range(40))


@pytest.mark.slow
@pytest.mark.needs("process", "shared_here")
def test_results_that_are_held_stay_unchanged_and_all_leases_return(make_pool: MakePool) -> None:
    pool = make_pool(2)
    held = [pool.submit(work.numbered, number).result() for number in range(200)]
    deque(pool.map(work.echo, (work.numbered(9) for _ in range(500))), maxlen=0)
    assert [work.checksum(array) for array in held] == [number * 30_000 for number in range(200)]
    assert leased(pool) >= 200
    del held[100:]
    pool.shutdown()
    assert [work.checksum(array) for array in held] == [number * 30_000 for number in range(100)]


@pytest.mark.slow
@pytest.mark.needs("process", "shared_here")
def test_an_argument_that_a_worker_keeps_stays_unchanged(pool: poolkit.Pool) -> None:
    for number in range(10):
        pool.submit(work.keep, work.numbered(number)).result()
    deque(pool.map(work.echo, (work.numbered(9) for _ in range(300))), maxlen=0)
    assert pool.submit(work.kept_checksums).result() == [number * 30_000 for number in range(10)]
    assert leased(pool) == 10
    pool.submit(work.drop_kept).result()
    wait_until_all_is_back(pool)


@pytest.mark.needs("process")
def test_a_result_that_nobody_reads_gives_its_memory_back(pool: poolkit.Pool) -> None:
    tasks = [pool.submit(work.numbered, number) for number in range(10)]
    for task in tasks:
        assert task.exception() is None or task.done()
    del task, tasks
    wait_until_all_is_back(pool)


@pytest.mark.needs("process")
def test_a_result_may_be_read_twice(pool: poolkit.Pool) -> None:
    task = pool.submit(work.numbered, 3)
    assert task.result() is task.result()


@pytest.mark.needs("process", "crash")
def test_a_task_that_runs_again_sees_the_same_input(pool: poolkit.Pool, tmp_path: Any) -> None:
    task = pool.options(retries=2).submit(work.use_up, work.numbered(7), str(tmp_path / "died"))
    assert task.result() == 7
    assert task.attempts == 2
    del task
    wait_until_all_is_back(pool)


@pytest.mark.long
@pytest.mark.needs("process", "crash")
def test_the_blocks_of_a_worker_that_dies_come_back(pool: poolkit.Pool) -> None:
    for _ in range(3):
        pool.submit(work.keep, work.numbered(1)).result()
        assert isinstance(pool.submit(work.die, work.numbered(1)).exception(), poolkit.WorkerCrashed)
    wait_until_all_is_back(pool)
    assert int(pool.submit(work.echo, work.numbered(5)).result()[0]) == 5


@pytest.mark.needs("process", "shared_here")
def test_calls_that_are_cancelled_or_refused_give_their_memory_back(pool: poolkit.Pool, hold: Any) -> None:
    held = hold(pool)
    tasks = [pool.submit(work.echo, work.numbered(number)) for number in range(30)]
    assert leased(pool) == 30
    assert all(task.cancel() for task in tasks[::2])
    del tasks[::2]
    held.release()
    assert [int(task.result()[0]) for task in tasks] == list(range(1, 30, 2))
    del tasks
    held = hold(pool)
    for _ in range(5):
        pool.submit(work.echo, work.numbered(1))
    pool.cancel_all()
    wait_until_all_is_back(pool)
    with pytest.raises(poolkit.SerializationError):
        pool.submit(
            work.echo, [work.numbered(1), support.WATCHDOG.__class__.__mro__, iter([]), sys._getframe()]
        ).result()
    pool.shutdown(kill=True)
    with pytest.raises(poolkit.PoolClosed):
        pool.submit(work.echo, work.numbered(1))


@pytest.mark.needs("process")
def test_a_pool_that_is_shut_down_with_large_calls_queued_finishes_them(pool: poolkit.Pool) -> None:
    tasks = [pool.submit(work.echo, work.numbered(number)) for number in range(30)]
    pool.shutdown()
    assert [int(task.result()[0]) for task in tasks] == list(range(30))


@pytest.mark.needs("process", "shared_here")
def test_what_travels_in_shared_memory_is_counted(make_pool: MakePool) -> None:
    pool = make_pool()
    array = np.zeros(MIB, "u1")
    got = pool.submit(work.echo, array).result()
    stats = pool.stats()
    assert stats.arena_bytes_sent == stats.arena_bytes_received == MIB
    assert stats.link_bytes_sent < 100_000
    assert stats.arena_blocks_leased == 1
    assert stats.arena_bytes >= 2 * MIB
    assert stats.arena_bytes_kept == stats.arena_bytes - MIB
    del got
    assert pool.stats().arena_blocks_leased == 0


@pytest.mark.needs("process")
@pytest.mark.one_start_method
@pytest.mark.skipif(not support.PROC.is_dir() or "POOLKIT_PORTABLE" in os.environ, reason="looks at names of mappings")
def test_a_forked_child_keeps_nothing_of_the_arena(pool: poolkit.Pool) -> None:
    for size in (100_000, 1_000_000):
        pool.submit(work.checksum, np.zeros(size, "u1")).result()
    pid = os.fork()
    if pid == 0:
        os._exit(len(work.open_memory()) + work.open_descriptors())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.needs("process")
def test_without_a_threshold_nothing_travels_in_shared_memory(make_pool: MakePool) -> None:
    pool = make_pool(shm_threshold=None)
    assert np.array_equal(pool.submit(work.echo, np.arange(MIB)).result(), np.arange(MIB))
    stats = pool.stats()
    assert stats.arena_bytes_sent == stats.arena_bytes_received == stats.arena_bytes == 0
    assert stats.link_bytes_sent > 8 * MIB


@pytest.mark.slow
@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_many_large_echoes_use_little_memory(make_pool: MakePool) -> None:
    pool = make_pool(2)
    array = np.zeros(8 * MIB, "u1")
    tasks: deque[Any] = deque()
    most = 0
    for _ in range(300):
        if len(tasks) == 2:
            got = tasks.popleft().result()
            assert got.size == array.size
        tasks.append(pool.submit(work.echo, array))
        most = max(most, pool.stats().arena_bytes)
    assert most <= 64 * MIB


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.needs("process", "shared_here")
@pytest.mark.one_start_method
def test_idle_memory_is_given_back(pool: poolkit.Pool) -> None:
    pool.submit(work.echo, np.zeros(8 * MIB, "u1")).result()
    assert pool.stats().arena_bytes >= 16 * MIB
    support.wait_until(lambda: pool.stats().arena_bytes == 0, "idle memory to be given back")
    assert np.array_equal(pool.submit(work.echo, np.ones(8 * MIB, "u1")).result(), np.ones(8 * MIB, "u1"))


def test_a_threshold_must_be_a_size() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="shm_threshold"):
            poolkit.Pool(1, shm_threshold=wrong)
    with pytest.raises(TypeError, match="shm_threshold"):
        poolkit.Pool(1, shm_threshold=0.5)  # type: ignore[arg-type]


# ===== shared buffers and arrays =====


@pytest.mark.needs("shared_here")
def test_a_shared_array_is_written_to_by_all(pool: poolkit.Pool) -> None:
    with poolkit.SharedArray((100, 200), "f4") as shared:
        assert shared.array.shape == (100, 200)
        assert not shared.array.any()
        pool.submit(work.fill, shared, 2.5).result()
        assert (shared.array == 2.5).all()
        shared.array[:] = 1
        assert pool.submit(work.total, shared).result() == 20_000


@pytest.mark.needs("process", "shared_here")
def test_a_handle_is_small_and_copies_nothing(pool: poolkit.Pool) -> None:
    with poolkit.SharedArray(8 * MIB, "u1") as shared:
        pool.submit(work.total, shared).result()  # its worker starts
        before = pool.stats()
        for _ in range(5):
            pool.submit(work.total, shared).result()
        after = pool.stats()
        assert after.link_bytes_sent - before.link_bytes_sent < 5 * 600
        assert after.arena_bytes_sent == before.arena_bytes_sent
        assert len(pickle.dumps(shared)) < 200


@pytest.mark.needs("shared_here")
def test_a_shared_array_made_in_a_worker_outlives_it(pool: poolkit.Pool) -> None:
    shared = pool.submit(work.make_shared, (50, 50), 3.0).result()
    assert shared.array.sum() == 7500
    again = pool.submit(work.echo, shared).result()
    again.array[0, 0] = 0
    assert shared.array.sum() == 7497
    pool.shutdown()
    assert shared.array.sum() == 7497
    again.close()
    shared.close()


@pytest.mark.needs("process", "shared_here")
def test_a_shared_array_works_in_initargs(make_pool: MakePool) -> None:
    with poolkit.SharedArray(1000) as shared:
        shared.array[:] = 2
        pool = make_pool(2, initializer=work.hold, initargs=(shared,))
        assert pool.submit(work.total_of_kept).result() == 2000
        shared.array[:] = 3
        assert pool.submit(work.total_of_kept).result() == 3000
        pool.shutdown()


@pytest.mark.needs("process", "shared_here")
def test_a_worker_lets_go_of_shared_memory_when_the_owner_has(pool: poolkit.Pool) -> None:
    if not support.PROC.is_dir() or "POOLKIT_PORTABLE" in os.environ:
        pytest.skip("looks at the names of mappings")
    before = pool.submit(work.open_memory).result()
    shared = poolkit.SharedArray(1000)
    pool.submit(work.fill, shared, 1).result()
    pool.submit(work.fill, shared, 2).result()
    (region,) = pool.submit(work.open_memory).result() - before
    shared.close()
    support.wait_until(lambda: region not in pool.submit(work.open_memory).result(), "the worker to let go")


@pytest.mark.needs("shared_here")
def test_a_handle_that_is_dropped_right_after_submit_arrives(pool: poolkit.Pool) -> None:
    tasks = [pool.submit(work.total, poolkit.SharedArray.copy_of(np.ones(100))) for _ in range(20)]
    assert [task.result() for task in tasks] == [100.0] * 20


def test_use_after_close_is_an_error() -> None:
    buffer = poolkit.SharedBuffer(100)
    view = memoryview(buffer)
    with pytest.raises(BufferError, match="views"):
        buffer.close()
    view.release()
    buffer.close()
    buffer.close()
    for use in (
        lambda: memoryview(buffer),
        lambda: buffer[0],
        lambda: pickle.dumps(buffer),
        lambda: len(buffer),
        lambda: np.frombuffer(buffer),
    ):
        with pytest.raises(ValueError, match="clos"):
            use()
    array = poolkit.SharedArray(10)
    array.close()
    assert array.closed
    with pytest.raises(ValueError, match="clos"):
        _ = array.array


def test_views_of_a_shared_array_outlive_its_handle() -> None:
    with poolkit.SharedArray(1_000_000) as shared:
        view = shared.array[5:]
        view[:] = 1
    assert shared.closed
    assert view.sum() == 999_995  # not a crash
    again = poolkit.SharedArray(10)
    flat = again.array.reshape(2, 5).T
    again.close()
    again.close()
    assert flat.sum() == 0
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(again)


def test_a_with_statement_lets_the_exception_of_its_body_through() -> None:
    with pytest.raises(KeyError), poolkit.SharedBuffer(100) as buffer:
        view = memoryview(buffer)
        raise KeyError
    view.release()
    with pytest.raises(BufferError, match="views"), poolkit.SharedBuffer(100) as buffer:
        view = memoryview(buffer)
    view.release()


@pytest.mark.needs("process", "shared_here")
def test_a_task_that_closes_its_handle_closes_only_that(pool: poolkit.Pool) -> None:
    with poolkit.SharedBuffer(100) as buffer, poolkit.SharedArray(100) as array:
        pool.submit(work.keep, (buffer, array)).result()
        pool.submit(work.close_all, (buffer, array)).result()
        assert pool.submit(work.are_kept_open).result() == [True, True]
        pool.submit(work.drop_kept).result()


@pytest.mark.needs("shared_here")
def test_hundreds_of_handles_arrive_in_both_directions(pool: poolkit.Pool) -> None:
    assert pool.submit(len, [poolkit.SharedBuffer(10) for _ in range(300)]).result() == 300
    assert len(pool.submit(work.make_many, 300).result()) == 300


@pytest.mark.needs("process", "crash", "shared_here")
def test_a_worker_without_room_for_descriptors_is_replaced(pool: poolkit.Pool) -> None:
    for what in (work.numbered(1), [poolkit.SharedBuffer(10)]):
        pool.submit(work.limit_descriptors, 3).result()
        error = pool.submit(work.echo, what).exception()
        assert isinstance(error, poolkit.WorkerCrashed)
        assert "no room for descriptors" in error.output
    assert pool.submit(work.checksum, work.numbered(1)).result() == 30_000
    with poolkit.SharedArray(10) as shared:
        assert pool.submit(work.total, shared).result() == 0
    wait_until_all_is_back(pool)
    assert pool.stats().crashed == 2


@pytest.mark.needs("process")
def test_an_unlinked_handle_is_passed_on_no_more(pool: poolkit.Pool) -> None:
    for made in (poolkit.SharedBuffer(100), poolkit.SharedArray(100)):
        made.unlink()
        error = pool.submit(work.echo, made).exception()
        assert isinstance(error, poolkit.SerializationError)
        assert "unlinked" in str(error.__cause__ or error)


def test_sizes_and_types_that_make_no_sense_are_refused() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="nbytes"):
            poolkit.SharedBuffer(wrong)
    for value in (1.5, None, True):
        with pytest.raises(TypeError, match="nbytes"):
            poolkit.SharedBuffer(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Python objects"):
        poolkit.SharedArray(3, object)
    with pytest.raises(ValueError, match="negative"):
        poolkit.SharedArray(-3)
    with poolkit.SharedBuffer(10) as buffer, pytest.raises(ValueError, match="resized"):
        buffer.resize(20)


def test_odd_shapes_and_types() -> None:
    for shape, dtype in itertools.product([(), 0, (3, 0), (2, 3, 4)], ["u1", "f8", [("a", "u1"), ("b", ">f4")]]):
        with poolkit.SharedArray(shape, dtype) as shared:
            assert shared.array.shape == np.empty(shape).shape
            assert shared.nbytes == shared.array.nbytes
    source = np.asfortranarray(np.arange(12).reshape(3, 4))
    with poolkit.SharedArray.copy_of(source) as shared:
        assert np.array_equal(shared.array, source)


@pytest.mark.skipif(not support.PROC.is_dir(), reason="needs /proc")
def test_a_handle_that_is_pickled_by_itself_opens_while_its_process_has_it() -> None:
    code = "import pickle, sys; b = pickle.loads(bytes.fromhex(sys.argv[1])); b[:2] = b'ok'"
    with poolkit.SharedBuffer(10) as buffer:
        handle = pickle.dumps(buffer)
        subprocess.run([sys.executable, "-c", code, handle.hex()], check=True, env={**os.environ, "PYTHONPATH": "."})
        assert buffer[:2] == b"ok"
        other = pickle.loads(handle)
        other[0] = 0
        assert buffer[0] == 0
        other.close()
        buffer.unlink()
        with pytest.raises(pickle.PicklingError, match="unlinked"):
            pickle.dumps(buffer)
    with pytest.raises(pickle.UnpicklingError, match="closed"):
        pickle.loads(handle)


# ===== broadcasts =====


@pytest.mark.needs("by_value")
def test_a_broadcast_object_is_loaded_once_a_worker_and_is_read_only(make_pool: MakePool) -> None:
    pool = make_pool(2)
    array = work.numbered(3)
    shared = pool.broadcast(work.LoadedOnce(array))
    found = {pool.submit(work.look_at_broadcast, shared, number).result() for number in range(20)}
    found |= set(pool.map(work.look_at_broadcast, [shared] * 20, range(20)))
    pids = {pid for pid, *_ in found}
    assert len(found) == len(pids) <= 2
    assert {rest for _, *rest in map(tuple, found) for rest in [tuple(rest)]} == {(1, False, 90_000)}
    work.LoadedOnce.loaded = 0


@pytest.mark.needs("by_reference")
def test_threads_get_the_object_itself(pool: poolkit.Pool) -> None:
    value = {"a": work.numbered(1)}
    shared = pool.broadcast(value)
    assert pool.submit(work.echo, shared).result() is value
    assert pool.submit(dict, key=shared).result()["key"] is value
    assert pool.submit(work.echo, [shared]).result()[0] is shared  # only arguments themselves are looked at
    assert all(got is value for got in pool.map(work.echo, [shared] * 5))
    assert all(got[1] is value for got in pool.map(work.both, [shared] * 5, [shared] * 5))


@pytest.mark.needs("by_value")
@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1], np.s_[:, :1], np.s_[:2]])
def test_each_array_of_a_broadcast_object_is_read_only(pool: poolkit.Pool, view: Any) -> None:
    array = np.arange(100.0).reshape(10, 10)
    array.flags.writeable = False
    shared = pool.broadcast(
        {"part": array[view], "odd": np.array([[{}, 1]], "O")[:, ::2], "all": np.asfortranarray(array)}
    )
    got = pool.submit(work.look_inside, shared, "part").result()
    assert not got[0]
    assert np.array_equal(got[1], array[view])
    assert not pool.submit(work.look_inside, shared, "all").result()[0]


@pytest.mark.needs("by_value", "shared_here")
def test_an_object_that_is_broadcast_may_hold_shared_arrays(make_pool: MakePool) -> None:
    pool = make_pool(2)
    inner = poolkit.SharedArray(10)
    shared = pool.broadcast({"inner": inner})
    for value in (1.0, 2.0):
        inner.array[:] = value
        assert [pool.submit(work.total_inside, shared).result() for _ in range(6)] == [value * 10] * 6
    inner.close()
    assert pool.submit(work.total_inside, shared).result() == 20.0


@pytest.mark.needs("process", "crash")
def test_a_broadcast_object_is_there_in_workers_that_came_later(pool: poolkit.Pool) -> None:
    shared = pool.broadcast(work.LoadedOnce(work.numbered(3)))
    pids = set()
    for _ in range(3):
        pid, loaded, _, total = pool.submit(work.look_at_broadcast, shared, 0).result()
        assert (loaded, total) == (1, 90_000)
        pids.add(pid)
        assert isinstance(pool.submit(work.die, 0).exception(), poolkit.WorkerCrashed)
    assert len(pids) == 3


@pytest.mark.needs("process")
def test_a_broadcast_object_is_freed_in_the_workers_when_its_handle_is_gone(pool: poolkit.Pool) -> None:
    if not support.PROC.is_dir() or "POOLKIT_PORTABLE" in os.environ:
        pytest.skip("looks at the names of mappings")
    before = pool.submit(work.open_memory).result()  # with what a forked one inherits
    shared = pool.broadcast(work.numbered(3))
    pool.submit(work.checksum, shared).result()  # no large result: memory that is kept for those is another matter
    (region,) = pool.submit(work.open_memory).result() - before
    with shared:
        pass
    support.wait_until(lambda: region not in pool.submit(work.open_memory).result(), "the worker to let go")
    assert isinstance(pool.submit(work.echo, shared).exception(), poolkit.SerializationError)


@pytest.mark.needs("by_value")
def test_what_cannot_be_broadcast_is_named(pool: poolkit.Pool) -> None:
    with pytest.raises(poolkit.SerializationError, match="the broadcast object"):
        pool.broadcast({"a": [iter([]), sys._getframe()]})
    shared = pool.broadcast([1])
    with pytest.raises(pickle.PicklingError, match="argument"):
        pickle.dumps(shared)
