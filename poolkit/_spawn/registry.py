"""The registry of template processes: who uses which, and which stay for the next.

    acquire    a user, such as a pool, gets the template with its key, or a new one; several users share one
    release    the user is done; the template stays for the next one, until this process ends

A template that is dead, stopped, or could not import what it was to preload, or not in time, is replaced when it is
acquired next, and ends with the last user that has it. Of those that have no user, the MOST_IDLE that were released
last stay. One that is forked from this process has its memory and initializer: it is of one user alone, and has no key.
Guarded by: FORKING.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from poolkit._spawn import launch
from poolkit._spawn.key import Key, Start
from poolkit._spawn.launch import FORKING
from poolkit._spawn.templates import Template, children, living

MOST_IDLE = 2  # templates without a user: two kinds of pools may take turns

_templates: dict[Key, Template] = {}  # those that were released last stand last


def _locked(step: Callable[[], Template | None], *, waits: bool) -> Template | None:
    """Do something with FORKING held, and then end what nobody uses any more. Without `waits`, not if it is held."""
    is_owned: bool = FORKING._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 -- as `threading.Condition` does
    over: list[Template] = []
    held: list[bool] = []
    try:
        if waits or not is_owned:
            held += map(FORKING.acquire, (waits,))  # taken and noted by one instruction
        if True not in held:
            return None
        template = step()
        over += _take_unused()
        return template
    finally:
        if True in held:
            FORKING.release()
        _end_each(over)


def _take_unused() -> list[Template]:
    for template in [one for one in _templates.values() if not one.is_used()][:-MOST_IDLE]:
        del _templates[template.key]
    return [one for one in [*living] if _templates.get(one.key) is not one and not one.is_used()]


def _end_each(templates: list[Template]) -> None:
    for template in templates:
        template.end()


def acquire(start: Start, user: object, *, waits: bool = True) -> Template | None:
    """Find the template that this user is to have, or start it. Blocks while one is started.

    Another one that was acquired for the same user is not kept for it. In a finalizer, whose thread may hold FORKING,
    it must not wait, and there may be none.

    Raises:
        Exception: none could be started.
    """

    def step() -> Template:
        for other in _templates.values():
            other.users.discard(user)
        template = _templates.get(start.key)
        if template is None or not template.is_fit():
            _templates.pop(start.key, None)
            template = Template(user, launch.start_data(start), start.env, start.key, start.command[0])
            template.start(lambda theirs, number, page: launch.execute(theirs, number, page, start))
            _templates[start.key] = template
        template.users.add(user)
        return template

    return _locked(step, waits=waits)


def fork(
    user: object, preload: Sequence[str], env: Mapping[str, str], initializer: Callable[[], object] | None
) -> Template:
    """Fork this process into a template process, for this user alone. FORKING is not held.

    Raises:
        OSError: there are no more processes, or descriptors.
    """
    template = Template(user, b"", {**os.environ, **env})
    template.start(lambda theirs, _, page: launch.fork(theirs, page, preload, env, initializer))
    return template


def release(user: object, *, waits: bool = True) -> None:
    """A user has no children any more, and wants none. May block until processes that were killed have ended."""

    def step() -> None:
        for key, template in list(_templates.items()):
            if user in template.users:
                template.users.discard(user)
                del _templates[key]
                # One that is left alone while it imports may do so for ever.
                if template.is_fit() and (template.users or template.word() is not None):
                    _templates[key] = template
        for template in [*living]:
            template.users.discard(user)

    _locked(step, waits=waits)  # where it does not wait, the user is forgotten soon, and with it that it was one


def end_all() -> None:
    """The interpreter ends: end them all. One that is still used may have workers to kill, and ends by itself."""
    with FORKING:
        over = list(_templates.values())
        _templates.clear()
    for template in over:
        if template.is_used():
            template.close_root()
        else:
            template.end()


def after_fork_in_child() -> None:
    """In a forked child of the owner, where nobody else runs: close the copies, and begin anew."""
    for template in [*living]:
        template.close_root()
    for child in [*children]:
        child.close()
    living.clear()
    _templates.clear()
