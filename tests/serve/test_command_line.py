"""`python -m poolkit serve`: its options, what it makes of them, its exit codes. The cluster is a stand-in here."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from poolkit import __main__ as front
from poolkit import serve
from poolkit._servers import application as home
from serve.context import TESTS

APP = "serve.apps:asgi"


class Cluster:
    """Keeps what it was made with."""

    url, address = "http://127.0.0.1:1", ("127.0.0.1", 1)
    made: list[Cluster] = []  # noqa: RUF012 -- emptied by the fixture
    error: Exception | None = None
    during: Any = staticmethod(lambda: 0)

    def __init__(self, *args: Any, **options: Any) -> None:
        self.target, self.workers, self.bind = args
        self.options = options
        self.stopped = False
        if Cluster.error is not None:
            raise Cluster.error
        self.made.append(self)

    def run(self) -> int:
        return int(Cluster.during())

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("poolkit.cluster")
    module.Cluster = Cluster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "poolkit.cluster", module)
    monkeypatch.setattr(serve.logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Cluster, "made", [])
    for name in ("PORT", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


def run(*argv: str) -> Cluster:
    assert serve.main([APP, "--app-dir", str(TESTS), *argv]) == 0
    return Cluster.made[-1]


def usage_of(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command line that makes no sense."""
    with pytest.raises(SystemExit) as caught:
        serve.main(argv)
    assert caught.value.code == 2
    assert not Cluster.made
    return capsys.readouterr().err


def test_defaults() -> None:
    cluster = run()
    assert (cluster.workers, cluster.bind) == (None, ["127.0.0.1:8000"])
    assert cluster.options == {
        "schedule": "kernel",
        "grace": 30.0,
        "name": APP,
        "preload": ["poolkit._servers.uvicorn", "poolkit._servers.waitress"],
        "boot_timeout": 60.0,
        "liveness": 30.0,
        "max_requests": None,
        "max_memory": None,
    }
    assert (cluster.target.path, cluster.target.server, cluster.target.options) == (APP, "auto", {})


def test_options_go_to_the_cluster() -> None:
    cluster = run(
        *("--bind", "127.0.0.1:0", "--bind", "unix:/tmp/s", "--workers", "3", "--schedule", "sticky", "--grace", "2.5"),
        *("--boot-timeout", "9", "--liveness", "0", "--max-requests", "100", "--max-memory", "512M", "--preload"),
        *("--server", "uvicorn", "--access-log", "--option", "timeout-keep-alive=7", "--option", "root_path=/a=b"),
    )
    assert (cluster.workers, cluster.bind) == (3, ["127.0.0.1:0", "unix:/tmp/s"])
    assert cluster.options == {
        "schedule": "sticky",
        "grace": 2.5,
        "name": APP,
        "preload": ["poolkit._servers.uvicorn", "serve.apps", "poolkit._servers.preloaded"],
        "boot_timeout": 9.0,
        "liveness": None,
        "max_requests": 100,
        "max_memory": 512 << 20,
    }
    assert cluster.target.options == {"timeout_keep_alive": "7", "root_path": "/a=b"}
    assert cluster.target.access_log


def test_the_environment_says_port_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "5000")
    monkeypatch.setenv("WEB_CONCURRENCY", "7")
    assert (run().bind, run().workers) == (["0.0.0.0:5000"], 7)
    cluster = run("--bind", ":80", "--workers", "2")
    assert (cluster.bind, cluster.workers) == ([":80"], 2)


def test_the_folder_of_the_application_is_first_on_the_path() -> None:
    run()
    assert sys.path[0] == str(TESTS)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2k", 2048), ("512M", 512 << 20), ("1GB", 1 << 30), ("3T", 3 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert run("--max-memory", text).options["max_memory"] == size


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "MODULE:APP"),
        (["app"], "'module:app', for example"),
        ([APP, "--workers", "x"], "--workers: a whole number from 0 on, not 'x'"),
        ([APP, "--workers", "-1"], "--workers: a whole number"),
        ([APP, "--grace", "nan"], "--grace: seconds from 0 on, not 'nan'"),
        ([APP, "--grace", "soon"], "--grace: seconds"),
        ([APP, "--schedule", "random"], "--schedule: invalid choice: 'random'"),
        ([APP, "--server", "gunicorn"], "--server: invalid choice"),
        ([APP, "--max-memory", "lots"], "--max-memory: a size in bytes"),
        ([APP, "--max-memory", "0"], "--max-memory: a size in bytes"),
        ([APP, "--max-memory", ""], "--max-memory: a size in bytes"),
        ([APP, "--option", "reload"], "--option: KEY=VALUE, not 'reload'"),
        ([APP, "--server", "uvicorn", "--option", "reload=true"], "'reload' of uvicorn is not for you to set"),
        ([APP, "--server", "uvicorn", "--option", "nothing=true"], "has no setting 'nothing'"),
        ([APP, "--server", "uvicorn", "--interface", "wsgi"], "uvicorn serves ASGI applications"),
        ([APP, "--log-level", "loud"], "--log-level: invalid choice"),
        ([APP, "--worker", "3", "--nonsense"], "--nonsense"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_usage(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in usage_of(*argv, capsys=capsys)


@pytest.mark.parametrize("name", ["PORT", "WEB_CONCURRENCY"])
def test_an_environment_that_makes_no_sense_is_usage(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "many")
    assert f"${name} must be a whole number, is 'many'" in usage_of(APP, capsys=capsys)


def test_what_the_cluster_refuses_is_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Cluster, "error", ValueError("workers must be at least 1"))
    assert "workers must be at least 1" in usage_of(APP, "--workers", "0", capsys=capsys)


def test_an_address_that_is_taken_is_a_failed_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Cluster, "error", OSError(98, "127.0.0.1:8000 is in use"))
    assert serve.main([APP]) == 3
    assert "127.0.0.1:8000 is in use" in capsys.readouterr().err


