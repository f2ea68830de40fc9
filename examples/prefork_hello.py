"""The first cluster: two processes that serve HTTP by the standard library, and what becomes of one that is killed.

    GET /      says who answers
    GET /die   has that worker kill itself

SIGTERM or Ctrl-C stops it, SIGHUP has new workers take over from the old ones.
`--load` asks, has one worker die, sends itself both signals, and says what was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import logging
import os
import signal
import sys
import threading
import time
import urllib.request

import poolkit


class Hello(http.server.BaseHTTPRequestHandler):
    """Says hello, or dies."""

    context: poolkit.ClusterContext

    def do_GET(self) -> None:
        """Answer."""
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        body = f"hello from worker {self.context.worker_id}, generation {self.context.generation}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no requests."""


class Server(http.server.ThreadingHTTPServer):
    """A server that finishes its requests before it closes."""

    daemon_threads = False


def serve(ctx: poolkit.ClusterContext) -> None:
    """Serve until the worker is to stop."""
    assert ctx.socket is not None  # noqa: S101 -- the cluster is bound
    Hello.context = ctx
    with Server(ctx.socket.getsockname(), Hello, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = ctx.socket
        server.server_activate()  # it listens, so the worker is ready
        ctx.stopping.add_callback(threading.Thread(target=server.shutdown).start)
        server.serve_forever()


class Watch:
    """Prints how long the place of a killed worker was empty. On the callback thread."""

    def __init__(self, cluster: poolkit.Cluster) -> None:
        self.replaced, self.reloaded = threading.Event(), threading.Event()
        self._ends: dict[int, tuple[poolkit.WorkerExited, float]] = {}
        cluster.on("worker_exited", self.exited)
        cluster.on("worker_ready", self.ready)
        cluster.on("reloaded", lambda _: self.reloaded.set())

    def exited(self, exited: poolkit.WorkerExited) -> None:
        """A worker has ended."""
        if exited.cause == "crashed":
            self._ends[exited.worker_id] = exited, time.monotonic()

    def ready(self, info: poolkit.ClusterWorkerInfo) -> None:
        """A worker serves."""
        if info.worker_id in self._ends:
            exited, at = self._ends.pop(info.worker_id)
            who = f"worker {exited.worker_id} (pid {exited.pid}) was killed by {exited.signal}"
            print(f"{who}, replaced after {(time.monotonic() - at) * 1000:.0f} ms")
            self.replaced.set()


def ask(url: str, count: int) -> list[str]:
    """Ask so often; returns the answers, each once."""
    answers = set()
    for _ in range(count):
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 -- our own
            answers.add(response.read().decode().strip())
    return sorted(answers)


def use(url: str, watch: Watch, failures: list[str]) -> None:
    """Be the client, and the operator."""
    try:
        print(*ask(url, 20), sep="\n")
        with contextlib.suppress(ConnectionResetError):
            ask(f"{url}/die", 1)
            failures.append("a worker that was to die has answered")
        ask(url, 20)  # by the other one, or by both
        if not watch.replaced.wait(10):
            failures.append("no worker has come in its place")
        os.kill(os.getpid(), signal.SIGHUP)
        if not watch.reloaded.wait(10):
            failures.append("no new workers have come")
        print(*ask(url, 20), sep="\n")
    except BaseException as error:
        failures.append(repr(error))
        raise
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0, which is the default, takes a free one")
    parser.add_argument("--load", action="store_true", help="use it, say what was seen, and stop")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
    cluster = poolkit.Cluster(serve, workers=2, bind=f"127.0.0.1:{asked.port}")
    watch = Watch(cluster)
    print(f"serving on {cluster.url} (pid {os.getpid()})")
    failures: list[str] = []
    client = threading.Thread(target=use, args=(cluster.url, watch, failures))
    if asked.load:
        client.start()  # what it asks waits until a worker is ready
    code = cluster.run()
    if asked.load:
        client.join()
    print(f"stopped, with code {code}")
    sys.exit("; ".join(failures) or code)


if __name__ == "__main__":
    main()
