"""Nodes that do not fit: of another wire number, with another minor version of Python, and without poolkit.

Usage: python -m tests.engine.versions [--other PYTHON]

`--other` is an interpreter of another minor version, with poolkit's requirements and `distributed`. Each such node is
beside one that fits, and is there before the pool, or comes later.
Bars: it is refused with one warning, and stays one of Dask's workers; no process is started there and no task is sent;
a pool that wants both, and what is queued once the one that fits has died, get `NoNodes`, whose cause says what it is.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys

import distributed

import poolkit
from engine import work
from engine.cluster import Bars, Cluster, error_of, offspring, wait_for
from poolkit._nodes.interfaces import WIRE
from poolkit.dask import DaskPool, NodeLeft
from support_dask import OTHER_WIRE, WITHOUT_POOLKIT

TASKS = 200
PATIENCE = 4.0  # seconds of node_timeout


class Misfit:
    """One kind of node that does not fit; what is to be said of it."""

    def __init__(self, name: str, *options: str, python: str = sys.executable, says: tuple[str, ...]) -> None:
        self.name, self.options, self.python, self.says = name, options, python, says

    def start(self, cluster: Cluster) -> int:
        """Start such a node. Returns its process."""
        return cluster.add(1, *self.options, python=self.python)[0]


class Warnings(logging.Handler):
    """What the library warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("poolkit").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(record.getMessage())


def address_of(cluster: Cluster, pid: int, count: int) -> str:
    """The address of that dask worker, once there are so many."""
    with distributed.Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(count)
        return next(each for each, found in client.run(work.name_of_process).items() if found == pid)


def explains(bars: Bars, misfit: Misfit, address: str, error: BaseException | None, of_what: str) -> None:
    """The error is to say which node was refused, and why."""
    cause = error.__cause__ if error is not None else None
    is_clear = isinstance(error, poolkit.NoNodes) and address in str(cause)
    bars.bar(is_clear and all(text in str(cause) for text in misfit.says), f"{of_what}: {error!r} from {cause!r}")
    if isinstance(cause, poolkit.VersionMismatch):
        bars.bar(
            cause.node == address and cause.there in misfit.says,
            f"its facts: node {cause.node}, here {cause.here}, there {cause.there}",
        )


def run(misfit: Misfit, warned: Warnings) -> int:
    """Show one kind; returns the exit status."""
    bars = Bars(f"versions: a node {misfit.name}")
    with Cluster(1) as cluster:
        (right,) = cluster.nodes
        wrong = misfit.start(cluster)
        address = address_of(cluster, wrong, 2)
        try:
            DaskPool(cluster.address, min_nodes=2, node_timeout=PATIENCE).shutdown()
            error = None
        except poolkit.PoolkitError as exc:
            error = exc
        explains(bars, misfit, address, error, "a pool that wants both")
        warned.texts.clear()
        left: list[NodeLeft] = []
        with DaskPool(cluster.address, node_timeout=PATIENCE) as pool:
            pool.on("node_left", left.append)
            later = address_of(cluster, misfit.start(cluster), 3)
            wait_for(lambda: left, "the second such node to be refused")
            bars.bar((left[0].node, left[0].reason) == (later, "refused"), f"one that came later: {left[0]}")
            refused = [text for text in warned.texts if "is not used" in text]
            bars.bar(len(refused) == 2 and all(text in str(refused) for text in misfit.says), f"warnings: {refused}")
            tasks = [pool.submit(work.name_of_process) for _ in range(TASKS)]
            done = [task.result() for task in tasks]
            fits = {node.address for node in pool.nodes()}
            bars.bar({task.node for task in tasks} == fits, f"{len(done)} results, all of {fits}")
            bars.bar(not offspring(wrong), f"processes of poolkit on it: {len(offspring(wrong))}")
            cluster.kill(right)
            wait_for(lambda: not pool.nodes(), "the node that fits to be gone")
            explains(
                bars, misfit, address, error_of(pool.submit(work.name_of_process)), "what is queued without a node"
            )
        with distributed.Client(cluster.address, set_as_default=False) as client:
            bars.bar(len(client.nthreads()) == 2, "both are workers of Dask as before")
    return bars.done()


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.versions", description="Nodes that do not fit.")
    parser.add_argument("--other", metavar="PYTHON", help="an interpreter of another minor version")
    asked = parser.parse_args()
    here = "{}.{}".format(*sys.version_info)
    misfits = [
        Misfit("of another wire number", *OTHER_WIRE, says=(f"Python {here}, wire 0",)),
        Misfit("without poolkit", *WITHOUT_POOLKIT, says=("poolkit cannot be imported", "pip install poolkit[dask]")),
    ]
    if asked.other:
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        says = (f"Python {subprocess.check_output([asked.other, '-c', code], text=True).strip()}, wire {WIRE}",)
        misfits.append(Misfit("with another Python", python=asked.other, says=says))
    warned = Warnings()
    return int(sum(run(misfit, warned) for misfit in misfits) > 0)


if __name__ == "__main__":
    sys.exit(main())
