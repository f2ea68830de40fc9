"""Freight, the owner's side: large arguments out, large results in, through shared memory.

Who frees a block of arguments? While a call was not sent: the call itself, when it is dropped. From then on the worker,
when its last view is gone, or its death. What was taken back before it was begun is the call's own again; which calls
those are tells the waybill, by counting: outcomes come in the order in which tasks were sent, and what is taken back
is what was sent last. A call that may have to run again keeps its blocks for as long as its task is unsettled or a
worker may be reading them; the worker makes copies.

A worker is dead for this purpose when nobody can write to its memory any more: when it was reaped, or (when the process
that reaps was killed) when its ends of the link are closed, which the kernel does after it has freed its memory.
Guarded by: the pool's lock: the waybills, `_dead`. The arena guards itself. `pack` is for any thread, without a lock.
"""

from __future__ import annotations

import contextlib
import os
from _weakref import ref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._core.workforce import AnyTask
from poolkit._wire import buffers, codec
from poolkit._wire.arena import Arena
from poolkit._wire.buffers import PLAIN, Found, found_from
from poolkit._wire.handover import is_loaded
from poolkit._wire.holds import release_pins
from poolkit._wire.messages import FLAG_ANNOUNCE, FLAG_COPIES, FLAG_PARCEL
from poolkit._wire.parcels import Arrived, Parcel, pack
from poolkit._wire.passage import Passage
from poolkit._wire.regions import Region, known_region
from poolkit._workforce.logs import log
from poolkit.errors import SerializationError

if TYPE_CHECKING:
    from poolkit._wire.plans import Manifest
    from poolkit._workforce.member import Member


LOOK_AT_CHILDREN = 2.0  # seconds between two looks whether a forked child is gone
LOOK_AT_DYING = 1.0  # seconds until the next look whether workers are dead that nobody reaps
RETRY = 0.01  # seconds until a descriptor that the system had no room for is sent again
SHORT = 16  # items of a list that are looked at one by one


