"""Objects among the globals that raise, or lie, when they are looked at: what names them can be called all the same."""

from __future__ import annotations

import itertools
import logging
import marshal
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from poolkit._wire import modules, plans
from poolkit._wire.functions import scan_code
from poolkit._wire.items import IMPORT, STATEMENT, VALUE
from poolkit._wire.plans import manifest_for
from poolkit._wire.remote import raise_interrupt
from poolkit.errors import SerializationError
from support_scripts import WorkerHalf

NewScript = Callable[..., Any]
_numbers = itertools.count()


def kinds(script: Any, *names: str) -> dict[str, int]:
    modules.look()
    found = manifest_for(None, {(script.__name__, name) for name in names})
    assert found is not None
    return {item.name: item.kind for item in found.items}


def hook(name: str, body: str, base: str = "") -> str:
    return f"class C({base}):\n def {name}(self, *args): {body}\n"


def prop(name: str, body: str = "raise RuntimeError", base: str = "") -> str:
    return f"class C({base}):\n @property\n def {name}(self): {body}\n"


ODD = {
    "class_raises": prop("__class__") + "x = C()",
    "class_is_a_function": "import types\n" + prop("__class__", "return types.FunctionType") + "x = C()",
    "class_is_a_type": prop("__class__", "return type") + "x = C()",
    "class_is_a_module": "import types\n" + prop("__class__", "return types.ModuleType") + "x = C()",
    "class_is_local": "import threading\n" + prop("__class__", "return threading.local") + "x = C()",
    "class_is_an_int": prop("__class__", "return int") + "x = C()",
    "getattr_raises": hook("__getattr__", "raise RuntimeError") + "x = C()",
    "getattribute_raises": hook("__getattribute__", "raise RuntimeError") + "x = C()",
    "getattr_gives_anything": hook("__getattr__", "return self") + "x = C()",
    "eq_raises": hook("__eq__", "raise RuntimeError") + "x = C()",
    "bool_raises": hook("__bool__", "raise RuntimeError") + "x = C()",
    "len_raises": hook("__len__", "raise RuntimeError") + "x = C(); x.text = 'a' * 5000",
    "len_is_negative": hook("__len__", "return -1") + "x = C(); x.text = 'a' * 5000",
    "reduce_raises": hook("__reduce_ex__", "raise ValueError") + "x = C()",
    "reduce_exits": hook("__reduce_ex__", "raise SystemExit(3)") + "x = C()",
    "reduce_ends_a_generator": hook("__reduce_ex__", "raise GeneratorExit") + "x = C()",
    "reduce_gives_a_number": hook("__reduce_ex__", "return 5") + "x = C()",
    "reduce_gives_a_name": hook("__reduce_ex__", "return 'no.where'") + "x = C()",
    "message_raises": "class E(Exception):\n def __str__(self): raise RuntimeError\n"
    + hook("__reduce_ex__", "raise E")
    + "x = C()",
    "setstate_exits": hook("__setstate__", "raise SystemExit(3)") + "x = C(); x.a = 1",
    "module_raises": prop("__module__") + "x = C()",
    "module_is_a_number": "class C: __module__ = 5\nx = C()",
    "module_is_no_key": "class C: pass\nC.__module__ = ['x']\nx = C()",
    "dict_raises": prop("__dict__") + "x = C()",
    "fileno_raises": prop("fileno") + "x = C()",
    "class_of_no_module": prop("__module__", base="type") + "class x(metaclass=C): pass",
    "instance_of_no_module": prop("__module__", base="type") + "class D(metaclass=C): pass\nx = D()",
    "class_without_a_hash": hook("__hash__", "raise RuntimeError", "type") + "class D(metaclass=C): pass\nx = D()",
    "class_that_says_nothing": hook("__getattribute__", "raise RuntimeError", "type") + "class x(metaclass=C): pass",
    "module_that_says_nothing": "import types\n"
    + hook("__getattribute__", "raise RuntimeError", "types.ModuleType")
    + "x = C('x')",
    "module_of_no_name": "import types\nx = types.ModuleType('no_such_module')",
    "odd_attribute": prop("__class__") + "class x:\n c = C()\n def m(self): return 1",
    "odd_attribute_of_odd_class": hook("__hash__", "raise RuntimeError", "type")
    + "class D(metaclass=C): pass\nclass x:\n c = D()\n def m(self): return 1",
    "odd_subclass": "class x: pass\n" + prop("__module__", base="type") + "class D(x, metaclass=C): pass",
    "deep": "x = []\nfor _ in range(100000): x = [x]",
    "container": prop("__class__") + "x = [C()]",
    "mock": "from unittest import mock\nx = mock.MagicMock()",
    "mock_of_a_class": "from unittest import mock\nx = mock.create_autospec(int)",
    "mock_of_a_function": "from unittest import mock\nx = mock.create_autospec(print)",
    "mock_of_a_module": "import sys\nfrom unittest import mock\nx = mock.Mock(spec=sys)",
    "call": "from unittest import mock\nx = mock.call(1)",
    "generator": "x = (n for n in 'a')",
    "weak_proxy": "import weakref\nclass C: pass\nc = C()\nx = weakref.proxy(c)",
    "dead_weak_proxy": "import weakref\nclass C: pass\nx = weakref.proxy(C())",
    "pointer": "import ctypes\nx = ctypes.pointer(ctypes.c_int(3))",
    "library": "import ctypes\nx = ctypes.CDLL(None)",
    "map_of_memory": "import mmap\nx = mmap.mmap(-1, 4096)",
    "frame": "import sys\nx = sys._getframe()",
    "context": "import contextvars\nx = contextvars.copy_context()",
    "thread_pool": "import concurrent.futures\nx = concurrent.futures.ThreadPoolExecutor(1)",
    "queue": "import queue\nx = queue.SimpleQueue()",
    "process": "import multiprocessing\nx = multiprocessing.Process(target=print)",
    "future_of_a_thread": "import concurrent.futures\nx = concurrent.futures.Future()",
    "asyncio_queue": "import asyncio\nx = asyncio.Queue()",
}


