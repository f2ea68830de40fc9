"""The process that starts programs, by itself: what it does with the descriptors that it has inherited."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from poolkit._child import starter
from support import WATCHDOG

WITHOUT_DEV_FD = """if 1:
    import os, resource, sys
    from poolkit._child import starter

    def listdir(path):
        raise FileNotFoundError(path)

    os.listdir, os.sysconf = listdir, lambda _: 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # a list of so many numbers needs more
    starter.main(int(sys.argv[1]))
"""


def test_without_a_list_of_its_descriptors_it_closes_all_however_many_there_may_be() -> None:
    """Whoever waits for the end of a pipe would wait for this process, too."""
    pipes = [os.pipe()]
    ours, theirs = socket.socketpair()
    pipes.append(os.pipe())  # one has a lower number than the socket, one a higher
    inherited = (*(theirs_too for _, theirs_too in pipes), theirs.fileno())
    command = [sys.executable, "-c", WITHOUT_DEV_FD, str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=inherited), ours:  # which ends it
        theirs.close()
        for _, theirs_too in pipes:
            os.close(theirs_too)
        ours.settimeout(WATCHDOG)
        assert ours.recv(starter.NOTE.size)[:1] == starter.READY
        for read, _ in pipes:
            os.set_blocking(read, False)
            with os.fdopen(read, "rb") as reader:
                assert reader.read() == b"", "somebody holds the other end"
