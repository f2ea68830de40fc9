"""Parameters and methods of the standard library's executors are taken, by position and by name."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

import poolkit
import support_functions as work
from lifecycle.scripts import run
from support_gates import Gate

pytestmark = pytest.mark.slow


def name_of_thread() -> str:
    return threading.current_thread().name


def test_all_of_process_pool_executors_parameters_are_there_in_its_order() -> None:
    def parameters(cls: type) -> list[inspect.Parameter]:
        return list(inspect.signature(cls).parameters.values())

    ours = {each.name: each for each in parameters(poolkit.Pool)}
    theirs = parameters(ProcessPoolExecutor)
    by_position = [each.name for each in theirs if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(by_position)] == by_position
    assert {each.name for each in theirs} <= set(ours)
    assert {each.name for each in parameters(ThreadPoolExecutor)} - {"ctxkwargs"} <= set(ours)


def test_initializer_and_its_arguments_by_position() -> None:
    for cls in (ProcessPoolExecutor, poolkit.Pool):
        with cls(1, multiprocessing.get_context("spawn"), os.putenv, ("GIVEN_BY_POSITION", "here")) as pool:
            shown = pool.submit(subprocess.check_output, ["printenv", "GIVEN_BY_POSITION"])
            assert shown.result() == b"here\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_the_start_method_of_the_context_counts(method: str) -> None:
    source = """
        import multiprocessing, sys
        import poolkit

        def look():
            return getattr(__import__("sys"), "was_here", False), "poolkit._child.template" in __import__("sys").modules

        sys.was_here = True
        with poolkit.Pool(1, multiprocessing.get_context(sys.argv[1])) as pool:
            print(*pool.submit(look).result())
    """
    assert run(source, method) == [{"spawn": "False False", "forkserver": "False True", "fork": "True True"}[method]]


def test_the_multiprocessing_module_itself_is_a_context() -> None:
    source = """
        import multiprocessing
        import poolkit
        multiprocessing.set_start_method("spawn")
        with poolkit.Pool(mp_context=multiprocessing, max_workers=1) as pool:
            print(pool.submit(abs, -1).result())
    """
    assert run(source) == ["1"]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"mp_context": "spawn"}, TypeError, "start_method="),
        ({"mp_context": 3}, TypeError, "must be a context of multiprocessing"),
        ({"mp_context": multiprocessing.get_context("spawn"), "start_method": "fork"}, ValueError, "contradicts"),
        ({"mp_context": multiprocessing.get_context("spawn"), "kind": "thread"}, ValueError, "for kind='process'"),
        ({"thread_name_prefix": "mine"}, ValueError, "for kind='thread'"),
        ({"thread_name_prefix": 3, "kind": "thread"}, TypeError, "must be a string"),
    ],
)
def test_what_has_no_sense_is_refused_with_what_to_do(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        poolkit.Pool(1, **given)


def test_the_same_start_method_twice_is_no_contradiction() -> None:
    with poolkit.Pool(1, multiprocessing.get_context("spawn"), start_method="spawn") as pool:
        assert pool.submit(abs, -1).result() == 1


def test_threads_are_named_as_the_standard_library_names_them() -> None:
    found = []
    for pool in (
        ThreadPoolExecutor(1, thread_name_prefix="mine"),
        poolkit.Pool(1, thread_name_prefix="mine", kind="thread"),
    ):
        with pool:
            found.append(pool.submit(name_of_thread).result())
    assert found == ["mine_0", "mine_0"]


@pytest.mark.parametrize("name", ["kill_workers", "terminate_workers"])
@pytest.mark.parametrize("through", [lambda pool: pool, lambda pool: pool.options(priority=1)])
def test_workers_can_be_killed_by_the_names_of_cpython_3_14(
    name: str, through: Callable[[poolkit.Pool], Any], new_gate: Callable[[], Gate]
) -> None:
    if sys.version_info >= (3, 14):
        assert callable(getattr(ProcessPoolExecutor, name))
    arrived = new_gate()
    pool = poolkit.Pool(1)
    running, queued = pool.submit(work.spin, arrived), pool.submit(abs, -1)
    arrived.wait()
    getattr(through(pool), name)()
    for task in (running, queued):
        with pytest.raises(CancelledError):
            task.result()
    with pytest.raises(poolkit.PoolClosed):
        pool.submit(abs, -1)
