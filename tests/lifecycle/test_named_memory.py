"""Shared memory with a name: any process may attach to it, and the name goes with the process that made it."""

from __future__ import annotations

import gc
import os
import signal
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

import poolkit
import support_named as work
from lifecycle.scripts import run, running
from poolkit.testing import leaks

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]


def is_there(name: str) -> bool:
    return Path("/dev/shm", name).exists()  # noqa: S108 -- where it is looked at


@pytest.mark.parametrize("method", METHODS)
def test_workers_attach_by_name_and_are_given_handles(method: str) -> None:
    name = work.own_name()
    with leaks(), poolkit.Pool(1, start_method=method) as pool, poolkit.SharedBuffer(100, name) as buffer:
        assert pool.submit(work.write_by_name, name, 7).result() == len(buffer)
        assert buffer[0] == 7
        assert pool.submit(work.write, buffer, 8).result() == name
        assert buffer[0] == 8
        assert is_there(name)
    assert not is_there(name)


def test_blocks_of_the_standard_library_are_the_same_thing() -> None:
    theirs = SharedMemory(create=True, size=64)
    with poolkit.SharedBuffer.attach(theirs.name) as buffer:
        buffer[1] = 5
        assert buffer.name == theirs.name
    assert theirs.buf[1] == 5
    assert is_there(theirs.name)  # who attached removes nothing
    theirs.close()
    theirs.unlink()


def test_arrays_attach_too() -> None:
    name = work.own_name()
    made = poolkit.SharedArray.copy_of(np.arange(6.0).reshape(2, 3), name)
    seen = poolkit.SharedArray.attach(name, (2, 3))
    seen.array[0, 0] = 10
    assert made.array.sum() == 25
    with poolkit.Pool(1) as pool:
        assert pool.submit(work.total, made).result() == (name, 25.0)
    with pytest.raises(ValueError, match="needs 800000"):
        poolkit.SharedArray.attach(name, 100_000)
    made.close()
    assert seen.array.sum() == 25  # the memory stays, the name does not
    with pytest.raises(FileNotFoundError):
        poolkit.SharedArray.attach(name, (2, 3))


def test_a_block_that_a_worker_made_comes_home_with_its_memory() -> None:
    name = work.own_name()
    with poolkit.Pool(1) as pool:
        buffer = pool.submit(work.make, name).result()
    buffer[0] = 3
    assert (buffer.name, buffer[0], is_there(name)) == (name, 3, False)


def test_names_are_refused_that_are_taken_or_none() -> None:
    name = work.own_name()
    with poolkit.SharedBuffer(10, name) as buffer:
        with pytest.raises(FileExistsError):
            poolkit.SharedBuffer(10, name)
        assert is_there(name)
        assert buffer.name == name
    for bad in ("", "/", "a/b", "a\0b", 3):
        with pytest.raises(ValueError, match="without a slash"):
            poolkit.SharedBuffer(10, bad)  # type: ignore[arg-type]


def test_the_name_goes_with_the_last_handle_of_its_maker_or_by_unlink() -> None:
    name = work.own_name()
    buffer = poolkit.SharedBuffer(10, name)
    del buffer
    gc.collect()
    assert not is_there(name)
    buffer = poolkit.SharedBuffer(10, name)
    buffer.unlink()
    buffer.unlink()
    assert not is_there(name)
    buffer[0] = 1
    buffer.close()


def test_a_forked_child_removes_no_name() -> None:
    name = work.own_name()
    with poolkit.SharedBuffer(10, name) as buffer:
        if (pid := os.fork()) == 0:
            buffer.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert is_there(name)


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "import os; os.kill(os.getpid(), 15)"])
def test_nothing_is_left_at_the_end(end: str) -> None:
    name = work.own_name()
    handler = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0))"
    run(f"{handler}\nimport poolkit\nbuffer = poolkit.SharedBuffer(10, {name!r})\n{end}")
    assert not is_there(name)


def test_of_a_killed_maker_the_resource_tracker_removes_it_and_says_so() -> None:
    name = work.own_name()
    source = f"import poolkit, os\nbuffer = poolkit.SharedBuffer(10, {name!r})\nprint('up', flush=True)\nos.read(0, 1)"
    with running(source) as script:
        script.read_lines(1)
        assert is_there(name)
        os.kill(script.process.pid, signal.SIGKILL)
        ended = script.finish()
        script.wait_until_gone()
    assert "leaked shared_memory" in ended.err
    assert not is_there(name)
