"""Application: the target of a cluster whose workers serve an ASGI or WSGI application by an installed server.

Guarantees: the owner imports nothing of the application, which each worker does (from its template where that was told
to); what is wrong with the arguments is raised in the owner, as far as that is known before the application is there.
Each server has an adapter, a module beside this one, with `REFUSED`, `check(options)` and `serve(served, ctx)`; it is
imported in the workers, and in the owner only to check options.
Owner: frozen after `__init__`. An application that runs in a worker is used by its server alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from poolkit._child.serving import ClusterContext

INTERFACES = ("auto", "asgi", "wsgi")
SERVES = {"uvicorn": "asgi", "waitress": "wsgi", "stdlib": "wsgi"}  # in the order of preference
MISSING = "uvicorn is not installed, which serves ASGI applications: pip install 'poolkit[serve]'"


class ServerMissing(ImportError):
    """No server that serves the application is installed."""


class Served(NamedTuple):
    """What an adapter is to serve."""

    app: Callable[..., Any]
    is_logging: bool  # each request
    options: Mapping[str, Any]  # settings of the server, by its own names


def application(
    path: str,
    server: str = "auto",
    interface: str = "auto",
    factory: bool = False,
    app_dir: str | os.PathLike[str] | None = None,
    access_log: bool = False,
    **options: Any,
) -> Application:
    """Make a target for `Cluster` that serves an application: `Cluster(application("module:app"), workers=4)`.

    Imports nothing of it, which the workers do. Thread-safe; does not block.

    Args:
        path: MODULE:APP, where APP may have dots.
        server: "uvicorn" (for ASGI), "waitress" or "stdlib" (for WSGI); "auto" takes what is installed.
        interface: "asgi" or "wsgi"; "auto" looks at the application.
        factory: whether APP is to be called, without arguments, to get the application.
        app_dir: the folder that comes first on `sys.path`; where this process is, unless given.
        access_log: whether each request is logged.
        options: settings of the server, by its own names.

    Raises:
        TypeError: an argument is not what it has to be.
        ValueError: an argument, or an option, has a value that makes no sense.
        ImportError: the server is not installed.
    """
    return Application(path, server, interface, bool(factory), app_dir, bool(access_log), options)


class Application:
    """See `application`. Called with its context in each worker; serves until that is to stop."""

    def __init__(  # noqa: PLR0913, PLR0917 -- made by `application` alone
        self,
        path: str,
        server: str,
        interface: str,
        factory: bool,
        app_dir: str | os.PathLike[str] | None,
        access_log: bool,
        options: dict[str, Any],
    ) -> None:
        if not isinstance(path, str):
            msg = f"an application is named by a str, 'module:app', not by {path!r}"
            raise TypeError(msg)
        self.module, colon, self.attribute = path.partition(":")
        names = [*self.module.split("."), *self.attribute.split(".")]
        if not colon or not all(name.isidentifier() for name in names):
            msg = f"an application is named as 'module:app', for example 'shop.web:app', not as {path!r}"
            raise ValueError(msg)
        for what, value, known in (("server", server, ("auto", *SERVES)), ("interface", interface, INTERFACES)):
            if value not in known:
                msg = f"{what} must be one of {', '.join(map(repr, known))}, was {value!r}"
                raise ValueError(msg)
        if server != "auto" and interface not in {"auto", SERVES[server]}:
            msg = f"{server} serves {SERVES[server].upper()} applications, and interface is {interface!r}"
            raise ValueError(msg)
        self.path = path
        self.interface = interface if server == "auto" else SERVES[server]
        self.factory = factory
        self.app_dir = os.path.abspath(os.fspath(app_dir) if app_dir is not None else os.curdir)  # noqa: PTH100
        self.access_log = access_log
        self.options = options
        # "auto" until the application is there
        self.server = server if server != "auto" or self.interface == "auto" else _server_for(self.interface)
        if server != "auto" and not is_installed(server):
            raise ServerMissing(MISSING if server == "uvicorn" else f"{server} is not installed: pip install {server}")
        if options and self.server != "auto":
            check(self.server, options)

    def __repr__(self) -> str:
        return f"<application {self.path!r}, {self.interface}, server {self.server}>"

    def __call__(self, ctx: ClusterContext) -> None:
        """Import the application, and have a server serve it until the worker is to stop."""
        app, interface = self.load()
        adapter(self.settle(interface)).serve(Served(app, self.access_log, self.options), ctx)

    def load(self) -> tuple[Callable[..., Any], str]:
        """Import the application, or have its factory make it; return it and its interface.

        Raises:
            TypeError: it is neither ASGI nor WSGI, as far as can be told, or the other than was said.
            Exception: what its import raises.
        """
        self.extend_path()
        found: Any = importlib.import_module(self.module)
        for name in self.attribute.split("."):
            if not hasattr(found, name):
                there = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
                msg = f"{self.path}: {found!r} has no attribute {name!r}; it has {', '.join(there[:20]) or 'none'}"
                raise AttributeError(msg)
            found = getattr(found, name)
        if self.factory:
            found = found()
        interface = interface_of(found)
        if interface is None and self.interface == "auto":
            msg = (
                f"{self.path} is {found!r}, which is neither a coroutine function, nor an object whose __call__ is "
                f"one (ASGI), nor does it take two arguments (WSGI): say --interface asgi, or wsgi"
                f"{'' if self.factory else ', or --factory where it is to be called first'}"
            )
            raise TypeError(msg)
        if interface is not None and self.interface not in {"auto", interface}:
            msg = f"{self.path} is a {interface.upper()} application, and was said to be {self.interface.upper()}"
            raise TypeError(msg)
        return found, interface or self.interface

    def settle(self, interface: str) -> str:
        """Return the server to take, now that the interface is known.

        Raises:
            ServerMissing: there is none.
            ValueError: the options are not for that server.
        """
        if self.server != "auto":
            return self.server
        server = _server_for(interface)
        check(server, self.options)
        return server

    def extend_path(self) -> None:
        """Have the folder of the application looked at first for modules."""
        if sys.path[:1] != [self.app_dir]:
            sys.path.insert(0, self.app_dir)

    def candidates(self) -> list[str]:
        """The servers that may come to serve it, as far as they are installed."""
        if self.server != "auto":
            return [self.server]
        return [name for name in SERVES if name != "stdlib" and is_installed(name)]


def interface_of(app: object) -> str | None:
    """Whether it is an ASGI or a WSGI application; None where that cannot be told."""
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(type(app), "__call__", None)):  # noqa: B004
        return "asgi"
    return "wsgi" if takes(app, 2) and not takes(app, 3) else None


def takes(app: Any, count: int) -> bool:
    """Whether it can be called with so many arguments, as far as that can be told."""
    try:
        inspect.signature(app).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _server_for(interface: str) -> str:
    """The server to take, of those that are installed.

    Raises:
        ServerMissing: there is none.
    """
    for name, serves in SERVES.items():
        if serves == interface and is_installed(name):
            return name
    raise ServerMissing(MISSING)


def is_installed(server: str) -> bool:
    """Whether there is such a server here; it is not imported."""
    return server == "stdlib" or importlib.util.find_spec(server) is not None


def adapter(server: str) -> Any:
    """Return the module that hands a listener to that server."""
    return importlib.import_module(f"poolkit._servers.{server}")


def check(server: str, options: Mapping[str, Any]) -> None:
    """See that a server knows these settings, and that none is decided by the cluster.

    Raises:
        ValueError: it does not know one, or one is decided elsewhere; both are named.
    """
    module = adapter(server)
    for name in options:
        if name in module.REFUSED:
            msg = f"option {name!r} of {server} is not for you to set: {module.REFUSED[name]}"
            raise ValueError(msg)
    module.check(options)
