"""What the load client of the benchmarks takes for a failed request, against servers that misbehave on purpose."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import WATCHDOG

CLIENT = Path(__file__).resolve().parent / "benchmarks/http_client.py"
OK = b"HTTP/1.1 200 OK\r\nx-pid: 7\r\nx-length: 2\r\ncontent-length: 2\r\n\r\nok"

Answer = Callable[[socket.socket, int], None]  # with the number of the request on its connection, from 1


@contextlib.contextmanager
def served(answer: Answer) -> Iterator[tuple[int, threading.Semaphore]]:
    """A server that has `answer` deal with each request until that closes; its port, and what counts requests."""
    asked = threading.Semaphore(0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    conn, _ = listener.accept()
                    talk(conn)

        def talk(conn: socket.socket) -> None:
            number = 0
            with conn, contextlib.suppress(OSError):
                while conn.fileno() >= 0 and conn.recv(65536):
                    number += 1
                    answer(conn, number)
                    asked.release()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def seen_by_client(port: int, *options: str, until: Callable[[], object]) -> dict[str, Any]:
    """What one client tells that is stopped when `until` has come back."""
    with subprocess.Popen(
        [sys.executable, str(CLIENT), str(port), "1", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until()
            out, _ = process.communicate(timeout=WATCHDOG)
        finally:
            process.kill()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


def kinds_of(answer: Answer, *options: str, requests: int = 4) -> tuple[set[str], dict[str, Any]]:
    """How requests failed, and all that a client tells, which has sent so many."""
    with served(answer) as (port, asked):
        found = seen_by_client(port, *options, until=lambda: [asked.acquire(timeout=WATCHDOG) for _ in range(requests)])
    return {kind for _, kind, _ in found["failed"]}, found


def reset(conn: socket.socket) -> None:
    """Close it so that the peer gets a reset."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


@pytest.mark.slow
def test_answers_are_no_failures() -> None:
    kinds, found = kinds_of(lambda conn, _: conn.sendall(OK))
    assert (kinds, found["wrong"], found["closed"]) == (set(), 0, 0)
    assert found["answered"] >= 4
    assert found["pids"] == [7]


@pytest.mark.slow
def test_a_kept_connection_that_is_closed_before_the_next_request_is_no_failure() -> None:
    def answer(conn: socket.socket, _: int) -> None:
        conn.send(OK, socket.MSG_MORE)  # so that the end comes with it: in one segment
        conn.close()

    kinds, found = kinds_of(answer)
    assert kinds == set()
    assert found["closed"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("end", "kind"), [(reset, "reset"), (socket.socket.close, "cut")])
def test_a_kept_connection_that_ends_after_the_request_was_written_is_one(
    end: Callable[[socket.socket], None], kind: str
) -> None:
    def answer(conn: socket.socket, number: int) -> None:
        if number == 1:
            conn.sendall(OK)
        else:
            end(conn)

    kinds, found = kinds_of(answer)
    assert kinds == {kind}
    assert {pid for _, _, pid in found["failed"]} == {7}, "who had answered on that connection"


@pytest.mark.slow
def test_an_answer_that_is_cut_is_a_failure() -> None:
    def answer(conn: socket.socket, _: int) -> None:
        conn.sendall(OK[:-1])
        conn.close()

    kinds, found = kinds_of(answer)
    assert (kinds, found["answered"]) == ({"cut"}, 0)


@pytest.mark.slow
def test_an_answer_that_does_not_come_is_a_failure() -> None:
    kinds, found = kinds_of(lambda _conn, _number: None, "--limit", "0.2", requests=2)
    assert (kinds, found["answered"]) == ({"late"}, 0)


@pytest.mark.slow
def test_a_connection_that_is_refused_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = seen_by_client(port, until=lambda: None)
    assert {kind for _, kind, _ in found["failed"]} == {"refused"}
    assert found["answered"] == 0


@pytest.mark.slow
def test_a_body_in_chunks_has_its_length_and_another_one_is_wrong() -> None:
    head = b"HTTP/1.1 200 OK\r\nx-pid: 7\r\nx-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"

    def answer(conn: socket.socket, number: int) -> None:
        conn.sendall(head + b"3\r\nabc\r\n" + (b"2\r\nde\r\n" if number % 2 else b"") + b"0\r\n\r\n")

    kinds, found = kinds_of(answer)
    assert kinds == set()
    assert abs(2 * found["wrong"] - found["answered"]) <= 1


@pytest.mark.slow
def test_another_status_is_wrong() -> None:
    kinds, found = kinds_of(lambda conn, _: conn.sendall(OK.replace(b"200", b"503")), "--once")
    assert kinds == set()
    assert found["wrong"] == found["answered"] >= 4
