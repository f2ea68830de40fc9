"""A network of its own for a program: hosts in network namespaces, on one bridge, whose links can be broken.

No namespace has a name: the kernel removes each, and its links, with the last process in it, however that ends.
Needs iproute2, util-linux, and the right to make namespaces: that of root, or of users where the system lets them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from support_dask import Host

if TYPE_CHECKING:
    from typing_extensions import Self

_NEW = ["unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--net"]
_TRY = (
    "ip link add name bridge0 type bridge && ip link add name link0 type veth peer name link1"
    " && tc qdisc add dev link0 root blackhole"
)


def what_lacks() -> str:
    """Why no such network can be made here; nothing where it can."""
    try:
        tried = subprocess.run([*_NEW, "sh", "-c", _TRY], capture_output=True, text=True, check=False)
    except OSError as exc:
        return str(exc)
    return tried.stderr.strip() or "unshare fails" if tried.returncode else ""


def enter(module: str, *arguments: str) -> NoReturn:
    """Become that program, in a network that nothing is in."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.execvp(_NEW[0], [*_NEW, sys.executable, "-m", module, *arguments])  # noqa: S606 -- no shell, and no input


class Network:
    """The bridge, which is this process's own link, and the hosts on it. Use as a context manager, after `enter`."""

    def __init__(self) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []  # keep the namespaces; each ends with this process
        _run("ip link set lo up")
        _run("ip link add name bridge0 type bridge")
        _run("ip addr add 10.0.0.1/24 dev bridge0")
        _run("ip link set bridge0 up")

    def host(self) -> Host:
        """One more."""
        holder = subprocess.Popen([*_NEW, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._holders.append(holder)
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        holder.stdout.read(1)  # it is there
        number = len(self._holders)
        host = Host(f"10.0.0.{number + 1}", ("setpriv", "--pdeathsig", "KILL", "nsenter", "-t", str(holder.pid), "-n"))
        _run(f"ip link add name link{number} type veth peer name eth0 netns {holder.pid}")
        _run(f"ip link set link{number} master bridge0 up")
        for command in ("ip link set lo up", f"ip addr add {host.address}/24 dev eth0", "ip link set eth0 up"):
            _run(command, on=host)
        return host

    def cut(self, host: Host, way: str) -> Callable[[], object]:
        """Break a host's link, "down"; or lose only what it sends, "out", or what is sent to it, "in".

        Returns what mends it.
        """
        link = f"link{int(host.address.rpartition('.')[2]) - 1}"
        if way == "down":  # at the other end: the host sees no carrier, as of a cable that was pulled
            _run(f"ip link set {link} down")
            return lambda: _run(f"ip link set {link} up")
        link, at = ("eth0", host) if way == "out" else (link, None)
        _run(f"tc qdisc add dev {link} root blackhole", on=at)
        return lambda: _run(f"tc qdisc del dev {link} root", on=at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        for holder in self._holders:
            holder.communicate()


def _run(command: str, on: Host | None = None) -> None:
    done = subprocess.run([*(on.command if on else ()), *command.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command}: {done.stderr.strip()}")
