"""Lines that workers print at the same time never mix, in whatever pieces they are printed."""

from __future__ import annotations

import collections

import pytest

from support_scripts import run_script

SCRIPT = """
import sys
import poolkit

SHAPES = {
    "word": lambda word: print(word),
    "words": lambda word: print(word, word, word),
    "error": lambda word: print(word, word, word, file=sys.stderr),
    "pieces": lambda word: [print(word, end=" ", flush=True) for _ in range(5)] + [print(word)],
    "writes": lambda word: sys.stdout.writelines([word, " ", word, "\\n"]),
    "next": lambda word: [print(f"{word}\\n{word}", end=" ") for _ in range(5)] + [print()],
    "bytes": lambda word: [sys.stdout.buffer.write(part.encode()) for part in (word, " ", word, "\\n")],
    "lines": lambda word: print("\\n".join([word * 300] * 100)),
    "long": lambda word: print(word * 3_000),
    "longer": lambda word: print(word * 50_000),
}

def work(shape, word):
    for _ in range(5):
        SHAPES[shape](word)

with poolkit.Pool(3) as pool:
    pool.warm_up()
    for shape in SHAPES:
        list(pool.map(work, [shape] * 12, ["xa", "yb", "zc"] * 4, chunksize=1))
"""


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["usual", "unbuffered"])
def test_lines_of_workers_never_mix(options: tuple[str, ...]) -> None:
    source = "import os\nos.dup2(1, 2)\n" + SCRIPT
    kinds = collections.Counter(frozenset(line) - {" "} for line in run_script(source, options=options).splitlines())
    assert set(kinds) - {frozenset()} == {frozenset("xa"), frozenset("yb"), frozenset("zc")}
