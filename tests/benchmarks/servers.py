"""The servers that `clusters.py` compares: how each is started, asked, and what is known of its processes.

A server runs in the process group of its trial, which is killed at the end; so nobody has to be trusted to stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.proc import family

if TYPE_CHECKING:
    from typing_extensions import Self

APP = Path(__file__).with_name("app_mod.py")
CLIENT = Path(__file__).with_name("http_client.py")
LIMIT = 20.0  # seconds for what takes far less
_STEP = 0.005
_AT_ONCE = 32
_PATIENCE = 2.0  # seconds; some hang when their worker dies

# uvicorn's own listener is made in a way that leaves Nagle's algorithm on.
_WITHOUT_NAGLE = """
import inspect, socket, sys, uvicorn
from uvicorn.supervisors import Multiprocess
if __name__ == "__main__":
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(("127.0.0.1", int(sys.argv[2])))
    sock.set_inheritable(True)
    config = uvicorn.Config("app_mod:app", workers=int(sys.argv[1]), access_log=False, log_level="error")
    takes_target = "target" in inspect.signature(Multiprocess).parameters  # in older releases
    target = {"target": uvicorn.Server(config).run} if takes_target else {}
    Multiprocess(config, sockets=[sock], **target).run()
"""

# What node's documentation shows, and a reload as its users write it: the new ones first.
_NODE = """
const cluster = require('cluster'), http = require('http');
const [count, port] = process.argv.slice(2).map(Number);
if (cluster.isPrimary) {
  let ends = false;
  for (let i = 0; i < count; i++) cluster.fork();
  cluster.on('exit', (worker) => { if (!ends && !worker.old) cluster.fork(); });
  process.on('SIGHUP', () => {
    for (const old of Object.values(cluster.workers)) {
      if (old.old) continue;
      old.old = true;
      cluster.fork().once('listening', () => old.disconnect());
    }
  });
  process.on('SIGTERM', () => { ends = true; cluster.disconnect(() => process.exit(0)); });
} else {
  process.on('SIGTERM', () => {});
  process.on('SIGHUP', () => {});
  const piece = Buffer.alloc(256 * 1024);
  http.createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url, 'http://localhost');
    const seconds = Number(searchParams.get('s')) || 0;
    const say = (body) => {
      response.writeHead(200, { 'x-pid': process.pid, 'x-length': body.length, 'content-length': body.length });
      response.end(body);
    };
    if (pathname === '/stream') {
      response.writeHead(200, { 'x-pid': process.pid, 'x-length': 20 * piece.length });
      let left = 20;
      const next = () => {
        response.write(piece, () => {
          left -= 1;
          if (left) setTimeout(next, seconds * 1000 / 20); else response.end();
        });
      };
      next();
    } else if (pathname === '/slow') {
      setTimeout(say, seconds * 1000, 'ok');
    } else if (pathname === '/block') {
      const until = Date.now() + seconds * 1000;
      while (Date.now() < until);
      say('ok');
    } else say(pathname === '/pid' ? String(process.pid) : 'ok');
  }).listen(port, '127.0.0.1');
}
"""


def _poolkit(*more: str) -> Callable[[int, int, int], list[str]]:
    def argv(workers: int, port: int, grace: int) -> list[str]:
        return _python(
            "-m", "poolkit", "serve", "app_mod:app", "--workers", workers, "--bind", f"127.0.0.1:{port}",
            "--grace", grace, "--log-level", "warning", *more,
        )  # fmt: skip

    return argv


def _uvicorn(workers: int, port: int, grace: int) -> list[str]:
    return _python(
        "-m", "uvicorn", "app_mod:app", "--workers", workers, "--port", port,
        "--timeout-graceful-shutdown", grace, "--no-access-log", "--log-level", "error",
    )  # fmt: skip


def _gunicorn(worker: str, *more: str) -> Callable[[int, int, int], list[str]]:
    def argv(workers: int, port: int, grace: int) -> list[str]:
        return _python(
            "-m", "gunicorn", "app_mod:app", "-k", worker, "--workers", workers, "--bind", f"127.0.0.1:{port}",
            "--graceful-timeout", grace, "--log-level", "error", *more,
        )  # fmt: skip

    return argv


def _granian(workers: int, port: int, _grace: int) -> list[str]:
    return _python(
        "-m", "granian", "--interface", "asgi", "app_mod:app", "--workers", workers, "--port", port,
        "--respawn-failed-workers", "--log-level", "error",
    )  # fmt: skip


def _hypercorn(workers: int, port: int, grace: int) -> list[str]:
    return _python(
        "-m", "hypercorn", "app_mod:app", "--workers", workers, "--bind", f"127.0.0.1:{port}",
        "--graceful-timeout", grace, "--log-level", "error",
    )  # fmt: skip


def _python(*argv: object) -> list[str]:
    return [sys.executable, *map(str, argv)]


_ARGV: dict[str, Callable[[int, int, int], list[str]]] = {
    "poolkit": _poolkit(),
    "poolkit-preload": _poolkit("--preload"),
    "poolkit-round-robin": _poolkit("--schedule", "round_robin"),
    "poolkit-least-busy": _poolkit("--schedule", "least_busy"),
    "uvicorn": lambda _workers, port, grace: _uvicorn(1, port, grace),
    "uvicorn-workers": _uvicorn,
    "uvicorn-nodelay": lambda workers, port, _grace: _python("without_nagle.py", workers, port),
    "gunicorn": _gunicorn("uvicorn_worker.UvicornWorker"),
    "gunicorn-preload": _gunicorn("uvicorn_worker.UvicornWorker", "--preload"),
    "gunicorn-asgi": _gunicorn("asgi"),
    "granian": _granian,
    "hypercorn": _hypercorn,
    "node-cluster": lambda workers, port, _grace: ["node", "cluster.js", str(workers), str(port)],
}


def _command(pid: int) -> str:
    """The command of a process; empty once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    return ""


