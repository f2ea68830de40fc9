"""What `bind` may say, and what the listening sockets are like."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit._cluster import binding
from poolkit._cluster.binding import Bound, bind_all


@pytest.fixture
def found() -> Iterator[list[Bound]]:
    """What a test has bound; it is closed."""
    found: list[Bound] = []
    yield found
    for bound in found:
        bound.close()


def free_v6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_v6 = pytest.mark.skipif(not free_v6(), reason="no IPv6 here")


def open_descriptors() -> list[str]:
    return sorted(one.name for one in Path("/dev/fd").iterdir())


# ===== TCP =====


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1:0", "127.0.0.1"),
        ("localhost:0", "127.0.0.1"),
        (":0", "0.0.0.0"),  # noqa: S104
        pytest.param("[::1]:0", "::1", marks=needs_v6),
    ],
)
def test_it_listens_and_is_what_servers_need(found: list[Bound], address: str, host: str) -> None:
    found += bind_all(address, 7)
    (bound,) = found
    sock = bound.socket
    assert bound.address == sock.getsockname()
    assert bound.address[0] == host
    assert bound.address[1] > 0
    assert bound.is_stream
    assert sock.proto == socket.IPPROTO_TCP
    assert not os.get_blocking(sock.fileno())
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with socket.create_connection(("::1" if "[" in address else "127.0.0.1", bound.address[1])):
        connection, _ = sock.accept()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


@needs_v6
def test_all_addresses_of_both_kinds_may_be_bound(found: list[Bound]) -> None:
    found += bind_all(":0", 5)
    port = found[0].address[1]
    found += bind_all([f"[::]:{port}", "127.0.0.1:0"], 5)
    assert [bound.address[:2] for bound in found[:2]] == [("0.0.0.0", port), ("::", port)]  # noqa: S104
    assert len({bound.address for bound in found}) == 3


@pytest.mark.parametrize("bind", [None, "127.0.0.1:0", ["127.0.0.1:0"] * 3, ("127.0.0.1:0",)])
def test_there_is_one_for_each_that_is_asked_for(found: list[Bound], bind: Any) -> None:
    found += bind_all(bind, 5)
    assert len(found) == (0 if bind is None else 1 if isinstance(bind, str) else len(bind))


@pytest.mark.parametrize(
    "address",
    [
        "", ":", "8000", "localhost", "localhost:", "localhost:http", "1.2.3.4:65536", "1.2.3.4:-1", "::1:80", "[::1]",
        "[::1]80", "[1.2.3.4]:80", "[]:80", "http://localhost:80", "a:\u0665", "a\0b:80", "1.2.3.4: 80",
        "1.2.3.4:" + "9" * 5000,
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_read_says_what_is_expected(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address to bind; it must be 'host:port'.*unix:/path.*0 to 65535"):
        bind_all(address, 5)


def test_a_host_that_cannot_be_a_name_is_a_bad_value() -> None:
    with pytest.raises(ValueError, match=r"a{64}.* is no address to bind"):
        bind_all("a" * 64 + ".b:80", 5)


@pytest.mark.parametrize("bind", [8000, 1.5, b"127.0.0.1:80", bytearray(b"x"), {"a": 1}, {"127.0.0.1:0"}, object()])
def test_what_is_no_address_at_all_is_a_type_error(bind: Any) -> None:
    with pytest.raises(TypeError, match=r"bind must be 'host:port'.* not "):
        bind_all(bind, 5)


@pytest.mark.parametrize("wrong", [8000, None, ["127.0.0.1:0"]])
def test_of_several_the_wrong_one_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"bind\[1\] must be 'host:port'"):
        bind_all(["127.0.0.1:0", wrong], 5)


def test_an_empty_list_is_a_bad_value() -> None:
    with pytest.raises(ValueError, match=r"bind is empty.*None"):
        bind_all([], 5)


def test_an_address_in_use_is_named_and_the_others_are_let_go(found: list[Bound]) -> None:
    found += bind_all("127.0.0.1:0", 5)
    port = found[0].address[1]
    before = open_descriptors()
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
        bind_all(["127.0.0.1:0", f"127.0.0.1:{port}"], 5)
    assert open_descriptors() == before


def test_a_host_that_is_not_found_or_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(socket.gaierror, match=r"cannot listen on nowhere\.invalid:80: Name or service not known"):
            bind_all("nowhere.invalid:80", 5)
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:80: .*assign"):
        bind_all("192.0.2.1:80", 5)


def test_the_port_may_be_bound_again_at_once() -> None:
    (bound,) = bind_all("127.0.0.1:0", 5)
    with socket.create_connection(bound.address):
        connection, _ = bound.socket.accept()
        bound.close()
        bound.close()
        connection.close()
        bind_all(f"127.0.0.1:{bound.address[1]}", 5)[0].close()


# ===== sockets that are given =====


@pytest.mark.parametrize("listens", [False, True])
def test_a_bound_socket_is_taken_and_made_what_workers_need(found: list[Bound], listens: bool) -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.set_inheritable(True)
    if listens:
        sock.listen()
    found += bind_all(sock, 7)
    (bound,) = found
    assert bound.socket is sock
    assert not os.get_blocking(sock.fileno())
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    with socket.create_connection(bound.address):
        connection, _ = sock.accept()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()
    bound.close()
    assert sock.fileno() == -1


def test_a_datagram_socket_is_told_apart(found: list[Bound], tmp_path: Path) -> None:
    udp, local = socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    local.bind(os.fspath(tmp_path / "d"))
    found += bind_all([udp, local], 5)
    assert [bound.is_stream for bound in found] == [False, False]
    assert not os.get_blocking(udp.fileno())
    found[1].close()
    assert (tmp_path / "d").exists()  # who made it removes it


def test_a_socket_that_cannot_be_accepted_from_says_why(tmp_path: Path) -> None:
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="is closed"):
        bind_all(closed, 5)
    for family in (socket.AF_INET, socket.AF_UNIX):
        with socket.socket(family) as unbound, pytest.raises(ValueError, match=r"bind\[1\] .* is not bound"):
            bind_all(["127.0.0.1:0", unbound], 5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client, pytest.raises(ValueError, match="a connection"):
            bind_all(client, 5)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with context.wrap_socket(server, server_side=True) as tls, pytest.raises(ValueError, match="TLS"):
            bind_all(tls, 5)


def test_after_a_failure_given_sockets_are_the_givers_still(found: list[Bound]) -> None:
    found += bind_all("127.0.0.1:0", 5)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="cannot listen"):
            bind_all([sock, f"127.0.0.1:{found[0].address[1]}"], 5)
        assert sock.fileno() >= 0


# ===== Unix sockets =====


def ask(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_unix_socket_is_made_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (bound,) = bind_all(f"unix:{path}", 5)
    assert bound.address == os.fspath(path)
    assert bound.is_stream
    assert not os.get_blocking(bound.socket.fileno())
    ask(path)
    bound.close()
    assert not path.exists()
    bound.close()


def test_it_is_removed_from_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (bound,) = bind_all("unix:s", 5)
    monkeypatch.chdir("/")
    bound.close()
    assert not list(tmp_path.iterdir())


def test_a_dead_one_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    (bound,) = bind_all(f"unix:{path}", 1)
    for _ in range(3):  # also when its backlog is full
        with pytest.raises(OSError, match=f"cannot listen on unix:{path}: somebody listens there already"):
            bind_all(f"unix:{path}", 5)
    bound.close()
    assert not path.exists()


def test_a_socket_that_takes_datagrams_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(path))
        with pytest.raises(OSError, match="somebody"):
            bind_all(f"unix:{path}", 5)
    assert path.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path, link = tmp_path / "s", tmp_path / "link"
    path.write_text("precious")
    link.symlink_to(tmp_path / "nothing")
    for one in (path, link, tmp_path):
        with pytest.raises(OSError, match="no socket"):
            bind_all(f"unix:{one}", 5)
    assert path.read_text() == "precious"
    assert link.is_symlink()


def test_one_that_somebody_else_has_made_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (bound,) = bind_all(f"unix:{path}", 5)
    path.unlink()
    (other,) = bind_all(f"unix:{path}", 5)
    bound.close()
    ask(path)
    other.close()
    assert not path.exists()


def test_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (bound,) = bind_all(f"unix:{path}", 5)
    pid = os.fork()
    if pid == 0:
        try:
            bound.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    ask(path)
    bound.close()


@pytest.mark.parametrize("address", ["unix:", "unix:a\0b"])
def test_a_path_that_is_none_is_a_bad_value(address: str) -> None:
    with pytest.raises(ValueError, match="must name a file"):
        bind_all(address, 5)


def test_a_path_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    before = open_descriptors()
    for path in (tmp_path / "no" / "s", tmp_path / ("a" * 120)):
        with pytest.raises(OSError, match=f"cannot listen on unix:{path}: "):
            bind_all(["127.0.0.1:0", f"unix:{path}"], 5)
    assert open_descriptors() == before


def test_a_failure_after_the_file_was_made_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(binding, "_ready", fail)
    with pytest.raises(KeyboardInterrupt):
        bind_all(f"unix:{tmp_path / 's'}", 5)
    assert not list(tmp_path.iterdir())


def test_of_many_that_find_a_dead_one_at_the_same_moment_one_gets_it(tmp_path: Path) -> None:
    path, found, failed = tmp_path / "s", list[Bound](), list[OSError]()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    start = threading.Barrier(6)

    def run() -> None:
        start.wait()
        try:
            found.extend(bind_all(f"unix:{path}", 5))
        except OSError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(failed)) == (1, 5)
    ask(path)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    found[0].close()


def test_a_folder_that_is_locked_for_long_is_not_waited_for(tmp_path: Path) -> None:
    import fcntl

    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        (bound,) = bind_all(f"unix:{tmp_path / 's'}", 5)
        bound.close()
    finally:
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_must_not_be_read_will_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o300)
    try:
        bind_all(f"unix:{tmp_path / 's'}", 5)[0].close()
    finally:
        tmp_path.chmod(0o700)
