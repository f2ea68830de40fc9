"""Who loads the servers of `clusters.py`: so many clients, each with one request after the other; counts failures.

Usage: http_client.py PORT CLIENTS [--once] [--slow SHARE] [--pause SECONDS] [--limit SECONDS] [--each]

Clients keep their connection, unless `--once`. Of the requests, a share takes a second, half of them with a body of
5 MiB. A line on the standard input forgets what was counted; its end ends the load: what is in flight is waited for,
and a line of JSON says what was seen; with `--each` of every answer when it came and whose it was.

A request has failed when it was refused, reset, cut, or had no whole answer `--limit` seconds (10) after it was sent.
A kept connection that the server has closed when the client comes to use it is none; once the request is written,
whatever ends the connection before the answer is one. Only the kernel knows which of the two came first, so it is asked
at once before the client writes. After a failure a client waits a little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import time
from dataclasses import dataclass, field

_LOOK = 0.1
_AGAIN = 0.05  # after a failure
_SLOW = ("/slow?s=1", "/stream?s=1")


@dataclass
class Tally:
    """What all clients saw."""

    since: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)  # of the quick requests
    answered: int = 0
    wrong: int = 0  # another status, or a body of another length
    closed: int = 0  # kept connections that the server had closed
    failed: list[tuple[float, str, int]] = field(default_factory=list)  # when, how, whose connection (0: unknown)
    pids: set[int] = field(default_factory=set)
    each: list[tuple[float, int]] = field(default_factory=list)  # when an answer was there, and whose it was

    def told(self) -> str:
        """A line of JSON."""
        times = sorted(self.times) or [0.0]
        found = {
            "seconds": time.monotonic() - self.since,
            "answered": self.answered,
            "wrong": self.wrong,
            "closed": self.closed,
            "failed": self.failed,
            "pids": sorted(self.pids),
            "p50": times[len(times) // 2],
            "p99": times[len(times) * 99 // 100],
            "longest": times[-1],
            "each": self.each,
            "held": sum(seconds >= 1.0 for seconds in times),
        }
        return json.dumps(found)


class CutError(Exception):
    """The connection ended before the answer did."""


class Client:
    """One client; one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._pid = 0  # who has answered on this connection
        self._answered_by = 0  # also where that connection is closed
        self._deadline: float | None = None
        self._is_late = False

    async def run(self) -> None:
        """Ask until it is over."""
        while not self._load.is_over:
            slow = random.random() < self._load.slow
            await self._ask(random.choice(_SLOW) if slow else "/")
            if self._load.pause:
                await asyncio.sleep(self._load.pause * 2 * random.random())
        self._close()

    def give_up_if_late(self, now: float) -> None:
        """End the request that has no answer."""
        if self._deadline is not None and now > self._deadline and self._socket is not None:
            self._is_late = True
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _ask(self, path: str) -> None:
        tally = self._load.tally
        if self._socket is not None and self._is_closed(self._socket):
            tally.closed += 1
            self._close()
        started = time.monotonic()
        self._deadline = started + self._load.limit
        try:
            if not await self._connect():
                await self._note("late" if self._is_late else "refused")
                return
            await self._request(path)
        except CutError:
            await self._note("late" if self._is_late else "cut")
        except ConnectionError:
            await self._note("late" if self._is_late else "reset")
        else:
            tally.answered += 1
            if self._load.each:
                tally.each.append((time.monotonic(), self._answered_by))
            if path == "/":
                tally.times.append(time.monotonic() - started)
        finally:
            self._deadline = None

    async def _connect(self) -> bool:
        if self._socket is not None:
            return True
        self._is_late = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._load.port))
        except ConnectionError:
            return False
        return True

    @staticmethod
    def _is_closed(sock: socket.socket) -> bool:
        try:
            return not sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    async def _request(self, path: str) -> None:
        last = b"Connection: close\r\n" if self._load.once else b""
        assert self._socket is not None
        await asyncio.get_running_loop().sock_sendall(
            self._socket, b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (path.encode(), last)
        )
        status, *lines = (await self._until(b"\r\n\r\n")).lower().split(b"\r\n")
        head = dict(line.split(b": ", 1) for line in lines)
        if b" 200" not in status:
            self._load.tally.wrong += 1
            self._close()
            return
        if head.get(b"transfer-encoding") == b"chunked":
            length = 0
            while size := int(await self._until(b"\r\n"), 16):
                await self._skip(size + 2)
                length += size
            await self._skip(2)
        else:
            length = int(head[b"content-length"])
            await self._skip(length)
        self._pid = self._answered_by = int(head[b"x-pid"])
        self._load.tally.pids.add(self._pid)
        if length != int(head[b"x-length"]):
            self._load.tally.wrong += 1
        if self._load.once or head.get(b"connection") == b"close":
            self._close()

    async def _until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            await self._more()
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return found

    async def _skip(self, size: int) -> None:
        while size > len(self._buffer):
            size -= len(self._buffer)
            self._buffer.clear()
            await self._more()
        del self._buffer[:size]

    async def _more(self) -> None:
        assert self._socket is not None
        data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 18)
        if not data:
            raise CutError
        self._buffer += data

    async def _note(self, kind: str) -> None:
        self._load.tally.failed.append((time.monotonic(), kind, self._pid))
        self._close()
        self._deadline = None
        await asyncio.sleep(_AGAIN)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._pid = None, 0
        self._buffer.clear()


class Load:
    """All clients."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.port: int = asked.port
        self.once: bool = asked.once
        self.slow: float = asked.slow
        self.pause: float = asked.pause
        self.limit: float = asked.limit
        self.each: bool = asked.each
        self.is_over = False
        self.tally = Tally()
        self._clients = [Client(self) for _ in range(asked.clients)]

    async def run(self) -> None:
        """Ask until the standard input ends."""
        loop = asyncio.get_running_loop()
        loop.add_reader(0, self._on_input)
        sys.stdout.write("\n")  # it has begun
        sys.stdout.flush()
        looking = asyncio.ensure_future(self._look())
        await asyncio.gather(*(client.run() for client in self._clients))
        looking.cancel()
        loop.remove_reader(0)

    def _on_input(self) -> None:
        if os.read(0, 100):
            self.tally = Tally()
        else:
            self.is_over = True
            asyncio.get_running_loop().remove_reader(0)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            for client in self._clients:
                client.give_up_if_late(time.monotonic())


def main() -> None:
    """Load until the standard input ends, and tell."""
    parser = argparse.ArgumentParser(description="Load a server.")
    parser.add_argument("port", type=int)
    parser.add_argument("clients", type=int)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--limit", type=float, default=10.0)
    parser.add_argument("--each", action="store_true")
    load = Load(parser.parse_args())
    asyncio.run(load.run())
    sys.stdout.write(load.tally.told() + "\n")


if __name__ == "__main__":
    main()
