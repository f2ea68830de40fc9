"""Pools on a Dask cluster: the same calls, on many machines.

    with DaskPool("tls://scheduler:8786") as pool:
        task = pool.options(timeout=5, retries=1).submit(fn, x)

The scheduler is the pool's own, in this process, and so are the worker processes on each node: a task is begun at most
once unless retries are asked for, and limits kill it there. Dask places, connects and scales the nodes, each one
`dask worker` process: `dask worker tcp://10.0.0.1:8786 --nthreads 16 --memory-limit 0`.

`install` is for tasks that Dask itself schedules: a crash, a hang or a leak costs that task alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from poolkit._core import options as checks
from poolkit.nodes import NodeInfo, NodeJoined, NodeLeft, NodePool

if TYPE_CHECKING:
    import distributed

__all__ = ["DaskPool", "NodeInfo", "NodeJoined", "NodeLeft", "install"]


class DaskPool(NodePool):
    """A pool whose workers are on the nodes of a Dask cluster. Thread-safe.

    What differs from a pool on one machine: `NodeLost` and `NoNodes`; no streams, no `task.send`, no
    `stacks()`; shared memory and multiprocessing's locks are refused as arguments; calls take 1 to 2 ms longer.
    """

    _kind = "dask"

    def __init__(  # noqa: PLR0913 -- the contract
        self,
        cluster: str | distributed.Client | distributed.deploy.Cluster | None = None,
        *,
        workers_per_node: int | None = None,
        max_workers: int | None = None,
        min_nodes: int = 1,
        max_nodes: int | None = None,
        node_timeout: float = 60.0,
        lease: float = 30.0,
        by_value: Sequence[str | ModuleType] = (),
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        shm_threshold: int | None = 64 * 1024,
        name: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        max_queue: int | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        """Make a pool, and wait until `min_nodes` are up; blocks for at most `node_timeout` seconds.

        Args:
            cluster: the address of a scheduler, a `Client`, or a `Cluster` object; None: the current client, else the
                scheduler of Dask's configuration, else a cluster of one node here, which ends with the pool.
            workers_per_node: None: as many as the dask worker has threads.
            max_workers: over all nodes; None: as many as there are, now and later.
            min_nodes: how many have to be up when this returns.
            max_nodes: with a Cluster object: have up to so many nodes, and give idle ones back.
            node_timeout: seconds that work may be queued while no node is there at all.
            lease: seconds after which a node that cannot reach this process stops its work.
            by_value: modules that the nodes do not have: what is used of them is sent along.
            initializer: as of `Pool`, and so are those below, for the pool of each node.
            initargs: its arguments.
            preload: names of modules that each node imports once, before its workers fork.
            env: environment variables for the workers.
            max_tasks_per_child: a worker is replaced after so many tasks.
            max_memory_per_child: a worker is replaced when it uses more bytes of memory after a task.
            shm_threshold: buffers of so many bytes travel beside the calls, and in a node's shared memory.
            name: for logs and errors.
            timeout: seconds that a task may run by default, on its node.
            retries: how often a task runs again by default when its worker crashed, or its node was lost.
            max_queue: how many tasks may wait.
            idle_timeout: with `max_nodes`, seconds after which idle nodes are given back; None: 10.

        Raises:
            ModuleNotFoundError: Dask is not installed: `pip install poolkit[dask]`.
            TypeError, ValueError: an argument has no sense.
            SerializationError: the initializer or its arguments cannot be sent to another machine.
            NoNodes: too few are up after `node_timeout` seconds; what those said that were refused is its cause.
            OSError: there is no scheduler at that address.
        """
        try:
            from poolkit._nodes.provider_dask import DaskProvider  # noqa: PLC0415 -- takes a second to import
        except ModuleNotFoundError as exc:
            msg = f"DaskPool needs Dask (no module named {exc.name!r}): pip install poolkit[dask]"
            raise ModuleNotFoundError(msg, name=exc.name) from exc
        seconds = checks.seconds("node_timeout", node_timeout)
        provider = DaskProvider(cluster, timeout=86400.0 if seconds is None else seconds)
        super().__init__(
            provider,
            workers_per_node=workers_per_node,
            max_workers=max_workers,
            min_nodes=min_nodes,
            max_nodes=max_nodes,
            node_timeout=node_timeout,
            lease=lease,
            by_value=by_value,
            initializer=initializer,
            initargs=initargs,
            preload=preload,
            env=env,
            max_tasks_per_child=max_tasks_per_child,
            max_memory_per_child=max_memory_per_child,
            shm_threshold=shm_threshold,
            name=name,
            timeout=timeout,
            retries=retries,
            max_queue=max_queue,
            idle_timeout=idle_timeout,
        )


def install(client: distributed.Client, name: str = "poolkit", **pool_settings: Any) -> None:
    """Give each dask worker, now and later, a `poolkit.Pool` as an executor.

        poolkit.dask.install(client, timeout=60)
        with dask.annotate(executor="poolkit"):
            collection.compute()

    Dask's rules stay Dask's: a task is run again when its node dies, and `future.cancel()` does not stop one that runs.
    Installed again under the same name, the pools are replaced, and what runs in them is ended.

    Args:
        client: of the cluster.
        name: of the executor, for `dask.annotate` and `client.submit`.
        **pool_settings: as for `poolkit.Pool`; `max_workers` is the number of threads of the dask worker if not given.
    """
    from poolkit._dask_executor import ExecutorPlugin  # noqa: PLC0415 -- which imports Dask

    client.register_plugin(ExecutorPlugin(name, pool_settings), name=f"poolkit-executor-{name}")
