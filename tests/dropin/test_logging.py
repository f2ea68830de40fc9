"""Logging that a worker's own code configures works as it does in any process; what it does not, reaches the owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

BEGIN = """
import logging, logging.config, logging.handlers, multiprocessing, os, sys
import poolkit

class Keeper(logging.Handler):
    def __init__(self):
        super().__init__()
        self.kept = []
    def emit(self, record):
        self.kept.append((record.name, record.getMessage(), getattr(record, "poolkit_worker", None)))

def at(name):
    return os.path.join(sys.argv[1], name)

def read(name):
    return open(at(name)).read().splitlines() if os.path.exists(at(name)) else None
"""


def run_with(folder: Path, source: str) -> list[str]:
    return run(BEGIN + source, str(folder))


@pytest.mark.parametrize("where", ["initializer", "task"])
def test_basic_config_works_in_a_worker(tmp_path: Path, where: str) -> None:
    source = """
def configure(path):
    logging.basicConfig(filename=path, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")

def work():
    logging.info("half way")
    logging.getLogger("mine").debug("not this")
    logging.getLogger("mine").info("nor lost")
    return logging.root.handlers != []

keeper = Keeper()
logging.root.addHandler(keeper)
given = dict(initializer=configure, initargs=(at("own"),)) if "WHERE" == "initializer" else {}
with poolkit.Pool(1, **given) as pool:
    if not given:
        pool.submit(configure, at("own")).result()
    print(pool.submit(work).result())
print(read("own"), keeper.kept)
""".replace("WHERE", where)
    assert run_with(tmp_path, source) == ["True", "['INFO root half way', 'INFO mine nor lost'] []"]


def test_what_nobody_configured_reaches_the_owner_and_nothing_is_configured_by_that(tmp_path: Path) -> None:
    """Not by `logging.warning()` and its like either, which configure where there is no handler."""
    source = """
def work():
    logging.warning("by the module")
    logging.log(logging.ERROR, "and by level")
    logging.info("not this")
    logging.getLogger("mine.deep").error("deep")
    logging.getLogger("quiet").addHandler(logging.NullHandler())
    logging.getLogger("quiet").warning("a library's")
    return logging.root.handlers, logging.root.hasHandlers(), logging.getLogger("mine").hasHandlers()

keeper = Keeper()
logging.root.addHandler(keeper)
with poolkit.Pool(1) as pool:
    print(*pool.submit(work).result())
print(keeper.kept)
"""
    found = [("root", "by the module", 1), ("root", "and by level", 1), ("mine.deep", "deep", 1)]
    assert run_with(tmp_path, source) == ["[] False False", str([*found, ("quiet", "a library's", 1)])]


def test_without_any_handler_warnings_are_printed_once_by_the_owner(tmp_path: Path) -> None:
    source = """
import contextlib, io

def work():
    logging.getLogger("mine").warning("seen")
    logging.warning("seen too")

with contextlib.redirect_stderr(io.StringIO()) as shown:
    with poolkit.Pool(1) as pool:
        pool.submit(work).result()
print(shown.getvalue().splitlines())
"""
    assert run_with(tmp_path, source) == ["['seen', 'seen too']"]


def test_the_cookbooks_queue_handler_gets_each_record_once(tmp_path: Path) -> None:
    source = """
def configure(queue):
    root = logging.getLogger()
    root.addHandler(logging.handlers.QueueHandler(queue))
    root.setLevel(logging.DEBUG)

def work(number):
    logging.getLogger("mine").debug("number %d", number)
    logging.info("root %d", number)

keeper, owners = Keeper(), Keeper()
logging.root.addHandler(owners)
logging.root.setLevel(logging.DEBUG)
with multiprocessing.get_context("spawn").Manager() as manager:
    queue = manager.Queue()
    listener = logging.handlers.QueueListener(queue, keeper)
    listener.start()
    with poolkit.Pool(1, initializer=configure, initargs=(queue,)) as pool:
        list(pool.map(work, range(3)))
    listener.stop()
print(sorted(message for _, message, _ in keeper.kept))
print(owners.kept)
"""
    each = [f"number {number}" for number in range(3)] + [f"root {number}" for number in range(3)]
    assert run_with(tmp_path, source) == [str(each), "[]"]


def test_a_handler_of_one_logger_is_for_that_one(tmp_path: Path) -> None:
    """With `propagate=False`, and where both sides have one."""
    source = """
def configure():
    mine = logging.getLogger("mine")
    mine.addHandler(logging.FileHandler(at_own))
    mine.propagate = False

def work(path):
    global at_own
    at_own = path
    configure()
    logging.getLogger("mine.deep").warning("for the file")
    logging.getLogger("other").warning("for the owner")

keeper, named = Keeper(), Keeper()
logging.root.addHandler(keeper)
logging.getLogger("other").addHandler(named)
logging.getLogger("other").propagate = False
with poolkit.Pool(1) as pool:
    pool.submit(work, at("own")).result()
print(read("own"), keeper.kept, named.kept)
"""
    assert run_with(tmp_path, source) == ["['for the file'] [] [('other', 'for the owner', 1)]"]


def test_dict_config_in_an_initializer_stands(tmp_path: Path) -> None:
    source = """
def configure(path):
    logging.config.dictConfig({
        "version": 1,
        "formatters": {"short": {"format": "%(name)s: %(message)s"}},
        "handlers": {"own": {"class": "logging.FileHandler", "filename": path, "formatter": "short"}},
        "loggers": {"mine": {"handlers": ["own"], "level": "INFO", "propagate": False}},
    })

def work():
    logging.getLogger("mine").info("for the file")
    logging.getLogger("other").warning("for the owner")

keeper = Keeper()
logging.root.addHandler(keeper)
with poolkit.Pool(1, initializer=configure, initargs=(at("own"),)) as pool:
    pool.submit(work).result()
print(read("own"), keeper.kept)
"""
    assert run_with(tmp_path, source) == ["['mine: for the file'] [('other', 'for the owner', 1)]"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_in_a_task_and_one_that_is_forked_forward_once(tmp_path: Path, method: str) -> None:
    source = """
def say(text):
    logging.getLogger("mine").warning(text)
    logging.warning("root " + text)

def nested(method):
    say("outer")
    with poolkit.Pool(1, start_method=method) as pool:
        pool.submit(say, "inner").result()
    say("outer again")

keeper = Keeper()
logging.root.addHandler(keeper)
with poolkit.Pool(1, start_method=METHOD) as pool:
    pool.submit(nested, METHOD).result()
print([message for _, message, _ in keeper.kept])
""".replace("METHOD", repr(method))
    found = [text for name in ("outer", "inner", "outer again") for text in (name, f"root {name}")]
    assert run_with(tmp_path, source) == [str(found)]


def test_levels_are_the_owners_at_the_start_of_the_worker(tmp_path: Path) -> None:
    source = """
def work():
    logging.getLogger("mine").debug("debug")
    logging.getLogger("other").info("not this")

keeper = Keeper()
logging.root.addHandler(keeper)
logging.getLogger("mine").setLevel(logging.DEBUG)
with poolkit.Pool(1) as pool:
    pool.submit(work).result()
    print(keeper.kept)
"""
    assert run_with(tmp_path, source) == ["[('mine', 'debug', 1)]"]
