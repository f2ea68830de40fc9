"""For `dask worker --preload`: nodes that wait for an owner for a few seconds, not for a minute."""

from __future__ import annotations

from typing import Any

ALONE = 4.0  # seconds


def dask_setup(_worker: Any) -> None:
    """Be impatient."""
    from poolkit._nodes import dask_node

    dask_node.ALONE = ALONE
