"""Fakes of clusters: the context whose connections come from the test, and the fixture for real clusters."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from typing import TYPE_CHECKING

import pytest

import poolkit
from poolkit.testing import FakeContext, leaks
from support import WATCHDOG, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]


def echo(ctx: poolkit.ClusterContext) -> None:
    for connection, _ in ctx.connections():
        with connection:
            connection.sendall(connection.recv(100))
            ctx.count()


async def echo_async(ctx: poolkit.ClusterContext) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        ctx.count()
        writer.close()

    assert ctx.socket is not None
    server = await asyncio.start_server(talk, sock=ctx.socket)
    await ctx.stopping
    server.close()


def test_a_target_serves_the_test() -> None:
    with leaks():
        _have_it_serve()


def _have_it_serve() -> None:
    with FakeContext() as ctx:
        thread = threading.Thread(target=echo, args=(ctx,))
        thread.start()
        with ctx.connect() as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        wait_until(lambda: ctx.served == 1, "its count")
        assert ctx.is_ready
        ctx.stop()
        thread.join(WATCHDOG)
        assert not thread.is_alive()
        with pytest.raises(ConnectionRefusedError, match="to stop"):
            ctx.connect()


def test_a_coroutine_serves_the_test() -> None:
    async def run() -> None:
        with FakeContext(worker_id=3, workers=4, generation=2) as ctx:
            assert (ctx.worker_id, ctx.workers, ctx.generation) == (3, 4, 2)
            target = asyncio.ensure_future(echo_async(ctx))
            reader, writer = await asyncio.open_connection(sock=ctx.connect())
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            assert await reader.read() == b""
            writer.close()
            assert ctx.is_ready
            ctx.stop()
            await asyncio.wait_for(target, WATCHDOG)

    asyncio.run(run())


def test_servers_of_the_standard_library_serve_the_test() -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    with FakeContext() as ctx:
        assert ctx.socket is not None
        server = socketserver.UnixStreamServer("unbound", Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = ctx.socket
        server.server_activate()
        with ctx.connect() as client:
            client.sendall(b"hello\n")
            server.handle_request()
            assert client.recv(100) == b"hello\n"


def test_messages_go_both_ways() -> None:
    with FakeContext() as ctx:
        assert ctx.sent == []
        ctx.send({"a": 1})
        ctx.send(2)
        assert ctx.sent == [{"a": 1}, 2]
        ctx.deliver("hello")
        assert ctx.recv(0) == "hello"
        with pytest.raises(TimeoutError):
            ctx.recv(0)
        assert not ctx.is_ready
        ctx.ready()
        assert ctx.is_ready


def pid_of_worker(ctx: poolkit.ClusterContext) -> None:
    import os

    for connection, _ in ctx.connections():
        with connection:
            connection.sendall(str(os.getpid()).encode())


def test_the_fixture_makes_clusters(cluster_factory: Callable[..., poolkit.Cluster]) -> None:
    import os
    import socket

    cluster = cluster_factory(pid_of_worker, 1)
    cluster.start(WATCHDOG)
    with socket.create_connection(cluster.address, WATCHDOG) as client:
        assert int(client.recv(100)) not in {0, os.getpid()}
    thread = cluster_factory(pid_of_worker, 1, kind="thread")
    with thread, socket.create_connection(thread.address, WATCHDOG) as client:
        assert int(client.recv(100)) == os.getpid()


def test_a_listener_that_is_left_behind_is_named() -> None:
    import socket

    kept = []
    with pytest.raises(AssertionError, match=r"listener \d+ -> \('127\.0\.0\.1', \d+\)"), leaks(grace=0.0):
        kept.append(socket.create_server(("127.0.0.1", 0)))
    kept.pop().close()
