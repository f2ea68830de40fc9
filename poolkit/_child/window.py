"""Window: how many items of a stream are made and not taken, on the side where they are made."""

from __future__ import annotations

from collections import deque


class Window:
    """Counts items, and their bytes; of large ones, two are allowed for."""

    def __init__(self, most: int, most_bytes: float) -> None:
        self.is_to_end = False  # no more items are wanted
        self._most = most
        self._most_bytes = most_bytes
        self._sizes: deque[int] = deque()  # of the items that were sent and not taken
        self._untaken = 0  # bytes of them
        self._taken = 0  # items, in all

    def is_full(self) -> bool:
        """Whether no more may be made."""
        count = len(self._sizes)
        return count >= self._most or (count > 1 and self._untaken >= self._most_bytes)

    def must_wait(self) -> bool:
        """Whether there is no room for what is still wanted."""
        return self.is_full() and not self.is_to_end

    def note(self, nbytes: int) -> None:
        """An item was sent."""
        self._sizes.append(nbytes)
        self._untaken += nbytes

    def end(self) -> None:
        """No more items are wanted."""
        self.is_to_end = True

    def credit(self, taken: int) -> None:
        """So many items were taken, in all."""
        while self._taken < taken and self._sizes:
            self._taken += 1
            self._untaken -= self._sizes.popleft()
