"""Each server's adapter: the same requests, how it stops, what it counts."""

from __future__ import annotations

import http.client
import logging
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import support
from poolkit._servers.application import application
from serve import apps
from serve.context import TESTS, Context, running

SERVERS = ["uvicorn", "waitress", "stdlib"]

Ask = Callable[..., tuple[http.client.HTTPResponse, bytes]]

pytestmark = pytest.mark.parametrize("server", SERVERS)


def asking(ctx: Context) -> Ask:
    client = ctx.client()

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
        client.request(method, path, body)
        response = client.getresponse()
        return response, response.read()

    ask.client = client  # type: ignore[attr-defined]
    return ask


def small(ask: Ask) -> None:
    response, body = ask("GET", "/?who")
    assert (response.status, body) == (200, b"hello who")


def big_up(ask: Ask) -> None:
    assert ask("POST", "/length", apps.BIG)[1] == b"%d" % len(apps.BIG)


def big_down(ask: Ask) -> None:
    assert ask("GET", "/big")[1] == apps.BIG


def big_both_ways(ask: Ask) -> None:
    assert ask("POST", "/echo", apps.BIG)[1] == apps.BIG


def streaming(ask: Ask) -> None:
    response, body = ask("GET", "/stream")
    assert response.getheader("content-length") is None
    assert body.splitlines() == [b"part %d" % number for number in range(100)]


def head(ask: Ask) -> None:
    response, body = ask("HEAD", "/big")
    assert (response.status, body) == (200, b"")
    assert response.getheader("content-length") == str(len(apps.BIG))


def missing(ask: Ask) -> None:
    assert ask("GET", "/nowhere")[0].status == 404


def raising(ask: Ask) -> None:
    assert ask("GET", "/error")[0].status == 500
    small(ask)


def twice(ask: Ask) -> None:
    small(ask)
    small(ask)


@pytest.mark.parametrize("requests", [small, big_up, big_down, big_both_ways, streaming, head, missing, raising, twice])
def test_requests_are_answered(server: str, requests: Callable[[Ask], None]) -> None:
    with running(server) as it:
        ask = asking(it.ctx)
        requests(ask)
        ask.client.close()  # type: ignore[attr-defined]


def test_websockets(server: str) -> None:
    if server != "uvicorn":
        pytest.skip(f"{server} has no WebSockets")
    client = pytest.importorskip("websockets.sync.client")
    with running(server) as it, client.connect("ws://{}:{}/".format(*it.ctx.address)) as talk:
        talk.send("hello")
        assert talk.recv() == "HELLO"


def test_the_lifespan_of_an_asgi_application_begins_and_ends(server: str) -> None:
    with running(server):
        pass
    assert apps.events == (["startup", "shutdown"] if server == "uvicorn" else [])


@pytest.mark.parametrize("app", ["unable", "unable_with_a_traceback"])
def test_an_application_that_does_not_start_is_an_error(
    server: str, app: str, caplog: pytest.LogCaptureFixture
) -> None:
    if server != "uvicorn":
        pytest.skip("only ASGI applications have a lifespan")
    ctx = Context()
    with (
        pytest.raises(RuntimeError, match=r"did not start: .*the database is away$") as caught,
        running(server, ctx, app),
    ):
        raise AssertionError
    assert not ctx.slate.ready
    assert "the database" not in caplog.text
    assert ("line 3" in str(caught.value.__cause__)) == (app != "unable")


def test_requests_are_counted(server: str) -> None:
    with running(server) as it:
        ask = asking(it.ctx)
        for _ in range(5):
            small(ask)
        support.wait_until(lambda: it.ctx.slate.served == 5, "five requests are counted")
        small(ask)
        ask.client.close()  # type: ignore[attr-defined]
    assert it.ctx.slate.served == 6


def test_it_gives_signs_of_life(server: str) -> None:
    with running(server) as it:
        support.wait_until(lambda: it.ctx.signs >= 3, "three signs of life")


def test_it_is_ready_once_it_accepts(server: str) -> None:
    with running(server) as it:
        assert it.ctx.slate.ready