@pytest.mark.parametrize("name", ODD)
def test_what_names_an_odd_object_runs_without_it(worker: WorkerHalf, new_script: NewScript, name: str) -> None:
    """The object arrives, or is not bound, and who misses it is told why. A fork has it anyway."""
    source = f"{ODD[name]}\ndef f(y=0):\n if y: return str(type(x))\n return 'left'"
    script = new_script(source, name=f"odd_{next(_numbers)}")
    assert worker.call(script.f) == "left"
    try:
        notes = [worker.call(script.f, 1)]
    except NameError as error:
        notes = error.__notes__  # type: ignore[attr-defined]
    assert notes[0].startswith(("<class ", "'x' of the script could not be made in this worker ("))
    assert (script.__name__, "x") in plans.inheritance()


def test_a_decorated_class_is_made_beside_an_odd_object(worker: WorkerHalf, new_script: NewScript) -> None:
    odd = prop("__class__") + "x = C()\n" + prop("__module__", base="type") + "class D(metaclass=C): pass\ny = D()\n"
    source = "import functools\n@functools.total_ordering\nclass K:\n def __lt__(self, other): return True\n"
    script = new_script(odd + source + "def f(): return K() <= K()", name="beside_an_odd_object")
    assert kinds(script, "K")["K"] == STATEMENT
    assert worker.call(script.f) is True


def test_a_class_need_not_say_its_module(worker: WorkerHalf, new_script: NewScript) -> None:
    """As those of compiled functions: what stands there is an attribute of their instances."""
    source = "class C:\n __module__ = property(lambda self: 'c')\nx = C()\ndef f(): return type(x).__name__"
    script = new_script(source, name=f"odd_home_{next(_numbers)}")
    assert worker.call(script.f) == "C"


