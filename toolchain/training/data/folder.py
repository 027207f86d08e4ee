"""Image folders: one folder per class.

Rules of this file: `toolchain.recipe.listing` says which pictures there are. Here they become
splits, decoded when asked for. Classes are ordered by name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolchain.core.errors import DataError
from toolchain.recipe.listing import scan
from toolchain.recipe.spec import Recipe
from toolchain.training.data.splits import DomainData, FileSplit, require_pictures, spread


def read(recipe: Recipe, root: Path) -> DomainData:
    """Return the pictures below ``root`` for ``recipe``.

    ``data.train`` and ``data.test`` limit how many are used, spread over the classes by
    ``data.seed``. Raises DataError for a missing, empty or hostile folder.
    """
    pictures = scan(root)
    if pictures.train and not pictures.test:
        raise DataError(
            f"{root}/test: expected pictures, got none: every class has too few to be split",
            fix="give at least 2 pictures per class, or a test folder with pictures",
        )
    require_pictures(str(root), len(pictures.train), len(pictures.test), len(pictures.classes))
    train = of_pairs(recipe, "train", pictures.train, recipe.data.train)
    test = of_pairs(recipe, "test", pictures.test, recipe.data.test)
    return DomainData(train, test, pictures.classes)


def of_pairs(
    recipe: Recipe, part: str, pairs: tuple[tuple[Path, int], ...], limit: int | None
) -> FileSplit:
    """Return the split of these pairs of path and label, at most ``limit`` of them."""
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    rows = spread(labels, limit, recipe.data.seed)
    paths = tuple(pairs[row][0] for row in rows.tolist())
    return FileSplit(f"{recipe.domain}/{part}", paths, labels[rows], recipe.preprocess)
