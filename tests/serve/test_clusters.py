"""`python -m poolkit serve` as it is run: real workers, a real address, signals, exit codes."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import support
from serve import apps
from serve.context import TESTS

pytestmark = pytest.mark.slow

SCHEDULES = ["kernel", "round_robin", "least_busy", "sticky"]
SERVERS = {"uvicorn": "asgi", "waitress": "wsgi", "stdlib": "wsgi"}


class Served:
    """A program that serves; what it says is read all the time."""

    def __init__(self, *argv: str, cwd: Path = TESTS) -> None:
        self.program = subprocess.Popen(
            [sys.executable, "-m", "poolkit", "serve", *argv], stderr=subprocess.PIPE, text=True, cwd=cwd
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.program.stderr is not None
        for line in self.program.stderr:
            self.said += line

    def wait_for(self, pattern: str, times: int = 1) -> str:
        """Wait until it has said so; return what the last group is then."""
        support.wait_until(
            lambda: len(re.findall(pattern, self.said)) >= times or self.program.poll() is not None, pattern
        )
        found = re.findall(pattern, self.said)
        assert len(found) >= times, self.said
        return str(found[-1])

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.wait_for(r" at http://(\S+)"), timeout=support.WATCHDOG)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        with contextlib.closing(self.client()) as client:
            client.request(method, path, body)
            response = client.getresponse()
            return response.status, response.read()

    def end(self) -> int:
        code = self.program.wait(support.WATCHDOG)
        self._reader.join(support.WATCHDOG)
        assert self.program.stderr is not None
        self.program.stderr.close()
        return code


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Start programs that serve; each is stopped after the test, and has to be stopped by that."""
    made: list[Served] = []

    def start(*argv: str, cwd: Path = TESTS) -> Served:
        made.append(Served("--bind", "127.0.0.1:0", *argv, cwd=cwd))
        return made[-1]

    yield start
    for each in made:
        if each.program.poll() is None:
            each.program.terminate()
        try:
            each.end()
        except subprocess.TimeoutExpired:
            each.program.kill()
            each.end()
            raise


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("server", SERVERS)
def test_requests_are_answered_under_each_schedule(server: str, schedule: str, serving: Callable[..., Served]) -> None:
    it = serving(f"serve.apps:{SERVERS[server]}", "--server", server, "--workers", "2", "--schedule", schedule)
    it.wait_for("ready", 2)
    assert it.ask("GET", "/?who") == (200, b"hello who")
    assert it.ask("POST", "/echo", apps.BIG) == (200, apps.BIG)
    assert it.ask("GET", "/stream")[1].count(b"\n") == 100
    assert it.ask("HEAD", "/big") == (200, b"")
    assert it.ask("GET", "/nowhere")[0] == 404
    assert it.ask("GET", "/error")[0] == 500
    if server == "uvicorn":
        client = pytest.importorskip("websockets.sync.client")
        with client.connect(f"ws://{it.wait_for(r' at http://([^ ]+)')}/") as talk:
            talk.send("hello")
            assert talk.recv() == "HELLO"
    it.program.terminate()
    assert it.end() == 0


@pytest.mark.parametrize("server", SERVERS)
def test_a_reload_loads_new_code_and_a_bad_one_keeps_the_old(
    server: str, serving: Callable[..., Served], tmp_path: Path
) -> None:
    source = (TESTS / "serve" / "apps.py").read_text()
    path = tmp_path / "shop.py"
    path.write_text(source)
    it = serving(f"shop:{SERVERS[server]}", "--server", server, "--workers", "2", cwd=tmp_path)
    assert it.ask("GET", "/") == (200, b"hello ")
    for word, said in (("Welcome ", "gen=2 serves"), (None, "SyntaxError")):
        path.write_text("def (" if word is None else source.replace("hello ", word))
        it.program.send_signal(signal.SIGHUP)
        it.wait_for(said)
        assert it.ask("GET", "/") == (200, b"Welcome ")
    it.program.terminate()
    assert it.end() == 0


@pytest.mark.parametrize("options", [[], ["--preload"]])
def test_an_import_that_fails_is_shown_once(options: list[str], serving: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def app(:\n")
    it = serving("broken:app", "--workers", "3", *options, cwd=tmp_path)
    assert it.end() == 3
    assert it.said.count("def app(:") == 1, it.said


def test_a_lifespan_that_fails_is_shown_once(serving: Callable[..., Served]) -> None:
    it = serving("serve.apps:unable_with_a_traceback", "--workers", "3")
    assert it.end() == 3
    assert it.said.count("File there, line 3") == 1, it.said


def test_preloading_what_has_left_a_thread_is_refused_by_name(serving: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, name='refresher', daemon=True).start()\n"
        "async def app(scope, receive, send): ...\n"
    )
    it = serving("busy:app", "--preload", "--workers", "2", cwd=tmp_path)
    assert it.end() == 3
    assert "thread 'refresher'" in it.said


def test_the_application_is_imported_once_where_it_is_preloaded(serving: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        f"import os, sys\nopen(f'{tmp_path}/imported-{{os.getpid()}}', 'w').close()\n"
        f"sys.path.append({str(TESTS)!r})\nfrom serve.apps import asgi\n"
    )
    it = serving("shop:asgi", "--preload", "--workers", "3", "--app-dir", str(tmp_path))
    it.wait_for("ready", 3)
    assert it.ask("GET", "/?who") == (200, b"hello who")
    assert len([*tmp_path.glob("imported-*")]) == 1


def test_an_address_that_is_taken_is_named(serving: Callable[..., Served]) -> None:
    first = serving("serve.apps:asgi", "--workers", "1")
    address = first.wait_for(r" at http://(\S+)")
    second = Served("serve.apps:asgi", "--workers", "1", "--bind", address)
    assert second.end() == 3
    assert address.rpartition(":")[2] in second.said
    assert "Traceback" not in second.said
