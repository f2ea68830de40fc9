"""uvicorn: how a worker has it serve an ASGI application, and how it leaves without cutting a request.

Drain, once the worker is to stop (from then on its listener gives no connections):
1. the listeners are closed, and every response says `Connection: close`, those too whose requests are running;
2. idle connections live until they were used once more, or DRAIN seconds: a request may be on its way;
3. then the server's own shutdown, which finishes what runs. The cluster's `grace` bounds it all.
A release that lacks what this needs stops in its own way, which is logged.
Owner: the event loop's thread, but for `wake`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from poolkit._servers.application import Served, takes

if TYPE_CHECKING:
    from poolkit._child.serving import ClusterContext

DRAIN = 5.0
LOOK = 0.1  # seconds between two looks while it drains
BEAT = 1.0  # and else

REFUSED = {
    **dict.fromkeys(("app", "host", "port", "uds", "fd", "backlog"), "the cluster has the listener"),
    **dict.fromkeys(("workers", "reload", "reload_dirs", "reload_delay"), "the cluster has the workers"),
    **dict.fromkeys(("reload_includes", "reload_excludes"), "the cluster has the workers"),
    "limit_max_requests": "give max_requests to the cluster",
    "interface": "give interface to the application",
    "factory": "give factory to the application",
    "access_log": "give access_log to the application",
    "callback_notify": "it is looked at for liveness",
}
log = logging.getLogger("poolkit.serve")

for _name in ("protocols.http.auto", "protocols.websockets.auto", "lifespan.on", "loops.asyncio"):
    with contextlib.suppress(ImportError):  # where a template imports this, its workers need not
        importlib.import_module(f"uvicorn.{_name}")


def check(options: Mapping[str, Any]) -> None:
    """See that uvicorn has such settings, with such values.

    Raises:
        ValueError: it has not; the name is in the message.
    """
    _values(options)


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with values that were given as text made what uvicorn has there."""
    known = inspect.signature(uvicorn.Config).parameters
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            msg = (
                f"uvicorn {uvicorn.__version__} has no setting {name!r}; it has {', '.join(set(known) - set(REFUSED))}"
            )
            raise ValueError(msg)
        default = known[name].default
        values[name] = _read(value) if isinstance(value, str) and not isinstance(default, str) else value
        if isinstance(default, (int, float)) and not isinstance(values[name], (int, float, type(None))):
            msg = f"setting {name!r} of uvicorn is a number or true or false, was given {value!r}"
            raise ValueError(msg)  # noqa: TRY004 -- most values come as text
    return values


def _read(text: str) -> Any:
    word = {"true": True, "false": False, "none": None}
    if text.lower() in word:
        return word[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def serve(served: Served, ctx: ClusterContext) -> None:
    """Serve until the worker is to stop, and then until what runs is finished.

    Raises:
        RuntimeError: the application did not start.
    """
    settings: dict[str, Any] = {"log_config": None, **_values(served.options)}
    if ctx.schedule != "kernel" and settings.get("loop", "auto") in {"auto", "uvloop"}:
        if ctx.worker_id == 0 and importlib.util.find_spec("uvloop") is not None:
            log.info("uvloop needs schedule 'kernel'; with %r, asyncio's own loop is used", ctx.schedule)
        settings["loop"] = "asyncio"
    if served.is_logging and settings["log_config"] is None:
        _log_requests()
    is_old = takes(served.app, 1) and not takes(served.app, 3)
    config = uvicorn.Config(
        served.app, interface="asgi2" if is_old else "asgi3", access_log=served.is_logging, workers=1, **settings
    )
    server = Server(config, ctx, ctx.grace)
    ctx.stopping.add_callback(server.wake)
    try:
        server.run(sockets=list(ctx.sockets))
    except SystemExit:  # newer releases leave so where the application does not start
        if server.started:
            raise
    if not server.started and not ctx.stopping:
        lines = server.failure.strip().splitlines() or ["its lifespan failed, as its log says"]
        msg = f"the application did not start: {lines[-1]}"
        raise RuntimeError(msg) from RuntimeError(server.failure) if len(lines) > 1 else None


def _log_requests() -> None:
    """Have requests written to the standard output: they are too many for the way of other records, to the owner."""
    logger = logging.getLogger("uvicorn.access")
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)


class Server(uvicorn.Server):
    """A server whose end a cluster decides."""

    def __init__(self, config: uvicorn.Config, ctx: ClusterContext, grace: float) -> None:
        super().__init__(config)
        self._ctx, self._grace = ctx, grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drains_since: float | None = None
        self._quiet = 0  # looks in succession that found no connection
        self._counted = 0
        self.failure = ""  # what the application said when it did not start; often a traceback

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the worker has its handlers."""
        yield

    def install_signal_handlers(self) -> None:
        """Do nothing; see `capture_signals`, which releases before 0.29 do not have."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Start the application, and begin to look around."""
        send = getattr(self.lifespan, "send", None)

        async def hear(message: Any) -> None:
            if message["type"] == "lifespan.startup.failed":  # raised, so that it is not logged by each worker
                self.failure, message = message.get("message", ""), {**message, "message": ""}
            await send(message)  # type: ignore[misc]

        if send is not None:
            self.lifespan.send = hear
        await super().startup(sockets=sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._ctx.ready()
            self._look()

    def wake(self) -> None:
        """Look around at once. From any thread, and from signal handlers."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Give a sign of life, count requests, drain."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None  # noqa: S101 -- set before the first look
        self._ctx.alive()
        if self._ctx.stopping and not self.should_exit:
            try:
                self._drain(self._loop.time())
            except (AttributeError, TypeError) as exc:
                log.warning("uvicorn %s is unknown here (%s): it is stopped in its own way", uvicorn.__version__, exc)
                self.should_exit = True
        self._count()
        is_draining = self._drains_since is not None and not self.should_exit
        self._timer = self._loop.call_later(LOOK if is_draining else BEAT, self._look)

    def _count(self) -> None:
        total = getattr(self.server_state, "total_requests", 0)
        if total > self._counted:
            self._ctx.count(total - self._counted)
            self._counted = total

    def _drain(self, now: float) -> None:
        """Begin to drain, or go on with it; see the file's header."""
        state = self.server_state
        if self._drains_since is None:
            self._drains_since = now
            for server in self.servers:
                server.close()
            # Each second uvicorn makes the default headers anew, from these.
            self.config.encoded_headers = [*self.config.encoded_headers, (b"connection", b"close")]
            state.default_headers = [*state.default_headers, (b"connection", b"close")]
            for connection in state.connections:
                cycle: Any = getattr(connection, "cycle", None)  # the request that runs there
                if hasattr(cycle, "default_headers"):
                    cycle.default_headers = state.default_headers
        self._quiet = 0 if state.connections else self._quiet + 1
        limit = min(DRAIN, self._grace / 2)  # the rest of it is for the server's own shutdown
        # Twice: one that was accepted just now becomes a connection a turn of the loop later.
        self.should_exit = self._quiet > 1 or now - self._drains_since >= limit

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Finish what runs, and count it."""
        await super().shutdown(sockets=sockets)
        self._count()
