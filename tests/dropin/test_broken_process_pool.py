"""Code that catches `BrokenProcessPool` catches poolkit's; nobody pays for that class before something breaks."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

CRASH = """
import os
from concurrent.futures.process import BrokenProcessPool
import poolkit

def fail():
    raise OSError("no database")

with poolkit.Pool(1) as pool:
    try:
        pool.submit(os._exit, 3).result()
    except BrokenProcessPool as error:
        print(type(error).__name__, error.exitcode)
with poolkit.Pool(1, kind="KIND", initializer=fail) as pool:
    try:
        pool.submit(abs, -1).result()
    except BrokenProcessPool as error:
        print(type(error).__name__, error.__cause__)
"""

IMPORTED = """
import sys
import poolkit
from poolkit import PoolClosed, TaskCancelled, TaskTimeout

def loaded():
    return "concurrent.futures.process" in __import__("sys").modules

def fail():
    raise KeyError(1)

with poolkit.Pool(1, retries=1) as pool:
    print(pool.submit(loaded).result(), pool.options(retries=0).submit(fail).exception(), pool.submit(fail).exception())
    slow = pool.submit(__import__("time").sleep, 60)
    while not slow.running():
        pass
    print(slow.cancel(), pool.submit(loaded).result())
print(loaded())
print(issubclass(poolkit.WorkerCrashed, __import__("concurrent.futures").futures.BrokenExecutor), loaded())
"""


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_what_breaks_is_a_broken_process_pool(kind: str) -> None:
    assert run(CRASH.replace("KIND", kind)) == ["WorkerCrashed 3", "InitializerFailed no database"]


def test_a_program_in_which_nothing_breaks_does_not_import_it() -> None:
    """Neither it nor its workers: failures, retries and stopped tasks included."""
    assert run(IMPORTED) == ["False 1 1", "True False", "False", "True True"]


@pytest.mark.parametrize("with_tblib", [False, True])
def test_all_errors_survive_pickle_and_copy(with_tblib: bool) -> None:
    source = """
        import copy, pickle, sys
        import poolkit
        from poolkit import errors
        kinds = [getattr(errors, name) for name in errors.__all__]
        if sys.argv[1] == "True":
            import tblib.pickling_support
            tblib.pickling_support.install()
        for kind in kinds:
            error = kind("what happened")
            error.more = 3
            facts = dict(vars(error))
            for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                assert type(again) is kind and again.args == ("what happened",) and vars(again) == facts, again
        print(len(kinds))
    """
    assert run(source, str(with_tblib)) == ["18"]


def test_the_class_is_the_standard_librarys_own() -> None:
    from poolkit import InitializerFailed, PoolkitError, WorkerCrashed

    for kind in (WorkerCrashed, InitializerFailed):
        assert issubclass(kind, (PoolkitError,))
        assert issubclass(kind, BrokenProcessPool)
        assert issubclass(kind, BrokenExecutor)
    error = WorkerCrashed("m", exitcode=3)
    assert copy.copy(error).exitcode == pickle.loads(pickle.dumps(error)).exitcode == 3