def test_a_module_may_raise_for_names_that_it_has_not(worker: WorkerHalf, new_script: NewScript) -> None:
    """By a `__getattr__` of its own, which is asked neither what stands for the module nor what a lambda is called."""
    script = new_script("def __getattr__(name): return {}[name]\ndef f(): return 1\ndef g(): return lambda: f()")
    del script.__file__
    assert worker.call(script.f) == 1
    assert worker.call(script.g()) == 1


@pytest.mark.parametrize(
    ("source", "change"),
    [("x = {1: (n for n in 'a')}", "del x[1]"), ("x = [(n for n in 'a')]", "x.clear()")],
)
def test_a_container_is_tried_again_when_its_length_has_changed(
    worker: WorkerHalf, new_script: NewScript, source: str, change: str
) -> None:
    """What had no pickle may have left it; or another thread filled it while it was pickled."""
    script = new_script(f"{source}\ndef f(): return len(x)", name=f"odd_container_{next(_numbers)}")
    with pytest.raises(NameError):
        worker.call(script.f)
    exec(change, vars(script))  # noqa: S102 -- our own source
    assert worker.call(script.f) == 0


# ===== what stands for another object =====

_PROXY = """
class Proxy:
    @property
    def __class__(self): raise RuntimeError("outside of a request")
    def __getattr__(self, name): raise RuntimeError("outside of a request")
request = Proxy()
"""