class Server:
    """A server that runs; leaving it kills all of its processes."""

    def __init__(self, name: str, workers: int = 2, grace: int = 5, megabytes: int = 0) -> None:
        """Start it and come back when it has answered."""
        self.workers = workers
        self.port = _free_port()
        folder = Path(os.environ.get("TMPDIR", "/tmp")) / "served"  # noqa: S108 -- the trial's own folder
        folder.mkdir(exist_ok=True)
        (folder / "app_mod.py").write_text(APP.read_text())
        (folder / "cluster.js").write_text(_NODE)
        (folder / "without_nagle.py").write_text(_WITHOUT_NAGLE)
        self._log = (folder / "log.txt").open("w+", encoding="utf-8")
        env = {**os.environ, "APP_MEGABYTES": str(megabytes)}
        started = time.perf_counter()
        self.process = subprocess.Popen(
            _ARGV[name](workers, self.port, grace),
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        try:
            wait_until(self._answers, "its first answer", LIMIT * 2)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}: {self.said()}")
        with contextlib.suppress(OSError):
            return bool(ask(self.port, timeout=5.0))
        return False

    def said(self) -> str:
        """The last line of its log."""
        self._log.flush()
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or ["nothing"])[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all."""
        trackers = []  # of multiprocessing: they take semaphores away once all others are gone, and end by themselves
        for pid in self.pids():
            if "resource_tracker" in _command(pid):
                trackers.append(pid)
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(_command, trackers)), "the end of who takes semaphores away", LIMIT)
        self._log.close()

    def send(self, name: str) -> None:
        """Send the owner of all workers a signal."""
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}: {self.said()}")
        self.process.send_signal(getattr(signal, name))

    def pids(self) -> Collection[int]:
        """The owner and its descendants, as long as it runs."""
        return family(self.process.pid) if self.process.poll() is None else ()

    def worker_pids(self, count: int, known: Collection[int] = ()) -> list[int]:
        """Who answers: so many of them who are not known yet."""
        found: list[int] = []

        def look() -> bool:
            found.extend(pid for pid in answering(self.port) if pid not in known and pid not in found)
            return len(found) >= count

        wait_until(look, f"answers of {count} workers")
        return found


class Load:
    """A client program that loads a server; leaving it without `finish` kills it."""

    def __init__(self, server: Server, clients: int, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CLIENT), str(server.port), str(clients), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it has begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def forget(self) -> None:
        """Begin to count anew."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """End it; what it saw."""
        out, _ = self.process.communicate(timeout=2 * LIMIT)
        if self.process.returncode:
            raise AssertionError("the client failed")
        found: dict[str, Any] = json.loads(out)
        if found["wrong"]:
            raise AssertionError(f"{found['wrong']} answers were wrong ones")
        return found


def ask(port: int, path: str = "/pid", timeout: float = LIMIT) -> bytes:
    """The body of an answer; nothing where the connection ends before it."""
    with opened(port, path, timeout) as sock:
        return answer_of(sock)


def opened(port: int, path: str, timeout: float = LIMIT, *, keep: bool = False) -> socket.socket:
    """A connection on which a request is written."""
    sock = socket.create_connection(("127.0.0.1", port), timeout)
    last = "" if keep else "Connection: close\r\n"
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
    return sock


def answer_of(sock: socket.socket) -> bytes:
    """The short body of its answer; nothing where the connection ends before it, or it does not come in time."""
    data = b""
    while True:
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length: ") and len(body) >= int(line[16:]):
                return body
        try:
            more = sock.recv(65536)
        except OSError:  # a reset, or no answer in time
            return b""
        if not more:
            return b""
        data += more


def answering(port: int, count: int = _AT_ONCE) -> Iterator[int]:
    """The process ids that so many connections are answered with, all open at the same time."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                sockets.append(stack.enter_context(opened(port, "/pid", _PATIENCE, keep=True)))
        for sock in sockets:
            if body := answer_of(sock):
                yield int(body)


def wait_until(is_so: Callable[[], object], what: str, limit: float = LIMIT) -> float:
    """Come back when something is so, which has no event; the seconds that it took."""
    started = time.perf_counter()
    while not is_so():
        if time.perf_counter() - started > limit:
            raise AssertionError(f"waited {limit:g} s in vain for {what}")
        time.sleep(_STEP)
    return time.perf_counter() - started


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
