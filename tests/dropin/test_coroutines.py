"""`async def` tasks run on the one event loop of their worker; plain tasks do not notice that there is one."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

MODULE = """
    import asyncio, contextvars, os, threading, warnings
    import poolkit

    kept = {}
    variable = contextvars.ContextVar("variable", default="unset")

    def current_loop():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return type(asyncio.get_event_loop()).__name__
            except RuntimeError as error:
                return str(error)

    async def is_same_loop():
        assert poolkit.current_task() is not None
        assert asyncio.get_event_loop() is asyncio.get_running_loop()
        return kept.setdefault("loop", asyncio.get_running_loop()) is asyncio.get_running_loop()

    async def contend():
        # a lock that was waited for belongs to its loop
        lock = kept.setdefault("lock", asyncio.Lock())
        async def hold():
            async with lock:
                await asyncio.sleep(0.001)
        await asyncio.gather(hold(), hold())

    async def leave_running():
        async def other():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.001)
                kept["left"] = "cancelled, and waited for"
        kept["other"] = asyncio.ensure_future(other())
        await asyncio.sleep(0)

    def left():
        return kept["left"], kept["other"].cancelled()

    async def leave_what_fails():
        async def other():
            try:
                await asyncio.sleep(60)
            finally:
                raise KeyError("left")
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: kept.update(told=told))
        kept["other"] = asyncio.ensure_future(other())
        await asyncio.sleep(0)

    def told():
        return repr(kept["told"]["exception"])

    async def generate():
        try:
            yield 1
        finally:
            await asyncio.sleep(0.001)
            print("generator finalised", flush=True)

    async def begin_to_generate():
        kept["generator"] = generate()
        return await kept["generator"].__anext__()

    def watch_the_end():
        import atexit
        atexit.register(lambda: print("loop closed:", kept["loop"].is_closed(), flush=True))

    async def stop():
        asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

    async def close_all():
        raise {"exit": SystemExit(3), "ctrl-c": KeyboardInterrupt(), "fail": ValueError("v")}[variable.get()]

    def value_of_variable():
        return variable.get()

    async def raise_as(how):
        variable.set(how)
        await close_all()

    async def sleep_long(entered, path):
        try:
            with open(entered, "w"):
                pass
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.001)
            with open(path, "w") as file:
                file.write("cleaned up")

    async def spin(entered):
        open(entered, "w").close()
        while True:
            pass

    async def in_threads():
        from offloaded_here import double
        return await asyncio.to_thread(lambda: double(2).result())

    def in_a_fork():
        pid = os.fork()
        if not pid:
            try:
                from poolkit._child.coroutines import run_coroutine
                os._exit(7 if run_coroutine(double_here(2)) == 4 else 8)
            finally:
                os._exit(9)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def double_here(x):
        await asyncio.sleep(0)
        return 2 * x
"""

OFFLOADED = """
    import asyncio
    import poolkit

    @poolkit.offload
    async def double(x):
        await asyncio.sleep(0)
        return 2 * x