def test_the_cluster_says_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "during", staticmethod(lambda: 4))
    assert serve.main([APP]) == 4


def test_a_missing_server_is_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(home, "is_installed", {"stdlib"}.__contains__)
    assert serve.main([APP, "--interface", "asgi"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'poolkit[serve]'" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_missing_server_is_usage_where_only_the_application_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (home, serve):
        monkeypatch.setattr(module, "is_installed", {"stdlib"}.__contains__)
    assert serve.main([APP, "--app-dir", str(TESTS)]) == 2
    assert "pip install 'poolkit[serve]'" in capsys.readouterr().err
    assert serve.main(["serve.apps:wsgi", "--app-dir", str(TESTS)]) == 0
    assert Cluster.made[-1].target.server == "stdlib"


@pytest.mark.slow
def test_options_are_checked_where_only_the_application_says_for_which_server(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--app-dir", str(TESTS), "--option", "threads=3"]
    assert "has no setting 'threads'" in usage_of(APP, *argv, capsys=capsys)
    assert serve.main(["serve.apps:wsgi", *argv]) == 0


@pytest.mark.slow
def test_an_application_that_cannot_be_looked_at_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["serve.nowhere:app", "--app-dir", str(TESTS), "--option", "threads=3"]) == 3
    assert capsys.readouterr().err.count("ModuleNotFoundError: No module named 'serve.nowhere'") >= 1
    assert not Cluster.made


# ===== the file for the process id =====


def test_the_process_id_is_in_a_file_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "pid", list[str]()
    monkeypatch.setattr(Cluster, "during", staticmethod(lambda: seen.append(path.read_text()) or 0))
    run("--pid", str(path))
    assert seen == [f"{os.getpid()}\n"]
    assert not path.exists()


def test_a_file_that_another_process_has_written_since_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    monkeypatch.setattr(Cluster, "during", staticmethod(lambda: path.write_text("1\n") and 0))
    run("--pid", str(path))
    assert path.read_text() == "1\n"


def test_a_file_that_cannot_be_written_is_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main([APP, "--pid", str(tmp_path / "no" / "pid")]) == 2
    assert "cannot write the file for the process id" in capsys.readouterr().err
    assert Cluster.made[-1].stopped


# ===== --check =====


@pytest.mark.parametrize(
    ("app", "said"), [("asgi", "ASGI application, served by uvicorn"), ("wsgi", "WSGI application, served by waitress")]
)
def test_check_says_what_it_is(app: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main([f"serve.apps:{app}", "--app-dir", str(TESTS), "--check"]) == 0
    assert capsys.readouterr().out == f"serve.apps:{app}: {said}\n"
    assert not Cluster.made


def test_check_shows_what_the_import_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken_app.py").write_text("def app(:\n")
    assert serve.main(["broken_app:app", "--app-dir", str(tmp_path), "--check"]) == 3
    assert capsys.readouterr().err.count("SyntaxError") == 1


# ===== python -m poolkit =====


def test_without_a_command_there_is_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: python -m poolkit serve MODULE:APP")
    assert front.main(["fly"]) == 2
    assert "there is no command 'fly'" in capsys.readouterr().err
    assert front.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.slow
def test_the_module_is_the_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "poolkit"], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout) == (2, "")
    argv = [sys.executable, "-m", "poolkit", "serve", APP, "--check"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=TESTS)
    assert (shown.returncode, shown.stdout) == (0, f"{APP}: ASGI application, served by uvicorn\n"), shown.stderr


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    options = (
        "bind workers server interface factory app-dir preload schedule grace boot-timeout liveness max-requests "
        "max-memory pid access-log log-level option check"
    )
    assert [name for name in options.split() if f"--{name}" not in said] == []
