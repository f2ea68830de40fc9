"""What runs on a Dask cluster is tested apart: importing `distributed` starts threads and changes how errors pickle.

POOLKIT_DASK=1 pytest -m "long or not long" tests/engine
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.work import Journal
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool

ON_DASK = [
    "test_dask_pool.py",
    "test_failures_on_dask.py",
    "test_install.py",
    "test_leaving.py",
    "test_living_with_others.py",
    "test_network_failures.py",
    "test_provider_dask.py",
    "test_soak.py",
]
collect_ignore = [] if "POOLKIT_DASK" in os.environ else ON_DASK


@pytest.fixture
def make_pool() -> Iterator[Callable[..., NodePool]]:
    """Make pools on local nodes; what is left of them is killed after the test."""
    pools: list[NodePool] = []

    def make(nodes: int = 1, workers: int = 1, **settings: Any) -> NodePool:
        pools.append(NodePool(LocalProvider(nodes, workers), min_nodes=nodes, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(kill=True)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A file for what tasks write."""
    return Journal(tmp_path / "journal")
