"""What an application leaves behind that does not survive a fork, and how a template refuses it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import poolkit
import support
from poolkit._servers.preloaded import remains


def test_threads_are_named() -> None:
    before, end = remains(), threading.Event()
    thread = threading.Thread(target=end.wait, name="refresher")
    thread.start()
    try:
        assert [each for each in remains() if each not in before] == ["thread 'refresher' (runs threading.Event.wait)"]
    finally:
        end.set()
        thread.join()


def test_connections_are_named() -> None:
    before = remains()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as there:
        port = listener.getsockname()[1]
        assert [each for each in remains() if each not in before] == [
            f"a connection to 127.0.0.1:{port} (descriptor {there.fileno()})"
        ]


def test_connections_to_paths_are_named(tmp_path: Path) -> None:
    before, path = remains(), str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as there:
        listener.bind(path)
        listener.listen()
        there.connect(path)
        assert [each for each in remains() if each not in before] == [
            f"a connection to {path} (descriptor {there.fileno()})"
        ]


def test_what_survives_a_fork_is_not_named() -> None:
    before = remains()
    one, other = socket.socketpair()
    with one, other, socket.socket(type=socket.SOCK_DGRAM) as logs, socket.create_server(("127.0.0.1", 0)):
        logs.connect(("127.0.0.1", 9))
        assert remains() == before


THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, name='refresher', daemon=True).start()\n"
CONNECTION = "import socket\nit = socket.create_connection(('127.0.0.1', {port}))\n"


@pytest.fixture
def preload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], poolkit.Pool]:
    """Make a pool whose template imports such a module, and then the check."""

    def make(name: str, source: str) -> poolkit.Pool:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return poolkit.Pool(1, preload=[name, "poolkit._servers.preloaded"])

    return make


@pytest.mark.slow
def test_a_template_refuses_threads_by_name(preload: Callable[[str, str], poolkit.Pool]) -> None:
    with preload("app_with_a_thread", THREAD) as pool, pytest.raises(poolkit.InitializerFailed) as caught:
        pool.submit(len, "").result(timeout=support.WATCHDOG)
    assert "it has left: thread 'refresher' (runs threading.Event.wait)" in _all_of(caught.value)


@pytest.mark.slow
def test_a_template_refuses_connections_by_name(preload: Callable[[str, str], poolkit.Pool]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            preload("app_with_a_connection", CONNECTION.format(port=port)) as pool,
            pytest.raises(poolkit.InitializerFailed) as caught,
        ):
            pool.submit(len, "").result(timeout=support.WATCHDOG)
        assert f"it has left: a connection to 127.0.0.1:{port} (descriptor" in _all_of(caught.value)


@pytest.mark.slow
def test_a_template_takes_what_survives(preload: Callable[[str, str], poolkit.Pool]) -> None:
    with preload("app_that_is_quiet", "import socket\nloop = socket.socketpair()\n") as pool:
        assert pool.submit(len, "abc").result(timeout=support.WATCHDOG) == 3


def _all_of(error: BaseException | None) -> str:
    found = ""
    while error is not None:
        found += str(error)
        error = error.__cause__ or error.__context__
    return found
