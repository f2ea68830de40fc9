"""Root error: `poolkit.errors.PoolkitError`, in a file of its own for the errors that are made at their first use."""

from __future__ import annotations


class PoolkitError(Exception):
    """Root of the library's own errors."""

    __module__ = "poolkit.errors"  # where it is to be found, also by pickle

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by a call with the message, whatever `copyreg` was told: tblib makes exceptions without `__init__`.

        That takes `MemoryError.__new__`, which CPython refuses to a class with another base before it.
        """
        return type(self), self.args, self.__dict__
