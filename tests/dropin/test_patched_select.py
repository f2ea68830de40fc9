"""Programs in which eventlet has taken `poll` and `epoll` out of the module `select`."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["forkserver", "fork", "spawn"])
@pytest.mark.parametrize("selectors_first", [False, True])
@pytest.mark.every_nth(2)
def test_pools_work_without_them(method: str, *, selectors_first: bool) -> None:
    source = """
        import sys
        if sys.argv[2] == "True":
            import selectors
        import select
        for name in ("poll", "epoll"):
            if hasattr(select, name):
                delattr(select, name)
        import os
        import poolkit

        def forever():
            while True:
                pass

        with poolkit.Pool(2, start_method=sys.argv[1]) as pool:
            pool.warm_up(60)
            print(list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1)))
            print(type(pool.options(timeout=0.2).submit(forever).exception()).__name__)
            print(type(pool.submit(os._exit, 3).exception()).__name__, pool.submit(abs, -1).result())
    """
    assert run(source, method, str(selectors_first)) == ["True", "TaskTimeout", "WorkerCrashed 1"]
