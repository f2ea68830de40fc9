"""The channel of sockets, both ends of it in this process."""

from __future__ import annotations

from poolkit._child import socket_channel
from poolkit._wire.spin import GIVE_UP, SPIN


def test_who_waits_looks_first_only_while_that_alone_is_enough() -> None:
    """A sleep was in vain however short: where others want the CPU, who looks loses his turn to them."""
    spin = socket_channel._Spin()
    for _ in range(GIVE_UP):
        assert spin.seconds == SPIN
        spin.slept(0.0)
    looks = []
    for _ in range(3 * socket_channel._TRY_EVERY):
        spin.slept(0.0)
        looks.append(spin.seconds == SPIN)
    assert sum(looks) == 3, "now and then, whether it is again"
