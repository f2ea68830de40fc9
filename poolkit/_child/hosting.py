"""Hosting: the target of a dedicated worker that makes one object and answers calls to it, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from poolkit._child.loop import run_here
from poolkit._child.missing import explain
from poolkit._child.port import Channel, ChannelEnd, Port
from poolkit._typing import Any


def host(port: Port, factory: Callable[..., object], *args: Any) -> None:
    """Make the object, and answer calls until the owner closes; see `_engine/calls.py`."""
    channel, last = port._channel, 0  # noqa: SLF001 -- they are no messages of the user's
    subject = factory(*args)
    try:
        while True:
            last = _answer(channel, subject, last)
    except ChannelEnd:
        return


def _answer(channel: Channel, subject: object, last: int) -> int:
    """Answer one call; a function of its own, so that nothing of it is kept while the next is waited for."""
    try:
        number, method, kwargs, *args = channel.receive(lambda: None, [])
    except ChannelEnd:
        raise
    except Exception as exc:  # noqa: BLE001 -- what unpickling raises is the outcome of that call
        explain(exc, is_loading=True)
        _send(channel, channel.pack_failure(exc))
        return last
    if number == last:  # an interrupt came between its sending and the note of that
        return last
    has_value, found = run_here(_call, (subject, method, args, kwargs or {}), {})
    packed: Any = None
    if has_value:
        try:
            packed = channel.pack(found)
        except Exception as exc:  # noqa: BLE001 -- it cannot be pickled, or there is no memory for it
            has_value, found = False, exc
    if not has_value:
        explain(found)
        packed = channel.pack_failure(found)
    _send(channel, packed)
    return int(number)


def _call(subject: object, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return getattr(subject, method)(*args, **kwargs)


def _send(channel: Channel, packed: Any) -> None:
    while not channel.try_send(packed):
        channel.wait(None, writes=True)
