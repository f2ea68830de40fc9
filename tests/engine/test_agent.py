"""A node's half, spoken to as its owner does."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from engine import work
from engine.work import Journal
from poolkit._clock import monotonic
from poolkit._kinds.settings import PoolSettings
from poolkit._nodes import messages
from poolkit._nodes.agent import Agent
from poolkit._nodes.interfaces import WIRE, AgentSettings
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit.nodes import _content, _python
from poolkit.outcome import Outcome
from support import retry_until, wait_until

pytestmark = pytest.mark.slow

OUTCOMES = {messages.DONE, messages.FAILED, messages.CANCELLED, messages.BACK}


class OwnersEnd:
    """A channel of which the test reads the other end."""

    take: Any
    on_message: Any
    on_end: Any
    is_ended = False

    def start(self) -> None:
        """Nothing is to be done."""

    def wake(self) -> None:
        """The test looks by itself."""

    def abort(self) -> None:
        self.is_ended = True

    def said(self) -> list[tuple[Any, ...]]:
        """What the agent has said since the last time."""
        message = self.take()
        return [] if message is None else messages.unpack(message[0])

    def answer(self) -> None:
        """Answer the agent's first question."""
        ((kind, stamp),) = retry_until(self.said, bool)
        assert kind == messages.ASK
        self.on_message(messages.pack([(messages.LEASED, stamp)]), [])

    def order(self, slot: int, task_id: int, fn: Any, *args: Any) -> None:
        """Have a task run."""
        self.on_message(messages.pack([self._run(slot, task_id, fn, *args)]), [])

    def order_all(self, numbers: list[int], fn: Any) -> None:
        """Have tasks with these numbers run in slots with the same, without arguments, all by one message."""
        self.on_message(messages.pack([self._run(number, number, fn) for number in numbers]), [])

    @staticmethod
    def _run(slot: int, task_id: int, fn: Any, *args: Any) -> tuple[Any, ...]:
        with Found() as found:
            fn_bytes, body, _ = codec.pack_call(fn, args, {}, found)
        return (messages.RUN, slot, task_id, 1, "work", None, None, 0, False, fn_bytes, bytes(body), 0, (), 0)


def new_agent(lease: float) -> tuple[Agent, OwnersEnd]:
    """An agent of one worker, which was answered once, for that lease."""
    content = _content(PoolSettings(1, "process", None, None, (), (), None, 64 * 1024), None, None)
    settings = AgentSettings("id", "crunch", None, lease, WIRE, _python(), content)
    agent, channel = Agent(settings, address="here", host="host", workers=1, ended=lambda: None), OwnersEnd()
    agent.attach(channel)
    channel.answer()
    return agent, channel


def test_of_an_agent_whose_pool_cannot_be_built_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its process, which may be a dask worker's, has them for good."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("poolkit._nodes.agent.build", fail)
    before = len(list(Path("/dev/fd").iterdir())), threading.active_count()
    with pytest.raises(OSError, match="too many open files"):
        new_agent(30.0)
    assert (len(list(Path("/dev/fd").iterdir())), threading.active_count()) == before


def test_an_agent_that_is_ended_says_nothing_of_what_it_ran(tmp_path: Path) -> None:
    """Whoever is to say that it is lost, and why, knows more: not that its worker has crashed."""
    journal = Journal(tmp_path / "journal")
    agent, channel = new_agent(30.0)
    channel.order(1, 7, work.journalled, journal.path, 7, 30.0)
    wait_until(journal.begun)
    agent.close()
    assert channel.is_ended
    assert not {kind for kind, *_ in channel.said()} & OUTCOMES


def test_what_ends_with_the_lease_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template process kills the worker, maybe before the agent has looked at the lease: here long before."""
    monkeypatch.setattr("poolkit._nodes.agent.LOOK", 2.0)
    journal = Journal(tmp_path / "journal")
    agent, channel = new_agent(30.0)
    channel.order(1, 7, work.journalled, journal.path, 7, 30.0)
    wait_until(journal.begun)
    assert agent._tenant is not None
    agent._tenant.until = monotonic()
    os.kill(int(journal.lines()[0][3]), signal.SIGKILL)
    wait_until(lambda: channel.is_ended, "the end of the lease")
    agent.close()
    assert not {kind for kind, *_ in channel.said()} & OUTCOMES


def test_a_task_that_the_pool_of_the_node_has_not_accepted_yet_is_not_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy node the thread that is about to submit it may have to wait for longer than a task has patience."""
    agent, channel = new_agent(30.0)
    may_run, run = threading.Event(), agent.engine.run

    def run_late(runs: Any) -> None:
        may_run.wait()
        run(runs)

    monkeypatch.setattr(agent.engine, "run", run_late)
    provider = threading.Thread(target=channel.order_all, args=([1, 2, 3], work.name_of_process))
    provider.start()
    wait_until(lambda: agent._is_crowded)
    agent._thread.join(0.3)
    assert agent._thread.is_alive()
    may_run.set()
    provider.join()
    open_slots = {1, 2, 3}
    while open_slots:
        open_slots -= {entry[1] for entry in retry_until(channel.said, bool) if entry[0] in OUTCOMES}
    agent.close()


def test_a_kill_that_meets_an_outcome_is_answered(tmp_path: Path) -> None:
    """Else its slot at the owner's, which waits for that, never runs anything again."""
    journal, here = Journal(tmp_path / "journal"), threading.current_thread()
    agent, channel = new_agent(30.0)
    channel.order(1, 7, work.journalled, journal.path, 7, 30.0)
    wait_until(journal.begun)

    class Met(dict[int, Any]):
        """Has a run end when a kill has found it, if nothing prevents that."""

        def get(self, slot: int, _default: Any = None) -> Any:
            run = super().get(slot)
            if threading.current_thread() is here and not agent._lock.locked():
                agent.ended(run, Outcome(b"value", ok=True))
            return run

    agent._runs = Met(agent._runs)
    channel.on_message(messages.pack([(messages.KILL, 1, 7, False)]), [])
    said = retry_until(lambda: [kind for kind, *_ in channel.said() if kind in OUTCOMES], bool)
    agent.close()
    assert said == [messages.CANCELLED]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_agent_whose_thread_fails_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    agent, channel = new_agent(30.0)
    monkeypatch.setattr(agent.engine, "workers", pytest.fail)
    channel.order(1, 7, work.journalled, journal.path, 7, 30.0)
    wait_until(lambda: channel.is_ended)
    agent._thread.join()
    assert agent.wait(0)
