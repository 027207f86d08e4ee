"""Letters of installed fonts as a set of pictures: real shapes by many hands, free to use.

Rules of this file: a font's *family* is the folder that its package installs. Whole families go to
the training or to the test part, so nobody is tested on a hand that was trained on. The part
follows from the family's name alone. A font that lacks a letter, or draws two letters alike, is
left out whole. Pictures are PNG files in ``part/letter/``, as the loader ``folder`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from toolchain.core.errors import DataError

LETTERS = ascii_uppercase
SUFFIXES = (".otf", ".ttf")
SIDE = 64
FONT_PX = 44
PER_FAMILY = 3
"""Fonts of one family that are drawn: some packages hold seventy."""
TEST_SHARE = 0.25

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What was drawn: families and pictures of each part."""

    families: dict[str, int]
    pictures: dict[str, int]


def draw(fonts: Path, out: Path) -> Glyphs:
    """Draw the letters of all fonts below ``fonts`` into ``out``, which is made.

    Raises DataError where fewer than eight families can be drawn.
    """
    families, pictures = {"train": 0, "test": 0}, {"train": 0, "test": 0}
    for family, paths in sorted(_families(fonts).items()):
        part = "test" if fraction(family) < TEST_SHARE else "train"
        drawn = [letters for path in paths if (letters := _letters(path)) is not None]
        for number, letters in enumerate(drawn[:PER_FAMILY]):
            for letter, picture in zip(LETTERS, letters, strict=True):
                folder = out / part / letter
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / f"{family}-{number}.png")
            pictures[part] += len(letters)
        families[part] += bool(drawn)
    if sum(families.values()) < 8:
        raise DataError(
            f"{fonts}: expected fonts of 8 families at least, got {sum(families.values())}",
            fix="install some: apt-get install fonts-dejavu fonts-liberation fonts-ubuntu ...",
        )
    return Glyphs(families, pictures)


def _families(fonts: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(fonts.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.setdefault(path.parent.name, []).append(path)
    return found


def fraction(name: str) -> float:
    """Return a number in 0..1 that follows from a name alone."""
    return int.from_bytes(sha256(name.encode()).digest()[:4], "big") / 2**32


def _letters(path: Path) -> list[Grey] | None:
    """Return each letter [S, S], white on black; None for a font that cannot draw them all."""
    try:
        font = ImageFont.truetype(path, FONT_PX)
    except OSError:
        return None
    drawn = list(_drawn(font))
    # A font without Latin letters draws the same box for each.
    return drawn if len({picture.tobytes() for picture in drawn}) == len(LETTERS) else None


def _drawn(font: ImageFont.FreeTypeFont) -> Iterator[Grey]:
    for letter in LETTERS:
        image = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(image).text((SIDE / 2, SIDE / 2), letter, fill=255, font=font, anchor="mm")
        yield np.asarray(image)
