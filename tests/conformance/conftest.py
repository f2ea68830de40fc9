"""One suite, every kind of worker, and the fake: what differs between them are capabilities, asked for by name.

`@pytest.mark.needs("crash")` leaves a test out where that capability is missing; nothing asks for a kind by name.
`@pytest.mark.one_start_method` runs a test with the default start method only: what it looks at is the owner's side.
`@pytest.mark.each_start_method` always runs it with each one; of all others a part, by turns, has the other two.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import support_clusters
import support_functions as work
from poolkit import Cluster, Pool, Task, Worker
from poolkit.testing import FakePool
from support import WATCHDOG
from support_gates import Gate

REASONS = {
    "unattended": "it runs nothing unless somebody drives it or waits in a thread",
    "background": "a task runs in the caller's thread, so it cannot be waited for while it runs",
    "by_reference": "calls and outcomes are pickled",
    "by_value": "calls and outcomes are not pickled",
    "crash": "what a task does to its process is done to the test's own",
    "forks": "its workers are not forked from a process that is warm",
    "inherits": "its workers do not have the owner's memory",
    "kill_running": "a task that really runs cannot be stopped",
    "process": "its workers are not processes",
    "real_time": "its clock stands still",
    "shared_here": "its workers are on other machines, which have no memory, lock or descriptor of this one",
    "recall": "what was sent to another machine is not taken back",
    "streams": "there are none from other machines",
    "mail": "no message is sent to a task on another machine",
    "here": "its workers are no processes of this machine",
    "programs": "programs are run on one machine",
    "grows": "it has no more workers than its nodes",
    "at_once": "progress of what runs on another machine is told now and then",
}
_ANYWHERE = {"unattended", "background", "by_value", "crash", "kill_running", "process", "real_time"}
_HERE = {"shared_here", "recall", "streams", "mail", "here", "programs", "grows", "at_once"}
_PROCESS = _ANYWHERE | _HERE


@dataclass(frozen=True)
class Kind:
    """A kind of worker: how to make a pool of it, and what it can do."""

    name: str
    make: Callable[..., Pool]
    settings: dict[str, Any]
    capabilities: frozenset[str]

    def can(self, capability: str) -> bool:
        return capability in self.capabilities


def _kind(name: str, make: Callable[..., Pool], settings: dict[str, Any], *capabilities: str) -> Kind:
    return Kind(name, make, settings, frozenset(capabilities))


def _on_local_nodes(max_workers: int = 1, **settings: Any) -> Pool:
    """A pool on one node, which is a process of this machine."""
    from poolkit._nodes.provider_local import LocalProvider
    from poolkit.nodes import NodePool

    return NodePool(LocalProvider(1, max_workers), max_workers=max_workers, **settings)


FORKSERVER = _kind("forkserver", Pool, {}, *_PROCESS, "forks")
SPAWN = _kind("spawn", Pool, {"start_method": "spawn"}, *_PROCESS)
FORK = _kind("fork", Pool, {"start_method": "fork"}, *_PROCESS, "forks", "inherits")
THREAD = _kind(
    "thread",
    Pool,
    {"kind": "thread"},
    *("unattended", "background", "by_reference", "kill_running", "real_time"),
    *_HERE,
)
FAKE = _kind("fake", FakePool, {}, "unattended", "by_value", *_HERE)
MANUAL = _kind("manual", FakePool, {"mode": "manual"}, "by_value", *_HERE)
LOCAL_NODES = _kind("local-nodes", _on_local_nodes, {}, *_ANYWHERE)
ON_NODES = {"local-nodes": LOCAL_NODES}

ALL = [FORKSERVER, SPAWN, FORK, THREAD, FAKE, MANUAL]
ONE_START_METHOD = [FORKSERVER, THREAD, FAKE, MANUAL]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kinds", default="", help="kinds of workers on other machines to test instead of all others")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): only for kinds of worker that can do this")
    config.addinivalue_line("markers", "one_start_method: the start method of processes makes no difference")
    config.addinivalue_line("markers", "each_start_method: the start method of processes may make a difference")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" not in metafunc.fixturenames:
        return
    kinds = ONE_START_METHOD if metafunc.definition.get_closest_marker("one_start_method") else ALL
    # An interpreter is started for each worker, which alone takes nearly a quarter of a second.
    marks = {"spawn": [pytest.mark.slow], "fork": []}
    if not metafunc.definition.get_closest_marker("each_start_method"):
        marks["spawn"].append(pytest.mark.every_nth(5))
        marks["fork"].append(pytest.mark.every_nth(3))
    if names := metafunc.config.getoption("--kinds"):
        kinds = [ON_NODES[name] for name in names.split(",")]
    params = [pytest.param(kind, id=kind.name, marks=marks.get(kind.name, [])) for kind in kinds]
    metafunc.parametrize("kind", params, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of worker that the test is about."""
    found: Kind = request.param
    for marker in request.node.iter_markers("needs"):
        for capability in marker.args:
            if not found.can(capability):
                pytest.skip(f"needs {capability}: {REASONS[capability]}")
    return found


MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool(kind: Kind) -> Iterator[MakePool]:
    """Make pools of the kind, with one worker unless asked for more; what is left of them is killed after the test."""
    pools: list[Pool] = []

    def make(max_workers: int = 1, **settings: Any) -> Pool:
        pools.append(kind.make(max_workers=max_workers, **kind.settings, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(kill=True)
    pools.clear()


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    """A pool with one worker."""
    return make_pool()


MakeWorker = Callable[..., Worker[Any]]


@pytest.fixture
def make_worker(kind: Kind) -> Iterator[MakeWorker]:
    """Make dedicated workers of the kind; what is left of them is terminated after the test."""
    workers: list[Worker[Any]] = []

    def make(target: Any, *args: Any, hosting: bool = False, **settings: Any) -> Worker[Any]:
        make_one = Worker.hosting if hosting else Worker
        workers.append(make_one(target, *args, **kind.settings, **settings))
        return workers[-1]

    yield make
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.join(WATCHDOG)
    workers.clear()


class Held:
    """A task that runs and is held until the test lets it go."""

    def __init__(self, task: Task[Any], gate: Gate) -> None:
        self.task = task
        self._gate = gate

    def release(self) -> None:
        self._gate.signal()


Hold = Callable[..., Held]


@pytest.fixture
def hold(new_gate: Callable[[], Gate]) -> Hold:
    """Occupy one worker of a pool: returns when the task runs there."""

    def occupy(pool: Any, value: Any = None) -> Held:
        arrived, release = new_gate(), new_gate()
        task = pool.submit(work.arrive_and_wait, arrived, release, value)
        arrived.wait()
        return Held(task, release)

    return occupy


SendAhead = Callable[..., Held]


@pytest.fixture
def send_ahead(hold: Hold, new_gate: Callable[[], Gate]) -> SendAhead:
    """Hold a worker by a task, with other tasks sent to that worker behind it, where the kind sends ahead at all.

    `submit_more(view)` submits the others; the view gives all of them one name, by which they are known to be quick.
    """

    def arrange(pool: Pool, submit_more: Callable[[Any], object]) -> Held:
        quick = pool.options(name="quick")
        for _ in range(20):
            quick.submit(work.none_of_it).result()
        first = hold(pool)
        arrived, release = new_gate(), new_gate()
        task = quick.submit(work.arrive_and_wait, arrived, release)
        submit_more(quick)
        first.release()
        arrived.wait()
        return Held(task, release)

    return arrange


class Recorder:
    """Collects what callbacks and listeners are called with."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []

    def __call__(self, item: Any = None) -> None:
        self.threads.append(threading.current_thread())
        self._queue.put(item)

    def next(self) -> Any:
        return self._queue.get(timeout=WATCHDOG)

    def is_empty(self) -> bool:
        return self._queue.empty()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """Make clusters, which are not started; all are killed after the test."""
    clusters: list[Cluster] = []

    def make(
        target: Any = support_clusters.talk, workers: int = 2, bind: Any = support_clusters.LOCAL, **settings: Any
    ) -> Cluster:
        clusters.append(Cluster(target, workers, bind, **{"grace": WATCHDOG, **settings}))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.stop(WATCHDOG, kill=True)
    clusters.clear()
