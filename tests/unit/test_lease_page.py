"""The page that says until when a pool's workers may live."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator

import pytest

from poolkit._wire.lease_page import LeasePage, page


@pytest.fixture
def sides() -> Iterator[tuple[LeasePage, LeasePage]]:
    fd = page()
    sides = LeasePage(fd, writes=True), LeasePage(fd)
    os.close(fd)
    yield sides
    for side in sides:
        side.close()
        side.close()


def test_a_new_page_sets_no_limit(sides: tuple[LeasePage, LeasePage]) -> None:
    owner, template = sides
    assert owner.until == template.until == math.inf
    assert template.left() == math.inf


def test_the_template_sees_what_the_owner_has_written(sides: tuple[LeasePage, LeasePage]) -> None:
    owner, template = sides
    for until in (time.monotonic() + 100, 1.5, math.inf):
        owner.until = until
        assert template.until == until
    owner.until = time.monotonic()
    assert template.left() <= 0.0
    owner.until = time.monotonic() + 100
    assert 0.0 < template.left() <= 100.0


def test_the_template_and_what_it_forks_cannot_write(sides: tuple[LeasePage, LeasePage]) -> None:
    _, template = sides
    with pytest.raises(TypeError):
        template.until = 1.0
    assert template.until == math.inf
