"""SharedMemory and ShareableList as arguments, results and initargs: blocks outlive the worker, without a warning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import ShareableList, SharedMemory
from pathlib import Path

import pytest

import poolkit
import support
import support_handed_over as work
from lifecycle.scripts import Script, python, text_of

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]
BLOCKS = Path("/dev/shm")  # noqa: S108 -- where they are looked at
PATHS = {"PYTHONPATH": os.pathsep.join(os.path.dirname(path) for path in (support.__file__, poolkit.__path__[0]))}  # noqa: PTH120 -- to a string


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def block() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=1000)
    yield made
    made.close()
    made.unlink()


def is_there(name: str) -> bool:
    return (BLOCKS / name.lstrip("/")).exists()


def in_new_script(source: str, *args: str) -> list[str]:
    """Run a script in which nothing was used yet; the lines that it printed. It must end silently."""
    with Script(python("-c", text_of(source), *args), env=PATHS) as script:
        lines = script.finish().check()
        script.wait_until_gone()
    return lines


def test_arguments_are_shared_and_outlive_every_worker(method: str, block: SharedMemory) -> None:
    for number in range(1, 4):
        with poolkit.Pool(1, start_method=method) as pool:
            assert pool.submit(work.count_up, block).result() == number
        assert block.buf[0] == number
        assert is_there(block.name)


def test_lists_are_shared_and_come_back(method: str) -> None:
    values = ShareableList([1, "two"])
    with poolkit.Pool(1, start_method=method) as pool:
        back = pool.submit(work.change_list, values).result()
    assert (list(values), list(back)) == ([2, "two"], [2, "two"])
    back.shm.close()
    values.shm.close()
    values.shm.unlink()


def test_initargs_are_shared(method: str, block: SharedMemory) -> None:
    with poolkit.Pool(2, start_method=method, initializer=work.count_up, initargs=(block,)) as pool:
        pool.warm_up()
    assert block.buf[0] == 2
    assert is_there(block.name)


def test_a_result_outlives_its_worker_however_that_ends(method: str) -> None:
    with poolkit.Pool(1, start_method=method) as pool:
        first = pool.submit(work.make_block, 100).result()
        assert isinstance(pool.submit(os.abort).exception(), poolkit.WorkerCrashed)
        second = pool.submit(work.make_block, 100).result()
    for made in (first, second):
        assert made.buf[0] == 7
        assert is_there(made.name)
        made.close()
        made.unlink()
        assert not is_there(made.name)


def test_workers_use_the_tracker_of_their_owner(method: str, block: SharedMemory) -> None:
    """One of its own would be killed with the worker, or remove what others use: the race is not for us to lose."""
    with poolkit.Pool(1, start_method=method) as pool:
        pool.submit(work.count_up, block).result()
        assert pool.submit(work.children).result() == []


def test_threads_of_a_task_may_be_first_to_need_it(method: str) -> None:
    with poolkit.Pool(1, start_method=method) as pool:
        names = pool.submit(work.make_blocks_in_threads, 8).result()
        assert pool.submit(work.children).result() == []
    for name in names:
        made = SharedMemory(name)
        made.close()
        made.unlink()


def test_a_pool_within_a_task_shares_it_too(block: SharedMemory) -> None:
    with poolkit.Pool(1) as pool:
        assert pool.submit(work.count_up_within, block).result() == (1, [])
    assert is_there(block.name)


def test_a_process_of_the_standard_library_within_a_task_shares_it_too(block: SharedMemory) -> None:
    with poolkit.Pool(1) as pool:
        pool.submit(work.count_up_in_a_process, block).result()
    assert block.buf[0] == 1
    assert is_there(block.name)


def test_an_initializer_may_be_first_to_need_it(method: str) -> None:
    with poolkit.Pool(1, start_method=method, initializer=work.keep_block, initargs=(10,)) as pool:
        name = pool.submit(work.name_of_kept).result()
    made = SharedMemory(name)
    made.close()
    made.unlink()


@pytest.mark.parametrize("preload", ["multiprocessing.shared_memory", "json"])
def test_without_a_tracker_in_the_owner_one_starts_there(preload: str) -> None:
    """Only then: a pool does not need one."""
    source = """
        import sys
        import poolkit, support_handed_over as work
        with poolkit.Pool(1, preload=[sys.argv[1]]) as pool:
            pool.submit(work.tell, 1).result()
            print(sys.modules["multiprocessing.resource_tracker"]._resource_tracker._pid)
            made = pool.submit(work.make_block, 10).result()
            print(pool.submit(work.children).result())
        print(made.buf[0])
        made.close()
        made.unlink()
    """
    assert in_new_script(source, preload) == ["None", "[]", "7"]


@pytest.mark.parametrize("kept", ["", "again = SharedMemory(name); again.close()"])
def test_a_block_that_nobody_unlinks_is_removed_when_the_owner_ends(kept: str, tmp_path: Path) -> None:
    """Also that of a worker that was killed; the tracker says so, as always."""
    source = f"""
        import sys
        from pathlib import Path
        from multiprocessing.shared_memory import SharedMemory
        import poolkit, support_handed_over as work
        with poolkit.Pool(1) as pool:
            pool.submit(work.make_block_and_die, 10, sys.argv[1]).exception()
        name = Path(sys.argv[1]).read_text()
        {kept}
        print(name, Path("/dev/shm", name).exists())
    """
    with Script(python("-c", text_of(source), os.fspath(tmp_path / "name")), env=PATHS) as script:
        ended = script.finish()
        script.wait_until_gone()
    name, was_there = ended.out.split()
    assert (ended.code, was_there) == (0, "True"), ended.err
    assert "1 leaked shared_memory" in ended.err
    assert not is_there(name)


def test_without_a_tracker_to_be_had_a_worker_starts_its_own(
    monkeypatch: pytest.MonkeyPatch, block: SharedMemory
) -> None:
    def fail() -> int:
        raise OSError("no tracker today")

    monkeypatch.setattr(resource_tracker, "getfd", fail)
    with poolkit.Pool(1) as pool:
        assert pool.submit(work.count_up, block).result() == 1
        support.wait_until(  # a program that is just being executed has no arguments yet
            lambda: ["resource_tracker" in own for own in pool.submit(work.children).result()] == [True], "a tracker"
        )


def test_an_owner_that_ends_while_it_is_asked_leaves_nobody() -> None:
    name = f"asked_{os.getpid()}"
    source = f"""
        import os, signal
        import poolkit
        from multiprocessing import resource_tracker
        from multiprocessing.shared_memory import SharedMemory
        resource_tracker.getfd = lambda: os.kill(os.getpid(), signal.SIGKILL)
        with poolkit.Pool(1) as pool:
            pool.submit(SharedMemory, {name!r}, True, 10).result()
    """
    with Script(python("-c", text_of(source)), env=PATHS) as script:
        assert script.finish().code == -9
        script.wait_until_gone()
    (BLOCKS / name).unlink()  # others may make blocks meanwhile, which are theirs
