"""The half of the Dask provider that lives in each dask worker: a plugin, and the seat of one pool's agent there.

    setup ── versions fit? ── make the agent (in a thread) ── say `up` ── the owner's connection ── it ends
                  │                    ^                                                              │
                  └ say `refused`      └───────── another agent, once the last one's work is ended <──┘

`up` is said again while no owner comes. After `ALONE` seconds in which none has come, none has answered through the
scheduler (that it cannot reach this node), and the scheduler was there, the plugin unregisters itself everywhere.
`teardown`, when Dask closes the worker or the plugin is unregistered: the agent says `leaving` first; what runs may
finish, until the owner ends the connection or `grace` is over; then the agent is closed. Nothing is left then.

Guarantees: the worker's event loop is never blocked; one agent at a time, one owner at a time.
Owner: the worker's event loop, but for `_lives`, which its threads use too, under `_lock`.
The plugin is pickled as text and plain types, so that nodes with other versions, and those without poolkit, can load it
and say so: where a plugin cannot be loaded, Dask lets no dask worker start.
Used of Dask, and not promised by it: `Worker.handlers`, `scheduler`, `batched_stream`; `distributed.secede` is.
"""

from __future__ import annotations

import asyncio
import importlib
import platform
import socket
import threading
from typing import Any

import distributed
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

from poolkit._clock import monotonic
from poolkit._kinds.loggers import log
from poolkit._nodes.dask_comm import CommChannel, first_of
from poolkit._nodes.interfaces import WIRE, AgentSettings

ALONE = 60.0  # seconds without an owner, after which the plugin removes itself
LOOK = 0.25  # seconds between two looks whether Dask has let a worker stay that it was to close
FLUSH = 2.0  # seconds for the last word of an agent whose worker ends at once
_LOAD = """
from distributed.diagnostics.plugin import WorkerPlugin

class Absent(WorkerPlugin):
    def setup(self, worker):
        address = str(worker.contact_address or worker.address)
        worker.log_event(state["topic"], {"kind": "failed", "address": address, "why": why})

try:
    from poolkit._nodes.dask_node import NodePlugin
    plugin = NodePlugin(state)
except Exception as exc:
    why = f"poolkit cannot be imported there ({exc}); install it on each node: pip install poolkit[dask]"
    plugin = Absent()
"""

_GOING = (Status.closing, Status.closing_gracefully)


class NodePlugin(WorkerPlugin):  # type: ignore[misc]
    """Makes a seat in each dask worker."""

    idempotent = True  # registered again where it is, it stays as it is

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._seat: Seat | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("exec(load) or plugin", {"load": _LOAD, "state": self._state})

    def setup(self, worker: distributed.Worker) -> None:
        """Begin to make an agent; called on the worker's event loop, as all here."""
        state = self._state
        if (state["python"], state["wire"]) != (own_python(), WIRE):
            said = {"kind": "refused", "address": _address(worker), "versions": versions()}
            worker.log_event(state["topic"], said)
            return
        self._seat = Seat(worker, state)

    async def teardown(self, worker: distributed.Worker) -> None:  # noqa: ARG002 -- the signature is Dask's
        """Leave nothing behind."""
        if self._seat is not None:
            await self._seat.end()


