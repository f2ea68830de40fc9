"""The application that all servers serve in `clusters.py`: ASGI, without any framework. Imports next to nothing.

    /           two bytes               /stream?s=1     5 MiB in pieces, over so many seconds
    /pid        who answers             /slow?s=1       two bytes after so many seconds
    /block?s=1  the same, but the event loop is held meanwhile

Every answer says who gave it (`x-pid`) and how long its body is (`x-length`). With APP_MEGABYTES in the environment
the module is so large once it is imported.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

PIECES, PIECE = 20, bytes(256 * 1024)
_ITEM = 250  # bytes of a list of two, a text and a number among them, roughly

# Small objects that the garbage collector tracks, as those of modules are.
BALLAST = [
    [f"a name that is as long as names are {number}", number]
    for number in range(int(os.environ.get("APP_MEGABYTES", "0")) * (1 << 20) // _ITEM)
]


async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer one request, or take part in start and end."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    path = scope["path"]
    seconds = float(scope["query_string"].removeprefix(b"s=") or 0)
    if path == "/stream":
        await _stream(send, seconds)
        return
    if path == "/slow":
        await asyncio.sleep(seconds)
    elif path == "/block":
        time.sleep(seconds)  # noqa: ASYNC251 -- that is what it is for
    body = b"%d" % os.getpid() if path == "/pid" else b"ok"
    await send(_head(len(body), (b"content-length", b"%d" % len(body))))
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Callable[[Any], Awaitable[None]], seconds: float) -> None:
    await send(_head(PIECES * len(PIECE)))
    for left in reversed(range(PIECES)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": left > 0})
        if seconds and left:
            await asyncio.sleep(seconds / PIECES)


def _head(length: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    said = [(b"x-pid", b"%d" % os.getpid()), (b"x-length", b"%d" % length), *headers]
    return {"type": "http.response.start", "status": 200, "headers": said}
