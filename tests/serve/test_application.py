"""The target that serves an application: what it is named by, what it is, which server it gets."""

from __future__ import annotations

import functools
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit._servers import application as home
from poolkit._servers.application import Application, ServerMissing, application, interface_of
from serve import apps
from serve.context import TESTS, Context


def asgi_like(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi_like(environ: Any, start_response: Any, extra: Any = None) -> None: ...


class WsgiClass:
    def __init__(self, environ: Any, start_response: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (apps.asgi, "asgi"),
        (apps.Asgi(), "asgi"),
        (functools.partial(apps.asgi, receive=1), "asgi"),
        (apps.Asgi().__call__, "asgi"),
        (apps.wsgi, "wsgi"),
        (apps.Wsgi(), "wsgi"),
        (apps.Wsgi().__call__, "wsgi"),
        (WsgiClass, "wsgi"),
        (lambda environ, start_response: [], "wsgi"),
        (apps.Asgi, None),  # a class whose instances are such
        (apps.neither, None),
        (asgi_like, None),
        (wsgi_like, None),
        (5, None),
        (None, None),
        ("app", None),
        (print, None),
    ],
)
def test_the_interface_is_known_by_the_looks(app: Any, interface: str | None) -> None:
    assert interface_of(app) == interface


def made(name: str, *args: Any, **options: Any) -> Application:
    return application(f"serve.apps:{name}", *args, app_dir=TESTS, **options)


def test_it_is_imported_by_its_path() -> None:
    assert made("asgi").load() == (apps.asgi, "asgi")
    assert made("instances.keys", interface="wsgi").load()[0]() == {"asgi", "wsgi"}


def test_a_factory_is_called() -> None:
    assert made("make_asgi", factory=True).load() == (apps.asgi, "asgi")


def test_what_cannot_be_told_is_what_was_said() -> None:
    assert made("neither", interface="wsgi").load() == (apps.neither, "wsgi")
    assert made("neither", "uvicorn").load() == (apps.neither, "asgi")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (made("neither"), TypeError, "say --interface asgi, or wsgi, or --factory"),
        (made("neither", factory=True), TypeError, "say --interface asgi, or wsgi$"),
        (made("wsgi", "uvicorn"), TypeError, "is a WSGI application, and was said to be ASGI"),
        (made("asgi", interface="wsgi"), TypeError, "is a ASGI application, and was said to be WSGI"),
        (made("nobody"), AttributeError, "has no attribute 'nobody'; it has .*asgi"),
        (made("asgi.inner"), AttributeError, "has no attribute 'inner'"),
        (application("serve.nowhere:app"), ModuleNotFoundError, r"serve\.nowhere"),
    ],
)
def test_what_is_wrong_with_it_is_said_when_it_is_imported(
    target: Application, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        target.load()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (["app"], {}, ValueError, "'module:app', for example 'shop.web:app', not as 'app'"),
        (["a:"], {}, ValueError, "not as 'a:'"),
        ([":a"], {}, ValueError, "not as ':a'"),
        (["a.py:app"], {"server": "gunicorn"}, ValueError, "server must be one of 'auto', .*, was 'gunicorn'"),
        (["a/b.py:app"], {}, ValueError, "not as 'a/b.py:app'"),
        (["a:b:c"], {}, ValueError, "not as 'a:b:c'"),
        ([b"a:b"], {}, TypeError, "not by b'a:b'"),
        ([apps.asgi], {}, TypeError, "named by a str"),
        (["a:b"], {"interface": "cgi"}, ValueError, "interface must be one of .*, was 'cgi'"),
        (["a:b"], {"server": "uvicorn", "interface": "wsgi"}, ValueError, "uvicorn serves ASGI .* 'wsgi'"),
        (["a:b"], {"server": "waitress", "interface": "asgi"}, ValueError, "waitress serves WSGI .* 'asgi'"),
        (["a:b"], {"server": "stdlib", "threads": 3}, ValueError, "has no settings, was given threads"),
        (["a:b"], {"server": "waitress", "thraeds": 3}, ValueError, "thraeds"),
        (["a:b"], {"server": "waitress", "threads": "many"}, ValueError, "many"),
        (["a:b"], {"server": "waitress", "port": 3}, ValueError, "the cluster has the listener"),
        (["a:b"], {"interface": "wsgi", "thraeds": 3}, ValueError, "thraeds"),
        (["a:b"], {"interface": "asgi", "threads": 3}, ValueError, "has no setting 'threads'"),
        (["a:b"], {"app_dir": 5}, TypeError, "int"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_where_they_are_given(
    arguments: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        application(*arguments, **options)


def test_options_are_checked_once_the_server_is_known() -> None:
    target = made("wsgi", thraeds=3)
    ctx = Context()
    with pytest.raises(ValueError, match="thraeds"):
        target(ctx)
    ctx.close()


def test_the_owner_imports_neither_the_application_nor_the_server(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, poolkit\n"
        "target = poolkit.application('nowhere:app')\n"
        "print(target.candidates())\n"
        "print([name for name in ('uvicorn', 'waitress', 'asyncio', 'nowhere') if name in sys.modules])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.splitlines() == ["['uvicorn', 'waitress']", "[]"]


@pytest.mark.parametrize(
    ("there", "interface", "server"),
    [
        ({"uvicorn", "waitress", "stdlib"}, "asgi", "uvicorn"),
        ({"uvicorn", "waitress", "stdlib"}, "wsgi", "waitress"),
        ({"stdlib"}, "wsgi", "stdlib"),
    ],
)
def test_the_server_is_what_is_installed(
    there: set[str], interface: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "is_installed", there.__contains__)
    assert application("a:b", interface=interface).server == server
    assert application("a:b").settle(interface) == server


def test_a_server_that_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "is_installed", {"stdlib"}.__contains__)
    for options in ({"interface": "asgi"}, {"server": "uvicorn"}):
        with pytest.raises(ServerMissing, match=r"pip install 'poolkit\[serve\]'"):
            application("a:b", **options)
    with pytest.raises(ServerMissing, match=r"pip install waitress"):
        application("a:b", server="waitress")
    with pytest.raises(ServerMissing):
        application("a:b").settle("asgi")


def test_it_can_be_pickled() -> None:
    target = pickle.loads(pickle.dumps(made("asgi", access_log=True, timeout_keep_alive=3)))
    assert repr(target) == "<application 'serve.apps:asgi', auto, server auto>"
    assert vars(target) == vars(made("asgi", access_log=True, timeout_keep_alive=3))


def test_the_folder_comes_first_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shop_of_a_test.py").write_text("async def app(scope, receive, send): pass\n")
    target = application("shop_of_a_test:app", app_dir=tmp_path)
    assert target.load()[1] == "asgi"
    assert sys.path[0] == str(tmp_path)
    target.extend_path()
    assert sys.path.count(str(tmp_path)) == 1
    del sys.modules["shop_of_a_test"]


def test_it_is_public() -> None:
    assert poolkit.application is application
