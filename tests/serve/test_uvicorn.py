"""The adapter of uvicorn: how it drains, its loops, its settings, and releases that are unknown."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import threading
from typing import Any

import pytest

import support
from poolkit._servers import uvicorn as adapter
from poolkit._servers.application import application
from serve import apps
from serve.context import TESTS, Context, Running, running


def test_what_is_answered_while_it_drains_says_close_and_idle_connections_are_used_once_more() -> None:
    with running("uvicorn") as it:
        idle, held = it.ctx.client(), it.ctx.client()
        idle.request("GET", "/")
        first = idle.getresponse()
        first.read()
        held.request("GET", "/hold")
        assert apps.entered.wait(support.WATCHDOG)
        it.ctx.stop()
        support.wait_until(lambda: it.ctx.sockets[0].fileno() < 0, "the listener is closed")
        idle.request("GET", "/")
        last = idle.getresponse()
        last.read()
        apps.released.set()
        late = held.getresponse()
        late.read()
        assert (first.getheader("connection"), last.getheader("connection")) == (None, "close")
        assert late.getheader("connection") == "close"
        it.end()
        idle.close()
        held.close()


def test_idle_connections_are_closed_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "DRAIN", 0.3)
    with running("uvicorn", timeout_keep_alive=1000) as it:
        client = it.ctx.client()
        client.request("GET", "/")
        client.getresponse().read()
        it.end()
        assert client.sock.recv(1) == b""
        client.close()


def test_the_drain_takes_at_most_half_of_grace() -> None:
    ctx = Context()
    ctx.grace = 0.5
    with running("uvicorn", ctx, timeout_keep_alive=1000) as it:
        client = ctx.client()
        client.request("GET", "/")
        client.getresponse().read()
        before = ctx.signs
        it.end()
        assert ctx.signs - before < 20  # each 0.1 s one: it has not waited for DRAIN, which is 5 s
        client.close()


def test_headers_stay_so_while_it_drains_for_seconds() -> None:
    """The server makes its default headers anew each second."""
    with running("uvicorn", timeout_keep_alive=1000) as it:
        client = it.ctx.client()
        client.request("GET", "/")
        client.getresponse().read()
        it.ctx.stop()
        before = it.ctx.signs
        support.wait_until(lambda: it.ctx.signs > before + 15, "more than a second is over")
        client.request("GET", "/")
        answer = client.getresponse()
        answer.read()
        assert answer.getheader("connection") == "close"
        client.close()


@pytest.mark.parametrize("name", ["servers", "server_state"])
def test_a_release_without_what_is_needed_stops_in_its_own_way(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drain = adapter.Server._drain

    def without(self: Any, now: float) -> None:
        kept = self.__dict__.pop(name)
        try:
            drain(self, now)
        finally:
            self.__dict__[name] = kept

    monkeypatch.setattr(adapter.Server, "_drain", without)
    with running("uvicorn") as it:
        client = it.ctx.client()
        client.request("GET", "/hold")
        assert apps.entered.wait(support.WATCHDOG)
        it.ctx.stop()
        support.wait_until(lambda: "in its own way" in caplog.text, "it is logged")
        apps.released.set()
        assert client.getresponse().read() == b"held"
        it.end()
        client.close()
    assert caplog.text.count("in its own way") == 1


@pytest.fixture(scope="module")
def uvloop() -> Any:
    """Its first loop opens a pipe that stays."""
    module = pytest.importorskip("uvloop")
    loop = module.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return module


def test_other_schedules_have_the_loop_of_asyncio(uvloop: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running("uvicorn", Context(schedule="sticky")):
        pass
    assert "uvloop needs schedule 'kernel'; with 'sticky'" in caplog.text


def test_uvloop_serves(uvloop: Any) -> None:
    with running("uvicorn", loop="uvloop") as it:
        assert it.ctx.slate.ready
        client = it.ctx.client()
        client.request("GET", "/hold")
        assert apps.entered.wait(support.WATCHDOG)
        it.ctx.stop()
        apps.released.set()
        assert client.getresponse().read() == b"held"
        client.close()


def test_asgi_2_is_served() -> None:
    with running("uvicorn", app="Asgi2") as it:
        client = it.ctx.client()
        client.request("GET", "/?who")
        assert client.getresponse().read() == b"hello who"
        client.close()


def test_settings_are_made_of_text() -> None:
    values = {"timeout_keep_alive": "7", "proxy_headers": "false", "root_path": "5", "limit_concurrency": "3"}
    assert adapter._values({**values, "lifespan": "off", "ssl_keyfile": "none"}) == {
        "timeout_keep_alive": 7,
        "proxy_headers": False,
        "root_path": "5",
        "limit_concurrency": 3,
        "lifespan": "off",
        "ssl_keyfile": None,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 3}, "has no setting 'timeout'"),
        ({"timeout_keep_alive": "long"}, "'timeout_keep_alive' of uvicorn is a number"),
        ({"port": 3}, "'port' of uvicorn is not for you to set: the cluster has the listener"),
        ({"limit_max_requests": 3}, "give max_requests to the cluster"),
    ],
)
def test_settings_that_make_no_sense_are_refused_where_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        application("serve.apps:asgi", "uvicorn", **options)


@pytest.mark.slow
def test_no_request_fails_while_workers_are_replaced() -> None:
    """Two workers serve one listening socket, each leaves for a new one three times; eight clients never pause."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    listening.setblocking(False)
    address, over = listening.getsockname(), threading.Event()
    answered, failed = [0] * 8, list[str]()
    target = application("serve.apps:asgi", "uvicorn", app_dir=TESTS)

    def ask_on(number: int) -> None:
        client = http.client.HTTPConnection(*address, timeout=support.WATCHDOG)  # which connects anew after "close"
        while not over.is_set():
            try:
                client.request("GET", "/?who")
                assert client.getresponse().read() == b"hello who"
                answered[number] += 1
            except Exception as exc:
                failed.append(repr(exc))
                client.close()
        client.close()

    workers = [Running(target, Context(of=listening)) for _ in range(2)]
    clients = [threading.Thread(target=ask_on, args=(number,)) for number in range(8)]
    for client in clients:
        client.start()
    try:
        for turn in range(6):
            new = Running(target, Context(of=listening))
            old, workers[turn % 2] = workers[turn % 2], new
            old.ctx.slate.no_more = True
            served = sum(answered)
            support.wait_until(lambda served=served: sum(answered) > served + 50, "others serve meanwhile")
            old.end()
            old.ctx.close()
    finally:
        over.set()
        for client in clients:
            client.join()
        for worker in workers:
            worker.end()
            worker.ctx.close()
        listening.close()
    assert failed == []
    assert min(answered) > 0
