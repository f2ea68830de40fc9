"""Nodes: a pool whose workers are on several machines, whatever those come from; see `poolkit/dask.py`.

The scheduler is the pool's own, in this process; each node has a pool of its own, which keeps the limits. A provider
places, connects and scales the nodes (`_nodes/interfaces.py`).
Owner: whoever made the pool ends it, by `with` or `shutdown`. Every method is thread-safe.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import logging
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._core.scheduler import OPEN
from poolkit._core.stats import PoolStats, WorkerInfo
from poolkit._engine.log_records import Records
from poolkit._engine.supervisor import Supervisor
from poolkit._kinds.loggers import log, log_levels
from poolkit._kinds.settings import PoolSettings, check_limits
from poolkit._locks import RLock
from poolkit._nodes.interfaces import WIRE, AgentSettings, NodeProvider
from poolkit._nodes.slots import Node
from poolkit._nodes.workforce import NodeWorkforce
from poolkit._wire import inherit
from poolkit._wire.buffers import Found
from poolkit._wire.habits import of_process, of_thread
from poolkit._wire.modules import add_by_value
from poolkit._wire.plans import Sent, describe
from poolkit.broadcast import Shared, broadcast
from poolkit.errors import InitializerFailed, NoNodes, PoolClosed, PoolkitError, SerializationError, VersionMismatch
from poolkit.pool import Pool

if TYPE_CHECKING:
    from poolkit.command import Command

T = TypeVar("T")

_numbers = itertools.count(1)
AGAIN = 2.0  # seconds after which nodes are asked for again, or given back, where there are others than are needed
_NODE_EVENTS = ("node_joined", "node_left")
MOST_REFUSED = 5  # whose reasons are told in one error


@dataclasses.dataclass(frozen=True)
class NodeInfo:
    """One node at one moment.

    Attributes:
        address, host, pid: where it is, and its process there.
        state: "up", "leaving" or "lost".
        workers: how many it has; running: of them run a task.
        tasks_done: how many tasks it has finished.
        last_heard: seconds since it said something.
        versions: of Python and of what it speaks.
    """

    address: str
    host: str
    pid: int
    state: str
    workers: int
    running: int
    tasks_done: int
    last_heard: float
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class NodeJoined:
    """A node takes work from now on."""

    node: str
    host: str


@dataclasses.dataclass(frozen=True)
class NodeLeft:
    """A node takes no more work; `reason` is "lost", "retired", "idle" or "refused"."""

    node: str
    host: str
    reason: str


class NodesEngine(Supervisor):
    """Drives a pool on nodes."""

    workforce: NodeWorkforce
    node_timeout = 60.0

    def _settle_in(self) -> None:
        super()._settle_in()
        workforce = self.workforce
        self.records = Records(self.callbacks, self.name, self._publish, workforce.wake, workforce)
        workforce.may_pause = lambda: self._scheduler.phase is OPEN and not self.callbacks.has_waited

    def stats(self) -> PoolStats:
        """The counts, with those of the network."""
        found, (sent, received, messages) = super().stats(), self.workforce.network
        nodes = sum(node.state == "up" for node in self.workforce.nodes())
        return dataclasses.replace(
            found, nodes=nodes, network_bytes_sent=sent, network_bytes_received=received, network_messages=messages
        )

    def begin(self) -> None:
        """Look after the nodes from now on, also while there are no tasks."""
        self._start_thread()

    def dismiss(self, worker_ids: Collection[int]) -> None:
        """Have these be sent nothing more, and leave when they have nothing to do."""
        self._decide(lambda now: self._scheduler.dismiss(worker_ids, now))

    def unsettled(self) -> int:
        """How many tasks were accepted and are not settled."""
        return self._scheduler.unsettled + len(self._posted_tasks)

    def workers(self) -> list[WorkerInfo]:
        """The workers, with their nodes."""
        found = [(info, *self.workforce.place_of(info.id)) for info in super().workers()]
        return [dataclasses.replace(info, node=node, pid=pid) for info, node, pid in found]

    def open_programs(self) -> None:
        """Nothing is needed here: they run on the nodes."""

    def nodeless(self, since: float, why: BaseException | None) -> None:
        """No node has been up since then: what is queued for too long meanwhile fails."""

        def make_error() -> BaseException:
            error = NoNodes(
                f"pool {self.name}: no node was there for {self.node_timeout:g} s, its node_timeout, while work was "
                "queued; start nodes, or look at what those that were refused have said"
            )
            error.__cause__ = why
            return error

        before = self.clock() - self.node_timeout
        if since <= before and any(task.submitted_at <= before for task in self._scheduler.unsettled_tasks()):
            self._decide(lambda now: self._scheduler.fail_unbegun(make_error, now))


class NodePool(Pool):
    """A pool on the nodes of a provider; see `poolkit.dask.DaskPool`, whose arguments are explained there."""

    _kind = "nodes"

    def __init__(  # noqa: PLR0913 -- the contract
        self,
        provider: NodeProvider,
        *,
        workers_per_node: int | None = None,
        max_workers: int | None = None,
        min_nodes: int = 1,
        max_nodes: int | None = None,
        node_timeout: float = 60.0,
        lease: float = 30.0,
        by_value: Sequence[str | ModuleType] = (),
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        shm_threshold: int | None = 64 * 1024,
        name: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        max_queue: int | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        """Make a pool, and wait until `min_nodes` are up; blocks for at most `node_timeout` seconds.

        Raises:
            TypeError, ValueError: an argument has no sense.
            SerializationError: the initializer or its arguments cannot be sent to another machine.
            NoNodes: too few came up in time; what those said that were refused is its cause.
        """
        checked = PoolSettings(1, "process", None, initializer, initargs, preload, env, shm_threshold)
        self._size = checks.whole_or_none("max_workers", max_workers)
        workers = checks.whole_or_none("workers_per_node", workers_per_node)
        min_nodes = checks.whole("min_nodes", min_nodes)
        limits = check_limits(
            self._size or 1,
            max_queue=max_queue,
            max_tasks_per_child=max_tasks_per_child,
            max_memory_per_child=max_memory_per_child,
            min_workers=None,
            idle_timeout=None,
        )
        most, idle = checks.whole_or_none("max_nodes", max_nodes), checks.seconds("idle_timeout", idle_timeout)
        if most is not None and most < min_nodes:
            msg = f"max_nodes must be at least min_nodes ({min_nodes}), was {most}"
            raise ValueError(msg)
        node_timeout, lease = (
            checks.seconds(*each) or 86400.0 for each in (("node_timeout", node_timeout), ("lease", lease))
        )
        if isinstance(by_value, str) or not all(isinstance(each, (str, ModuleType)) for each in by_value):
            msg = f"by_value is a sequence of modules or their names, was given {by_value!r}"
            raise TypeError(msg)
        for module in by_value:
            add_by_value(module if isinstance(module, str) else module.__name__)
        self._options = CallOptions().changed(timeout=timeout, retries=retries)
        self._max_workers = self._size or 1
        self.name = checks.text_or_none("name", name) or f"{self._kind}-{next(_numbers)}"
        self._listeners: dict[str, list[Callable[[Any], object]]] = {each: [] for each in _NODE_EVENTS}
        self._refused: dict[str, PoolkitError] = {}  # by address
        self._changed = threading.Condition()
        self._seen = 0  # nodes that came up
        settings = AgentSettings(
            f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}",
            self.name,
            workers,
            lease,
            WIRE,
            _python(),
            _content(checked, max_tasks_per_child, max_memory_per_child),
        )
        lock, threshold = RLock(), float("inf") if shm_threshold is None else shm_threshold
        workforce = NodeWorkforce(lock, provider, lease=lease, shm_threshold=threshold)
        engine = self._supervisor = NodesEngine(lock, workforce, limits, name=self.name)
        self._nodes, self._engine = workforce, engine
        engine.node_timeout = node_timeout
        workforce.post_all, workforce.leave = engine.post_all, engine.leave
        workforce.log_now, workforce.warn = engine.records.add, engine.warn
        workforce.changed = self._node_changed
        workforce.looked, workforce.resized, workforce.dismiss = self._look, self._resized, engine.dismiss
        self._provider, self._most, self._least = provider, most, min_nodes
        self._idle = 10.0 if idle is None else idle
        self._wanted, self._wanted_since = min_nodes, engine.clock()
        self._asked = self._wanted_since
        try:
            engine.begin()
            provider.begin(settings, workforce.joined, self._node_refused, workforce.leaving)
            if most is not None:
                provider.want(min_nodes, fewer=False)
            self._wait_for_nodes(min_nodes, node_timeout)
        except BaseException:
            self.shutdown(kill=True)
            raise

    def _wait_for_nodes(self, count: int, seconds: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._nodes.nodes()) >= count, seconds):
                up = len(self._nodes.nodes())
                msg = f"pool {self.name}: {up} of {count} nodes are up after {seconds:g} s, its node_timeout"
                raise NoNodes(msg) from self._why_refused()

    # ===== nodes =====

    def nodes(self) -> list[NodeInfo]:
        """What each node is doing now. Thread-safe; does not block."""
        now = self._supervisor.clock()
        return [
            NodeInfo(
                address=node.facts.address,
                host=node.facts.host,
                pid=node.facts.pid,
                state=node.state,
                workers=node.facts.workers,
                running=sum(slot.task is not None for slot in list(node.slots.values())),
                tasks_done=node.tasks_done,
                last_heard=max(0.0, now - node.heard),
                versions=node.facts.versions,
            )
            for node in self._nodes.nodes()
        ]

    def _node_changed(self, node: Node, reason: str) -> None:
        facts = node.facts
        if reason:
            log.info("pool %s: node %s has left: %s", self.name, facts.address, reason)
            why = reason if reason == "retired" else "lost"
            if why == "retired" and self._most is not None and len(self._nodes.nodes()) >= self._wanted:
                why = "idle"  # as it was given back
            event: Any = NodeLeft(facts.address, facts.host, why)
        else:
            self._resized()
            self._refused.pop(facts.address, None)  # it could not be reached before
            event = NodeJoined(facts.address, facts.host)
        self._tell("node_left" if reason else "node_joined", event)
        with self._changed:
            self._changed.notify_all()

    def _look(self) -> None:
        """Fail what no node has come for, and ask for nodes, or give some back. On the supervisor thread."""
        engine, now = self._engine, self._engine.clock()
        if (since := self._nodes.nodeless_since) is not None:
            engine.nodeless(since, self._why_refused())
        if self._most is None or not engine.is_open():
            return
        nodes = [node for node in self._nodes.nodes() if node.state == "up"]
        of_one = max(1, sum(node.facts.workers for node in nodes) // max(1, len(nodes)))
        needed = min(self._most, max(self._least, -(-engine.unsettled() // of_one)))
        fewer = needed < max(self._wanted, len(nodes))
        if fewer and now < self._wanted_since + self._idle:
            return
        if needed != self._wanted or (len(nodes) != needed and now >= self._asked + AGAIN):
            self._wanted, self._asked = needed, now
            self._provider.want(needed, fewer=fewer)
        self._wanted_since = now

    def _node_refused(self, address: str, why: str, versions: Mapping[str, str] | None) -> None:
        text = f"node {address} is not used: {why}"
        error = PoolkitError(text)
        if versions is not None:
            here, there = (_said({"python": _python(), "wire": WIRE}), _said(versions))
            text += f"it has {there}, and this process {here}; install the same there"
            error = VersionMismatch(text, node=address, here=here, there=there)
        self._refused[address] = error
        log.warning("pool %s: %s", self.name, text)
        self._tell("node_left", NodeLeft(address, "", "refused"))

    def _why_refused(self) -> PoolkitError | None:
        """What those said that are refused, as one error: a `VersionMismatch` if one of them has other versions."""
        errors = sorted(self._refused.values(), key=lambda error: not isinstance(error, VersionMismatch))
        if not errors:
            return None
        texts = [*map(str, errors[:MOST_REFUSED]), f"and {len(errors) - MOST_REFUSED} more"]
        why = copy.copy(errors[0])
        why.args = ("\n".join(texts[: len(errors)]),)
        return why

    def _tell(self, name: str, event: object) -> None:
        callbacks = self._engine.callbacks
        callbacks.queue.extend((callback, event) for callback in self._listeners[name])
        if self._listeners[name] and not callbacks.thread.wake():
            self._nodes.wake()

    def on(self, event: str, callback: Callable[[Any], object]) -> None:
        """Do as `Pool.on`, for "node_joined" and "node_left" too: those get a `NodeJoined` or `NodeLeft`."""
        if event in _NODE_EVENTS:
            self._listeners[event].append(callback)
        else:
            super().on(event, callback)

    def off(self, event: str, callback: Callable[[Any], object]) -> None:
        """Undo one `on`."""
        if event in _NODE_EVENTS:
            self._listeners[event].remove(callback)
        else:
            super().off(event, callback)

    # ===== what is different =====

    def broadcast(self, obj: T) -> Shared[T]:
        """Pack `obj` once, for many calls; each node gets it once, when a call there first needs it.

        Raises: as `Pool.broadcast`.
        """
        handle: Shared[T] = broadcast(obj)
        memory = handle._memory  # noqa: SLF001 -- its other half
        if handle._inner:  # noqa: SLF001 -- see above
            msg = "cannot broadcast shared memory to other machines: broadcast the array itself"
            raise SerializationError(msg)
        if memory is not None:
            self._nodes.broadcast(memory)
        return handle

    def _as_sent(self, command: Command[Any], argv: Any, options: dict[str, Any]) -> Command[Any]:
        from poolkit._node_command import NodeCommand  # noqa: PLC0415 -- only for those who run programs

        return NodeCommand(self._engine, command, argv, options)

    def resize(self, max_workers: int) -> None:
        """Change how many workers there may be, over all nodes."""
        self._size = checks.whole("max_workers", max_workers)
        self._fit()

    def _fit(self) -> None:
        """Have as many slots as there are places, and no more than there may be."""
        places = max(1, self._nodes.places())
        self._max_workers = places if self._size is None else self._size
        spare = self._nodes.places(spare=True) - places if self._size is None else 0
        self._supervisor.resize(min(places, self._max_workers) + max(0, spare))

    def _resized(self) -> None:
        """There are more nodes, or fewer, or they have other counts of spare slots."""
        with contextlib.suppress(PoolClosed, InitializerFailed):
            self._fit()

    def stacks(self, timeout: float = 0.5) -> NoReturn:
        """Refuse: the stacks are on other machines."""
        del timeout
        msg = "stacks() is for pools on one machine; this version has it not on nodes"
        raise RuntimeError(msg)


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _said(versions: Mapping[str, object]) -> str:
    return f"Python {versions['python']}, wire {versions['wire']}"


def _content(settings: PoolSettings, max_tasks: int | None, max_memory: int | None) -> bytes:
    """What the pool of a node is made from. Raises SerializationError."""
    packed = None
    if settings.initializer is not None:
        data, _, manifest = inherit.pack_initializer(settings.initializer, settings.initargs, found=(found := Found()))
        if found.memories:
            msg = "initargs have shared memory or a descriptor in them, which stay on their machine"
            raise SerializationError(msg)
        payload, regions = Sent().lacking(manifest) if manifest is not None else (None, [])
        packed = data, payload, [(region.id, bytes(region.mapping())) for region in regions]
    return pickle.dumps(
        {
            "initializer": packed,
            "preload": settings.preload,
            "env": dict(settings.env),
            "shm_threshold": settings.shm_threshold,
            "max_tasks_per_child": max_tasks,
            "max_memory_per_child": max_memory,
            "given": {
                "main": describe("__main__"),
                "argv": list(sys.argv),
                "habits": {**of_process(), **of_thread()},
                "log_levels": log_levels(),
                "log_disabled": logging.root.manager.disable,
            },
        }
    )
