"""The applications that the adapters serve: the same paths by ASGI and by WSGI, without a framework."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

BIG = bytes(range(256)) * (5 * 4096)  # 5 MiB

entered, released = threading.Event(), threading.Event()  # of requests for /hold
events: list[str] = []  # of the lifespan


async def asgi(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await talk(receive, send)
    else:
        await answer(scope, receive, send)


async def lifespan(receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    for what in ("startup", "shutdown"):
        await receive()
        events.append(what)
        await send({"type": f"lifespan.{what}.complete"})


async def talk(receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"].upper()})


async def answer(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    path = scope["path"]
    if path == "/error":
        raise ZeroDivisionError
    if path == "/hold":
        entered.set()
        await asyncio.get_running_loop().run_in_executor(None, released.wait)
    status, parts = content(path, scope["query_string"], body)
    headers = [] if path == "/stream" else [(b"content-length", str(sum(map(len, parts))).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts if scope["method"] != "HEAD" else []:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    path = environ["PATH_INFO"]
    if path == "/error":
        raise ZeroDivisionError
    if path == "/hold":
        entered.set()
        released.wait()
    status, parts = content(path, environ["QUERY_STRING"].encode(), body)
    headers = [] if path == "/stream" else [("Content-Length", str(sum(map(len, parts))))]
    start_response(f"{status} As It Is", headers)
    return parts if environ["REQUEST_METHOD"] != "HEAD" else []


def content(path: str, query: bytes, body: bytes) -> tuple[int, list[bytes]]:
    found = {
        "/": [b"hello ", query],
        "/echo": [body],
        "/length": [str(len(body)).encode()],
        "/big": [BIG],
        "/stream": [b"part %d\n" % number for number in range(100)],
        "/hold": [b"held"],
    }
    return (200, found[path]) if path in found else (404, [b"there is no such page"])


def make_asgi() -> Callable[..., Any]:
    return asgi


async def unable(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})


async def unable_with_a_traceback(
    scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]
) -> None:
    await receive()
    message = "Traceback\n  File there, line 3\nOSError: the database is away\n"
    await send({"type": "lifespan.startup.failed", "message": message})


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asgi(scope, receive, send)


class Asgi2:
    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await asgi(self.scope, receive, send)


class Wsgi:
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return wsgi(environ, start_response)


def neither(*args: Any) -> None:
    """Cannot be told by its looks."""


number = 5
instances = {"asgi": Asgi(), "wsgi": Wsgi()}
asgi_instance, wsgi_instance = Asgi(), Wsgi()
