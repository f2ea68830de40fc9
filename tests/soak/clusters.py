"""Who keeps a cluster in the soak: it serves a client while it is reloaded, resized and its workers are killed.

A request fails only where its own worker was killed meanwhile: at most one for each kill.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import poolkit
from support import WATCHDOG

if TYPE_CHECKING:
    from soak.stage import Stage

Actor = Callable[["Stage", random.Random], None]
SCHEDULES = ("kernel", "round_robin", "least_busy", "sticky")


def answer(context: poolkit.ClusterContext) -> None:
    """Send each line back."""
    for connection, _ in context.connections():
        with connection, connection.makefile("rwb") as stream:
            stream.write(stream.readline())
            context.count()


def keep_cluster(stage: Stage, rng: random.Random) -> None:
    """A cluster with a client; now and then it is reloaded, resized, or a worker of it killed."""
    kind = stage.pool.kind
    with poolkit.Cluster(
        answer,
        rng.randint(1, 2),
        "127.0.0.1:0",
        kind=kind,
        schedule=rng.choice(SCHEDULES),
        grace=WATCHDOG,
        max_requests=rng.choice([None, 100]),
    ) as cluster:
        client = _Client(stage, cluster.address)
        kills = 0
        while not stage.over.wait(rng.uniform(0.05, 0.5)):
            what = rng.choice(["reload", "resize", "kill"])
            if what == "reload":
                cluster.reload(WATCHDOG)
                stage.ledger.count("clusters: reloads")
            elif what == "resize":
                cluster.resize(rng.randint(1, 3))
            elif kind == "process":
                pids = [info.pid for info in cluster.workers() if info.state == "ready" and info.pid is not None]
                if pids:
                    kills += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(pids), signal.SIGKILL)
        client.end(kills)


class _Client:
    """Asks one thing after another, each by a connection of its own, in a thread."""

    def __init__(self, stage: Stage, address: tuple[str, int]) -> None:
        self._stage, self._address = stage, address
        self._failures: list[str] = []
        self._is_over = False
        self._asked = 0
        self._thread = threading.Thread(target=self._ask_all, name="soak-client", daemon=True)
        self._thread.start()

    def _ask_all(self) -> None:
        while not self._is_over:
            self._asked += 1
            line = b"%d\n" % self._asked
            try:
                with socket.create_connection(self._address, WATCHDOG) as client:
                    client.sendall(line)
                    found = client.makefile("rb").readline()
            except OSError as exc:
                self._failures.append(repr(exc))
            else:
                if found != line:
                    self._failures.append(f"{found!r} instead of {line!r}")

    def end(self, kills: int) -> None:
        """Stop, and see whether no more has failed than may have."""
        self._is_over = True
        self._thread.join(WATCHDOG)
        self._stage.ledger.count("clusters: requests", self._asked)
        if len(self._failures) > kills or self._thread.is_alive():
            self._stage.ledger.blame(f"cluster: {kills} kills, and of {self._asked} failed {self._failures}")


ACTORS: dict[str, list[Actor]] = {"clusters": [keep_cluster]}
