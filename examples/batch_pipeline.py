"""Send the documentation that stands in the standard library through a pipeline: parse, enrich, write.

One task parses every module of some packages and streams a record for each documented function and class.
Batches of those are enriched by the other workers while the stream goes on, and their results are written, in order, to
a file of JSON lines, under a progress bar if standard error is a terminal.

`--trace run.json` writes the timeline of the run as it goes, for ui.perfetto.dev; `--picture run.svg` draws it.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import util
from itertools import islice
from pathlib import Path

import poolkit

Record = dict[str, object]
PACKAGES = ["asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest", "xml"]
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def parse(folders: list[str]) -> Iterator[Record]:
    """Yield what is documented in the modules of these folders."""
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                yield {"module": path.stem, "line": node.lineno, "name": node.name, "text": text}


def enrich(records: list[Record]) -> list[Record]:
    """Add to each record how well it can be read, what it is about, and how much there is in it."""
    for record in records:
        words = re.findall(r"[a-z]{3,}", str(record["text"]).lower())
        record["words"] = len(words)
        record["about"] = [word for word, _ in Counter(words).most_common(3)]
        record["told"] = len(zlib.compress(" ".join(words).encode(), 9))
        record["text"] = textwrap.shorten(str(record["text"]), 80)
    return records


def batches(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Yield the records in lists, as they come."""
    while batch := list(islice(records, size)):
        yield batch


def write(enriched: Iterable[list[Record]], path: Path) -> int:
    """Write a line for each record; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for records in enriched:
            for record in records:
                lines.write(json.dumps(record) + "\n")
                count += 1
    return count


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=PACKAGES, help=f"what is read (default: {' '.join(PACKAGES)})")
    parser.add_argument("--out", type=Path, default=Path("records.jsonl"), help="what is written")
    parser.add_argument("--batch", type=int, default=20, metavar="N", help="records in one task (default: 20)")
    parser.add_argument("--trace", type=Path, metavar="FILE.json", help="write the timeline of the run")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the timeline of the run")
    asked = parser.parse_args()
    specs = [util.find_spec(package) for package in asked.packages]
    folders = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]
    if not folders:
        parser.error("there is no such package")

    with poolkit.Pool() as pool:
        with pool.trace(asked.trace) as timeline:
            records = pool.stream(parse, folders)
            enriched = pool.options(buffersize=16).map(enrich, batches(records, asked.batch), progress="enriching")
            count = write(enriched, asked.out)
        stats = pool.stats()
    if asked.picture:
        timeline.save(asked.picture)
    print(f"{count} records in {asked.out}, by {stats.succeeded} tasks")


if __name__ == "__main__":
    main()
