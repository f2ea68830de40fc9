"""A pool that is made while a module is preloaded, and not used there, is one of each worker's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import poolkit
import support
import support_functions as work
import support_workers as targets
from lifecycle.scripts import run, text_of
from poolkit import _os
from poolkit._spawn import registry
from support import WATCHDOG
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

MODULE = "support_taken_over"
each_start_method = pytest.mark.parametrize("start_method", ["forkserver", "spawn", "fork"])


@pytest.fixture(autouse=True)
def _ends() -> object:
    """The template, which has the pools, is not to stay."""
    yield
    registry.end_all()


@each_start_method
def test_two_workers_at_once_have_one_each(start_method: str, new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(2, preload=[MODULE], start_method=start_method) as pool:
        tasks = [pool.submit(work.in_preloaded, "hold", arrived, release) for _ in range(2)]
        arrived.wait(4)
        release.signal(4)
        found = [pid for task in tasks for pid in task.result()]
    assert len({*found, os.getpid()}) == 7


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("is_elsewhere", True),
        ("is_in_a_thread", True),
        ("is_default", True),
        ("maps", [3, 2, 1]),
        ("adds_up", sum(range(1000)) + (1 << 20)),
        ("tells", True),
        ("speaks", "hello"),
        ("survives", ("WorkerCrashed", 1)),
        ("offload_in_task", True),
    ],
)
@each_start_method
@pytest.mark.every_nth(2)
def test_it_serves_as_one_that_was_made_here(start_method: str, what: str, expected: object) -> None:
    with poolkit.Pool(1, preload=[MODULE], start_method=start_method) as pool:
        assert pool.submit(work.in_preloaded, what).result() == expected


def test_after_a_workers_death_the_next_one_has_its_own() -> None:
    with poolkit.Pool(1, preload=[MODULE]) as pool:
        first = pool.submit(work.in_preloaded, "pids").result()
        with pytest.raises(poolkit.WorkerCrashed):
            pool.submit(work.die).result()
        support.wait_for_exit(*first)
        second = pool.submit(work.in_preloaded, "pids").result()
    assert set(first).isdisjoint(second)


@each_start_method
def test_dedicated_workers_have_one_each(start_method: str, new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    workers = [
        poolkit.Worker(
            targets.in_preloaded, "hold_in_target", arrived, release, preload=[MODULE], start_method=start_method
        )
        for _ in range(2)
    ]
    arrived.wait(4)
    release.signal(4)
    found = [pid for worker in workers for pid in worker.recv(WATCHDOG)]
    assert len({*found, os.getpid()}) == 7
    for worker in workers:
        assert worker.join(WATCHDOG)


def test_a_dedicated_worker_offloads_and_the_tasks_of_its_pool_do_not() -> None:
    with poolkit.Worker(targets.in_preloaded, "offload_in_target", preload=[MODULE]) as worker:
        assert worker.recv(WATCHDOG) == "offloaded"
        assert worker.task.result() == [[True, True], [True, True], [0, 1, 2], []]


def test_what_it_has_accepted_is_done_when_the_worker_ends(journal: Journal) -> None:
    with poolkit.Worker(targets.in_preloaded, "leave_work", journal, preload=[MODULE]) as worker:
        assert worker.join(WATCHDOG)
    assert journal.lines() == ["written"] * 5


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("which", ["pool", "threads"])
def test_a_child_that_a_task_forks_gets_pool_closed(which: str, used: bool) -> None:
    with poolkit.Pool(1, preload=[MODULE]) as pool:
        if used:
            assert pool.submit(work.in_preloaded, {"pool": "is_elsewhere", "threads": "is_in_a_thread"}[which]).result()
        pid = pool.submit(os.getpid).result()
        assert f"belongs to process {pid}" in pool.submit(work.in_preloaded, "is_refused", which).result()
        assert pool.submit(work.in_preloaded, "is_elsewhere").result()


def test_one_that_was_shut_down_stays_so() -> None:
    with poolkit.Pool(1, preload=[MODULE]) as pool:
        assert "over" not in pool.submit(work.in_preloaded, "refuses").result()


def descriptors() -> list[str]:
    """What is open, apart from where it leads."""
    found = []
    for path in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # what listed them is closed
            found.append(os.fspath(path.readlink()))
    return sorted(target.split("[")[-1] for target in found if target.startswith("anon_inode:"))


@pytest.mark.skipif(not _os.LINUX, reason="looks at descriptors that only Linux has")
def test_a_worker_has_no_more_descriptors_than_one_that_imports_the_module_itself() -> None:
    """So the copies that it has got are closed."""
    found = []
    for start_method in ("forkserver", "spawn"):
        with poolkit.Pool(1, preload=[MODULE], start_method=start_method) as pool:
            found.append(pool.submit(descriptors).result())
            assert pool.submit(work.in_preloaded, "is_elsewhere").result()
    assert found[0] == found[1]
    assert len(found[0]) > 4


# ===== the fork itself =====

AS_A_TEMPLATE = """
    import errno, logging, os, sys, warnings
    import poolkit
    from poolkit import _child
    from poolkit._kinds import processes

    warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12 says that forking with threads is a danger

    def in_worker(work):
        "What `work` prints in a child that is forked as a template forks workers."
        sys.stdout.flush()
        _child.makes_worker = True
        child = os.fork()
        _child.makes_worker = False
        if child == 0:
            work()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def refused(pool):
        try:
            pool.submit(abs, -1)
        except poolkit.PoolClosed as exc:
            print("closed", flush=True)
        else:
            print("accepted", flush=True)
    """


def as_a_template(source: str) -> list[str]:
    return run(text_of(AS_A_TEMPLATE) + text_of(source))


def test_parent_and_child_have_one_each_until_the_parent_uses_it() -> None:
    lines = as_a_template(
        """
        pool = poolkit.Pool(1)

        def child():
            print(pool.submit(abs, -1).result(), pool.stats().succeeded, flush=True)

        in_worker(child)
        in_worker(child)
        print(pool.submit(abs, -2).result(), pool.stats().succeeded)
        in_worker(lambda: refused(pool))
        pool.shutdown()
        in_worker(lambda: refused(pool))
        """
    )
    assert lines == ["1 1", "1 1", "2 1", "closed", "closed"]


def test_a_child_of_the_child_has_a_copy_or_takes_it_over_in_turn() -> None:
    lines = as_a_template(
        """
        pool = poolkit.Pool(1)

        def copy():
            if os.fork() == 0:
                refused(pool)
                os._exit(0)
            assert os.wait()[1] == 0
            in_worker(lambda: print(pool.submit(abs, -1).result(), flush=True))
            print(pool.submit(abs, -2).result(), flush=True)

        in_worker(copy)
        pool.shutdown()
        """
    )
    assert lines == ["closed", "1", "2"]


@pytest.mark.parametrize("portable", ["0", "1"])
def test_neither_wakes_the_other(portable: str) -> None:
    source = """
        pool = poolkit.Pool(1)
        workforce = pool._supervisor.workforce
        here, there = os.pipe()
        os.write(there, b".")

        def child():
            workforce.wake()
            workforce.links.wake()
            workforce._selector.register(here, 1)
            print(workforce.wait(0, links=True), flush=True)

        in_worker(child)
        print(workforce.wait(0, links=True))
        workforce.wake()
        in_worker(lambda: print(workforce.wait(0, links=True), flush=True))
        pool.shutdown()
        """
    script = text_of(AS_A_TEMPLATE) + text_of(source)
    assert run(script, env={"POOLKIT_PORTABLE": portable}) == ["True", "False", "False"]


def test_in_want_of_descriptors_it_is_closed_there_and_that_is_logged() -> None:
    lines = as_a_template(
        """
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        pools = [poolkit.Pool(1), poolkit.Pool(1)]
        make, tries = processes.Links, iter([False, True])

        def lack(*args):
            if next(tries):
                return make(*args)
            raise OSError(errno.EMFILE, "none left")

        def count():
            return len(os.listdir("/proc/self/fd"))

        def child():
            processes.Links = make
            after = count()
            for pool in sorted(pools, key=lambda pool: id(pool._supervisor)):
                refused(pool)
            assert after < before, (before, after)

        before = count()
        processes.Links = lack
        in_worker(child)
        print(pools[0].submit(abs, -3).result())
        for pool in pools:
            pool.shutdown()
        """
    )
    assert [line for line in lines if line in {"closed", "accepted", "3"}] == ["closed", "accepted", "3"]
    assert sum("cannot take over pool process-" in line for line in lines) == 1
    assert any("none left" in line for line in lines)


def test_one_that_was_dropped_gets_no_descriptors() -> None:
    lines = as_a_template(
        """
        def count():
            return len(os.listdir("/proc/self/fd"))

        before = count()
        pool = poolkit.Pool(1)
        supervisor = pool._supervisor
        in_worker(lambda: print(count() > before, flush=True))
        del pool
        between = count()
        in_worker(lambda: print(count() > between, flush=True))
        """
    )
    assert lines == ["True", "False"]


def test_one_that_has_begun_something_is_closed_in_the_child() -> None:
    lines = as_a_template(
        """
        pools = [poolkit.Pool(1) for _ in range(3)]
        pools[0].submit(abs, -1).result()
        pools[1].trace()
        pools[2].warm_up()
        in_worker(lambda: [refused(pool) for pool in pools])
        for pool in pools:
            pool.shutdown()
        """
    )
    assert lines == ["closed"] * 3


def preloading(folder: Path, module: str, *, start_method: str = "forkserver") -> list[str]:
    """What `told()` of a preloaded module returns in a worker."""
    (folder / "preloaded.py").write_text("import os, threading\nimport poolkit\n" + text_of(module), encoding="utf-8")
    script = f"""
        import logging, os, sys
        import poolkit
        sys.path.insert(0, {os.fspath(folder)!r})
        logging.getLogger("poolkit").setLevel("ERROR")

        def told():
            return sys.modules["preloaded"].told()

        with poolkit.Pool(1, preload=["preloaded"], start_method={start_method!r}) as pool:
            print(pool.submit(told).result())
        """
    return run(script)


def test_a_child_that_a_module_forks_while_it_is_preloaded_has_a_copy(tmp_path: Path) -> None:
    module = """
        pool = poolkit.Pool(1)
        here, there = os.pipe()
        if os.fork() == 0:
            try:
                pool.submit(abs, -1)
            except poolkit.PoolClosed:
                os.write(there, b"closed")
            os._exit(0)
        os.wait()
        said = os.read(here, 100).decode()

        def told():
            return said, pool.submit(abs, -1).result()
        """
    assert preloading(tmp_path, module) == ["('closed', 1)"]


def test_one_that_was_used_while_its_module_was_preloaded_is_closed(tmp_path: Path) -> None:
    """And others of that module are not: workers are forked, whatever threads there are."""
    module = """
        unused, used = poolkit.Pool(1), poolkit.Pool(1)
        used.submit(abs, -1).result()

        def told():
            try:
                used.submit(abs, -1)
            except poolkit.PoolClosed:
                return "closed", unused.submit(abs, -1).result()
        """
    assert preloading(tmp_path, module, start_method="fork") == ["('closed', 1)"]


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_one_of_forks_forks_the_worker_that_has_it(start_method: str, tmp_path: Path) -> None:
    """When it is used first: what its tasks see of memory is that of the worker."""
    module = """
        pool, known = poolkit.Pool(1, start_method="fork"), []

        def see():
            return known

        def told():
            known.append(os.getpid())
            return pool.submit(see).result() == known
        """
    assert preloading(tmp_path, module, start_method=start_method) == ["True"]


def test_one_that_preloads_its_own_module_goes_as_deep_as_it_is_used(tmp_path: Path) -> None:
    module = """
        pool = poolkit.Pool(1, preload=["preloaded"])

        def deeper(levels):
            return [os.getpid(), *(pool.submit(deeper, levels - 1).result() if levels else [])]

        def told():
            return len(set(deeper(2)))
        """
    assert preloading(tmp_path, module) == ["3"]
