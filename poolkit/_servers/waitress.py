"""waitress: how a worker has it serve a WSGI application.

Once the worker is to stop, the listeners are closed; when no request is received, running or being answered, the idle
connections are closed, and the threads end. The cluster's `grace` bounds that.
Owner: the thread that calls `serve`, which is waitress's loop; its threads run the application.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from waitress import adjustments, channel, wasyncore
from waitress import server as servers

from poolkit._servers.application import Served
from poolkit._servers.wsgi import watched

if TYPE_CHECKING:
    from poolkit._child.serving import ClusterContext

TURN = 1.0  # seconds; so often a worker with nothing to do gives a sign of life
LOOK = 0.1  # and looks around while it drains

REFUSED = dict.fromkeys(
    ("host", "port", "listen", "sockets", "unix_socket", "unix_socket_perms", "ipv4", "ipv6", "backlog"),
    "the cluster has the listener",
)


def check(options: Mapping[str, Any]) -> None:
    """See that waitress has such settings, with such values.

    Raises:
        ValueError: it has not.
    """
    adjustments.Adjustments(**options)


def serve(served: Served, ctx: ClusterContext) -> None:
    """Serve until the worker is to stop, and then until what runs is finished."""
    there: dict[int, Any] = {}  # by descriptors: listeners, channels, and what wakes the loop
    server = servers.create_server(watched(served, ctx), map=there, sockets=list(ctx.sockets), **served.options)
    listeners = [each for each in there.values() if isinstance(each, servers.BaseWSGIServer)]
    ctx.stopping.add_callback(listeners[0].pull_trigger)
    ctx.ready()
    quiet = 0  # turns in succession that found nothing to finish
    try:
        while quiet < 2:  # noqa: PLR2004 -- one may just have been accepted
            is_stopping = bool(ctx.stopping)
            while is_stopping and listeners:
                listener = listeners.pop()
                listener.accepting = False
                listener.del_channel()
                listener.socket.close()
            wasyncore.loop(LOOK if is_stopping else TURN, server.adj.asyncore_use_poll, there, count=1)
            ctx.alive()
            quiet = quiet + 1 if is_stopping and not any(map(_is_busy, [*there.values()])) else 0
    finally:
        server.task_dispatcher.shutdown()
        wasyncore.close_all(there)


def _is_busy(each: Any) -> bool:
    """Whether a request is received, running or being answered."""
    return isinstance(each, channel.HTTPChannel) and bool(each.requests or each.request or each.total_outbufs_len)
