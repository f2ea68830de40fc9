"""Spawned: what processes that a task spawns, by `multiprocessing`, are told of the script.

They run it, as it is their `__main__`; so it is named to them only where it has a guard against that.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


def keep_from_running(spawn: Any) -> None:
    """Have the script run in children that a task spawns only where it has a main guard, which it needs for that."""
    prepare_data = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare_data(name)
        if not _has_guard() and (data.pop("init_main_from_path", None) or data.pop("init_main_from_name", None)):
            import warnings  # noqa: PLC0415 -- there only

            warnings.warn(
                "a process that a task spawns does not have what the script defines, as the script has no "
                "`if __name__ == '__main__':` guard: put one around its main part, or use the context 'fork'",
                RuntimeWarning,
                stacklevel=2,
            )
        return data

    spawn.get_preparation_data = get_preparation_data


def _has_guard() -> bool:
    import re  # noqa: PLC0415 -- there only

    try:
        with open(sys.modules["__main__"].__file__ or "", encoding="utf-8") as file:  # noqa: PTH123 -- pathlib takes 6 ms
            text = file.read()
    except (OSError, AttributeError, ValueError):
        return False
    return re.search(r"""^if\s+__name__\s*==\s*['"]__main__['"]""", text, re.MULTILINE) is not None
