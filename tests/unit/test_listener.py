"""What a worker accepts from: a listening socket for any server, of which the other workers notice nothing."""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import errno
import gc
import http.client
import http.server
import itertools
import os
import resource
import select
import selectors
import signal
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest

import support_leaks
from poolkit._child.listener import Gate, Listener, Passed
from poolkit._child.stopping import Stopping
from poolkit._os import Wakeup
from poolkit._wire.slate import Slate
from support import WATCHDOG, wait_until

SEQPACKET = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)


class Scene:
    """An owner with its listening socket, and one worker's half, in one process."""

    def __init__(self, kind: str, hand: int = SEQPACKET) -> None:
        self.kind = kind
        self.shared = socket.create_server(("127.0.0.1", 0))
        self.shared.setblocking(False)
        self.slate, self.stopping, self.bell = Slate(bytearray(Slate.SIZE)), Stopping(), Wakeup()
        self.said: list[str] = []
        self.gate = Gate(self.slate, self.stopping, lambda: self.said.append("ready"), self.bell)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, hand)
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
        self.listener = self.new()

    def new(self) -> Listener:
        """The worker's listening socket."""
        if self.kind == "kernel":
            return Listener(os.dup(self.shared.fileno()), self.gate)
        return Passed(os.dup(self.theirs.fileno()), os.dup(self.shared.fileno()), self.gate)

    def connect(self) -> socket.socket:
        """A client, whose connection is there to be accepted."""
        client = socket.create_connection(self.shared.getsockname(), WATCHDOG)
        if self.kind == "passed":
            self.pass_on()
        return client

    def pass_on(self) -> None:
        assert select.select([self.shared], [], [], WATCHDOG)[0]
        connection, _ = self.shared.accept()
        connection.setblocking(False)
        with connection:
            socket.send_fds(self.ours, [b"c"], [connection.fileno()])

    def watched(self) -> int:
        return self.shared.fileno() if self.kind == "kernel" else self.theirs.fileno()

    def is_intact(self) -> bool:
        """Whether what all workers share is non-blocking still."""
        return not os.get_blocking(self.shared.fileno()) and not os.get_blocking(self.theirs.fileno())

    def blocked(self, call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
        """A thread that waits in `call`, and what comes of it."""
        found: list[Any] = []

        def run() -> None:
            try:
                found.append(call())
            except OSError as exc:
                found.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: self.stopping._polling or found)
        return thread, found

    def close(self) -> None:
        for one in (self.listener, self.shared, self.ours, self.theirs, self.stopping, self.bell):
            one.close()


