"""WSGI applications, as their servers are given them: requests are counted, and logged where that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit._servers.application import Served

if TYPE_CHECKING:
    from poolkit._child.serving import ClusterContext

log = logging.getLogger("poolkit.access")


def watched(served: Served, ctx: ClusterContext) -> Callable[..., Any]:
    """Return the application, with each of its calls counted. Thread-safe, as the application has to be."""
    app, count = served.app, ctx.count

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        count(1)
        return app(environ, start_response)

    def call_and_log(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, *args: Any) -> Any:
            where = environ.get("PATH_INFO", ""), environ.get("SERVER_PROTOCOL", "")
            log.info('%s - "%s %s %s" %s', environ.get("REMOTE_ADDR"), environ.get("REQUEST_METHOD"), *where, status)
            return start_response(status, *args)

        return call(environ, start)

    return call_and_log if served.is_logging else call
