"""What a script writes to is never created, cut or spoiled by a worker, however it is opened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolkit._wire import modules
from poolkit._wire.items import ABSENT, STATEMENT, VALUE
from poolkit._wire.plans import manifest_for
from support_scripts import WorkerHalf


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kind_of(script: Any, name: str) -> int:
    modules.look()
    found = manifest_for(None, {(script.__name__, name)})
    assert found is not None
    return next(item.kind for item in found.items if item.name == name)


@pytest.mark.parametrize(
    "statement",
    [
        "gzip.open('file', mode)",
        "gzip.GzipFile('file', mode)",
        "gzip.open('file', modes.text)",
        "bz2.open('file', mode)",
        "bz2.open('file', 'wt')",
        "lzma.open('file', mode=mode)",
        "zipfile.ZipFile('file', letter)",
        "zipfile.ZipFile('file', 'w')",
        "tarfile.open('file', letter)",
        "wave.open('file', mode)",
        "dbm.dumb.open('file', flag)",
        "shelve.open('file', flag)",
        "shelve.open('file')",
    ],
)
def test_an_object_that_writes_to_a_file_stays_with_its_process(
    new_script: Callable[..., Any], folder: Path, statement: str
) -> None:
    """Neither made again by its statement nor copied."""
    script = new_script(f"""
import bz2, dbm.dumb, gzip, lzma, shelve, tarfile, wave, zipfile
class modes: text = "wt"
mode, letter, flag = "wb", "w", "n"
x = {statement}
if {"wave" in statement}: x.setparams((1, 1, 8000, 0, "NONE", ""))
""")
    with contextlib.closing(script.x):
        assert list(folder.glob("file*"))
        assert kind_of(script, "x") == ABSENT


@pytest.mark.parametrize(
    ("before", "statement", "kind"),
    [
        ("with gzip.open('file', 'wb') as f: f.write(b'abc')", "gzip.open('file')", STATEMENT),
        ("with zipfile.ZipFile('file', 'w') as f: f.writestr('a', 'abc')", "zipfile.ZipFile('file')", VALUE),
        ("f = open('file', 'w'); f.close()", "open('file', mode='r')", VALUE),
    ],
)
def test_an_object_that_reads_a_file_is_there(
    new_script: Callable[..., Any], folder: Path, before: str, statement: str, kind: int
) -> None:
    script = new_script(f"import gzip, zipfile\n{before}\nx = {statement}")
    with contextlib.closing(script.x):
        assert kind_of(script, "x") == kind
    assert (folder / "file").exists()


@pytest.mark.parametrize(
    "body",
    [
        "with open('file', MODE) as stream: size = stream.write('abc')",
        "stream = open('file', MODE)",
        "stream = open(file='file', mode=modes.text)",
        "stream = open('file', 'w' if MODE else 'r')",
        "mode = 'wb'\n    with gzip.open('file', mode) as stream: size = stream.write(b'abc')",
        "size = pathlib.Path('file').write_text('abc')",
        "log = logging.FileHandler('file', MODE)",
        "data = shelve.open('file')",
    ],
)
def test_a_class_body_that_writes_to_a_file_is_not_run_again(
    worker: WorkerHalf, new_script: Callable[..., Any], folder: Path, body: str
) -> None:
    """It goes by value, or not at all."""
    script = new_script(f"""
import gzip, logging, pathlib, shelve
class modes: text = "w"
MODE = "w"
class C:
    {body}
def close():
    for name in ("stream", "log", "data"):
        if hasattr(C, name): getattr(C, name).close()
def f(): return C
""")
    script.close()
    for path in folder.glob("file*"):
        path.write_bytes(b"of the owner")
    assert kind_of(script, "C") != STATEMENT
    with contextlib.suppress(NameError):
        worker.call(script.f)
    assert {path.read_bytes() for path in folder.glob("file*")} == {b"of the owner"}
