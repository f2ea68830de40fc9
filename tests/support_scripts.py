"""Scripts without a pool: modules that no worker can import, and the half of a worker that has a call of them run.

A script is a file, run as `__main__` of a new interpreter (`run_script`), or as a module of this one (`ScriptModules`).
A `WorkerHalf` is a process that is given what a call needs, as a pool's worker is, and runs it.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from poolkit._wire import codec

ROOT = Path(codec.__file__).parents[2]
_TESTS = Path(__file__).parent
_BEGIN = "import sys; sys.path[:] = {path!r}; import support_scripts; support_scripts.serve({fds!r}, {number!r})"


# ===== scripts =====


def run_script(source: str | Path, *args: str, options: tuple[str, ...] = ("-W", "error")) -> str:
    """Run a file, or a program given by `-c`, as `__main__` of a new interpreter; return what it prints."""
    program = [str(source)] if isinstance(source, Path) else ["-c", source]
    done = subprocess.run(
        [sys.executable, *options, *program, *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, _TESTS)))},
        timeout=60,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


class ScriptModules:
    """Modules loaded from files that no finder finds; `close` makes this process forget them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []

    def load(self, source: str, name: str = "script_under_test") -> Any:
        """Write a file, and run it as a module of this name."""
        path = self._folder / f"{name}_file.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        self.add(module)
        spec.loader.exec_module(module)
        return module

    def add(self, module: ModuleType) -> None:
        """Put a module among those that are loaded."""
        assert module.__name__ not in self._names
        self._names.append(module.__name__)
        sys.modules[module.__name__] = module

    def close(self) -> None:
        """Forget all that this process has noted of them."""
        from poolkit._wire import modules, plans

        for name in self._names:
            sys.modules.pop(name, None)
            modules.scripts.discard(name)
            modules._seen.discard(name)
            if name.encode() in modules.marks:
                modules.marks.remove(name.encode())
            plans._namespaces.pop(name, None)
        plans._plans.clear()
        modules.count = 0


# ===== the half of a worker =====


class Packed(NamedTuple):
    """A call as `submit` leaves it."""

    fn: bytes
    body: bytes
    manifest: Any


def pack(fn: Any, *args: Any, **kwargs: Any) -> Packed:
    """Pickle a call, with the globals as they are now."""
    return Packed(*codec.pack_call(fn, args, kwargs))


class WorkerHalf:
    """A process that has what it was sent, and no more."""

    def __init__(self, number: int = 1) -> None:
        from poolkit._memory.channel import DescriptorChannel
        from poolkit._wire.plans import Sent, describe

        self._sent = Sent()
        ours, theirs = socket.socketpair()
        channel, other = socket.socketpair()
        fds = (theirs.fileno(), other.fileno())
        begin = _BEGIN.format(path=sys.path, fds=fds, number=number)
        self._process = subprocess.Popen([sys.executable, "-W", "error", "-c", begin], pass_fds=fds)
        theirs.close()
        other.close()
        self._file = ours.makefile("rwb")
        ours.close()
        self._channel = DescriptorChannel(channel.detach(), is_worker=False)
        self._write(describe("__main__"))

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Pickle a call, and have it run now."""
        return self.run(pack(fn, *args, **kwargs))

    def run(self, packed: Packed) -> Any:
        """Have a call run; return its value, or raise its exception."""
        fn, body, manifest = packed
        definitions, number = None, 0
        if manifest is not None:
            number = manifest.number
            if number not in self._sent.manifests:
                definitions, memories = self._sent.lacking(manifest)
                self._channel.tell(memories)
                self._sent.commit()
        self._write((definitions, number, fn, body))
        ok, payload = pickle.load(self._file)
        if ok:
            return codec.load_value(payload)
        raise codec.load_error(payload)

    def has(self, module: ModuleType | str, *names: str) -> dict[str, Any]:
        """What these names are bound to in the worker, for those that are; nothing is made for that."""
        name = module if isinstance(module, str) else module.__name__
        found: dict[str, Any] = self.call(bound_names, name, names)
        return found

    def close(self) -> None:
        """End the process."""
        try:
            self._file.close()
        except BrokenPipeError:  # it died
            pass
        finally:
            self._channel.close()
            self._process.wait()

    def _write(self, message: object) -> None:
        pickle.dump(message, self._file, 5)
        self._file.flush()


def bound_names(module_name: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What names of a module are bound to here."""
    namespace = vars(sys.modules[module_name]) if module_name in sys.modules else {}
    return {name: namespace[name] for name in names or namespace if name in namespace}


def serve(fds: tuple[int, int], number: int) -> None:
    """Be a worker, until the other side closes the link."""
    from poolkit._child import script
    from poolkit._memory.channel import DescriptorChannel

    channel = DescriptorChannel(fds[1], is_worker=True)
    with socket.socket(fileno=fds[0]) as link, link.makefile("rwb") as file:
        script.begin(number, pickle.load(file), is_copy=False)
        while True:
            try:
                definitions, manifest, fn_bytes, body = pickle.load(file)
            except EOFError:
                break
            pickle.dump(_run(channel, definitions, manifest, fn_bytes, body), file, 5)
            file.flush()
    channel.close()


def _run(channel: Any, definitions: bytes | None, manifest: int, fn_bytes: bytes, body: bytes) -> tuple[bool, bytes]:
    from poolkit._child import missing, script

    if definitions is not None:
        script.define(definitions, channel)
    try:
        if manifest and manifest not in script.ready:
            script.prepare(manifest)
        fn, args, kwargs = codec.load_call(fn_bytes, body)
        return True, codec.pack_value(fn(*args, **kwargs))
    except BaseException as error:
        missing.explain(error)
        return False, codec.pack_error(error)
