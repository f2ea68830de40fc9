"""Who asks the service of `serving.py`: so many requests, so many at once; prints how many seconds all took.

Usage: client.py PORT COUNT AT_ONCE FOLDER
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import httpx

SMALLEST, LARGEST = 40_000, 1_000_000  # bytes of a picture


def pictures_in(folder: Path) -> list[bytes]:
    """The pictures of a folder that are neither tiny nor huge."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".jpg", ".png"})
    return [path.read_bytes() for path in paths if SMALLEST < path.stat().st_size < LARGEST]


async def main(port: int, count: int, at_once: int, pictures: list[bytes]) -> float:
    """Send pictures in turn; returns the seconds until the last answer was there."""
    left = iter(range(count))
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120) as client:

        async def ask() -> None:
            for number in left:
                answer = await client.post("/", content=pictures[number % len(pictures)])
                assert answer.content[:2] == b"\xff\xd8", answer

        started = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(at_once)))
        return time.perf_counter() - started


print(asyncio.run(main(*map(int, sys.argv[1:4]), pictures_in(Path(sys.argv[4])))))
