"""Coroutine functions that tests run as tasks, to be cancelled there. Importable by name here and in the workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import threading
from typing import NoReturn

import poolkit
from support_gates import Gate, Journal

LONG = 60.0  # seconds, which no test waits for


async def wait_for_the_end(gate: Gate, journal: Journal) -> None:
    try:
        gate.signal()
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        journal.write(f"cancelled {poolkit.current_task().cancelled}")
        raise
    finally:
        await asyncio.sleep(0)
        journal.write("closed")


async def wait_in_a_coroutine(gate: Gate, journal: Journal) -> None:
    await wait_for_the_end(gate, journal)


async def give_a_value_at_the_end(gate: Gate) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await wait_for_ever(gate)
    return "a value"


async def raise_at_the_end(gate: Gate) -> None:
    try:
        await wait_for_ever(gate)
    finally:
        raise LookupError("from its finally")


async def never_end(gate: Gate, journal: Journal) -> NoReturn:
    gate.signal()
    while True:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            journal.write("cancelled")


async def wait_for_ever(gate: Gate) -> None:
    gate.signal()
    await asyncio.sleep(LONG)


async def just_wait() -> None:
    await asyncio.sleep(LONG)


async def block(gate: Gate) -> None:
    gate.signal()
    while True:
        threading.Event().wait(0.01)


async def wait_in_the_first_run(journal: Journal) -> str:
    attempt = poolkit.current_task().attempt
    journal.write(attempt)
    await asyncio.sleep(LONG if attempt == 1 else 0.5)  # longer than what the first has for its end
    return "second"


async def leave_one_behind(gate: Gate, journal: Journal) -> None:
    async def beat() -> None:
        try:
            for _ in itertools.count():
                await asyncio.sleep(0.001)
        finally:
            journal.write("gone")

    left = asyncio.ensure_future(beat())
    await asyncio.sleep(0)
    await wait_for_ever(gate)
    left.cancel()


async def wait_for_number(number: int) -> int:
    await asyncio.sleep(LONG if number == 3 else 0)
    return number


async def watch_itself(gate: Gate) -> None:
    """Return when it is told to end, without awaiting anything."""
    gate.signal()
    context = poolkit.current_task()
    while not context.cancelled:
        threading.Event().wait(0.001)


def run_one(gate: Gate, journal: Journal) -> None:
    """Run one by asyncio's own means, which no pool ends."""
    asyncio.run(wait_for_the_end(gate, journal))


def who() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


async def start_a_program(gate: Gate, journal: Journal, *, ends_it: bool) -> None:
    program = await asyncio.create_subprocess_exec("sleep", str(LONG))
    journal.write(program.pid)
    try:
        await wait_for_ever(gate)
    finally:
        if ends_it:
            program.kill()
            await program.wait()


async def start_a_thread(gate: Gate, release: Gate, journal: Journal) -> None:
    def go_on() -> None:
        gate.signal()
        release.wait()
        journal.write("went on")

    await asyncio.to_thread(go_on)


async def have_used_a_thread(gate: Gate) -> None:
    await asyncio.to_thread(threading.get_ident)
    await wait_for_ever(gate)


@poolkit.offload
async def wait_in_place(gate: Gate) -> None:
    await wait_for_ever(gate)


def catch_all_of_it(gate: Gate) -> str:
    try:
        wait_in_place(gate).result()
    except BaseException as exc:  # as much as a task can do against it
        return f"caught {exc!r}"
    return "went on"


def look_at_its_error(gate: Gate) -> str:
    return repr(wait_in_place(gate).exception())


def leave_one_that_has_ended() -> None:
    """Leave a program that nobody has waited for."""
    program = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    program.returncode = 0  # so that it does not complain


def leave_one_that_runs(journal: Journal) -> None:
    program = subprocess.Popen(["/bin/sleep", str(LONG)])
    program.returncode = 0
    journal.write(program.pid)