@pytest.mark.parametrize("requests", [0, 1])
def test_it_stops_soon_without_requests(server: str, requests: int) -> None:
    with running(server) as it:
        for _ in range(requests):
            ask = asking(it.ctx)
            small(ask)
            ask.client.close()  # type: ignore[attr-defined]
        it.end()


def test_a_request_that_runs_is_finished_after_the_stop(server: str) -> None:
    with running(server) as it:
        client = it.ctx.client()
        client.request("GET", "/hold")
        assert apps.entered.wait(support.WATCHDOG)
        it.ctx.stop()
        with pytest.raises(OSError, match=r"refused|reset"):  # once its own copies of the listener are closed
            support.retry_until(lambda: socket.create_connection(it.ctx.address).close(), bool)
        assert it.thread.is_alive()
        apps.released.set()
        response = client.getresponse()
        assert (response.status, response.read()) == (200, b"held")
        client.close()
        it.end()


def test_a_request_whose_body_comes_slowly_is_finished_after_the_stop(server: str) -> None:
    with running(server) as it, socket.create_connection(it.ctx.address, support.WATCHDOG) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab")
        support.wait_until(lambda: it.ctx.slate.taken, "the connection is accepted")
        it.ctx.stop()
        support.wait_until(lambda: it.ctx.sockets[0].fileno() < 0, "the listener is closed")
        client.sendall(b"cd")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.endswith(b"\r\n\r\nabcd")
        it.end()


def test_connections_that_say_nothing_do_not_hold_up_the_stop(server: str) -> None:
    with running(server) as it, socket.create_connection(it.ctx.address) as client:
        support.wait_until(lambda: it.ctx.slate.taken, "the connection is accepted")
        it.end()
        client.settimeout(support.WATCHDOG)
        assert client.recv(1) == b""


def test_several_listeners_are_served(server: str) -> None:
    with running(server, Context(3)) as it:
        for address in it.ctx.addresses:
            it.ctx.address = address
            ask = asking(it.ctx)
            small(ask)
            ask.client.close()  # type: ignore[attr-defined]


def test_a_unix_socket_is_served(server: str, tmp_path: Path) -> None:
    with running(server, Context(path=tmp_path / "s")) as it, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(support.WATCHDOG)
        client.connect(it.ctx.address)
        client.sendall(b"GET /?who HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.endswith(b"hello who")


def test_twenty_requests_at_once_are_all_answered_after_the_stop(server: str) -> None:
    options = {"threads": 20} if server == "waitress" else {}
    answers: list[bytes] = []
    with running(server, **options) as it:
        clients = [it.ctx.client() for _ in range(20)]
        for client in clients:
            client.request("GET", "/hold")
        support.wait_until(lambda: it.ctx.slate.taken == 20, "all are accepted")
        it.ctx.stop()
        apps.released.set()
        for client in clients:
            answers.append(client.getresponse().read())
            client.close()
        it.end()
    assert answers == [b"held"] * 20
    assert it.ctx.slate.served == 20


def test_requests_are_logged_where_asked(server: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running(server, access_log=True) as it:
        ask = asking(it.ctx)
        small(ask)
        ask.client.close()  # type: ignore[attr-defined]
        support.wait_until(lambda: "GET /?who" in caplog.text or '"GET / ' in caplog.text, "it is logged")


def test_requests_are_not_logged_unless_asked(server: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running(server) as it:
        ask = asking(it.ctx)
        small(ask)
        ask.client.close()  # type: ignore[attr-defined]
    assert '"GET' not in caplog.text


def test_no_signal_is_touched(server: str) -> None:
    """Workers have their own handlers."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    ctx, seen = Context(), list[Any]()

    def stop() -> None:
        ctx.seen.wait(support.WATCHDOG)
        seen.extend(map(signal.getsignal, numbers))
        ctx.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        name = "asgi" if server == "uvicorn" else "wsgi"
        application(f"serve.apps:{name}", server, app_dir=TESTS)(ctx)  # in the main thread
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        stopper.join()
        ctx.close()
    assert seen == [signal.SIG_IGN] * 2
