"""The pytest plugin in the suite of a project that uses poolkit."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

SERVICE = """
import poolkit


@poolkit.offload(timeout=5, retries=1)
def resize(name, width):
    return f"{name} at {width}"


@poolkit.offload(kind="thread")
def fetch(name):
    return f"bytes of {name}"


def thumbnails(names):
    tasks = [resize(name, 200) for name in names]
    return [task.result() for task in tasks]
"""
Run = Callable[..., pytest.RunResult]
INSTALLED = any(point.value == "poolkit.testing.plugin" for point in importlib.metadata.entry_points(group="pytest11"))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a suite in a process of its own: (text of its test file, options) -> the result."""
    pytester.makepyfile(service=SERVICE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")

    def run_suite(text: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_service=text)
        loaded = () if INSTALLED else ("-p", "poolkit.testing.plugin")
        slow = ("hypothesispytest", "cacheprovider", *(() if "-n" in options else ("asyncio",)))  # to import, each time
        return pytester.runpytest_subprocess(*[f"-pno:{name}" for name in slow], *loaded, *options)

    return run_suite


def test_the_package_has_the_entry_point() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\npoolkit = "poolkit.testing.plugin"\n' in text


@pytest.mark.long
def test_offloaded_calls_land_in_the_fake_pools(run: Run) -> None:
    result = run(
        """
        import threading

        import service


        def test_eager(fake_pool):
            assert service.thumbnails(["a", "b"]) == ["a at 200", "b at 200"]
            fake_pool.assert_called(service.resize, "a", 200)


        def test_other_kinds_and_threads(fake_pool):
            assert service.fetch("a").result() == "bytes of a"
            assert fake_pool.calls[0].fn.__name__ == "fetch"


        def test_manual(manual_pool):
            task = service.resize("a", 200)
            assert not task.done()
            manual_pool.when(service.resize).crashes().then.takes(1).runs()
            manual_pool.run_all()
            assert task.result() == "a at 200"
            assert task.attempts == 2


        def test_the_default_pools_are_back_afterwards():
            import poolkit.decorator

            assert poolkit.decorator._defaults == {}
        """
    )
    result.assert_outcomes(passed=4)


@pytest.mark.long
def test_the_marker_sets_what_the_pool_is_made_with(run: Run) -> None:
    result = run(
        """
        import pytest

        pytestmark = pytest.mark.poolkit(max_workers=3, timeout=7)


        @pytest.mark.poolkit(max_workers=4)
        def test_fake(fake_pool):
            assert fake_pool.max_workers == 4
            assert fake_pool.submit(len, "a").options.timeout == 7


        def test_manual(manual_pool):
            assert manual_pool.max_workers == 3


        @pytest.mark.poolkit(max_workers=1)
        def test_real(process_pool):
            assert process_pool.max_workers == 1
            assert process_pool.submit(len, "abc").result() == 3


        @pytest.mark.poolkit(4)
        def test_wrong(fake_pool):
            pass
        """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*the marker poolkit takes its options by name*"])


@pytest.mark.long
def test_a_failed_test_shows_the_timeline(run: Run) -> None:
    result = run(
        """
        import service


        def test_it(fake_pool):
            fake_pool.when(service.resize).crashes("SIGSEGV")
            assert service.thumbnails(["a"]) == []
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*timeline of the fake pool 'fake'*",
            "*0.000  task 1 (resize) submitted: resize('a', 200)",
            "*0.000  worker 1 dies: SIGSEGV",
            "*  task 1 (resize) failed: WorkerCrashed: *SIGSEGV*",
        ]
    )


@pytest.mark.long
def test_real_pools_fail_a_test_that_leaves_something_behind(run: Run) -> None:
    result = run(
        """
        import os
        import threading


        def test_clean(process_pool):
            assert process_pool.submit(os.getpid).result() != os.getpid()


        def test_busy(process_pool):
            process_pool.submit(os.read, os.pipe()[0], 1)


        def test_leaky(poolkit_leaks):
            threading.Thread(target=threading.Event().wait, name="left-over", daemon=True).start()


        def test_that_fails_is_told_once(process_pool, poolkit_leaks):
            reader, writer = os.pipe()
            assert reader == writer
        """
    )
    result.assert_outcomes(passed=3, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*left behind:", "*descriptor*pipe*", "*thread left-over*"])


def test_no_real_pool_takes_the_place_of_a_fake_that_was_shut_down(run: Run) -> None:
    result = run(
        """
        import poolkit
        import pytest
        import service


        def test_it(fake_pool):
            poolkit.default_pool().shutdown()
            with pytest.raises(poolkit.PoolClosed):
                service.resize("a", 200)


        @pytest.fixture
        def broken(fake_pool):
            service.thumbnails(["a"])
            raise LookupError


        def test_the_timeline_of_a_fixture_that_failed(broken):
            pass
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*timeline of the fake pool 'fake'*"])


@pytest.mark.long
def test_with_xdist_and_asyncio(run: Run) -> None:
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_asyncio")
    result = run(
        """
        import asyncio

        import pytest
        import service


        @pytest.mark.asyncio
        @pytest.mark.parametrize("number", range(4))
        async def test_eager(fake_pool, number):
            assert await service.resize("a", number) == f"a at {number}"


        @pytest.mark.asyncio
        async def test_manual(manual_pool):
            waiting = asyncio.ensure_future(asyncio.wait_for(service.resize("a", 1), 60))
            await asyncio.sleep(0)
            assert len(manual_pool.pending) == 1
            manual_pool.run_all()
            assert await waiting == "a at 1"


        @pytest.mark.asyncio
        async def test_real(process_pool):
            assert await process_pool.submit(len, "abc") == 3
        """,
        "-n",
        "2",
        "-p",
        "xdist",
    )
    result.assert_outcomes(passed=6)


def test_it_costs_next_to_nothing_where_it_is_not_used() -> None:
    code = "import pytest, sys; old = set(sys.modules); import poolkit.testing.plugin; print(*set(sys.modules) - old)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"poolkit", "poolkit.testing", "poolkit.testing.plugin"}


@pytest.mark.long
def test_a_thousand_tests_with_a_fake_pool(run: Run) -> None:
    """How long that takes is measured by the benchmarks; here it is that they pass."""
    result = run(
        """
        import pytest
        import service


        @pytest.mark.parametrize("number", range(1000))
        def test_it(fake_pool, number):
            assert service.resize("a", number).result() == f"a at {number}"
        """,
        "-q",
    )
    result.assert_outcomes(passed=1000)


def test_the_tutorial_of_testing_is_a_suite_that_passes(run: Run, pytester: pytest.Pytester) -> None:
    page = (Path(__file__).parents[2] / "docs/testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\w+)\.py.*\n((?:.|\n)*?)```", page)
    assert len(blocks) == page.count("```python")
    files = {name: "".join(text for other, text in blocks if other == name) for name, _ in blocks}
    assert files.keys() == {"service", "test_service"}
    pytester.makepyfile(service=files["service"])
    result = run(files["test_service"], "--strict-markers")
    result.assert_outcomes(passed=files["test_service"].count("def test_") + 4)
