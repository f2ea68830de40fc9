"""DaskProvider: nodes are dask workers. Dask places, connects and scales them, and tells who comes and goes.

    begin ── own thread, own event loop, own client of that scheduler
      enrol, at first and when the client has connected again: subscribe to the pool's topic ── register the plugin
      `up` of a node ── connect to it ── `joined` ── its channel ends: forgotten
      news of Dask about a node ── `leaving`

The client is its own, made of the address and the security of what was given, so that another loop's stalls and another
owner's `close` are not this pool's; where it has given up a scheduler that was gone for long, another one is made.

Guarantees: `joined` is called once for each life of an agent; after `close` nothing of this pool is on any node that
could be reached. Owner: the thread's event loop; `hold`, `want` and `close` hand over to it.
Used of Dask, and not promised by it: `comm.connect`, `Security.get_connection_args`, `Client.scheduler` and
`scheduler_comm`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import multiprocessing.process
import threading
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import dask
import distributed
from distributed.comm.core import connect
from distributed.deploy.cluster import Cluster

from poolkit._kinds.loggers import log
from poolkit._nodes import dask_node
from poolkit._nodes.dask_comm import CommChannel, first_of
from poolkit._nodes.interfaces import AgentSettings, NodeFacts

AGENT = "poolkit._nodes.agent:Agent"
LOOK = 0.25  # seconds between two looks whether the client has connected again: it has no event for that
MARK = 0.02  # seconds for a subscription to take effect; then twice as long, and so on
CONNECT = 10.0  # seconds for the connection to a node
AT_ONCE = 50  # connections that are made at a time
HELD = 0.2  # seconds for which a node is still held when it is in use no more; short pauses cost Dask nothing
CLOSE = 5.0  # seconds for the plugin to be gone from all nodes, and for the client to close


def _cluster_here() -> distributed.LocalCluster:
    advice = (
        "DaskPool() without a cluster has Dask start a node here, by multiprocessing, which runs the script again in "
        "it: make the pool behind `if __name__ == '__main__':`, or name a cluster"
    )
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):  # such a run
        raise RuntimeError(advice)
    try:
        return distributed.LocalCluster(n_workers=1, dashboard_address=":0", memory_limit=0)
    except RuntimeError as exc:
        raise RuntimeError(f"Dask could not start a node ({exc}); {advice}") from exc


class Node:
    """What is known of one life of an agent, from its `up` until its connection has ended."""

    def __init__(self, facts: NodeFacts, name: Any) -> None:
        self.facts = facts
        self.name = name  # that Dask has for its worker
        self.channel: CommChannel | None = None
        self.leaving = ""  # why, once it is
        self.wanted = False  # to be held
        self.hold: distributed.Future | None = None


class DaskProvider:
    """Nodes on a Dask cluster."""

    def __init__(self, cluster: Any = None, *, timeout: float, agent: str = AGENT) -> None:
        """Find the scheduler.

        Args:
            cluster: None, a scheduler's address, a `Client` or a `Cluster`.
            timeout: seconds, for the first connection to the scheduler, and for work on a node that is retired.
            agent: what nodes make an agent with, "module:name".
        """
        self._cluster: Any = None  # to be scaled
        self._local: Any = None  # a cluster of our own
        if cluster is None:
            with contextlib.suppress(ValueError):
                cluster = distributed.Client.current()
        if cluster is None:
            cluster = dask.config.get("scheduler-address", None)
        self._security: Any = None  # from the configuration
        if cluster is None:
            self._address = ""  # until there is one of our own
        elif isinstance(cluster, str):
            self._address = cluster
        elif isinstance(cluster, distributed.Client):
            if cluster.scheduler is None:
                raise ValueError(f"{cluster!r} is not connected to a scheduler: await it before")
            self._address, self._security = cluster.scheduler.address, cluster.security
        elif isinstance(cluster, Cluster):
            self._take(cluster)
        else:
            raise TypeError(f"cluster is an address, a Client, a Cluster or None, was given {cluster!r}")
        if self._address.startswith("inproc:"):
            raise ValueError(
                f"the dask workers at {self._address} are threads of this process, which cannot be nodes: "
                "start them as processes, LocalCluster(processes=True)"
            )
        self._timeout = timeout
        self._agent = agent
        self._nodes: dict[str, Node] = {}  # by number
        self._told: set[str] = set()  # numbers, and addresses, that were refused
        self._few = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._marks: dict[str, asyncio.Event] = {}
        self._nodes_wanted: int | None = None
        self._scaling: asyncio.Task[None] | None = None
        self._going: set[Any] = set()  # names of dask workers that are given back
        self._changing = asyncio.Lock()  # held while the cluster's plan is changed
        self._begun: Future[None] = Future()
        self._closed = False
        self._thread: threading.Thread | None = None

    def _take(self, cluster: Cluster) -> None:
        self._address, self._security = cluster.scheduler_address, getattr(cluster, "security", None)
        self._cluster = cluster

    # ===== any thread =====

    def begin(
        self,
        settings: AgentSettings,
        joined: Callable[[NodeFacts, CommChannel], object],
        refused: Callable[[str, str, dict[str, str] | None], object],
        leaving: Callable[[str, str], object],
    ) -> None:
        """Connect to the scheduler and have agents on all nodes, now and later. Blocks until connected.

        Raises:
            OSError: there is no scheduler at that address, for `timeout` seconds.
            RuntimeError: no cluster can be made here.
        """
        if not self._address:
            self._local = _cluster_here()
            self._take(self._local)
        self._settings = settings
        self._topic = f"poolkit-{settings.pool}"
        self._joined, self._refused, self._leaving = joined, refused, leaving
        self._thread = threading.Thread(target=self._run, name=f"{settings.name}-dask", daemon=True)
        self._thread.start()
        self._begun.result()

    def hold(self, number: str, wanted: bool) -> None:
        """This node is in use and not to be taken away; or it may be again."""
        self._call(self._hold, number, wanted)

    def want(self, nodes: int, *, fewer: bool = True) -> None:
        """Have so many nodes, where a cluster was given. Those that are held are not given back."""
        if self._cluster is not None:
            self._call(self._want, nodes, fewer)

    def close(self) -> None:
        """End all connections and agents, the client, and the cluster if it is our own. Blocks for a moment."""
        self._closed = True
        self._call(self._stop)
        if self._thread is not None:
            self._thread.join()
        if self._local is not None:
            self._local.close()

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(function, *args)

    # ===== the thread =====

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as exc:
            if self._begun.done():
                log.exception("the connection of pool %s to Dask ends by an error", self._settings.name)
            else:
                self._begun.set_exception(exc)

    def _stop(self) -> None:
        self._closing.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        if self._closed:  # before there was a loop to be told on
            self._closing.set()
        try:
            while not self._closing.is_set():
                try:
                    client = await self._unless_closing(self._connect_client())
                except (OSError, asyncio.TimeoutError):
                    if not self._begun.done():
                        raise
                    log.warning("pool %s: no scheduler at %s; trying again", self._settings.name, self._address)
                    await first_of(self._closing, timeout=1.0)
                    continue
                if client is not None:
                    self._client = client
                    if not self._begun.done():
                        self._begun.set_result(None)
                    await self._watch(client)
        finally:
            await self._end()

    async def _unless_closing(self, what: Coroutine[Any, Any, Any]) -> Any:
        """What that returns; None if this is closed before."""
        task, closing = asyncio.ensure_future(what), asyncio.ensure_future(self._closing.wait())
        await asyncio.wait([task, closing], return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait([task])
        return None

    async def _connect_client(self) -> Any:
        client = distributed.Client(
            self._address,
            asynchronous=True,
            set_as_default=False,
            security=self._security,
            timeout=self._timeout,
            name=self._settings.name,
        )
        try:
            return await client
        except BaseException:  # left open, it would be closed by the garbage collector, on any thread
            with contextlib.suppress(Exception):
                await client.close()
            raise

    async def _watch(self, client: Any) -> None:
        """Enrol, and again when the client has connected again; until it is closed."""
        enrolled = None
        while not self._closing.is_set() and client.status != "closed":
            if client.status == "running" and client.scheduler_comm is not enrolled:
                enrolled = client.scheduler_comm
                self._spawn(self._enrol(client))
            await first_of(self._closing, timeout=LOOK)

    async def _enrol(self, client: Any) -> None:
        """Hear from nodes, then have the plugin on them: on each that has it already, it stays as it is."""
        client.subscribe_topic(self._topic, self._on_event)
        for node in self._nodes.values():
            client.subscribe_topic(node.facts.address, functools.partial(self._on_news, node.facts.address))
        key = uuid.uuid4().hex
        mark, patience = asyncio.Event(), MARK
        self._marks[key] = mark
        while not mark.is_set():
            await client.log_event(self._topic, {"kind": "mark", "key": key})
            await first_of(mark, timeout=patience)
            patience *= 2
        plugin = dask_node.NodePlugin(
            {
                "topic": self._topic,
                "name": self._settings.name,
                "python": self._settings.python,
                "wire": self._settings.wire,
                "agent": self._agent,
                "grace": self._timeout,
                "settings": dict(vars(self._settings)),
            }
        )
        said = [event for event in await client.get_events(self._topic) if event[1]["kind"] == "up"]
        for event in {event[1]["facts"]["address"]: event for event in said}.values():
            self._on_event(event)
        await client.register_plugin(plugin, name=self._topic)

    def _on_event(self, event: tuple[float, dict[str, Any]]) -> None:
        said = event[1]
        kind = said["kind"]
        if kind == "mark" and said["key"] in self._marks:
            self._marks.pop(said["key"]).set()
        elif kind == "up" and said["facts"]["number"] not in self._nodes and not self._closing.is_set():
            if said["name"] not in self._going:
                node = self._nodes[said["facts"]["number"]] = Node(NodeFacts(**said["facts"]), said["name"])
                self._spawn(self._meet(node))
        elif kind == "refused":
            self._refuse(said["address"], "", said["versions"])
        elif kind == "failed":
            self._refuse(said["address"], said["why"])

    def _refuse(self, address: str, why: str, versions: dict[str, str] | None = None) -> None:
        if address not in self._told:
            self._told.add(address)
            self._refused(address, why, versions)

    async def _meet(self, node: Node) -> None:
        """Connect to a node that is up, and be there until its connection ends."""
        client, facts = self._client, node.facts
        try:
            async with self._few:
                comm = await self._connect_node(client, facts)
            if comm is None:
                return
            if node.leaving:
                comm.abort()
                return
            channel = node.channel = CommChannel(comm, why=lambda: self._why(node))
            client.subscribe_topic(facts.address, functools.partial(self._on_news, facts.address))
            self._joined(facts, channel)
            await channel.ended.wait()
        except OSError as exc:
            if facts.address in await client.nthreads():  # it is still one of Dask's
                await client.log_event(self._topic, {"kind": "unreachable", "number": facts.number})
                self._refuse(facts.address, f"it could not be reached from here: {exc}")
        finally:
            del self._nodes[facts.number]
            if node.channel is not None:
                node.channel.abort()
            if node.hold is not None:
                node.hold.release()

    async def _connect_node(self, client: Any, facts: NodeFacts) -> Any:
        arguments = client.security.get_connection_args("client")
        comm = await connect(facts.address, timeout=CONNECT, **arguments)
        try:
            await comm.write({"op": self._topic, "number": facts.number})
            if await asyncio.wait_for(comm.read(), CONNECT) == "here":
                self._told.discard(facts.address)
                return comm
        except asyncio.TimeoutError:
            raise TimeoutError(f"no answer for {CONNECT:g} s") from None
        except BaseException:
            comm.abort()
            raise
        comm.abort()  # this life of it is over
        return None

    def _why(self, node: Node) -> str:
        if node.leaving:
            return node.leaving
        return "closed" if self._client.status == "running" else "scheduler"

    def _on_news(self, address: str, event: tuple[float, Any]) -> None:
        """Dask says something about a worker."""
        news = event[1]
        action = news.get("action") if isinstance(news, dict) else None
        if (
            action == "closing-worker"
            or (action == "worker-status-change" and news["status"] in {"closing", "closing_gracefully"})
            or (action == "remove-worker" and news.get("expected"))
        ):
            for node in self._nodes.values():
                if node.facts.address == address and node.channel is not None:
                    self._retire(node)

    def _retire(self, node: Node) -> None:
        """Have nothing more sent to a node, and its connection end when it has finished what it runs."""
        if not node.leaving:
            node.leaving = "retired"
            if node.channel is not None:
                self._leaving(node.facts.number, "retired")

    # ===== holds, scaling =====

    def _hold(self, number: str, wanted: bool) -> None:
        node = self._nodes.get(number)
        if node is None or node.channel is None:
            return
        node.wanted = wanted
        if not wanted:
            asyncio.get_running_loop().call_later(HELD, self._release, node)
        elif node.hold is None and self._client.status == "running":
            key = f"{self._settings.name}-hold-{uuid.uuid4().hex}"
            node.hold = self._client.submit(
                dask_node.hold, number, key, key=key, pure=False, workers=[node.facts.address], priority=1000
            )

    def _release(self, node: Node) -> None:
        if not node.wanted and node.hold is not None and node.channel is not None:
            node.channel.control({"release": node.hold.key})
            node.hold.release()
            node.hold = None

    def _want(self, nodes: int, fewer: bool) -> None:
        self._nodes_wanted = nodes if fewer else max(nodes, len(self._cluster.plan - self._going))
        if self._scaling is None:
            self._scaling = self._spawn(self._scale())

    async def _scale(self) -> None:
        cluster = self._cluster
        try:
            while self._nodes_wanted is not None:
                async with self._changing:
                    wanted, self._nodes_wanted = self._nodes_wanted, None
                    plan = cluster.plan
                    excess = len(plan - self._going) - wanted
                    if excess < 0:
                        await asyncio.to_thread(cluster.scale, wanted + len(plan & self._going))
                    elif excess > 0:
                        await self._give_back(excess)
                    elif len(cluster.requested) < len(plan):  # some have gone by themselves: start others
                        await self._in_cluster(lambda: cluster)
        finally:
            self._scaling = None

    async def _give_back(self, excess: int) -> None:
        """Choose nodes that are let go: those that have not come yet, then those that Dask can spare: none is held."""
        plan = self._cluster.plan - self._going
        new = plan - self._cluster.observed
        spared = await self._client.scheduler.workers_to_close(n=len(plan), attribute="name")
        names: list[Any] = []
        free = dict.fromkeys([*new, *(name for name in spared if name in plan)])
        jobs = self._jobs()
        for name in free:  # those of one job go together: Dask ends the whole of it
            job = jobs.get(name, {name})
            if name not in names and job <= free.keys() and len(job) <= excess - len(names):
                names += job
        if names:
            self._going.update(names)
            self._spawn(self._let_go(names))

    def _jobs(self) -> dict[Any, set[Any]]:
        """Of each dask worker's name, the names of all that are in one job with it."""
        specs = getattr(self._cluster, "worker_spec", {}).items()
        jobs = [{f"{job}{suffix}" for suffix in spec["group"]} for job, spec in specs if "group" in spec]
        return {name: job for job in jobs for name in job}

    async def _let_go(self, names: list[Any]) -> None:
        """Give nodes back, once they have finished what was sent to them meanwhile: what Dask closes, it soon kills."""
        try:
            nodes = [node for node in self._nodes.values() if node.name in names]
            for node in nodes:
                self._retire(node)
            for node in nodes:
                if node.channel is not None:
                    await node.channel.ended.wait()
            # Told to close by the scheduler and by the cluster at once, a dask worker hangs until its nanny kills it.
            await self._client.scheduler.retire_workers(names=names, remove=True, close_workers=False)
            async with self._changing:
                await self._in_cluster(lambda: self._cluster.scale_down(names))
                self._going.difference_update(names)
        except BaseException:
            self._going.difference_update(names)
            raise

    async def _in_cluster(self, what: Callable[[], Any]) -> None:
        """Call that on the event loop of the cluster; not cancelled with this, as the cluster goes on."""

        async def call() -> None:
            done = what()
            if inspect.isawaitable(done):
                await done

        done = asyncio.Event()
        called = asyncio.run_coroutine_threadsafe(call(), self._cluster.loop.asyncio_loop)
        called.add_done_callback(lambda _: self._call(done.set))
        await done.wait()  # cancelled here, it goes on: the cluster's own `close` would wait for ever
        called.result()

    # ===== the end =====

    def _spawn(self, what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None and not self._closing.is_set():
            log.warning("pool %s, at Dask's scheduler %s: %r", self._settings.name, self._address, exc)

    async def _end(self) -> None:
        self._closing.set()
        channels = [node.channel for node in self._nodes.values() if node.channel is not None]
        for channel in channels:
            channel.abort()
        for channel in channels:
            await first_of(channel.ended, timeout=CLOSE)
        for task in list(self._tasks):
            task.cancel()
        client = self._client
        if client is None:
            return
        if client.status == "running":
            with contextlib.suppress(Exception):  # it is gone, or was never there
                await asyncio.wait_for(client.unregister_worker_plugin(self._topic), CLOSE)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(), CLOSE)
