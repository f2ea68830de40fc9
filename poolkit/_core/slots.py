"""What the rules of a cluster keep: its members and slots; and the orders that they give.

Guarded by: the one lock of the cluster, as the rules are. The rules alone write to members and slots.
"""

from __future__ import annotations

from typing import Protocol

STARTING, READY, DRAINING, KILLED = "starting", "ready", "draining", "killed"  # of members


class Member:
    """One worker of a cluster, from its start until it is gone."""

    __slots__ = ("cause", "generation", "is_due", "kill_at", "number", "ready_at", "since", "slot", "state", "stop_at")

    def __init__(self, number: int, slot: int, generation: int, now: float, boot_timeout: float) -> None:
        self.number, self.slot, self.generation = number, slot, generation
        self.state = STARTING
        self.since = now  # when it came into its state
        self.ready_at: float | None = None
        self.cause = ""  # why it is to end, once it is
        self.is_due = ""  # why it is to be replaced, once another one is ready
        self.stop_at: float | None = None  # when it is to be told to stop
        self.kill_at: float | None = now + boot_timeout  # when it is to be killed: of too long a boot, or drain

    def move(self, state: str, now: float) -> None:
        """Go into another state."""
        self.state, self.since = state, now


class Slot:
    """One place of a cluster."""

    __slots__ = ("coming", "current", "failures", "number", "restarts", "retry_at", "start_at", "waits_since")

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: Member | None = None
        self.coming: Member | None = None
        self.failures = 0  # starts that failed, in a row
        self.start_at: float | None = None  # when the next member is to start
        self.retry_at: float | None = None  # no recycling before
        self.restarts = 0
        self.waits_since = 0.0  # for `start_at`


class Acts(Protocol):
    """What carries out the orders. None of it blocks or calls the rules."""

    def start(self, member: Member) -> None:
        """Start a member."""

    def drain(self, member: Member) -> None:
        """Give a member no more connections. It may be starting still."""

    def stop(self, member: Member) -> None:
        """Tell a member to stop."""

    def kill(self, member: Member, *, want_stack: bool) -> None:
        """Kill a member."""

    def begin(self, generation: int) -> None:
        """Have the code of a new generation imported anew."""

    def drop(self, generation: int) -> None:
        """Let go of a generation: it has no member any more, and starts none."""

    def close(self) -> None:
        """Take no more connections."""

    def tell(self, event: str, subject: object) -> None:
        """Something has happened.

        "ready" (with the member), "started", "reloaded" (the generation), "undone" (it, and why), "stopped".
        """
