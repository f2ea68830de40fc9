"""Shared-memory transport, the worker's side: large arguments in, large results out.

Owner: the worker's main thread. Views of arguments may be dropped in any thread, also by the finalizers of one.
"""

from __future__ import annotations

from poolkit._memory.arena import Arena
from poolkit._memory.channel import DescriptorChannel
from poolkit._memory.holds import pins, unpin
from poolkit._memory.out_of_band import OutOfBand, Received, pack
from poolkit._wire import buffers, codec
from poolkit._wire.arrays import stand_ins
from poolkit._wire.buffers import PLAIN, Found, found_from
from poolkit._wire.handover import is_loaded
from poolkit._wire.messages import FLAG_COPIES
from poolkit.errors import SerializationError

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class WorkerTransport:
    """What one worker receives and sends in shared memory."""

    def __init__(self, fd: int) -> None:
        self.channel = DescriptorChannel(fd, is_worker=True)
        self.arena = Arena()
        self._found = Found

    def begin(self, threshold: float) -> None:
        """Take the pool's word for what is large."""
        self._found = found_from(threshold)

    def load_call(self, fn: bytes, body: Any, flags: int) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Unpickle a call that came out of band; whatever that raises propagates."""
        if pins:
            unpin()
        received = Received(body, self.channel, copies=bool(flags & FLAG_COPIES))
        return codec.load_call(fn, received.pickle, received.buffers())

    def pack_value(self, value: object) -> bytes | OutOfBand:
        """Pickle a result.

        Raises:
            SerializationError: it cannot be pickled.
            EOFError: it refers to more shared memory than can be handed over.
        """
        if type(value) in PLAIN:
            body = codec.pack_value(value)
            if len(body) < self._found.threshold:
                return body  # type: ignore[no-any-return]
            return self._pack_large(value, body, self._found())
        found = self._found()
        values, kind = (value, "tuple") if type(value) is tuple else ((value,), "value")
        if (plain := stand_ins(values, found, kind)) is not None:
            value = plain if kind == "tuple" else plain[0]
        else:
            found.look((value,))
        if not (buffers.memory_in_use or is_loaded()):
            body = codec.pack_value(value, found)
        else:
            with found:
                body = codec.pack_value(value, found)
        if not (found or found.large or found.memories) and len(body) < found.threshold:
            return body  # type: ignore[no-any-return]
        return self._pack_large(value, body, found)

    def _pack_large(self, value: object, body: Any, found: Found) -> bytes | OutOfBand:
        """Put what is large of a pickled result into blocks."""
        try:
            message = pack(body, found, self.arena)
        except (ValueError, BufferError, MemoryError) as exc:
            if found.memories:
                msg = f"the result could not be put into shared memory: {exc}"
                raise SerializationError(msg) from exc
            return codec.pack_value(value)  # type: ignore[no-any-return]  # what was large has changed meanwhile
        if type(message) is OutOfBand:
            message.hand_over(self.channel)
            message.transfer()
        return message
