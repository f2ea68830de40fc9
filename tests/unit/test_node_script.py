"""A node's copy of the owner's script: it passes on to its workers what it was sent, and loads nothing of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolkit._memory.memory import Memory
from poolkit._nodes.script import NodeScript
from poolkit._wire.plans import Sent
from support_scripts import Packed, WorkerHalf, pack

NewScript = Callable[..., Any]


class Node:
    """A node: what it was sent of the script, and its workers."""

    def __init__(self, workers: int = 1) -> None:
        self.sent, self.script = Sent(), NodeScript()
        self.workers = [WorkerHalf(number) for number in range(1, workers + 1)]
        self.memories: dict[int, Memory] = {}
        self.payloads: list[bytes] = []

    def call(self, fn: Any, *args: Any, worker: int = 0) -> Any:
        """Have a call run there."""
        return self.run(pack(fn, *args), worker)

    def run(self, packed: Packed, worker: int = 0) -> Any:
        """Send what the node lacks, and have one of its workers run this."""
        fn, body, manifest = packed
        if manifest is not None:
            if manifest.number not in self.sent.manifests:
                payload, regions = self.sent.lacking(manifest)
                self.memories.update((region.id, region) for region in regions)
                self.script.define(payload, self.memories)
                self.sent.commit()
                self.payloads.append(payload)
            manifest = self.script.manifests[manifest.number]
        return self.workers[worker].run(Packed(fn, body, manifest))


@pytest.fixture
def new_node() -> Iterator[Callable[..., Node]]:
    """Make nodes."""
    nodes: list[Node] = []

    def make(workers: int = 1) -> Node:
        nodes.append(Node(workers))
        return nodes[-1]

    yield make
    while nodes:
        node = nodes.pop()
        for worker in node.workers:
            worker.close()
        del node, worker  # with the memory that they have


SCRIPT = """
class Point:
    def __init__(self, x): self.x = x
    def twice(self): return Point(2 * self.x)
scale, table, big = 3, {"a": 1}, bytearray(b"z" * 100_000)
def helper(x): return scale * x
def f(x): return helper(x), Point(x).twice().x, table["a"], len(big)
def g(): return big[0]
"""


def test_each_worker_of_a_node_gets_what_the_node_was_sent_once(new_script: NewScript, new_node: Any) -> None:
    module, node = new_script(SCRIPT), new_node(2)
    assert node.call(module.f, 2) == module.f(2) == (6, 4, 1, 100_000)
    assert node.call(module.f, 3, worker=1) == module.f(3)
    assert node.call(module.f, 4) == module.f(4)
    assert len(node.payloads) == 1
    assert node.call(module.g, worker=1) == ord("z")
    again = pickle.loads(node.payloads[1])[4]
    assert not {record[2] for record in again} & {"big", "helper", "Point"}, "sent twice"


def test_changes_arrive_and_the_old_version_stays_for_calls_that_have_it(new_script: NewScript, new_node: Any) -> None:
    module, node = new_script(SCRIPT), new_node()
    before = pack(module.f, 1)
    assert node.run(before) == (3, 2, 1, 100_000)
    module.scale, module.table["a"] = 10, 5
    after = pack(module.f, 1)
    assert node.run(after) == (10, 2, 5, 100_000)
    assert node.run(before) == (3, 2, 1, 100_000)


def test_what_no_call_refers_to_any_more_is_let_go(new_script: NewScript, new_node: Any) -> None:
    module, node = new_script(SCRIPT), new_node()
    for number in range(5):
        module.scale = number
        assert node.call(module.helper, 1) == number
    assert len(node.script.manifests) <= 2
    kept = {item.serial for manifest in node.script.manifests.values() for item in manifest.items}
    assert set(node.script._items) == kept


def test_a_worker_that_comes_later_gets_all_of_it(new_script: NewScript, new_node: Any) -> None:
    module, node = new_script(SCRIPT), new_node(2)
    for number in range(3):
        module.scale = number
        assert node.call(module.f, 2)[0] == 2 * number
    assert node.call(module.f, 2, worker=1) == module.f(2)


def test_modules_are_said_not_to_be_there(new_script: NewScript, new_node: Any) -> None:
    """Else a worker would look for the owner's files."""
    module, node = new_script(SCRIPT), new_node()
    node.call(module.f, 1)
    (manifest,) = node.script.manifests.values()
    assert manifest.describe([module.__name__, "other"]).keys() == {module.__name__}
    assert manifest.describe([module.__name__])[module.__name__]["is_here"] is False
