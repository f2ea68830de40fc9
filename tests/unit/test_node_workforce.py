"""The owner's half of pools on nodes: what it writes to them, and what it makes of what they say."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.scripted_nodes import LEASE, SAMPLES, AnyTask, NodesPool, ScriptedNode

from poolkit._core.options import CallOptions
from poolkit._core.workforce import Died
from poolkit._memory.memory import Memory
from poolkit._nodes import messages
from poolkit._nodes.lease import D
from poolkit._nodes.prints import CHUNK
from poolkit._nodes.slots import Slot
from poolkit._wire import codec
from poolkit.errors import NodeLost, SerializationError
from poolkit.incoming import Packed
from poolkit.task import Task, TaskPhase


@pytest.fixture
def pool() -> Iterator[NodesPool]:
    """A scheduler and the workforce, without nodes."""
    made = NodesPool()
    yield made
    made.close()


def orders(pool: NodesPool, node: ScriptedNode) -> list[tuple[Any, ...]]:
    """All that is written to a node by now."""
    while pool.pump(node):
        pass
    found = [entry for head, _ in node.to_node for entry in messages.unpack(head)]
    node.to_node.clear()
    return found


def kinds(found: list[tuple[Any, ...]]) -> list[int]:
    """Of these orders."""
    return [entry[0] for entry in found]


def ready(pool: NodesPool, workers: int = 1) -> ScriptedNode:
    """A node whose workers are up, and whose lease was answered for."""
    node = pool.join(workers)
    node.write()
    pool.hear(node)
    orders(pool, node)
    return node


def give(pool: NodesPool, *memories: Memory, **options: Any) -> AnyTask:
    """A task that refers to memory; in the outbox of its node if a slot is idle."""
    task: AnyTask = Task(None, "work", (b"function", b"body", None, memories, []), CallOptions(**options), 100)
    pool.scheduler.submit(task, pool.now)
    pool.tasks[task.id] = task
    pool.collect()
    pool.handle()  # that slots are ready
    return task


def say(pool: NodesPool, node: ScriptedNode, *entry: Any) -> None:
    """Have a node say something."""
    node.to_owner.append(messages.pack([entry]))
    pool.hear(node)


def test_a_call_goes_with_its_number_its_limits_and_its_attempt(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool, timeout=5.0, memory_limit=1000, priority=3, retries=1)
    (run,) = orders(pool, node)
    assert run == (messages.RUN, 1, task.id, 1, "work", 5.0, 1000, 3, run[8], b"function", b"body", 0, (), 0)
    assert task.node == node.facts.address
    assert task.phase is TaskPhase.SENT
    assert pool.provider.held == {node.facts.number}


def test_a_task_that_is_cancelled_before_it_is_written_never_is(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool)
    pool.scheduler.cancel(task, pool.now)
    pool.collect()
    assert orders(pool, node) == []
    assert pool.outcomes[task].cancelled


def test_one_that_was_written_is_stopped_by_an_order_behind_it(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool)
    orders(pool, node)
    pool.scheduler.cancel(task, pool.now)
    pool.collect()
    ((kind, slot, task_id, _),) = orders(pool, node)
    assert (kind, slot, task_id) == (messages.KILL, 1, task.id)
    say(pool, node, messages.CANCELLED, slot, task.id, "")
    later = give(pool)
    assert [entry[2] for entry in orders(pool, node)] == [later.id]


def test_a_word_of_a_task_that_the_slot_has_no_more_is_ignored(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool)
    orders(pool, node)
    say(pool, node, messages.DONE, 1, task.id + 1, True, b"other", 0.0, 0, None, 0)
    say(pool, node, messages.BEGUN, 99, task.id)
    assert task not in pool.outcomes
    say(pool, node, messages.DONE, 1, task.id, True, b"value", 0.0, 0, None, 0)
    assert pool.outcomes[task].ok


def test_memory_goes_to_a_node_once_and_is_forgotten_there_when_it_is_gone_here(pool: NodesPool) -> None:
    node, memory = ready(pool), Memory.create(100)
    number = memory.id
    written = []
    for _ in range(2):
        task = give(pool, memory)
        written += orders(pool, node)
        say(pool, node, messages.DONE, 1, task.id, True, b"value", 0.0, 0, None, 0)
    assert kinds(written) == [messages.MEMORY, messages.RUN, messages.RUN]
    assert written[0][1:] == (number, 1)
    assert [entry[-2:] for entry in written[1:]] == [((number,), 0)] * 2
    del memory
    task.call = None  # which the pool does when it is done
    pool.tasks.clear()
    pool.outcomes.clear()
    del task
    gc.collect()
    pool.supervise()
    assert orders(pool, node) == [(messages.FORGET, number)]


def test_memory_that_was_not_broadcast_is_refused(pool: NodesPool) -> None:
    memory = Memory.create(100)

    class Known:
        memories = (memory,)

    with pytest.raises(SerializationError, match="another machine"):
        pool.workforce._known(Known())  # type: ignore[arg-type]
    pool.workforce.broadcast(memory)
    assert pool.workforce._known(Known()) == (memory,)  # type: ignore[arg-type]


def test_a_task_on_a_node_cannot_be_sent_messages(pool: NodesPool) -> None:
    with pytest.raises(RuntimeError, match="for tasks on this machine"):
        pool.workforce.pack_mail("hello")


def test_what_a_task_sends_is_there_for_who_has_its_handle(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool)
    orders(pool, node)
    say(pool, node, messages.TOLD, 1, task.id, 7, codec.pack_value("hello"), 0)
    (entry,) = task.open_exchange().incoming.items
    assert isinstance(entry, Packed)
    assert entry.load(entry.payload) == "hello"
    assert pool.workforce.received() == [0, 1]


def test_a_worker_whose_records_or_messages_wait_is_held_up_on_its_node(pool: NodesPool) -> None:
    node = ready(pool)
    give(pool)
    orders(pool, node)
    assert pool.workforce.pause(1)
    pool.workforce.resume(1)
    assert orders(pool, node) == [(messages.PACE, 1, False), (messages.PACE, 1, True)]
    assert not pool.workforce.pause(99)


class Printed:
    """Takes down what is printed; the test says what of it is shown."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.shown: Callable[[int], object] = lambda _count: None

    def write(self, fd: int, data: bytes, shown: Callable[[int], object]) -> None:
        self.written.append((fd, data))
        self.shown = shown


