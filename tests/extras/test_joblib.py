"""joblib's `Parallel` on a pool: what joblib promises holds, and a failure costs one call."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("joblib")

import joblib
import numpy as np
from joblib import Parallel, delayed, parallel_config

import poolkit
import support
from lifecycle.scripts import running
from poolkit.extras import joblib as extra
from support_gates import Gate
from support_scripts import run_script

pytestmark = pytest.mark.slow

NewGate = Callable[[], Gate]
SHM = Path("/dev/shm")  # noqa: S108 -- where joblib's other backends put arrays


@pytest.fixture(autouse=True)
def no_pools_are_kept() -> Iterator[None]:
    extra.register()
    yield
    while extra._pools:
        extra._pools.popitem()[1].shutdown()


def kept() -> poolkit.Pool:
    """The one pool that there is without one of ours."""
    (pool,) = extra._pools.values()
    return pool


def is_idle(pool: poolkit.Pool) -> bool:
    stats = pool.stats()
    return not stats.running and not stats.queued


def files_of(process: int, folder: Path, before: set[Path]) -> list[Path]:
    """What is in a folder, and what a process may have put into shared memory: with its number in the name."""
    return [*folder.iterdir(), *(entry for entry in {*SHM.iterdir()} - before if str(process) in entry.name)]


def flat(lists: Any) -> list[Any]:
    return [*itertools.chain.from_iterable(lists)]


def square(number: int) -> int:
    return number * number


def pid(_: object = None) -> int:
    return os.getpid()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def crash(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def wait_or_fail(began: Gate, number: int) -> None:
    """Begin, and wait for ever; but the first waits for the others and fails."""
    if number:
        began.signal()
        signal.pause()
    began.wait()
    raise ZeroDivisionError


def pass_gate(gate: Gate | None, number: int) -> int:
    if gate is not None:
        gate.wait()
    return number


# ===== what joblib promises =====


@pytest.mark.parametrize("way", ["list", "generator", "generator_unordered"])
def test_results_are_those_of_a_loop(way: str) -> None:
    with parallel_config("poolkit", n_jobs=2):
        found = Parallel(return_as=way)(delayed(square)(number) for number in range(300))
        assert sorted(found) == [number * number for number in range(300)]


def test_a_generator_gives_results_in_order_and_an_unordered_one_as_they_come(new_gate: NewGate) -> None:
    gate = new_gate()
    calls = [delayed(pass_gate)(gate if number == 0 else None, number) for number in range(3)]
    with parallel_config("poolkit", n_jobs=2):
        unordered = Parallel(return_as="generator_unordered", batch_size=1)(calls)
        assert {next(unordered), next(unordered)} == {1, 2}
        gate.signal()
        assert list(unordered) == [0]
        ordered = Parallel(return_as="generator", batch_size=1)(calls)
        gate.signal()
        assert list(ordered) == [0, 1, 2]


def test_a_pool_is_kept_for_each_n_jobs() -> None:
    with parallel_config("poolkit", n_jobs=2):
        first = {*Parallel(batch_size=1)(delayed(pid)() for _ in range(20))}
        pool = kept()
        assert {*Parallel(batch_size=1)(delayed(pid)() for _ in range(20))} <= {w.pid for w in pool.workers()}
        assert kept() is pool
        assert 1 <= len(first) <= len(pool.workers()) <= 2
        assert pool.stats().respawned == 0
        Parallel(n_jobs=3)(delayed(pid)() for _ in range(2))
    assert [each.max_workers for each in extra._pools.values()] == [2, 3]


def test_a_pool_that_was_shut_down_is_replaced() -> None:
    with parallel_config("poolkit", n_jobs=2):
        Parallel()(delayed(pid)() for _ in range(2))
        kept().shutdown()
        assert Parallel()(delayed(square)(number) for number in range(3)) == [0, 1, 4]


def test_n_jobs_counts_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = poolkit.usable_cpus()
    with parallel_config("poolkit"):
        assert joblib.effective_n_jobs(-1) == cpus
        assert joblib.effective_n_jobs(-cpus) == joblib.effective_n_jobs(-100) == 1
        assert joblib.effective_n_jobs(None) == 1
        assert joblib.effective_n_jobs(7) == 7
        with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
            joblib.effective_n_jobs(0)
    monkeypatch.setenv("POOLKIT_SHARE", "1000")
    with parallel_config("poolkit"):
        assert joblib.effective_n_jobs(-1) == 1


def test_it_is_the_default_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblib.parallel, "DEFAULT_BACKEND", joblib.parallel.DEFAULT_BACKEND)
    extra.register(make_default=True)
    assert Parallel(n_jobs=2)(delayed(pid)() for _ in range(2)) != [os.getpid()] * 2
    assert kept().stats().succeeded == 2


def test_tiny_calls_are_batched(capfd: pytest.CaptureFixture[str]) -> None:
    with parallel_config("poolkit", n_jobs=2, verbose=10):
        assert Parallel()(delayed(square)(number) for number in range(5000))[-1] == 4999 * 4999
    assert kept().stats().succeeded < 1000
    said = capfd.readouterr().err
    assert "Setting batch_size=2." in said
    assert "Using backend PoolkitBackend with 2 concurrent workers." in said
    assert "Done 5000 out of 5000" in said


def test_a_call_that_is_late_raises_timeout_error_and_is_stopped() -> None:
    with parallel_config("poolkit", n_jobs=2):
        Parallel()(delayed(pid)() for _ in range(2))  # to be late is not to start late
        with pytest.raises(joblib.parallel.TimeoutError):
            Parallel(timeout=0.1)(delayed(signal.pause)() for _ in range(3))
        support.wait_until(lambda: is_idle(kept()))
        assert Parallel(timeout=support.WATCHDOG)(delayed(square)(number) for number in range(3)) == [0, 1, 4]


def test_no_more_is_taken_of_the_calls_than_pre_dispatch(new_gate: NewGate) -> None:
    gate, taken = new_gate(), []

    def calls() -> Iterator[Any]:
        for number in range(10):
            taken.append(number)
            yield delayed(pass_gate)(gate, number)

    with parallel_config("poolkit", n_jobs=2):
        found = Parallel(return_as="generator", pre_dispatch=3, batch_size=1)(calls())
        support.wait_until(lambda: kept().stats().running == 2)
        assert taken == [0, 1, 2]
        gate.signal(10)
        assert list(found) == list(range(10))


def test_an_error_of_the_calls_themselves_is_raised() -> None:
    def calls() -> Iterator[Any]:
        for number in range(20):
            yield delayed(square)(number)
        raise LookupError

    with parallel_config("poolkit", n_jobs=2), pytest.raises(LookupError):
        Parallel()(calls())


def test_libraries_have_as_many_threads_as_are_asked_for() -> None:
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    with parallel_config("poolkit", n_jobs=2, inner_max_num_threads=3):
        assert Parallel()(delayed(variable)(name) for name in names) == ["3", "3"]
    with parallel_config("poolkit", n_jobs=2):
        plain = Parallel()(delayed(variable)(name) for name in names)
    assert plain[0] == os.environ.get(names[0], str(max(1, poolkit.usable_cpus() // 2)))
    with poolkit.Pool(2) as pool, pytest.raises(AssertionError, match="does not accept setting the inner_max_num"):
        parallel_config("poolkit", pool=pool, inner_max_num_threads=3)


# ===== calls within calls =====


def level(depth: int) -> list[tuple[int, str]]:
    """Who runs the calls at this depth and below: the process, and the class of the backend there."""
    here = (os.getpid(), type(joblib.parallel.get_active_backend()[0]).__name__)
    if not depth:
        return [here]
    return [here, *flat(Parallel(n_jobs=2)(delayed(level)(depth - 1) for _ in range(2)))]


def by_name(depth: int) -> list[tuple[int, int]]:
    """The same where this backend is asked for at each level: the process, and how many would run at once."""
    with parallel_config("poolkit", n_jobs=2):
        here = (os.getpid(), joblib.effective_n_jobs(2))
        found = [here]
        in_thread = threading.Thread(target=lambda: found.append((os.getpid(), in_new_thread())))
        in_thread.start()
        in_thread.join()
        return [*found, *flat(Parallel()(delayed(by_name)(depth - 1) for _ in range(2)))] if depth else found


def in_new_thread() -> int:
    with parallel_config("poolkit", n_jobs=2):
        return joblib.effective_n_jobs(2)


def test_the_first_level_within_has_threads_and_the_next_is_sequential() -> None:
    with parallel_config("poolkit", n_jobs=2):
        found = flat(Parallel(batch_size=1)(delayed(level)(2) for _ in range(2)))
    pids = {process for process, _ in found}
    assert len(pids) <= 2
    assert os.getpid() not in pids
    assert [kind for _, kind in found][:3] == ["ThreadingBackend", "SequentialBackend", "SequentialBackend"]


def test_three_deep_there_are_no_more_processes_than_n_jobs() -> None:
    with parallel_config("poolkit", n_jobs=2):
        found = flat(Parallel(batch_size=1)(delayed(by_name)(2) for _ in range(4)))
    assert {jobs for _, jobs in found} == {1}
    assert {process for process, _ in found} <= {worker.pid for worker in kept().workers()}
    assert len(kept().workers()) <= 2


def test_threads_of_the_program_share_the_processes() -> None:
    with parallel_config("threading", n_jobs=3):
        found = Parallel()(
            delayed(lambda: Parallel(n_jobs=2, backend="poolkit")(delayed(pid)() for _ in range(3)))() for _ in range(3)
        )
    assert {*flat(found)} <= {worker.pid for worker in kept().workers()}
    assert len(kept().workers()) <= 2


# ===== arrays =====


def looked_at(array: Any, others: Any = (), **more: Any) -> tuple[Any, ...]:
    """Whether arrays can be written to, and the sum of each."""
    arrays = [array, *(others.values() if isinstance(others, dict) else others), *more.values()]
    return tuple((each.flags.writeable, float(each.sum())) for each in arrays)


@pytest.fixture
def broadcasts(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """What is broadcast."""
    made: list[weakref.ref[Any]] = []
    broadcast = poolkit.Pool.broadcast

    def noting(self: poolkit.Pool, value: Any) -> Any:
        handle = broadcast(self, value)
        made.append(weakref.ref(handle))
        return handle

    monkeypatch.setattr(poolkit.Pool, "broadcast", noting)
    return made


def test_large_arrays_are_sent_once_for_a_call_and_arrive_read_only(
    broadcasts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {*SHM.iterdir()}
    large, small, other = np.ones(200_000), np.ones(100), np.full((600, 600), 2.0)
    with parallel_config("poolkit", n_jobs=2):
        found = Parallel(batch_size=1)(
            delayed(looked_at)(large, [small, other] if number % 2 else {"a": small, "b": other}, by_name=large)
            for number in range(20)
        )
        assert files_of(os.getpid(), tmp_path, before) == []
        assert len(broadcasts) == 2
        assert found == [((False, 2e5), (True, 100.0), (False, 720_000.0), (False, 2e5))] * 20
        assert all(handle() is None for handle in broadcasts)  # they end with the call
        Parallel()(delayed(looked_at)(large) for _ in range(2))
        assert len(broadcasts) == 3
    assert large.flags.writeable


@pytest.mark.parametrize("settings", [{"max_nbytes": None}, {"mmap_mode": "c"}, {"max_nbytes": "2M"}])
def test_arrays_are_each_call_s_own_where_that_is_asked_for(settings: dict[str, Any], broadcasts: list[Any]) -> None:
    large = np.ones(200_000)
    with parallel_config("poolkit", n_jobs=2, **settings):
        assert Parallel()(delayed(looked_at)(large) for _ in range(2)) == [((True, 2e5),)] * 2
    assert broadcasts == []


def test_arrays_are_let_go_of_when_nobody_has_them(broadcasts: list[Any]) -> None:
    most = 0

    def calls() -> Iterator[Any]:
        nonlocal most
        for number in range(40):
            yield delayed(looked_at)(np.full(150_000, number))
            most = max(most, sum(handle() is not None for handle in broadcasts))

    with parallel_config("poolkit", n_jobs=2):
        found = Parallel(batch_size=1, pre_dispatch=2)(calls())
    assert found == [((False, 150_000.0 * number),) for number in range(40)]
    assert len(broadcasts) == 40
    assert most < 10


def change_the_shape(array: Any) -> tuple[int, ...]:
    before: tuple[int, ...] = array.shape
    array.shape = (-1, 2)
    return before


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_what_a_call_does_to_its_array_the_next_one_does_not_see() -> None:
    with parallel_config("poolkit", n_jobs=2):
        found = Parallel()(delayed(change_the_shape)(array) for array in [np.ones(200_000)] * 10)
    assert found == [(200_000,)] * 10


def fill(array: Any, number: int) -> None:
    array[number] = number


def test_a_memory_map_is_the_file_for_the_calls_too(tmp_path: Path, broadcasts: list[Any]) -> None:
    mapped: Any = np.memmap(tmp_path / "file", np.float64, "w+", shape=(200_000,))
    with parallel_config("poolkit", n_jobs=2):
        Parallel()(delayed(fill)(mapped[100:], number) for number in range(20))
    assert mapped[100:120].tolist() == list(range(20))
    assert broadcasts == []


def test_where_there_is_no_room_arrays_go_with_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(poolkit.Pool, "broadcast", broadcast)
    with parallel_config("poolkit", n_jobs=2):
        found = Parallel()(delayed(looked_at)(np.ones(200_000)) for _ in range(3))
    assert [total for ((_, total),) in found] == [2e5] * 3


# ===== failures =====


def test_a_crash_is_raised_and_the_pool_goes_on() -> None:
    with parallel_config("poolkit", n_jobs=2):
        with pytest.raises(poolkit.WorkerCrashed, match=r"SIGSEGV while it ran task \d+ \(crash,"):
            Parallel()(delayed(crash)(number) for number in range(20))
        pool = kept()
        assert Parallel()(delayed(square)(number) for number in range(3)) == [0, 1, 4]
        assert kept() is pool


def test_an_error_stops_the_calls_that_run_and_no_other_s(new_gate: NewGate) -> None:
    gate, began = new_gate(), new_gate()
    with poolkit.Pool(3) as pool, parallel_config("poolkit", pool=pool):
        other = pool.submit(pass_gate, gate, 5)
        with pytest.raises(ZeroDivisionError):
            Parallel(batch_size=1)(delayed(wait_or_fail)(began, number) for number in range(50))
        support.wait_until(lambda: pool.stats().running == 1 and pool.stats().queued == 0)
        gate.signal()
        assert other.result() == 5
        assert pool.stats().cancelled >= 1


def test_closing_a_generator_stops_its_calls_and_no_other_s(new_gate: NewGate) -> None:
    mine, theirs = new_gate(), new_gate()
    with poolkit.Pool(2) as pool, parallel_config("poolkit", pool=pool):  # one backend, for both
        ways: dict[str, Any] = {"return_as": "generator", "batch_size": 1}
        closed = Parallel(**ways)(delayed(pass_gate)(mine if number else None, number) for number in range(9))
        read = Parallel(**ways)(delayed(pass_gate)(theirs, number) for number in range(4))
        assert next(closed) == 0
        with pytest.warns(UserWarning, match="have been cancelled"):
            closed.close()
        theirs.signal(4)
        assert list(read) == [0, 1, 2, 3]
        support.wait_until(lambda: is_idle(pool))


def test_a_pool_that_is_shut_down_meanwhile_ends_the_call(new_gate: NewGate) -> None:
    gate = new_gate()
    with poolkit.Pool(2) as pool, parallel_config("poolkit", pool=pool):
        found = Parallel(return_as="generator", batch_size=1)(delayed(pass_gate)(gate, number) for number in range(9))
        pool.shutdown(wait=False)
        gate.signal(4)
        with pytest.raises(poolkit.PoolClosed):
            list(found)


def test_what_cannot_be_sent_is_told() -> None:
    with parallel_config("poolkit", n_jobs=2), pytest.raises(poolkit.SerializationError, match="lock"):
        Parallel()(delayed(pass_gate)(threading.Lock(), 1) for _ in range(3))


# ===== a pool that is given =====


def test_all_workers_of_a_pool_that_is_given_are_used() -> None:
    with poolkit.Pool(2) as pool, parallel_config("poolkit", pool=pool):
        assert joblib.effective_n_jobs(None) == joblib.effective_n_jobs(-1) == joblib.effective_n_jobs(7) == 2
        assert joblib.effective_n_jobs(1) == 1
        assert {*Parallel()(delayed(pid)() for _ in range(20))} <= {worker.pid for worker in pool.workers()}
    assert extra._pools == {}


def test_limits_of_a_view_are_for_each_call() -> None:
    with poolkit.Pool(2) as pool, parallel_config("poolkit", pool=pool.options(timeout=600, name="mine")):
        assert Parallel()(delayed(square)(number) for number in range(50))[7] == 49
        assert pool.stats().succeeded == 50
        limited = Parallel(backend=extra.PoolkitBackend(pool=pool.options(timeout=0.05)))
        with pytest.raises(poolkit.TaskTimeout):
            limited(delayed(signal.pause)() for _ in range(2))


def test_a_queue_with_a_bound_is_waited_for() -> None:
    with poolkit.Pool(2, max_queue=1) as pool, parallel_config("poolkit", pool=pool):
        for way in ("list", "generator_unordered"):
            found = Parallel(batch_size=1, pre_dispatch=8, return_as=way)(delayed(square)(i) for i in range(200))
            assert sorted(found) == [number * number for number in range(200)]
        with parallel_config("poolkit", pool=pool.options(block=False)), pytest.raises(poolkit.QueueFull):
            Parallel(batch_size=1, pre_dispatch="all")(delayed(signal.pause)() for _ in range(200))


def test_threads_share_what_they_are_given() -> None:
    seen: list[Any] = []
    array = np.ones(200_000)
    with poolkit.Pool(2, kind="thread") as pool, parallel_config("poolkit", pool=pool):
        Parallel(require="sharedmem", batch_size=1)(delayed(seen.append)(array) for _ in range(6))
        assert pool.stats().succeeded == 6
        assert all(each is array for each in seen)
        found = Parallel()(delayed(by_name)(2) for _ in range(2))
        assert {jobs for _, jobs in flat(found) if jobs != 2} == {1}


def test_something_else_than_a_pool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"pool must be a poolkit\.Pool or a view of one, was 4"):
        parallel_config("poolkit", pool=4)
    with pytest.raises(TypeError, match="nonsense"):
        parallel_config("poolkit", nonsense=4)
    with pytest.raises(TypeError, match=r"takes no initargs, initializer; make a Pool with all it needs"):
        extra.PoolkitBackend().configure(2, initializer=pid, initargs=(1,))


# ===== the program =====


def test_a_program_ends_without_a_complaint_and_a_forked_child_has_a_pool_of_its_own() -> None:
    source = """