"""


def run_with(folder: Path, source: str, kind: str = "process") -> list[str]:
    (folder / "coroutines_here.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    (folder / "offloaded_here.py").write_text(textwrap.dedent(OFFLOADED), encoding="utf-8")
    begin = "import sys\nsys.path.insert(0, sys.argv[2])\nimport asyncio, os, time\nimport poolkit\n"
    begin += "from poolkit.testing import FakePool\nimport coroutines_here as here\n"
    begin += "KIND = sys.argv[1]\nmake = FakePool if KIND == 'fake' else lambda *a: poolkit.Pool(*a, kind=KIND)\n"
    return run(begin + textwrap.dedent(source), kind, str(folder))


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_plain_task_after_one_is_as_before_it(tmp_path: Path, kind: str) -> None:
    source = """
        with make(1) as pool:
            before = pool.submit(here.current_loop).result()
            [pool.submit(each).result() for each in (here.is_same_loop, here.contend, here.leave_running)]
            after = pool.submit(here.current_loop).result()
            print(before == after or (before, after))
    """
    assert run_with(tmp_path, source, kind) == ["True"]


def test_a_plain_task_after_one_is_as_before_it_where_it_never_asked_before(tmp_path: Path) -> None:
    source = """
        with make(1) as pool, make(1) as other:
            pool.submit(here.is_same_loop).result()
            after, never = pool.submit(here.current_loop).result(), other.submit(here.current_loop).result()
            print(after == never or (never, after))
    """
    assert run_with(tmp_path, source) == ["True"]


@pytest.mark.parametrize("kind", ["process", "thread", "fake"])
def test_what_belongs_to_the_loop_can_be_kept_between_tasks(tmp_path: Path, kind: str) -> None:
    source = """
        with make() if KIND == "fake" else make(1) as pool:
            print([pool.submit(here.is_same_loop).result() for _ in range(3)])
            print([pool.submit(here.contend).result() for _ in range(2)])
    """
    assert run_with(tmp_path, source, kind) == ["[True, True, True]", "[None, None]"]


@pytest.mark.parametrize("kind", ["process", "thread", "fake"])
def test_what_a_coroutine_leaves_running_ends_with_its_task(tmp_path: Path, kind: str) -> None:
    source = """
        with make() if KIND == "fake" else make(1) as pool:
            pool.submit(here.leave_running).result()
            print(*pool.submit(here.left).result())
            pool.submit(here.leave_what_fails).result()
            print(pool.submit(here.told).result())
    """
    assert run_with(tmp_path, source, kind) == ["cancelled, and waited for True", "KeyError('left')"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_generators_are_finalised_and_the_loop_is_closed_when_the_worker_leaves(tmp_path: Path, kind: str) -> None:
    source = """
        with make(1) as pool:
            pool.submit(here.is_same_loop).result()
            print(pool.submit(here.begin_to_generate).result(), flush=True)
            pool.submit(here.watch_the_end).result()
    """
    assert run_with(tmp_path, source, kind) == ["1", "generator finalised", "loop closed: True"]


@pytest.mark.parametrize("kind", ["process", "thread", "fake"])
def test_the_loop_survives_what_coroutines_do_to_it(tmp_path: Path, kind: str) -> None:
    source = """
        with make() if KIND == "fake" else make(1) as pool:
            print(type(pool.submit(here.stop).exception()).__name__)
            for how in ("exit", "ctrl-c", "fail"):
                print(repr(pool.submit(here.raise_as, how).exception()))
            print(pool.submit(here.is_same_loop).result(), pool.submit(here.double_here, 2).result())
            print(pool.submit(here.value_of_variable).result())
    """
    errors = ["RuntimeError", "SystemExit(3)", "KeyboardInterrupt()", "ValueError('v')"]
    assert run_with(tmp_path, source, kind) == [*errors, "True 4", "unset"]


@pytest.mark.parametrize("call", ["sleep_long", "spin"])
def test_a_coroutine_on_a_thread_is_stopped_and_cleans_up(tmp_path: Path, call: str) -> None:
    source = f"""
        entered, cleaned = os.path.join(sys.argv[2], "entered"), os.path.join(sys.argv[2], "cleaned")
        with make(1) as pool:
            args = (entered, cleaned) if {call!r} == "sleep_long" else (entered,)
            task = pool.submit(here.{call}, *args)
            while not os.path.exists(entered):
                time.sleep(0.001)
            time.sleep(0.05)
            print(task.cancel())
            print(pool.submit(here.double_here, 2).result())
        print(pool.stats().abandoned, {call!r} == "spin" or open(cleaned).read())
    """
    expected = ["True", "4", "0 cleaned up" if call == "sleep_long" else "0 True"]
    assert run_with(tmp_path, source, "thread") == expected


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_other_threads_and_forks_of_a_task_have_loops_of_their_own(tmp_path: Path, kind: str) -> None:
    source = """
        with make(1) as pool:
            print(pool.submit(here.in_threads).result(), end=" ")
            print(pool.submit(here.is_same_loop).result(), end=" ")
            print(KIND == "thread" or pool.submit(here.in_a_fork).result())
    """
    assert run_with(tmp_path, source, kind) == ["4 True 7" if kind == "process" else "4 True True"]


def test_a_pool_forked_from_a_worker_leaves_its_loop_alone(tmp_path: Path) -> None:
    source = """
        def nested():
            with poolkit.Pool(1, start_method="fork") as pool:
                assert pool.submit(here.double_here, 2).result() == 4

        with make(1) as pool:
            for _ in range(2):
                print(pool.submit(here.is_same_loop).result())
                pool.submit(nested).result()
            print(pool.submit(here.contend).exception())
    """
    assert run_with(tmp_path, source) == ["True", "True", "None"]
