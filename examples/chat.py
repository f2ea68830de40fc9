"""A chat, without HTTP: four workers share one port, and whoever comes back finds the worker that he left.

    hello NAME                says who you are; answered with the worker that you talk to
    join ROOM LAST            shows what was said there after message number LAST, and what will be
    say ROOM TICKET TEXT      TICKET, a number of yours, comes back once everybody will hear it; again, it is dropped

A worker knows its own guests alone. What is said goes to the owner, which numbers it, keeps it, and sends it to all
workers; so a guest who comes back, to whichever worker, has missed nothing. A worker that is to stop asks its guests to
come back, who find another one.

`--schedule` says who gets a connection; with "sticky", which is the default, the address of the client does.
`--load` has clients of eight addresses talk, while a worker is killed and all are replaced, and says what was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import poolkit

MOST = 1 << 20  # bytes that may wait for a guest who does not read


# ===== a worker =====


class Guest:
    """One connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.name = ""
        self.rooms: dict[str, int] = {}  # and the number of the last message that he has got
        self._writer = writer

    def tell(self, line: str) -> None:
        """Send a line; who does not read has to leave."""
        if self._writer.transport.get_write_buffer_size() > MOST:
            self._writer.transport.abort()
        elif not self._writer.is_closing():
            self._writer.write(line.encode() + b"\n")

    def hear(self, room: str, number: int, line: str) -> None:
        """Tell what was said, once."""
        if number == self.rooms.get(room, number) + 1:
            self.rooms[room] = number
            self.tell(f"{room} {number} {line}")

    def leave(self) -> None:
        """Ask him to come back, and hang up."""
        self.tell("* please reconnect")
        self._writer.close()