@pytest.mark.parametrize("name", ["request", "other"])
def test_an_object_that_stands_for_another_is_imported(
    new_script: NewScript, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Under its own name, or under another."""
    home = ModuleType("home_of_proxies")
    exec(_PROXY, vars(home))  # noqa: S102 -- our own source
    monkeypatch.setitem(sys.modules, "home_of_proxies", home)
    script = new_script(f"from home_of_proxies import request as {name}\ndef f(): return {name}", name="uses_proxies")
    modules.look()
    monkeypatch.setattr(modules, "scripts", modules.scripts - {"home_of_proxies"})
    for module in ("process_wide", "namespace", "pickles", "plans"):
        monkeypatch.setattr(sys.modules[f"poolkit._wire.{module}"], "scripts", modules.scripts)
    found = manifest_for(None, {(script.__name__, "f")})
    assert found is not None
    (item,) = (each for each in found.items if each.name == name)
    assert item.kind == IMPORT
    assert marshal.loads(item.payload) == ("home_of_proxies", "request")  # noqa: S302 -- our own
    assert plans.Sent().lacking(found)  # asks it nothing, as this is done under the pool's lock


# ===== what is nobody's hook =====


def test_an_interrupt_is_no_fault_of_the_object(new_script: NewScript) -> None:
    script = new_script(hook("__reduce_ex__", "raise KeyboardInterrupt") + "x = C()")
    with pytest.raises(KeyboardInterrupt):
        kinds(script, "x")


def test_a_lack_of_memory_is_no_fault_of_the_object(worker: WorkerHalf, new_script: NewScript) -> None:
    """It fails one submit; the next one may succeed."""
    source = hook("__reduce_ex__", "\n  if lacks: raise MemoryError\n  return C, ()")
    script = new_script(source + "x, lacks = C(), True\ndef f(): return str(type(x))", name="lacks_memory")
    with pytest.raises(SerializationError):
        worker.call(script.f)
    script.lacks = False
    assert worker.call(script.f) == "<class 'lacks_memory.C'>"


def test_what_a_signal_handler_raises_is_no_fault_of_the_object(new_script: NewScript) -> None:
    """Such as the SystemExit of one for SIGTERM."""

    def leave(*_: object) -> None:
        raise SystemExit(5)

    script = new_script(
        "import signal\n" + hook("__reduce_ex__", "signal.raise_signal(signal.SIGUSR1); return 'x'") + "x = C()"
    )
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit):
            kinds(script, "x")
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_stop_of_a_threads_task_is_no_fault_of_the_object() -> None:
    from poolkit._kinds.worker_thread import StopTask

    with pytest.raises(StopTask):
        raise_interrupt(StopTask())
    raise_interrupt(GeneratorExit())
    raise_interrupt(type("Odd", (BaseException,), {"__module__": property(str)})())


# ===== streams =====


class Outside:
    """A stream that is none of the interpreter's."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def __reduce__(self) -> Any:
        raise TypeError


@pytest.mark.parametrize(
    "source",
    [
        "x = sys.stdout",
        "import logging\nx = logging.StreamHandler(sys.stdout)",
        "from functools import partial\nx = partial(print, file=sys.stdout)",
        "x = {'to': [sys.stdout]}",
        "x = sys.__stdout__",
        "x = open(1, 'w', closefd=False)",
        "x = open(2, 'wb', closefd=False)",
        "x = open(2, 'wb', buffering=0, closefd=False)",
        "import io\nx = io.TextIOWrapper(open(1, 'wb', closefd=False), encoding='utf-8')",
    ],
)
def test_a_worker_has_its_own_standard_stream(
    worker: WorkerHalf, new_script: NewScript, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(sys, "stdout", Outside())
    code = f"import sys\n{source}\ndef f(): return str(type(x)), type(sys.stdout).__name__"
    script = new_script(code, name=f"streams_{next(_numbers)}")
    assert kinds(script, "x")["x"] == VALUE
    assert worker.call(script.f)[1] == "TextIOWrapper"


def test_a_kept_stream_is_the_one_of_that_name(
    worker: WorkerHalf, new_script: NewScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Outside())
    script = new_script(
        "import io, sys\nx = sys.stdout\nb = open(2, 'wb', closefd=False)\nr = open(2, 'wb', 0, closefd=False)\n"
        "def f(): return x is sys.stdout, b is sys.stderr.buffer, r in (sys.stderr.buffer, getattr(b, 'raw', b))",
        name="kept_streams",
    )
    assert worker.call(script.f) == (True, True, True)


def test_a_logger_and_its_handlers_are_those_of_the_worker(worker: WorkerHalf, new_script: NewScript) -> None:
    script = new_script(
        "import logging, sys\nlog = logging.getLogger('of_a_script')\nhandler = logging.StreamHandler()\n"
        "def f(): return log is logging.getLogger('of_a_script'), handler.stream is sys.stderr",
        name="logs_of_a_script",
    )
    assert script.handler.stream is sys.stderr
    assert isinstance(script.log, logging.Logger)
    assert worker.call(script.f) == (True, True)


# ===== names that are looked up =====


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return sys.modules['x']", True),
        ("return getattr(system.modules[__name__], 'x')", True),
        ("return table.get('x')", True),
        ("from sys import argv, modules\n return modules", True),
        ("return list(model.modules())", False),
        ("from torch import modules\n return modules", False),
        ("from sys import argv\n return argv", False),
    ],
)
def test_only_sys_modules_is_a_table_of_names(body: str, *, expected: bool) -> None:
    """An attribute `modules` of anything else, such as torch's, is not, where `sys` is not named beside it."""
    namespace: dict[str, Any] = {"sys": sys, "system": sys, "table": sys.modules, "model": partial(int)}
    exec(f"def f(net=None):\n {body}", namespace)  # noqa: S102 -- our own source
    assert scan_code(namespace["f"].__code__).is_dynamic_in(namespace) is expected


@pytest.mark.parametrize("look_up", ["globals()[name]", "eval(name)", "getattr(sys.modules[__name__], name)"])
def test_what_is_looked_up_by_a_text_that_stands_nowhere_is_there(
    worker: WorkerHalf, new_script: NewScript, look_up: str
) -> None:
    """Functions and classes; data is not, as it may change from call to call, like the variable of a loop."""
    source = "import sys\nclass K: n = 3\ndef g(): pass\ni = 0\n"
    script = new_script(f"{source}def f(name): return repr({look_up})", name=f"looked_up_{next(_numbers)}")
    assert ".K'" in worker.call(script.f, "K")
    assert "function g" in worker.call(script.f, "g")
    manifest = manifest_for((script.__name__, "f"), set())
    script.i = 1
    assert manifest_for((script.__name__, "f"), set()) is manifest
    with pytest.raises((KeyError, NameError, AttributeError)):
        worker.call(script.f, "i")