@pytest.fixture(params=["kernel", "passed"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(request.param)
    yield scene
    scene.close()


@pytest.fixture
def passed() -> Iterator[Scene]:
    scene = Scene("passed")
    yield scene
    scene.close()


def reset(client: socket.socket) -> None:
    """Close it so that the server's end is an error."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# ===== accepting =====


def test_it_looks_like_the_listening_socket(scene: Scene) -> None:
    listener, shared = scene.listener, scene.shared
    assert (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)
    assert listener.proto == socket.IPPROTO_TCP
    assert listener.getsockname() == shared.getsockname()
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert isinstance(listener, socket.socket)
    assert str(shared.getsockname()[1]) in repr(listener)


def test_it_gives_connections_and_counts_them(scene: Scene) -> None:
    before = time.monotonic()
    with scene.connect() as client:
        connection, address = scene.listener.accept()
        with connection:
            assert address == client.getsockname()
            assert connection.getblocking()
            assert os.get_blocking(connection.fileno())
            assert not connection.get_inheritable()
            assert connection.proto == socket.IPPROTO_TCP
            client.sendall(b"hello")
            assert connection.recv(5) == b"hello"
    assert scene.slate.taken == 1
    assert before <= scene.slate.alive <= time.monotonic()
    assert scene.is_intact()


def test_a_connection_has_the_default_timeout(scene: Scene) -> None:
    with scene.connect():
        socket.setdefaulttimeout(12.5)
        try:
            connection, _ = scene.listener.accept()
        finally:
            socket.setdefaulttimeout(None)
        assert connection.gettimeout() == 12.5
        connection.close()


def test_a_default_timeout_does_not_concern_the_shared_socket(scene: Scene) -> None:
    for timeout in (5.0, 0.0):
        socket.setdefaulttimeout(timeout)
        try:
            scene.new().close()
        finally:
            socket.setdefaulttimeout(None)
        assert scene.is_intact()


def test_a_blocking_accept_waits_for_a_connection(scene: Scene) -> None:
    thread, found = scene.blocked(scene.listener.accept)
    assert found == []
    with scene.connect():
        thread.join()
        found[0][0].close()
    assert scene.is_intact()


def test_whoever_comes_second_waits_on(scene: Scene) -> None:
    """Two workers are woken by one connection; the other must not sit in `accept` deaf to everything else."""
    other = scene.new()
    first, found = scene.blocked(scene.listener.accept)
    second, also = scene.blocked(other.accept)
    with scene.connect():
        wait_until(lambda: found or also)
        scene.stopping.set()
        first.join()
        second.join()
    (connection, _), refused = sorted((found[0], also[0]), key=lambda one: isinstance(one, OSError))
    assert isinstance(refused, ConnectionAbortedError)
    connection.close()
    other.close()


def test_a_non_blocking_accept_says_that_there_is_nothing(scene: Scene) -> None:
    scene.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        scene.listener.accept()
    with scene.connect():
        scene.listener.accept()[0].close()


def test_a_timeout_ends_the_wait(scene: Scene) -> None:
    scene.listener.settimeout(0.01)
    with pytest.raises(TimeoutError):
        scene.listener.accept()
    scene.listener.settimeout(WATCHDOG)
    with scene.connect():
        connection, _ = scene.listener.accept()
        assert connection.gettimeout() is None
        connection.close()


def test_selectors_find_it_readable(scene: Scene) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(scene.listener, selectors.EVENT_READ)
        assert not selector.select(0)
        with scene.connect():
            assert selector.select(WATCHDOG)
            scene.listener.accept()[0].close()
            assert not selector.select(0)


# ===== whether it blocks: a private value =====


def test_whether_it_blocks_is_its_own_affair(scene: Scene) -> None:
    listener, other = scene.listener, scene.new()
    assert (listener.gettimeout(), listener.getblocking(), listener.timeout) == (None, True, None)
    calls: list[Callable[[], object]] = [
        lambda: listener.setblocking(True),
        lambda: listener.settimeout(5),
        lambda: listener.settimeout(None),
        lambda: listener.setblocking(False),
        lambda: listener.setblocking(True),
        lambda: listener.makefile("rb").close(),
        lambda: listener.makefile("rwb").close(),
        lambda: listener.dup().close(),
        lambda: listener.listen(),
        lambda: listener.listen(5),
        lambda: listener.shutdown(socket.SHUT_RDWR),
        lambda: listener.dup().detach(),
    ]
    for call in calls:
        left = call()
        if isinstance(left, int):
            os.close(left)
        assert scene.is_intact()
        assert other.gettimeout() is None
    other.close()
    assert scene.is_intact()
    with scene.connect():  # it listens still
        listener.accept()[0].close()


@pytest.mark.parametrize("timeout", [None, 0.0, 0.25, 3, 1e9])
def test_it_shows_the_timeout_that_it_was_given(scene: Scene, timeout: float | None) -> None:
    scene.listener.settimeout(timeout)
    expected = timeout if timeout is None else min(timeout, 2e6)
    assert scene.listener.gettimeout() == scene.listener.timeout == expected
    assert scene.listener.getblocking() is (timeout != 0.0)
    with scene.listener.dup() as copy:
        assert copy.gettimeout() == expected
        assert isinstance(copy, type(scene.listener))
    assert scene.is_intact()


@pytest.mark.parametrize("timeout", [-1, float("nan"), "a"])
def test_it_refuses_what_is_no_timeout(scene: Scene, timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout|float"):
        scene.listener.settimeout(timeout)
    assert scene.listener.gettimeout() is None


def test_a_datagram_socket_waits_too() -> None:
    scene = Scene("kernel")
    shared = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    shared.bind(("127.0.0.1", 0))
    shared.setblocking(False)
    with Listener(os.dup(shared.fileno()), scene.gate) as listener:
        assert not os.get_blocking(shared.fileno())
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.recvfrom(10)
        listener.setblocking(True)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(listener.recv(10)))
        thread.start()
        shared.sendto(b"x", shared.getsockname())
        thread.join()
        assert found == [b"x"]
        with pytest.raises(OSError, match="not supported"):
            listener.listen()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(10)
        assert not os.get_blocking(shared.fileno())
    shared.close()
    scene.close()


# ===== no more =====


def test_where_no_more_is_to_be_accepted_a_non_blocking_accept_finds_nothing(scene: Scene) -> None:
    scene.listener.setblocking(False)
    with scene.connect():
        scene.slate.no_more = True
        with pytest.raises(BlockingIOError):
            scene.listener.accept()
        assert scene.slate.taken == 0
        scene.slate.no_more = False
        scene.listener.accept()[0].close()
        scene.stopping.set()
        with scene.connect(), pytest.raises(BlockingIOError):
            scene.listener.accept()
    assert scene.slate.taken == 1


@pytest.mark.parametrize("at_once", [False, True])
def test_a_blocking_accept_ends_when_the_worker_is_to_stop(scene: Scene, at_once: bool) -> None:
    if at_once:
        scene.stopping.set()
    with contextlib.ExitStack() as stack:
        if at_once:
            stack.enter_context(scene.connect())
        thread, found = scene.blocked(scene.listener.accept)
        scene.stopping.set()
        thread.join()
    assert isinstance(found[0], ConnectionAbortedError)
    assert scene.slate.taken == 0


def test_where_no_more_is_to_be_accepted_a_blocking_accept_leaves_connections_to_others(scene: Scene) -> None:
    thread, found = scene.blocked(scene.listener.accept)
    scene.slate.no_more = True
    with scene.connect():
        scene.listener.dup().close()
        assert not select.select([scene.stopping], [], [], 0.05)[0]
        assert found == []
        scene.stopping.set()
        thread.join()
        assert isinstance(found[0], ConnectionAbortedError)
        assert select.select([scene.watched()], [], [], 0)[0]  # it is there yet
    assert scene.slate.taken == 0


def test_where_it_may_accept_again_a_blocking_accept_does(scene: Scene) -> None:
    scene.slate.no_more = True
    thread, found = scene.blocked(scene.listener.accept)
    with scene.connect():
        scene.slate.no_more = False
        thread.join()
        found[0][0].close()


def test_a_timeout_holds_where_no_more_is_to_be_accepted(scene: Scene) -> None:
    scene.slate.no_more = True
    scene.listener.settimeout(0.01)
    with scene.connect(), pytest.raises(TimeoutError):
        scene.listener.accept()


@pytest.mark.slow
def test_a_loop_that_is_woken_in_vain_takes_no_cpu_for_long(scene: Scene) -> None:
    """It may, for the tenth of a second between the two steps of a stop; here for a second."""
    woken = 0

    async def main() -> None:
        nonlocal woken
        server = await asyncio.start_server(lambda *_: None, sock=scene.listener)
        scene.slate.no_more = True
        accept = scene.listener.accept

        def count() -> Any:
            nonlocal woken
            woken += 1
            return accept()

        scene.listener.accept = count  # type: ignore[method-assign]
        with scene.connect():
            await asyncio.sleep(0.3)
            woken = 0
            await asyncio.sleep(1)
        server.close()
        del scene.listener.accept

    began = time.monotonic()
    asyncio.run(main())
    assert 0 < woken < 600 * (time.monotonic() - began)


def test_a_loop_that_has_nothing_to_accept_is_never_slowed_down(scene: Scene) -> None:
    scene.listener.setblocking(False)
    scene.slate.no_more = True
    scene.listener._vain_since = time.monotonic() - 10
    began = time.monotonic()
    for _ in range(5000):
        with contextlib.suppress(BlockingIOError):
            scene.listener.accept()
    assert time.monotonic() - began < 5000 * 0.002


# ===== ready =====


@pytest.mark.parametrize("call", ["listen", "accept", "ready"])
def test_the_first_of_these_says_once_that_the_worker_serves(scene: Scene, call: str) -> None:
    scene.listener.setblocking(False)
    assert not scene.slate.ready
    for _ in range(3):
        with contextlib.suppress(BlockingIOError):
            scene.gate.ready() if call == "ready" else getattr(scene.listener, call)()
    assert scene.said == ["ready"]
    assert scene.slate.ready
    assert scene.slate.alive > 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the backlog")
def test_the_backlog_is_left_alone(scene: Scene) -> None:
    scene.shared.listen(7)
    scene.listener.listen(100)
    scene.listener.listen()
    info = scene.shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack("8B6I", info)[-1] == 7


def test_a_failure_to_say_so_is_raised_and_the_next_call_says_it_again(scene: Scene) -> None:
    said: list[int] = []

    def say() -> None:
        said.append(1)
        if len(said) == 1:
            raise KeyboardInterrupt

    gate = Gate(scene.slate, scene.stopping, say)
    with pytest.raises(KeyboardInterrupt):
        gate.ready()
    gate.ready()
    gate.ready()
    assert said == [1, 1]


# ===== connections that were passed =====


def test_an_acceptor_that_waits_is_told(passed: Scene) -> None:
    with passed.connect(), passed.connect():
        passed.listener.accept()[0].close()
        assert not select.select([passed.bell], [], [], 0)[0]
        passed.slate.is_waited_for = True
        passed.listener.accept()[0].close()
        assert select.select([passed.bell], [], [], 0)[0]


@pytest.mark.parametrize("how", ["close", "with", "makefile", "detach", "collect", "tls"])
def test_the_end_of_a_connection_is_counted_once(passed: Scene, how: str) -> None:
    with passed.connect():
        connection, _ = passed.listener.accept()
        assert passed.slate.closed == 0
        if how == "close":
            connection.close()
        elif how == "with":
            with connection:
                pass
        elif how == "makefile":
            file = connection.makefile("rb")
            connection.close()
            assert passed.slate.closed == 0
            file.close()
        elif how == "detach":
            os.close(connection.detach())
        elif how == "collect":
            left = [connection]
            del connection
            with pytest.warns(ResourceWarning, match="unclosed"):
                left.clear()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False).close()
        assert passed.slate.closed == 1
        if how != "collect":
            connection.close()
            assert connection.detach() == -1
            del connection
            gc.collect()
        assert (passed.slate.taken, passed.slate.closed) == (1, 1)


def test_a_copy_of_a_connection_is_not_counted(passed: Scene) -> None:
    with passed.connect():
        connection, _ = passed.listener.accept()
        connection.dup().close()
        assert passed.slate.closed == 0
        connection.close()
        assert passed.slate.closed == 1


def test_a_forked_child_that_closes_its_copies_counts_nothing(passed: Scene) -> None:
    with passed.connect():
        connection, _ = passed.listener.accept()
        pid = os.fork()
        if pid == 0:
            try:
                connection.close()
            finally:
                os._exit(passed.slate.closed)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        connection.close()
        assert passed.slate.closed == 1


def test_a_client_that_has_gone_is_told_to_a_loop_and_passed_over_by_who_waits(passed: Scene) -> None:
    for _ in range(2):
        reset(passed.connect())
    passed.listener.setblocking(False)
    with pytest.raises(ConnectionAbortedError, match="gone"):
        passed.listener.accept()
    assert (passed.slate.taken, passed.slate.closed) == (1, 1)
    passed.listener.setblocking(True)
    with passed.connect() as client:
        connection, address = passed.listener.accept()
        assert address == client.getsockname()
        connection.close()
    assert (passed.slate.taken, passed.slate.closed) == (3, 3)


def test_a_message_without_a_connection_is_an_error_and_counted(passed: Scene) -> None:
    passed.ours.send(b"c")
    with pytest.raises(OSError, match="Too many"):
        passed.listener.accept()
    assert (passed.slate.taken, passed.slate.closed) == (1, 1)


def test_where_no_descriptor_is_free_the_connection_stays_in_the_hand(passed: Scene) -> None:
    with passed.connect() as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        low = os.dup(0)
        os.close(low)
        taken: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (low + 8, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            with pytest.raises(OSError, match="Too many") as caught:
                passed.listener.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        assert caught.value.errno == errno.EMFILE
        assert passed.slate.taken == 0
        connection, address = passed.listener.accept()
        assert address == client.getsockname()
        connection.close()


def test_when_the_owner_passes_nothing_any_more_there_is_nothing(passed: Scene) -> None:
    with passed.connect():
        passed.ours.close()
        passed.listener.accept()[0].close()
    passed.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        passed.listener.accept()
    passed.listener.setblocking(True)
    passed.listener._take = None  # type: ignore[method-assign,assignment] -- who waits asks no more
    thread, found = passed.blocked(passed.listener.accept)
    passed.stopping.set()
    thread.join()
    assert isinstance(found[0], ConnectionAbortedError)


def test_the_hand_may_be_a_stream() -> None:
    scene = Scene("passed", socket.SOCK_STREAM)
    with scene.connect() as first, scene.connect() as second:
        for client in (first, second):
            connection, address = scene.listener.accept()
            assert address == client.getsockname()
            connection.close()
    scene.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        scene.listener.accept()
    scene.close()


# ===== closing =====


@pytest.mark.parametrize("how", ["close", "detach", "collect"])
def test_closing_closes_the_copy_alone(scene: Scene, how: str) -> None:
    before = open_descriptors()
    listener = scene.new()
    if how == "close":
        listener.close()
        listener.close()
    elif how == "detach":
        os.close(listener.detach())
    else:
        left = [listener]
        del listener
        with pytest.warns(ResourceWarning, match="unclosed"):
            left.clear()
    assert open_descriptors() == before
    with scene.connect():
        scene.listener.accept()[0].close()


def test_a_closed_one_accepts_nothing(scene: Scene) -> None:
    scene.listener.close()
    for no_more in (False, True):
        scene.slate.no_more = no_more
        with pytest.raises(OSError, match="descriptor"):
            scene.listener.accept()


def test_copies_are_not_inherited(scene: Scene) -> None:
    assert not scene.listener.get_inheritable()
    with scene.listener.dup() as copy:
        assert not copy.get_inheritable()


# ===== interrupts =====


def open_descriptors() -> set[str]:
    return {fd for fd in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{fd}")}  # noqa: PTH110, PTH208


class Interrupted(BaseException):
    pass


def interrupt_at(line: int) -> Callable[..., Any]:
    """A trace function that raises at the line of that number among those of the listener's file."""
    lines = itertools.count()

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename.endswith("listener.py") and frame.f_code.co_name not in {"__del__", "_note_end"}:
            if event == "line" and next(lines) == line:
                raise Interrupted
            return trace
        return None

    return trace


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a connection that is lost on its way back is collected
def test_an_interrupt_anywhere_loses_no_descriptor_and_no_count(scene: Scene) -> None:
    """The client notices, too: its connection is accepted, or there to be accepted, or closed."""
    before, done, line = open_descriptors(), False, 0
    while not done:
        with scene.connect() as client:
            sys.settrace(interrupt_at(line))
            try:
                connection, _ = scene.listener.accept()
                done = True
            except Interrupted:
                pass
            finally:
                sys.settrace(None)
            if done:
                connection.close()
            gc.collect()
            scene.listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                scene.listener.accept()[0].close()
            scene.listener.setblocking(True)
            assert client.recv(1) == b""
        assert open_descriptors() == before
        assert scene.slate.closed == (scene.slate.taken if scene.kind == "passed" else 0)
        line += 1
    assert line > 15
    assert scene.slate.taken <= line
    if scene.kind == "passed":
        assert scene.slate.taken == line


def test_ctrl_c_ends_a_wait(scene: Scene) -> None:
    sender = threading.Thread(
        target=lambda: (wait_until(lambda: scene.stopping._polling), os.kill(os.getpid(), signal.SIGINT))
    )
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        scene.listener.accept()
    sender.join()
    assert not scene.stopping._polling


# ===== servers =====


def ask(scene: Scene, question: bytes = b"hello\n") -> bytes:
    with scene.connect() as client:
        client.sendall(question)
        return client.makefile("rb").readline()


def test_asyncio_serves_on_it(scene: Scene) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async def main() -> list[bytes]:
        server = await asyncio.start_server(talk, sock=scene.listener)
        assert scene.said == ["ready"]
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(*(loop.run_in_executor(None, ask, scene) for _ in range(8)))
        server.close()
        await server.wait_closed()
        return answers

    assert asyncio.run(main(), debug=True) == [b"HELLO\n"] * 8
    assert scene.slate.taken == 8
    assert scene.slate.closed == (8 if scene.kind == "passed" else 0)
    assert scene.is_intact()


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


@contextlib.contextmanager
def serving(scene: Scene, server: socketserver.BaseServer) -> Iterator[None]:
    server.socket.close()  # type: ignore[attr-defined]
    server.socket = scene.listener  # type: ignore[attr-defined]
    server.server_activate()
    assert scene.said == ["ready"]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        scene.slate.no_more = True
        scene.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
    assert scene.is_intact()


def test_socketserver_serves_on_it(scene: Scene) -> None:
    class Server(socketserver.ThreadingTCPServer):
        pass

    server = Server(scene.shared.getsockname(), Upper, bind_and_activate=False)
    with serving(scene, server):
        assert [ask(scene) for _ in range(5)] == [b"HELLO\n"] * 5
    assert scene.slate.closed == (5 if scene.kind == "passed" else 0)


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def get(scene: Scene, times: int) -> list[bytes]:
    connection = http.client.HTTPConnection("unused")
    connection.sock = scene.connect()
    bodies = []
    for _ in range(times):
        connection.request("GET", "/")
        bodies.append(connection.getresponse().read())
    connection.close()
    return bodies


def test_http_server_serves_on_it(scene: Scene) -> None:
    server = http.server.ThreadingHTTPServer(scene.shared.getsockname(), Hello, bind_and_activate=False)
    with serving(scene, server):
        assert [get(scene, 3) for _ in range(3)] == [[b"hello"] * 3] * 3
    assert scene.slate.taken == 3


def test_wsgiref_serves_on_it(scene: Scene) -> None:
    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    def app(_environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    server = WSGIServer(scene.shared.getsockname(), Quiet, bind_and_activate=False)
    server.server_name, server.server_port = "here", 80
    server.setup_environ()
    server.set_app(app)
    with serving(scene, server):
        assert [get(scene, 1) for _ in range(3)] == [[b"hello"]] * 3


def test_nothing_is_left(scene: Scene) -> None:
    before = support_leaks.snapshot()
    with scene.connect():
        scene.listener.accept()[0].close()
    scene.new().close()
    assert support_leaks.find_leaks(before) == []
    assert _socket.socket.fileno(scene.listener) >= 0
