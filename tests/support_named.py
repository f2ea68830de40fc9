"""Tasks that use shared memory with a name. Worker processes import this module too."""

from __future__ import annotations

import os

import poolkit


def write_by_name(name: str, value: int) -> int:
    with poolkit.SharedBuffer.attach(name) as buffer:
        buffer[0] = value
        return len(buffer)


def write(buffer: poolkit.SharedBuffer, value: int) -> str | None:
    buffer[0] = value
    return buffer.name


def make(name: str) -> poolkit.SharedBuffer:
    return poolkit.SharedBuffer(10, name)


def total(array: poolkit.SharedArray) -> tuple[str | None, float]:
    return array.name, float(array.array.sum())


def own_name() -> str:
    return f"poolkit-test-{os.getpid()}-{os.urandom(4).hex()}"
