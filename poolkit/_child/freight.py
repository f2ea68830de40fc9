"""Freight, the worker's side: large arguments in, large results out, through shared memory.

Owner: the worker's main thread. Views of arguments may be dropped in any thread, also by the finalizers of one.
"""

from __future__ import annotations

from poolkit._wire import buffers, codec
from poolkit._wire.arena import Arena
from poolkit._wire.buffers import PLAIN, Found, found_from
from poolkit._wire.handover import is_loaded
from poolkit._wire.holds import release_pins
from poolkit._wire.messages import FLAG_COPIES, Call
from poolkit._wire.parcels import Arrived, Parcel, pack
from poolkit._wire.passage import Passage
from poolkit.errors import SerializationError

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OWNER = 0  # who frees what a worker lends


class Freight:
    """What one worker receives and sends in shared memory."""

    def __init__(self, passage_fd: int) -> None:
        self.passage = Passage(passage_fd, waits=True)
        self.arena = Arena()
        self._found = Found

    def begin(self, threshold: float) -> None:
        """Take the pool's word for what is large."""
        self._found = found_from(threshold)

    def load_call(self, call: Call) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Unpickle a call that came as a parcel; whatever that raises propagates."""
        release_pins()
        copies = bool(call.flags & FLAG_COPIES)
        arrived = Arrived(call.body, self.passage, copies=copies)
        try:
            return arrived.load(lambda data, found: codec.load_call(call.fn, data, found))  # type: ignore[no-any-return]
        finally:
            if not copies:
                self.passage.part_with(arrived.regions)

    def pack_value(self, value: object) -> bytes | Parcel:
        """Pickle a result.

        Raises:
            SerializationError: it cannot be pickled, or refers to more shared memory than can be handed over.
        """
        if type(value) in PLAIN:
            body = codec.pack_value(value)
            if len(body) < self._found.threshold:
                return body  # type: ignore[no-any-return]
            return self._pack_large(value, body, self._found())
        found = self._found()
        found.look((value,))
        if not (buffers.regions_in_use or is_loaded()):
            body = codec.pack_value(value, found)
        else:
            with found:
                body = codec.pack_value(value, found)
        if not (found or found.large or found.regions) and len(body) < found.threshold:
            return body  # type: ignore[no-any-return]
        return self._pack_large(value, body, found)

    def _pack_large(self, value: object, body: Any, found: Found) -> bytes | Parcel:
        """Put what is large of a pickled result into blocks."""
        try:
            parcel = pack(body, found, self.arena)
            if type(parcel) is Parcel:
                parcel.hand_over(self.passage, self.arena)
                parcel.lend(OWNER)
        except (OSError, ValueError, BufferError, MemoryError) as exc:
            if found.regions:
                msg = f"the result refers to shared memory or descriptors that could not be handed over: {exc}"
                raise SerializationError(msg) from exc
            # No room for its descriptor just now, or what was large has changed meanwhile: as if nothing were large.
            return codec.pack_value(value)  # type: ignore[no-any-return]
        return parcel