class House:
    """The guests of one worker. Owner: its event loop."""

    def __init__(self, ctx: poolkit.ClusterContext) -> None:
        self.ctx = ctx
        self.guests: dict[int, Guest] = {}
        self.numbers = itertools.count()

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until its end."""
        key, guest = next(self.numbers), Guest(writer)
        self.guests[key] = guest
        try:
            with contextlib.suppress(ConnectionError, ValueError):  # he is gone, or does not keep to the protocol
                while line := (await reader.readline()).decode().strip():
                    await self.obey(key, guest, *line.split(" ", 1))
        finally:
            del self.guests[key]
            writer.close()

    async def obey(self, key: int, guest: Guest, command: str, rest: str) -> None:
        """Do what a line asks for."""
        if command == "hello":
            guest.name = rest
            guest.tell(f"* worker {self.ctx.worker_id} {os.getpid()}")
        elif command == "join":
            room, last = rest.split()
            await self.ctx.send_async(("join", os.getpid(), key, room, int(last)))
        elif command == "say":
            room, ticket, text = rest.split(" ", 2)
            await self.ctx.send_async(("say", guest.name, room, int(ticket), text))

    async def listen(self) -> None:
        """Pass on what the owner says."""
        while True:
            message = await self.ctx.recv_async()
            if message[0] == "said":
                _, room, number, name, ticket, text = message
                for guest in [*self.guests.values()]:
                    guest.hear(room, number, f"{name}: {text}")
                    if guest.name == name:
                        guest.tell(f"* said {ticket}")
            else:
                _, pid, key, room, first, lines = message
                asker = self.guests.get(key) if pid == os.getpid() else None
                if asker is not None:
                    asker.rooms[room] = first
                    for number, line in enumerate(lines, first + 1):
                        asker.hear(room, number, line)
                    asker.tell(f"* joined {room}")


async def serve(ctx: poolkit.ClusterContext) -> None:
    """Serve until the worker is to stop, and have its guests find another one."""
    house = House(ctx)
    listening = asyncio.ensure_future(house.listen())
    server = await asyncio.start_server(house.welcome, sock=ctx.socket)
    await ctx.stopping
    server.close()
    for guest in [*house.guests.values()]:
        guest.leave()
    while house.guests:  # noqa: ASYNC110 -- until the last line is sent, or `grace` is over
        await asyncio.sleep(0.01)
    listening.cancel()


# ===== the owner =====


class Desk:
    """Numbers what is said, and keeps it. On the callback thread of the owner alone."""

    def __init__(self, cluster: poolkit.Cluster) -> None:
        self._cluster = cluster
        self._said: dict[str, list[str]] = defaultdict(list)  # by room; for ever, which is long for a real one
        self._tickets: dict[tuple[str, str, int], int] = {}  # the numbers that they got
        cluster.on_message(self.receive)

    def receive(self, worker_id: int, message: Any) -> None:
        """A worker has sent something."""
        if message[0] == "join":
            _, pid, key, room, last = message
            self._cluster.send(("history", pid, key, room, last, self._said[room][last:]), worker_id)
            return
        _, name, room, ticket, text = message
        number = self._tickets.get((name, room, ticket))
        if number is None:
            self._said[room].append(f"{name}: {text}")
            number = self._tickets[name, room, ticket] = len(self._said[room])
        self._cluster.send(("said", room, number, name, ticket, text))


# ===== the load =====


class Client:
    """A guest who comes back, wherever he was. Everything he says has a ticket, and is said until that came back."""

    def __init__(self, number: int, port: int) -> None:
        self.name, self.address, self.port = f"guest-{number}", f"127.0.0.{2 + number % 8}", port
        self.workers: list[tuple[int, int]] = []  # the number and the process of each that he has met
        self.asked_to_leave = 0
        self.refused = 0
        self.heard: list[str] = []
        self.is_in = asyncio.Event()
        self.news = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._open: dict[int, tuple[str, asyncio.Future[None]]] = {}  # tickets that did not come back
        self._tickets = itertools.count()

    async def live(self) -> None:
        """Connect, again and again."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(self.address, 0))
            except OSError:
                self.refused += 1
                await asyncio.sleep(0.05)
                continue
            self._writer = writer
            try:
                self._send(f"hello {self.name}", f"join lobby {len(self.heard)}")
                self._send(*[f"say lobby {ticket} {text}" for ticket, (text, _) in self._open.items()])
                while line := (await reader.readline()).decode().strip():
                    self._take(*line.split(" ", 2))
            except ConnectionError:
                pass  # its worker was killed
            finally:
                self.is_in.clear()
                self._writer = None
                writer.close()

    def leave(self) -> None:
        """Hang up, to come back."""
        if self._writer is not None:
            self.is_in.clear()
            self._writer.close()

    async def say(self, text: str) -> None:
        """Say something; returns when everybody will hear it."""
        ticket, done = next(self._tickets), asyncio.get_running_loop().create_future()
        self._open[ticket] = text, done
        self._send(f"say lobby {ticket} {text}")
        await done

    async def hear(self, count: int) -> None:
        """Wait until so many messages were heard."""
        while len(self.heard) < count:
            self.news.clear()
            await self.news.wait()

    def _send(self, *lines: str) -> None:
        if self._writer is not None and lines:
            self._writer.write("".join(f"{line}\n" for line in lines).encode())

    def _take(self, first: str, second: str, rest: str = "") -> None:
        if first != "*":
            assert int(second) == len(self.heard) + 1, (self.name, second, len(self.heard))  # noqa: S101 -- none is lost
            self.heard.append(rest)
            self.news.set()
        elif second == "worker":
            worker, pid = rest.split()
            self.workers.append((int(worker), int(pid)))
        elif second == "joined":
            self.is_in.set()
        elif second == "please":
            self.asked_to_leave += 1
        elif second == "said" and (found := self._open.pop(int(rest), None)):
            found[1].set_result(None)


class Load:
    """Clients of a cluster, and what they have seen."""

    def __init__(self, cluster: poolkit.Cluster, count: int) -> None:
        self.cluster = cluster
        self.failures = 0
        self.clients = [Client(number, cluster.address[1]) for number in range(count)]

    def check(self, holds: object, text: str) -> None:
        """Print what was to be seen, and whether it was."""
        print(f"{'ok   ' if holds else 'WRONG'} {text}")
        self.failures += not holds

    @contextlib.asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """Have all clients live meanwhile."""
        lives = [asyncio.ensure_future(client.live()) for client in self.clients]
        try:
            await self.all_in()
            yield
        finally:
            for life in lives:
                life.cancel()
            for found in await asyncio.gather(*lives, return_exceptions=True):
                if not isinstance(found, asyncio.CancelledError):
                    self.check(False, f"a client has failed: {found!r}")

    async def all_in(self) -> None:
        """Wait until everybody is there."""
        try:
            await asyncio.wait_for(asyncio.gather(*[client.is_in.wait() for client in self.clients]), 10)
        except asyncio.TimeoutError:
            missing = [client.name for client in self.clients if not client.is_in.is_set()]
            raise RuntimeError(f"not everybody is there: {missing}") from None

    async def all_hear(self, what: str, count: int) -> None:
        """Check that everybody has heard so many messages, and all the same ones."""
        await asyncio.wait_for(asyncio.gather(*[client.hear(count) for client in self.clients]), 10)
        same = {tuple(client.heard) for client in self.clients}
        heard = len(self.clients[0].heard)
        self.check(len(same) == 1 and heard == count, f"{what}: all {len(self.clients)} have heard {heard} messages")

    def shares(self) -> list[int]:
        """How many clients each worker has."""
        found = Counter(client.workers[-1][0] for client in self.clients)
        return [found[number] for number in range(self.cluster.stats().workers)]

    def stuck(self, when: str) -> None:
        """Check that each address has met one place only."""
        met: dict[str, set[int]] = defaultdict(set)
        for client in self.clients:
            met[client.address] |= {worker for worker, _ in client.workers}
        meetings = sum(len(client.workers) for client in self.clients)
        holds = all(len(places) == 1 for places in met.values())
        self.check(holds, f"{when}: {len(met)} addresses, {meetings} connections, each address at its own worker")


