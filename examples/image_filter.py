"""Decode, blur, sharpen and shrink pictures in a pool of processes, and write a contact sheet of them.

    pip install 'poolkit[examples]'
    python examples/image_filter.py                       the pictures that come with scikit-image
    python examples/image_filter.py ~/Pictures --workers 4 --sheet holiday.png

Each picture goes through four calls, and between them travels as an array, from the pool and back into it.
The same calls are made in line and with the standard library's ProcessPoolExecutor first.
How many megapixels each way manages in a second is printed; the exit status is 1 if the pictures differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

import poolkit

Pixels = NDArray[np.uint8]  # height, width, and three colours
Map = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]  # what `map` is, here and in a pool

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
SIDE = 160  # of a thumbnail
MARGIN = 12
GROUND, INK = (24, 24, 24), (200, 200, 200)


# ===== the four calls =====


def decode(path: Path) -> Pixels:
    """Read a picture, of whatever format and mode, as red, green and blue."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def blur(pixels: Pixels) -> Pixels:
    """Take the noise away."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)))


def sharpen(pixels: Pixels) -> Pixels:
    """Bring the edges out again."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.UnsharpMask(radius=3, percent=180)))


def thumbnail(pixels: Pixels) -> Pixels:
    """Shrink to a square of `SIDE`, keeping the proportions."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    return np.array(image)


def thumbnails(run: Map, paths: Iterable[Path]) -> list[Pixels]:
    """Take every picture through the four calls, each of which `run` makes somewhere.

    A pool works on all four at once: while one picture is sharpened, the next is blurred.
    `poolkit.Pool.map` takes only a few items ahead, so that it never holds more than a few large arrays.
    """
    return list(run(thumbnail, run(sharpen, run(blur, run(decode, paths)))))


# ===== what is printed and drawn =====


def measured(way: str, run: Map, paths: list[Path], megapixels: float, rounds: int) -> list[Pixels]:
    """Make the thumbnails a few times, and print how fast the best time was."""
    thumbnails(run, paths[:8])  # workers start and import
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        made = thumbnails(run, paths)
        best = min(best, time.perf_counter() - begin)
    print(f"{way:<36} {megapixels / best:>6.1f} megapixels a second")
    return made


def contact_sheet(made: list[Pixels], names: list[str]) -> Image.Image:
    """Arrange thumbnails in a grid, each above its name."""
    columns = max(1, round((len(made) * 1.5) ** 0.5))
    rows = -(-len(made) // columns)
    cell = SIDE + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, rows * (cell + MARGIN) + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, name) in enumerate(zip(made, names, strict=True)):
        left = MARGIN + number % columns * cell
        top = MARGIN + number // columns * (cell + MARGIN)
        height, width = pixels.shape[:2]
        sheet.paste(Image.fromarray(pixels), (left + (SIDE - width) // 2, top + (SIDE - height) // 2))
        while draw.textlength(name) > SIDE:
            name = name[:-1]  # noqa: PLW2901 -- as much of it as there is room for
        draw.text((left + (SIDE - draw.textlength(name)) / 2, top + SIDE), name, INK)
    return sheet


# ===== the run =====


def bundled_pictures() -> Path | None:
    """Find the folder of pictures that are part of scikit-image, if that is installed."""
    found = importlib.util.find_spec("skimage")
    return None if found is None or found.origin is None else Path(found.origin).parent / "data"


def readable(folder: Path) -> dict[Path, float]:
    """Find the pictures in a folder, each with its megapixels; those that cannot be read are named and left out."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            height, width, _ = decode(path).shape  # the whole of it: many a broken file has a good beginning
            found[path] = height * width / 1e6
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises
            print(f"left out: {path}: {error}")
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Filter pictures in a pool of processes.")
    parser.add_argument("folder", nargs="?", type=Path, default=bundled_pictures(), help="where the pictures are")
    parser.add_argument("--workers", type=int, help="how many processes (default: the CPUs at hand)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts (default: 3)")
    parser.add_argument("--sheet", type=Path, default=Path("contact-sheet.png"), help="the picture to write")
    arguments = parser.parse_args()
    if arguments.folder is None:
        parser.error("name a folder of pictures, or install scikit-image for those that it brings")
    if arguments.rounds < 1:
        parser.error("--rounds must be positive")
    return arguments


def main() -> int:
    """Filter the pictures in three ways, compare, draw; the exit status is 1 when the ways differ."""
    arguments = parse_arguments()
    found = readable(arguments.folder)
    if not found:
        sys.exit(f"no pictures in {arguments.folder}")
    paths, megapixels = list(found), sum(found.values())
    print(f"{len(paths)} pictures, {megapixels:.1f} megapixels\n")

    rest = paths, megapixels, arguments.rounds
    in_line = measured("in line", map, *rest)
    with ProcessPoolExecutor(arguments.workers) as executor:
        in_executor = measured("concurrent.futures", executor.map, *rest)
    with poolkit.Pool(arguments.workers) as pool:
        in_pool = measured("poolkit", pool.map, *rest)

    contact_sheet(in_pool, [path.stem for path in paths]).save(arguments.sheet)
    print(f"\nwritten: {arguments.sheet}")
    same = sum(
        np.array_equal(one, two) and np.array_equal(one, three)
        for one, two, three in zip(in_line, in_executor, in_pool, strict=True)
    )
    print(f"{same} of {len(paths)} pictures are the same in all three ways")
    return 0 if same == len(paths) else 1


if __name__ == "__main__":  # ProcessPoolExecutor may run this file again in its workers
    sys.exit(main())
