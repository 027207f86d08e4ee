"""Which loader reads which data.

Rules of this file: one branch per loader of `toolchain.recipe.spec`. The pictures of a sample pass
`preprocess.pixels` here, once; those in files and in arrays pass it when they are asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import UnknownNameError
from toolchain.pictures.decode import Pixels
from toolchain.pictures.preprocess import Preprocessing, pixels
from toolchain.pictures.survey import Tell
from toolchain.recipe.examined import Examined, examine
from toolchain.recipe.listing import Listing, look
from toolchain.recipe.spec import ARRAY_LOADERS, DATA_OPTIONS, FOLDER_LOADERS, DataSpec, Recipe
from toolchain.training.data import decathlon, idx, npz, table
from toolchain.training.data.arrays import Arrays, of_arrays
from toolchain.training.data.folder import of_listing
from toolchain.training.data.samples import DRAWN, digits, drawn_sample
from toolchain.training.data.splits import ArraySplit, DomainData


def load(recipe: Recipe, *, root: Path | None = None) -> DomainData:
    """Return the data of ``recipe``; ``root`` replaces its ``data.root``.

    Samples are in memory. Folders are listed now, and their pictures are decoded when asked for.
    Arrays are read now, and their pictures are scaled when asked for.
    Raises DataError for missing, damaged or hostile data, naming the path and the layout, and
    UnknownNameError for another loader.
    """
    loader = recipe.data.loader
    if loader in DRAWN:
        return _drawn(recipe)
    if loader == "digits":
        return _digits(recipe)
    if loader in ARRAY_LOADERS:
        return of_arrays(recipe, _arrays(recipe.data, _root(recipe.data, root)))
    if loader not in FOLDER_LOADERS:
        raise UnknownNameError("loader", loader, DATA_OPTIONS)
    return of_listing(recipe, listed(recipe, root=root))


def listed(recipe: Recipe, *, root: Path | None = None) -> Listing:
    """Return which picture files ``recipe`` names; ``root`` replaces its ``data.root``.

    Its loader is one of FOLDER_LOADERS. Raises DataError as :func:`load`.
    """
    listing = _listing(recipe.data, _root(recipe.data, root), recipe.domain)
    listing.raise_faults()
    return listing


def looked_at(
    spec: DataSpec, domain: str = "", tell: Tell = lambda _done, _all: None
) -> Examined | Arrays:
    """Return what the data of ``spec`` are, every picture read once.

    ``tell`` gets how many files are decoded, and of all. ``domain`` is the recipe's. Raises
    DataError with all faults at once. The loader is one of FOLDER_LOADERS or ARRAY_LOADERS.
    """
    root = _root(spec, None)
    if spec.loader in ARRAY_LOADERS:
        return _arrays(spec, root)
    return examine(_listing(spec, root, domain), tell)


def _root(spec: DataSpec, root: Path | None) -> Path:
    return root or Path(spec.root or "")


def _listing(spec: DataSpec, root: Path, domain: str) -> Listing:
    """Return the listing with what is wrong in its ``faults``."""
    if spec.loader == "csv":
        return table.listed(spec, root)
    return look(root) if spec.loader == "folder" else decathlon.listed(spec, root, domain)


def _arrays(spec: DataSpec, root: Path) -> Arrays:
    return idx.arrays(spec, root) if spec.loader == "idx" else npz.arrays(spec, root)


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
