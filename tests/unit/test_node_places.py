"""Places of slots on nodes: which node gets the next one, and what finding that out costs."""

from __future__ import annotations

from typing import Any

import pytest
from unit.scripted_nodes import ScriptedChannel, ScriptedProvider

from poolkit._locks import RLock
from poolkit._nodes import messages
from poolkit._nodes.interfaces import NodeFacts
from poolkit._nodes.slots import Node
from poolkit._nodes.workforce import NodeWorkforce


class Places:
    """A workforce on nodes of one worker more each, up to three, and what it costs: how often a node is looked at."""

    def __init__(self, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        room = Node.room

        def counted(node: Node, *, spare: bool) -> int:
            self.looks += 1
            return room(node, spare=spare)

        monkeypatch.setattr(Node, "room", counted)
        provider: Any = ScriptedProvider()
        self.force = NodeWorkforce(RLock(), provider, lease=30.0, shm_threshold=1 << 16)
        self.force.leave = self.force.post_all = self.force.dismiss = lambda _: None
        self.force.changed, self.force.resized = lambda *_: None, lambda: None
        self.channels = [ScriptedChannel() for _ in range(nodes)]
        for number, channel in enumerate(self.channels):
            facts = NodeFacts(str(number), f"tcp://{number}", "host", 1, number % 3 + 1, {})
            self.force.joined(facts, channel)

    def loads(self) -> list[tuple[int, int]]:
        """Of each node, the slots that it has, and its workers."""
        return [(len(node.slots), node.facts.workers) for node in self.force.nodes()]


def test_slots_go_to_the_emptiest_node_and_wait_when_all_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(3, monkeypatch)
    for slot in range(8):
        places.force.start(slot)
    assert places.loads() == [(1, 1), (2, 2), (3, 3)]
    where = {slot: places.force.place_of(slot)[0] for slot in range(8)}
    assert [where[slot] for slot in range(3)] == ["tcp://0", "tcp://1", "tcp://2"]
    assert {slot for slot in where if where[slot] is None} == {6, 7}
    lost = next(slot for slot in range(6) if where[slot] == "tcp://1")
    places.force.forget(lost)
    assert places.force.place_of(6)[0] == "tcp://1"
    kept = {slot for slot in range(6) if where[slot] == "tcp://2"}
    for slot in sorted(kept)[:2]:
        places.force.forget(slot)
    assert places.force.place_of(7)[0] == "tcp://2"
    assert places.loads() == [(1, 1), (2, 2), (2, 3)]


def test_what_a_slot_costs_does_not_grow_with_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(300, monkeypatch)
    for slot in range(900):  # a third of which waits
        places.force.start(slot)
    for channel in places.channels[::2]:
        channel.on_end("closed")
    for slot in range(300):
        places.force.forget(slot)
    for slot in range(1000, 2000):
        places.force.start(slot)
        places.force.forget(slot)
    assert places.looks < 10 * 2000
    assert len(places.force._offers) < 4 * 300


def test_what_is_kept_does_not_grow_with_nodes_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(2, monkeypatch)
    for slot in range(2):  # so there is always room for one more
        places.force.start(slot)
    for number in range(2, 300):
        channel = ScriptedChannel()
        places.force.joined(NodeFacts(f"more {number}", f"tcp://more-{number}", "host", 1, 2, {}), channel)
        places.force.start(number)
        channel.on_message(messages.pack([(messages.UP, 2)]), [])
        channel.on_end("closed")
        places.force.forget(number)
    assert len(places.force._offers) < 100