import os
from joblib import Parallel, delayed
from poolkit.extras.joblib import register

register()
ours = {*Parallel(n_jobs=2, backend="poolkit")(delayed(os.getpid)() for _ in range(4))}
if not (child := os.fork()):
    theirs = {*Parallel(n_jobs=2, backend="poolkit")(delayed(os.getpid)() for _ in range(4))}
    os._exit(bool(ours & theirs))
print(os.waitpid(child, 0)[1], Parallel(n_jobs=2, backend="poolkit")(delayed(abs)(-3) for _ in ours)[0])
"""
    assert run_script(source, options=("-W", "error", "-W", "ignore::DeprecationWarning")) == "0 3"


def test_joblib_is_not_imported_for_anything_else() -> None:
    source = "import sys; from poolkit import *; import poolkit.extras, poolkit.testing; print('joblib' in sys.modules)"
    assert run_script(source) == "False"


def test_a_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    source = """
import signal, numpy as np
from joblib import Parallel, delayed
from poolkit.extras.joblib import register

def busy(array):
    print("up", flush=True)
    signal.pause()

register()
Parallel(n_jobs=2, backend="poolkit")(delayed(busy)(np.ones(1_000_000)) for _ in range(9))
"""
    before = {*SHM.iterdir()}
    with running(source, env={"TMPDIR": str(tmp_path)}) as owner:
        owner.read_lines(2)
        assert owner.kill(signal.SIGKILL) == -signal.SIGKILL
        owner.wait_until_gone()
    assert files_of(owner.process.pid, tmp_path, before) == []


# ===== others =====


def test_cross_validation_and_a_grid_search() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    x, y = make_classification(300, 8, random_state=0)
    model, grid = LogisticRegression(), {"C": [0.1, 1.0, 10.0]}
    alone = cross_val_score(model, x, y, cv=4), GridSearchCV(model, grid, cv=3).fit(x, y).best_params_
    with parallel_config("poolkit", n_jobs=2):
        scores = cross_val_score(model, x, y, cv=4)
        assert (scores == alone[0]).all()
        assert GridSearchCV(model, grid, cv=3).fit(x, y).best_params_ == alone[1]
    assert kept().stats().succeeded >= 2


def test_the_local_scheduler_of_dask_takes_a_pool() -> None:
    dask: Any = pytest.importorskip("dask")
    with poolkit.Pool(2) as pool, dask.config.set(scheduler="processes", pool=pool):
        parts = [dask.delayed(square)(number) for number in range(10)]
        assert dask.delayed(sum)(parts).compute() == 285
        assert os.getpid() not in dask.compute(*(dask.delayed(pid)(number) for number in range(3)))
        with pytest.raises(poolkit.WorkerCrashed):
            dask.compute(*(dask.delayed(crash)(number) for number in range(4)))
        assert dask.delayed(square)(3).compute() == 9