class Waybill:
    """Which parcels one worker has been sent, by the number of the task among all that it was sent."""

    __slots__ = ("finished", "parcels", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.finished = 0
        self.parcels: deque[tuple[int, Parcel]] = deque()

    def add(self, place: int, parcel: Parcel) -> None:
        """Note that the task of this place, counted on from those sent before, is a parcel."""
        self.parcels.append((self.sent + place, parcel))

    def take_back(self, count: int) -> None:
        """The last ones that were sent were not begun."""
        self.sent -= count
        while self.parcels and self.parcels[-1][0] > self.sent:
            self.parcels.pop()[1].reclaim()

    def begin(self) -> None:
        """The next task has begun. By whoever holds the reader's lock."""
        with contextlib.suppress(IndexError):  # there is none, or what was left was taken back just now
            place, parcel = self.parcels[0]
            if place == self.finished + 1 and parcel.goes_once:
                parcel.part_with_descriptors()

    def finish(self) -> None:
        """The next outcome is here. By whoever holds the reader's lock; only `take_back` takes from the other end."""
        self.finished += 1
        parcels = self.parcels
        while parcels:
            try:
                if parcels[0][0] > self.finished:
                    return
                parcels.popleft()
            except IndexError:  # what was left was taken back just now
                return


class Freight:
    """What one pool sends and receives in shared memory."""

    def __init__(self, threshold: int | None, name: str) -> None:
        self.threshold = float("inf") if threshold is None else threshold
        self._found = found_from(self.threshold)
        self.arena = Arena()
        self._name = name
        # Set by the workforce: called, from finalizers, when a region is gone that a worker was told of; what wakes the
        # supervisor thread, and what it does for a worker.
        self.gone: Callable[[int], None] = lambda _: None
        self.wake: Callable[[], None] = lambda: None
        self.lend_tracker: Callable[[Region], None] = lambda _: None  # by the supervisor thread
        self._watched: dict[int, ref[Region]] = {}
        self._is_told = False  # that memory is short
        self._dying: list[tuple[int, int]] = []  # workers that may still run, and a copy of their link's descriptor
        self.sent = self.received = 0  # bytes, through shared memory
        self._pins_at: float | None = None  # when to see whether forked children are gone that see results
        self.due_at: float | None = None  # when `tend` is to be called because of what could not be sent

    # ===== out =====

    def pack(  # noqa: C901 -- each function that it would be divided by costs every small call 60 ns
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, int]:
        """Pickle a call, with what is large in blocks. Raises SerializationError."""
        if type(fn) is FunctionType and not kwargs:
            for value in args:
                if (kind := type(value)) not in PLAIN and not (
                    (kind is list or kind is tuple) and len(value) <= SHORT and PLAIN.issuperset(map(type, value))
                ):
                    break
            else:
                try:
                    call: Any = codec.pack_call(fn, args, kwargs)
                    size = len(call[1])
                    if size < self.threshold:
                        return call, len(call[0]) + size
                    if call[0]:  # else the function is in there, and may have large buffers
                        return self._pack_large(call, self._found())
                except SerializationError:  # what goes by value with the function may have to be handed over
                    if not is_loaded():
                        raise
        found = self._found()
        found.look(args)
        if kwargs:
            found.look(kwargs.values())
        if not (buffers.regions_in_use or is_loaded()):
            call = codec.pack_call(fn, args, kwargs, found)
        else:
            with found:
                call = codec.pack_call(fn, args, kwargs, found)
        if not (found or found.large or found.regions) and len(call[1]) < self.threshold:
            return call, len(call[0]) + len(call[1])
        return self._pack_large(call, found)

    def _pack_large(self, call: tuple[bytes, Any, Manifest | None], found: Found) -> tuple[Any, int]:
        """Put what is large of a pickled call into blocks."""
        fn_bytes, body, manifest = call
        was_idle = self.arena.idle_at is None
        packed = pack(body, found, self.arena)
        if was_idle and self.arena.idle_at is not None:
            self.wake()  # the supervisor thread may sleep for long, and is to give back what will be idle
        if self.arena.is_short and not self._is_told:
            self._tell()
        size = len(packed) if isinstance(packed, bytes) else len(packed.body)
        return (fn_bytes, packed, manifest), len(fn_bytes) + size

    def _tell(self) -> None:
        self._is_told = True
        log.warning(
            "pool %s: there is not enough shared memory; large arguments go through pipes, which is slower", self._name
        )

    def load(self, member: Member, place: int, task: AnyTask, parcel: Parcel) -> tuple[bytes, int]:
        """Make a parcel the worker's; returns what travels on the link, and the flags of the call."""
        assert member.passage is not None  # noqa: S101 -- as its writer
        flags = FLAG_PARCEL
        if task.options.retries:
            flags |= FLAG_COPIES
        else:
            parcel.lend(member.id)
            if parcel.has_descriptors():  # which are let go of when the task begins: the other end may wait for that
                flags |= FLAG_ANNOUNCE
                parcel.goes_once = True
        member.waybill.add(place, parcel)
        parcel.hand_over(member.passage, self.arena)
        for region in parcel.regions:
            self._watch(region)
        self.sent += parcel.nbytes
        self.flush(member.passage)
        return parcel.body, flags

    def hand_over(self, member: Member, regions: list[Region]) -> None:
        """Have a worker know regions, before it is sent what refers to them."""
        assert member.passage is not None  # noqa: S101 -- as its writer
        member.passage.tell((), regions, self.arena)
        for region in regions:
            self._watch(region)
            self.sent += region.nbytes
        self.flush(member.passage)

    def flush(self, passage: Passage) -> None:
        """Send what a passage has had no room for; the supervisor thread goes on with the rest."""
        if not passage.flush():
            self.due_at = 0.0
            self.wake()

    def _watch(self, region: Region) -> None:
        known = self._watched.get(region.number)
        if known is None or known() is None:
            self._watched[region.number] = ref(region, partial(self._region_gone, region.number))

    def _region_gone(self, number: int, known: ref[Region]) -> None:
        if self._watched.get(number) is known:
            self._watched.pop(number, None)
        self.gone(number)

    def is_gone(self, number: int) -> bool:
        """Whether a region that was gone still is: a worker that kept a handle may have sent it back, to be used again.

        Then it is not said, as a call may have been sent that needs what the worker has; but when it is gone again.
        """
        region = known_region(number)
        if region is not None:
            self._watch(region)
        return region is None

    # ===== in =====

    def arrive(self, member: Member, payload: bytes | bytearray) -> tuple[Any, bool, Callable[[Any], Any] | None]:
        """Take a result in; returns what an outcome is made of. Raises EOFError: the worker sent nonsense."""
        assert member.passage is not None  # noqa: S101 -- as its reader
        try:
            arrived = Arrived(payload, member.passage, copies=False)
        except OSError as exc:  # no room for a descriptor here
            return exc, False, None
        self.received += arrived.nbytes
        return arrived, True, load_value

    def wants_tracker(self, member: Member, payload: bytes | bytearray) -> None:
        """A worker asks for this process's resource tracker. Raises EOFError: it sent nonsense."""
        assert member.passage is not None  # noqa: S101 -- as its reader
        number = int.from_bytes(payload, "little")
        try:
            self.lend_tracker(member.passage.region(number))
        except OSError:  # no room for a descriptor here
            member.passage.renounce([], [number])

    # ===== ends =====

    def died(self, worker_id: int) -> None:
        """A worker is dead: what it could see is free."""
        self.arena.take_back(worker_id)

    def dies(self, member: Member) -> None:
        """A worker was killed and may still run for a moment."""
        try:
            self._dying.append((member.id, os.dup(member.outcomes_fd)))
        except OSError:  # its blocks are not used again
            return

    def due(self) -> float | None:
        """When `tend` is to be called next; None when there is no need."""
        dying_at = monotonic() + LOOK_AT_DYING if self._dying else None
        times = (self.due_at, self._pins_at, dying_at, self.arena.idle_at)
        return min((due for due in times if due is not None), default=None)

    def tend(self, members: Iterable[Member]) -> None:
        """Do what is due now and then: send what sockets had no room for, give back what is idle. Under the lock."""
        if self._dying:
            self._look_at_dying()
        self._pins_at = monotonic() + LOOK_AT_CHILDREN if release_pins() else None
        if self.due_at is not None:
            self.due_at = None
            for member in members:
                if member.passage is not None and not member.passage.flush():
                    self.due_at = monotonic() + RETRY
        if self.arena.idle_at is not None:
            self.arena.trim()

    def _look_at_dying(self) -> None:
        """See who of those is dead by now."""
        left = []
        for worker_id, fd in self._dying:
            try:
                while os.read(fd, 65536):
                    pass
            except BlockingIOError:
                left.append((worker_id, fd))
                continue
            except OSError:
                pass
            os.close(fd)
            self.arena.take_back(worker_id)
        self._dying = left

    def use(self, members: Iterable[Member]) -> tuple[int, int, int, int, int]:
        """Bytes sent and received, blocks that somebody sees, bytes of memory in all, bytes of it that are free."""
        (blocks, lent), reserved = self.arena.lent(), self.arena.reserved
        for member in members:
            if member.passage is not None and member.board is not None:
                theirs = member.passage.lent()
                blocks += theirs[0]
                lent += theirs[1]
                reserved += max(theirs[1], member.board.memory())
        return self.sent, self.received, blocks, reserved, max(0, reserved - lent)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        for _, fd in self._dying:
            _os.close_fd(fd)
        self._dying = []
        release_pins()  # there may be no other pool that looks
        self.arena.close()


def load_value(arrived: Arrived) -> Any:
    """The value of a result that came as a parcel; exceptions propagate as they are."""
    return arrived.load(codec.load_value)
