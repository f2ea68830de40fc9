"""What tasks do with arrays and shared memory. Imported by workers, so it imports numpy and nothing of poolkit."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

kept: list[Any] = []  # what a worker keeps


def checksum(array: Any) -> int:
    """Of the values of an array, or of bytes."""
    flat = np.frombuffer(array, "u1") if isinstance(array, (bytes, bytearray)) else np.asarray(array).reshape(-1)
    return int(flat.astype("u8").sum())


def numbered(number: int, size: int = 30_000) -> Any:
    """An array that tells its number."""
    return np.full(size, number, "u4")


def echo(value: Any) -> Any:
    return value


def both(first: Any, second: Any) -> Any:
    return first, second


def double(array: Any) -> Any:
    """In place, as an argument is the task's own."""
    array *= 2
    return array


def is_writable(array: Any) -> bool:
    return bool(array.flags.writeable)


def keep(array: Any) -> int:
    """Keep an argument; returns the number of this worker."""
    kept.append(array)
    return os.getpid()


def kept_checksums() -> list[int]:
    return [checksum(array) for array in kept]


def drop_kept() -> None:
    kept.clear()
    gc.collect()


def close_all(handles: Any) -> None:
    for handle in handles:
        with handle:
            pass


def are_kept_open() -> list[bool]:
    return [not handle.closed for handle in kept[-1]]


def use_up(array: Any, path: str) -> int:
    """Change the argument, and die of it the first time."""
    found = int(array[0])
    array[:] = 0
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def die(_array: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(shared: Any, value: Any) -> None:
    shared.array[...] = value


def total(shared: Any) -> float:
    return float(shared.array.sum())


def make_shared(shape: Any, value: float) -> Any:
    """Made in a worker."""
    import poolkit

    made = poolkit.SharedArray(shape)
    made.array[...] = value
    return made


def make_many(number: int) -> list[Any]:
    import poolkit

    return [poolkit.SharedBuffer(10) for _ in range(number)]


def hold(shared: Any) -> None:
    """What an initializer is given."""
    kept.append(shared)


def total_of_kept() -> float:
    return float(kept[-1].array.sum())


class LoadedOnce:
    """Counts how often it was loaded in this process."""

    loaded = 0

    def __init__(self, array: Any) -> None:
        self.array = array

    def __setstate__(self, state: dict[str, Any]) -> None:
        LoadedOnce.loaded += 1
        self.__dict__.update(state)


def look_at_broadcast(value: LoadedOnce, _number: int) -> tuple[int, int, bool, int]:
    """Process, how often it was loaded there, whether it is writable, its checksum."""
    return os.getpid(), LoadedOnce.loaded, bool(value.array.flags.writeable), checksum(value.array)


def look_inside(value: Any, name: str) -> tuple[bool, Any]:
    """Whether an array within is writable, and the array."""
    return bool(value[name].flags.writeable), value[name]


def total_inside(value: Any) -> float:
    return float(value["inner"].array.sum())


def limit_descriptors(number: int) -> int:
    """Let this process have so many; returns how many it might have had."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    return soft


def open_memory() -> set[str]:
    """The shared segments that this process has mapped: the number of the file of each."""
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    return {line.split()[4] for line in lines if "poolkit-memory" in line}


def open_descriptors() -> int:
    """How many descriptors of shared segments this process has."""
    paths = Path("/proc/self/fd").iterdir()
    return sum("poolkit-memory" in str(path.readlink()) for path in paths if path.is_symlink())
