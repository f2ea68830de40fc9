"""Exceptions that travel well or badly, and what sends them on their way."""

from __future__ import annotations

import traceback
from typing import Any

from poolkit._wire.codec import load_error, pack_error


def travel(error: BaseException) -> Any:
    return load_error(pack_error(error))


def raised(function: Any) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


def names_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


class PlainError(Exception):
    pass


class NeedsTwoError(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")