async def talk(cluster: poolkit.Cluster, count: int) -> int:
    """Have them talk while workers come and go; returns how often something was wrong."""
    Desk(cluster)
    load = Load(cluster, count)
    clients = load.clients
    async with load.present():
        load.stuck("at first")
        await clients[0].say("good evening")
        await load.all_hear("a broadcast", 1)

        for client in clients[::2]:
            client.leave()
        await load.all_in()
        load.stuck("every other one came back")

        place, pid = clients[0].workers[-1]
        orphans = [client for client in clients if client.workers[-1][1] == pid]
        os.kill(pid, signal.SIGKILL)
        while any(client.workers[-1][1] == pid for client in orphans):  # noqa: ASYNC110 -- clients have no event for it
            await asyncio.sleep(0.01)
        await load.all_in()
        load.stuck(f"worker {place} was killed, and its {len(orphans)} clients came back")

        speakers = clients[:8]
        speeches = [asyncio.ensure_future(speak(client)) for client in speakers]
        generation = await cluster.reload_async()
        said = sum(await asyncio.gather(*speeches))
        while any(not client.asked_to_leave for client in clients):  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
        await load.all_in()
        load.stuck(f"generation {generation} has taken over")
        await load.all_hear("what was said meanwhile", 1 + said)
        refused = sum(client.refused for client in clients)
        load.check(not refused, f"{refused} connections were refused")
    return load.failures


async def speak(client: Client) -> int:
    """Say ten things, each when the last one was heard of; returns how many."""
    for number in range(10):
        await asyncio.wait_for(client.say(f"message {number}"), 20)
        await asyncio.sleep(0.05)
    return number + 1


async def compare(count: int) -> int:
    """Print who gets the connections by each schedule; returns how often that was wrong."""
    failures = 0
    for schedule in ("kernel", "round_robin", "least_busy", "sticky"):
        async with poolkit.Cluster(serve, 4, "127.0.0.1:0", schedule=schedule) as cluster:
            Desk(cluster)
            load = Load(cluster, count)
            async with load.present():
                shares = load.shares()
                differ = {"round_robin": 1, "least_busy": 2}.get(schedule, count)
                holds = max(shares) - min(shares) <= differ and sum(shares) == count
                load.check(holds, f"{schedule}: {count} connections, by worker: {shares}")
        failures += load.failures
    return failures


async def load(count: int) -> int:
    """Do all of it; returns how often something was wrong."""
    async with poolkit.Cluster(serve, 4, "127.0.0.1:0", schedule="sticky", grace=5) as cluster:
        failures = await talk(cluster, count)
    return failures + await compare(40)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    schedules = ["kernel", "round_robin", "least_busy", "sticky"]
    parser.add_argument("--port", type=int, default=0, help="0, which is the default, takes a free one")
    parser.add_argument("--schedule", choices=schedules, default="sticky", help="who gets a connection")
    parser.add_argument("--load", action="store_true", help="have clients talk, say what was seen, and stop")
    parser.add_argument("--clients", type=int, default=40, metavar="N", help="of the load (default: 40)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="      %(name)s: %(message)s")
    if asked.load:
        failures = asyncio.run(asyncio.wait_for(load(asked.clients), 60))
        sys.exit(f"{failures} checks failed" if failures else 0)
    cluster = poolkit.Cluster(serve, 4, f"127.0.0.1:{asked.port}", schedule=asked.schedule)
    Desk(cluster)
    print(f"serving on {cluster.address[0]}:{cluster.address[1]} (pid {os.getpid()})")
    sys.exit(cluster.run())


if __name__ == "__main__":
    main()
