"""Plugin: poolkit's fixtures for pytest, loaded by the package's entry point.

    fake_pool      an eager fake pool       manual_pool    a manual one; both are the default pools meanwhile
    process_pool   a small real pool, whose test fails if it leaves something behind
    cluster_factory  what makes real clusters, whose test fails if they leave something behind
    poolkit_leaks  a check around the test for threads, processes, descriptors and shared memory left behind

`@pytest.mark.poolkit(max_workers=4, ...)` sets what the pool is made with. A failed test shows the timeline of its fake
pools. Imports nothing of poolkit before a test asks for it: pytest, 7 or later, loads this in every project.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from poolkit import Cluster, Pool
    from poolkit.testing import FakePool

_FAKES = pytest.StashKey[list["FakePool"]]()
_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "poolkit(**options): what the pool of a fixture is made with")


@pytest.fixture
def fake_pool(request: pytest.FixtureRequest) -> Iterator[FakePool]:
    """A fake pool that runs each call at its submission; the default pool of every kind meanwhile."""
    yield from _fake(request, "eager")


@pytest.fixture
def manual_pool(request: pytest.FixtureRequest) -> Iterator[FakePool]:
    """A fake pool that runs nothing until it is told to; the default pool of every kind meanwhile."""
    yield from _fake(request, "manual")


def _fake(request: pytest.FixtureRequest, mode: str) -> Iterator[FakePool]:
    from poolkit.decorator import installed  # noqa: PLC0415 -- see the file's header
    from poolkit.testing import FakePool  # noqa: PLC0415 -- see the file's header

    pool = FakePool(mode, **_options(request))
    request.node.stash.setdefault(_FAKES, []).append(pool)
    try:
        with installed(pool):
            yield pool
    finally:
        pool.end()


@pytest.fixture
def process_pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A real pool of two process workers. What the test leaves running is killed; what it leaves behind fails it."""
    from poolkit import Pool  # noqa: PLC0415 -- see the file's header

    with _leaks(request):
        pool = Pool(**{"max_workers": 2, **_options(request)})
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True, kill=True)
        del pool


@pytest.fixture
def cluster_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """What makes clusters of two workers on a free port, with a grace of two seconds, as far as it is told no other.

    Start them in the test; what it leaves running is killed, and what it leaves behind fails it.
    """
    from poolkit import Cluster  # noqa: PLC0415 -- see the file's header

    made: list[Cluster] = []

    def make(target: Callable[..., object], workers: int = 2, bind: Any = "127.0.0.1:0", **options: Any) -> Cluster:
        made.append(Cluster(target, workers, bind, **{"grace": 2.0, **options}))
        return made[-1]

    with _leaks(request):
        try:
            yield make
        finally:
            for cluster in made:
                cluster.stop(kill=True)
            made.clear()


@pytest.fixture
def poolkit_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if it leaves a thread, child process, descriptor or shared memory behind."""
    with _leaks(request):
        yield


class _FailedAnywayError(Exception):
    """The test has failed: the traceback of that may hold what would seem to be left behind."""


@contextlib.contextmanager
def _leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    from poolkit.testing import leaks  # noqa: PLC0415 -- see the file's header

    with contextlib.suppress(_FailedAnywayError), leaks():
        yield
        if request.node.stash.get(_FAILED, False):
            raise _FailedAnywayError


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the markers say; the closest one has the last word."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("poolkit"))):
        if marker.args:
            msg = f"the marker poolkit takes its options by name, as in max_workers=4; was given {marker.args!r}"
            raise pytest.UsageError(msg)
        options.update(marker.kwargs)
    return options


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Show what happened in the fake pools of a failed test."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when != "teardown":
        item.stash[_FAILED] = True
        for pool in item.stash.get(_FAKES, []):
            report.sections.append((f"timeline of the fake pool {pool.name!r}", pool.timeline()))