def test_what_is_printed_is_written_and_a_node_is_told_how_much_in_large_pieces(pool: NodesPool) -> None:
    node, printed, warnings = ready(pool), Printed(), []
    pool.workforce._printers = printed, printed  # type: ignore[assignment]
    pool.workforce.warn = warnings.append
    say(pool, node, messages.PRINTED, 0, b"one", 0)
    say(pool, node, messages.PRINTED, 1, b"two", 0)
    assert printed.written == [(1, b"one"), (2, b"two")]
    printed.shown(CHUNK - 1)
    assert orders(pool, node) == []
    printed.shown(3)
    assert orders(pool, node) == [(messages.SHOWN, CHUNK + 2)]
    assert warnings == []
    say(pool, node, messages.PRINTED, 0, b"three", 17)
    assert warnings[0].startswith(f"17 bytes that tasks printed on node {node.facts.address} were dropped")


def test_a_node_that_runs_nothing_is_let_go_after_a_while(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool)
    orders(pool, node)
    pool.tick(1.0)
    assert pool.provider.held == {node.facts.number}
    say(pool, node, messages.DONE, 1, task.id, True, b"value", 0.0, 0, None, 0)
    pool.tick(1.0)
    assert pool.provider.held == set()


def test_a_slot_that_has_nothing_ends_at_once(pool: NodesPool) -> None:
    node = ready(pool)
    task = give(pool)
    orders(pool, node)
    say(pool, node, messages.DONE, 1, task.id, True, b"value", 0.0, 0, None, 0)
    pool.workforce.kill(1, want_stack=False)
    assert pool.posted.pop() == Died(1)
    assert orders(pool, node) == []


def test_a_task_may_end_while_its_slot_is_looked_at_to_be_killed(
    pool: NodesPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the provider's thread; the node answers the order all the same."""
    node = ready(pool)
    task = give(pool)
    orders(pool, node)
    seen = [None, task]
    with monkeypatch.context() as patch:
        patch.setattr(Slot, "task", property(lambda _slot: seen.pop()), raising=False)
        pool.workforce.kill(1, want_stack=False)
    assert orders(pool, node) == [(messages.KILL, 1, task.id, False)]


def test_a_lost_node_tells_what_was_begun_and_gives_back_what_was_not_written(pool: NodesPool) -> None:
    node = ready(pool, 2)
    written = give(pool)
    orders(pool, node)
    queued = give(pool)
    node.end()
    pool.see_end(node)
    assert written not in pool.outcomes, "before its end is certain"
    pool.tick(2.0)
    error = pool.outcomes[written].payload
    assert isinstance(error, NodeLost)
    assert (error.node, error.reason, error.begun) == (node.facts.address, "closed", True)
    other = ready(pool)
    pool.tick(1.0)
    assert [entry[2:4] for entry in orders(pool, other)] == [(queued.id, 1)]
    assert queued.node == other.facts.address


def test_of_a_task_that_waited_at_a_lost_node_nobody_knows_whether_it_has_begun(pool: NodesPool) -> None:
    """Others were sent ahead to spare slots, and had the worker; since then the node has none of these any more."""
    node = ready(pool)

    def send() -> tuple[AnyTask, int]:
        task = give(pool)
        (run,) = orders(pool, node)
        return task, run[1]

    def done(task: AnyTask, slot: int) -> None:
        pool.now += 0.1
        say(pool, node, messages.DONE, slot, task.id, True, b"value", 0.0, 0, None, 0)

    for _ in range(SAMPLES):
        done(*send())
    first, (_, _), (back, spare) = send(), send(), send()
    done(*first)
    waits, slot = send()
    assert slot == first[1]
    say(pool, node, messages.BACK, spare, back.id)
    node.end()
    pool.see_end(node)
    pool.tick(2.0)
    error = pool.outcomes[waits].payload
    assert isinstance(error, NodeLost)
    assert error.begun is None


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
