"""`poolkit.testing.leaks` names what a block left behind, and is silent about what it did not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import poolkit
import support_functions as work
from poolkit.testing import leaks


def test_a_block_that_leaves_nothing_passes() -> None:
    with leaks():
        with poolkit.Pool(2) as pool:
            assert pool.submit(work.square, 3).result() == 9
        with poolkit.Pool(2, kind="thread") as threads:
            assert threads.submit(work.square, 3).result() == 9
        del pool, threads


def test_a_thread_is_named() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left-over")
    with pytest.raises(AssertionError, match="left behind:\n  thread left-over"), leaks(grace=0.01):
        thread.start()
    over.set()
    thread.join()


def test_what_is_on_its_way_out_gets_its_time() -> None:
    over = threading.Event()
    with leaks(grace=30):
        threading.Thread(target=over.wait).start()
        threading.Timer(0.05, over.set).start()


def test_a_process_and_its_pipe_are_named() -> None:
    command = [sys.executable, "-c", "input()"]
    with pytest.raises(AssertionError) as caught, leaks(grace=0.01):
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
    child.communicate(b"\n")
    assert f"process {child.pid} state=" in str(caught.value)
    assert "input()" in str(caught.value)
    assert "descriptor" in str(caught.value)
    assert "pipe:" in str(caught.value)


def test_a_pool_that_was_not_shut_down_is_found() -> None:
    pool = poolkit.Pool(1, name="forgotten")
    with pytest.raises(AssertionError, match=r"thread poolkit-forgotten(.|\n)*process \d+"), leaks(grace=0.01):
        pool.submit(work.square, 3).result()
    pool.shutdown()


def test_shared_memory_is_named() -> None:
    with pytest.raises(AssertionError, match="shared memory"), leaks(grace=0.01):
        kept = poolkit.SharedBuffer(4096)
    kept.close()


def test_the_blocks_own_exception_comes_first() -> None:
    read, write = -1, -1
    with pytest.raises(LookupError), leaks(grace=0.01):
        read, write = os.pipe()
        raise LookupError
    os.close(read)
    os.close(write)


def test_a_file_that_loses_its_name_in_the_block_is_no_leak(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w"), leaks(grace=0.01):
        path.unlink()
