"""Running: programs without a pool at hand: `poolkit.run` and `poolkit.spawn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import poolkit
from poolkit._core.options import CallOptions
from poolkit.decorator import current_pool, pool_in_use

if TYPE_CHECKING:
    import os
    from typing import Literal

    from typing_extensions import Unpack

    from poolkit.command import BytesOptions, TextOptions

    Argv = Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]] | str


@overload
def run(argv: Argv, *, text: Literal[True], **options: Unpack[TextOptions]) -> poolkit.Command[str]: ...
@overload
def run(argv: Argv, **options: Unpack[BytesOptions]) -> poolkit.Command[bytes]: ...
def run(argv: Sequence[Any] | str, **options: Any) -> poolkit.Command[Any]:
    """Run a program as `Pool.run` does, on the pool of `use_pool`, else on the default process pool.

    Takes and raises what `Pool.run` does. Thread-safe; blocks while a bounded queue is full.
    """
    return current_pool("process").run_as("poolkit.run", argv, options)


@overload
def spawn(argv: Argv, *, text: Literal[True], **options: Unpack[TextOptions]) -> poolkit.Command[str]: ...
@overload
def spawn(argv: Argv, **options: Unpack[BytesOptions]) -> poolkit.Command[bytes]: ...
def spawn(argv: Sequence[Any] | str, **options: Any) -> poolkit.Command[Any]:
    """Start a program at once: in no queue, and in no place of a pool. `stdout` is "lines" where nothing is said.

    It takes what `Pool.run` takes, and raises the same. Iterate over it, or use it in a `with`, whose end stops it; at
    the end of the interpreter it is stopped, too. Thread-safe; does not block.
    """
    from poolkit import _command_line  # noqa: PLC0415 -- only for those who run programs
    from poolkit._engine import spawned  # noqa: PLC0415 -- see above

    pool = pool_in_use()
    engine = (None if pool is None else pool._supervisor.spawner()) or spawned.pool()  # noqa: SLF001 -- of this library
    command = _command_line.command("poolkit.spawn", engine, CallOptions(), argv, {"stdout": "lines", **options})
    engine.submit(command)
    return command
