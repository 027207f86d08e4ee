"""Which loader reads which data.

Rules of this file: one branch per loader of `toolchain.recipe.spec`. Every picture in memory passes
`preprocess.pixels` here, once; pictures in files pass it when they are decoded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import UnknownNameError
from toolchain.pictures.decode import Pixels
from toolchain.pictures.preprocess import Preprocessing, pixels
from toolchain.recipe.listing import Listing, scan
from toolchain.recipe.spec import FOLDER_LOADERS, Recipe
from toolchain.training.data import decathlon
from toolchain.training.data.folder import of_listing
from toolchain.training.data.samples import DRAWN, digits, drawn_sample
from toolchain.training.data.splits import ArraySplit, DomainData


def load(recipe: Recipe, *, root: Path | None = None) -> DomainData:
    """Return the data of ``recipe``; ``root`` replaces its ``data.root``.

    Samples are in memory. Folders are listed now, and their pictures are decoded when asked for.
    Raises DataError for missing, damaged or hostile data, naming the path and the layout, and
    UnknownNameError for another loader.
    """
    loader = recipe.data.loader
    if loader in DRAWN:
        return _drawn(recipe)
    if loader == "digits":
        return _digits(recipe)
    if loader not in FOLDER_LOADERS:
        raise UnknownNameError("loader", loader, (*DRAWN, "digits", *FOLDER_LOADERS))
    return of_listing(recipe, listed(recipe, root=root))


def listed(recipe: Recipe, *, root: Path | None = None) -> Listing:
    """Return which picture files ``recipe`` names; ``root`` replaces its ``data.root``.

    Its loader is one of FOLDER_LOADERS. Raises DataError as :func:`load`.
    """
    path = root or Path(recipe.data.root or "")
    return scan(path) if recipe.data.loader == "folder" else decathlon.listed(recipe, path)


def _drawn(recipe: Recipe) -> DomainData:
    sample = drawn_sample(recipe.data.loader)
    # The part's number belongs to the seed, so train and test share no picture.
    parts = [
        _in_memory(recipe, part, *sample.draw(count or 0, [recipe.data.seed, number]))
        for number, (part, count) in enumerate(_counts(recipe))
    ]
    return DomainData(parts[0], parts[1], sample.classes)


def _digits(recipe: Recipe) -> DomainData:
    parts = [
        _in_memory(recipe, part, *digits.read(part, count or 0)) for part, count in _counts(recipe)
    ]
    return DomainData(parts[0], parts[1], digits.CLASSES)


def _counts(recipe: Recipe) -> list[tuple[str, int | None]]:
    return [("train", recipe.data.train), ("test", recipe.data.test)]


def _in_memory(
    recipe: Recipe, part: str, pictures: Pixels, labels: npt.NDArray[np.int64]
) -> ArraySplit:
    return ArraySplit(f"{recipe.domain}/{part}", _squares(recipe.preprocess, pictures), labels)


def _squares(p: Preprocessing, pictures: Pixels) -> Pixels:
    return np.stack([pixels(p, picture) for picture in pictures])
