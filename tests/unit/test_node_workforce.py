"""The node workforce on a scripted network: single orders of events that are rarely drawn."""

from __future__ import annotations

import pytest
from unit.scripted_nodes import LEASE, NodesPool

from poolkit._nodes.lease import D
from poolkit.errors import NodeLost


@pytest.mark.parametrize("direction", ["deaf", "mute"])
def test_a_node_whose_connection_has_timed_out_keeps_its_tasks_until_its_lease_is_over(direction: str) -> None:
    pool = NodesPool()
    node = pool.join()
    task = pool.submit()
    for _ in range(5):
        node.write()
        pool.hear(node)
        pool.supervise()
        pool.pump(node)
        node.hear()
    assert pool.live(task.id)
    setattr(node, f"is_{direction}", True)
    pool.give_up(node)
    pool.tick(2 * D)
    assert task not in pool.outcomes
    pool.tick(LEASE + D)  # which checks that it does not run when it is told as lost
    error = pool.outcomes[task].payload
    assert isinstance(error, NodeLost)
    assert error.reason == "silent"
    pool.close()
