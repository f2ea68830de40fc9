"""Modules that nodes do not have: what is used of them is sent along; pools on this machine go on as before."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engine import work
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool
from support import WATCHDOG

pytestmark = pytest.mark.slow

MODULES = {
    "ownmod.py": """
        import threading

        LOADS = []
        LOADS.append(1)
        lock = threading.Lock()
        FACTOR = 3

        class Base:
            def __init__(self, value):
                self.value = value

            def double(self):
                return self.value * 2

        class Child(Base):
            def double(self):
                with lock:
                    return super().double() * FACTOR

        def make(value):
            return Child(value)

        def use(child):
            return child.double(), isinstance(child, Child)

        def loads():
            return len(LOADS)
        """,
    "ownpkg/__init__.py": """
        from .sub import add

        TOP = 7
        """,
    "ownpkg/sub.py": """
        from . import other
        from .other import Thing

        def add(number):
            return Thing(number).get()

        def late(number):
            from ownpkg.other import Thing as Late

            return Late(number).get()

        def through(number):
            return other.Thing(number).get()

        def get(thing):
            return thing.get(), type(thing) is Thing

        def give(number):
            return Thing(number)
        """,
    "ownpkg/other.py": """
        K = 5

        class Thing:
            def __init__(self, number):
                self.number = number

            def get(self):
                return self.number + K
        """,
}

OWNER = """
    import sys

    folder = sys.argv[1]
    sys.path.insert(0, folder)
    import ownmod, ownpkg
    import ownpkg.sub as sub
    import poolkit
    from poolkit._nodes.provider_local import LocalProvider
    from poolkit.nodes import NodePool

    class Elsewhere(LocalProvider):
        def add(self):
            sys.path.remove(folder)
            super().add()
            sys.path.insert(0, folder)

    def said(task):
        try:
            return task.result(30)
        except Exception as exc:
            return [type(exc).__name__, str(exc), *getattr(exc, "__notes__", ())]

    def show(where, pool):
        found = {
            "instance": said(pool.submit(ownmod.use, ownmod.Child(2))) == (12, True),
            "result": type(said(pool.submit(ownmod.make, 2))) is ownmod.Child,
            "method": said(pool.submit(ownmod.Child(2).double)) == 12,
            "loads": said(pool.submit(ownmod.loads)) == 1,
            "package": said(pool.submit(ownpkg.add, 1)) == 6,
            "lambda": said(pool.submit(lambda: ownpkg.add(1) + ownpkg.TOP)) == 13,
            "submodule": said(pool.submit(lambda: sub.add(1))) == 6,
            "attribute": said(pool.submit(sub.through, 1)) == 6,
            "late": said(pool.submit(sub.late, 1)) == 6,
            "same class": said(pool.submit(sub.get, sub.Thing(1))) == (6, True),
            "same class back": type(said(pool.submit(sub.give, 2))) is sub.Thing,
            "in a list": said(pool.submit(len, [ownmod.Child(1), sub.Thing(2)])) == 2,
            "map": list(pool.map(sub.add, range(3))) == [5, 6, 7],
        }
        print(where, *[name for name, is_right in found.items() if not is_right])

    if __name__ == "__main__":
        with poolkit.Pool(1) as local:
            show("local", local)
            with NodePool(Elsewhere()) as nodes:
                error = said(nodes.submit(ownmod.use, ownmod.Child(2)))
                print(error[0], "ownmod" in error[1], any("by_value" in note for note in (*error[1:],)))
            with NodePool(Elsewhere(), by_value=[ownmod, "ownpkg"]) as nodes:
                show("nodes", nodes)
                show("local, that was warm", local)
                with poolkit.Pool(1) as another:
                    show("local, made later", another)
    """


def test_modules_of_the_owner_alone_travel_and_local_pools_do_not_notice(tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    for name, text in {**MODULES, "../owner.py": OWNER}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "owner.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=4 * WATCHDOG,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "local",
        "ModuleNotFoundError True True",
        "nodes",
        "local, that was warm",
        "local, made later",
    ], done.stderr
    assert not done.stderr


@pytest.mark.parametrize("wrong", ["work", [work, 3]])
def test_by_value_takes_modules_and_names(wrong: object) -> None:
    with pytest.raises(TypeError, match="by_value is a sequence of modules or their names"):
        NodePool(LocalProvider(), by_value=wrong)  # type: ignore[arg-type]