class Seat:
    """The place of one pool's agent in one dask worker."""

    def __init__(self, worker: distributed.Worker, state: dict[str, Any]) -> None:
        self._worker = worker
        self._state = state
        self._topic: str = state["topic"]
        self._agent: Any = None  # that may be attached to
        self._channel: CommChannel | None = None
        self._over = asyncio.Event()  # the agent's work has ended, or is to
        self._met = asyncio.Event()  # an owner is there
        self._leaving = False
        self._unregistering: asyncio.Task[None] | None = None
        worker.handlers[self._topic] = self._take_over
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def end(self) -> None:
        """Let what runs finish if its owner is there, then end all. Called once."""
        self._leaving = True
        self._worker.handlers.pop(self._topic, None)
        agent, channel = self._agent, self._channel
        if agent is not None and channel is not None:
            retired = _is_with_scheduler(self._worker)
            agent.leave("retired" if retired else "scheduler")
            await channel.written(FLUSH)
            if retired:
                await first_of(channel.ended, self._over, timeout=self._state["grace"])
        self._over.set()
        await self._serving

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._leaving:
            if self._worker.status in _GOING:
                await asyncio.sleep(LOOK)
                continue
            self._over.clear()
            self._met.clear()
            try:
                agent = await asyncio.to_thread(self._make, loop)
            except Exception as exc:
                log.exception("no agent of pool %s could be started in this dask worker", self._state["name"])
                self._say("failed", address=_address(self._worker), why=f"{type(exc).__name__}: {exc}")
                return
            number = agent.facts.number
            with _lock:
                _lives[number] = {}
            self._agent = agent
            await self._be_found(agent)
            self._agent = None
            _let_go(number)
            await asyncio.to_thread(agent.close)
            if self._channel is not None:
                self._channel.abort()
                await self._channel.ended.wait()

    def _make(self, loop: asyncio.AbstractEventLoop) -> Any:
        module, _, name = self._state["agent"].partition(":")
        settings = AgentSettings(**self._state["settings"])

        def ended() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._over.set)

        return getattr(importlib.import_module(module), name)(
            settings,
            address=_address(self._worker),
            host=socket.gethostname(),
            workers=settings.workers or self._worker.state.nthreads,
            ended=ended,
        )

    async def _be_found(self, agent: Any) -> None:
        """Say that it is up, until its work has ended. An owner that is there once has this agent for good."""
        facts, begun, answers = dict(vars(agent.facts)), monotonic(), 0
        while not self._leaving and not self._over.is_set():
            self._say("up", facts=facts, name=self._worker.name)
            if await first_of(self._over, self._met, timeout=ALONE / 4):
                await self._over.wait()
                continue
            asked = monotonic()
            heard = await self._answers(agent.facts.number)
            if heard != answers or monotonic() - asked > ALONE / 4:  # so late that an owner may not have heard of us
                begun, answers = monotonic(), heard
            elif monotonic() - begun >= ALONE and not self._met.is_set():
                self._leaving = True
                self._unregistering = asyncio.ensure_future(self._unregister())

    def _say(self, kind: str, **what: Any) -> None:
        self._worker.log_event(self._topic, {"kind": kind, **what})

    async def _take_over(self, comm: Any, number: str) -> Any:
        """Handle the owner's connection, until it ends."""
        agent = self._agent
        if agent is None or agent.facts.number != number or self._channel is not None or self._over.is_set():
            return "gone"
        channel = CommChannel(comm, why=lambda: "closed", on_control=self._on_control)
        self._channel = channel
        self._met.set()
        try:
            await comm.write("here")
            agent.attach(channel)
            await channel.ended.wait()
        finally:
            comm.abort()
            self._channel = None
            if self._agent is agent:
                self._over.set()
        return Status.dont_reply

    def _on_control(self, message: dict[str, Any]) -> None:
        if self._agent is not None:
            _hold_of(self._agent.facts.number, message["release"]).set()

    async def _answers(self, number: str) -> int:
        """How often an owner has said, through the scheduler, that it cannot reach this agent."""
        try:
            events = await self._worker.scheduler.events(topic=self._topic)
        except OSError:  # the scheduler is gone: this worker ends soon
            return -1
        return sum(said["kind"] == "unreachable" and said["number"] == number for _, said in events)

    async def _unregister(self) -> None:
        """Have the plugin removed from every node, here too, by the scheduler; others may be doing the same."""
        log.info("pool %s has no owner any more: its plugin is removed", self._state["name"])
        try:
            await self._worker.scheduler.unregister_worker_plugin(name=self._topic)
        except Exception as exc:  # noqa: BLE001 -- whatever comes from there
            log.info("the plugin of pool %s is not removed from here: %s", self._state["name"], exc)


# ===== holds: Dask tasks that keep a worker from being retired =====

_lock = threading.Lock()
_lives: dict[
    str, dict[str, threading.Event]
] = {}  # guarded by: _lock; holds of each agent by their keys, set: released


def hold(number: str, key: str) -> None:
    """A Dask task; while it runs, Dask takes this node for one with a long-running task, which it never retires."""
    released = _hold_of(number, key)
    if not released.is_set():
        distributed.secede()
        released.wait()
    with _lock:
        _lives.get(number, {}).pop(key, None)


def _hold_of(number: str, key: str) -> threading.Event:
    """That hold's event; one that is set where there is no such agent any more."""
    with _lock:
        life = _lives.get(number)
        if life is not None:
            return life.setdefault(key, threading.Event())
    gone = threading.Event()
    gone.set()
    return gone


def _let_go(number: str) -> None:
    with _lock:
        for released in _lives.pop(number).values():
            released.set()


# ===== what this node is =====


def own_python() -> str:
    """The minor version of Python here: "3.11"."""
    major, minor, _ = platform.python_version_tuple()
    return f"{major}.{minor}"


def versions() -> dict[str, str]:
    """The versions that have to fit, here."""
    return {"python": own_python(), "wire": str(WIRE)}


def _address(worker: distributed.Worker) -> str:
    return str(worker.contact_address or worker.address)


def _is_with_scheduler(worker: distributed.Worker) -> bool:
    comm = worker.batched_stream.comm if worker.batched_stream else None
    return comm is not None and not comm.closed()
