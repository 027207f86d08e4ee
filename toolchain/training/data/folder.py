"""Pictures in files: from a listing of them to a domain's splits.

Rules of this file: `toolchain.recipe.listing` and `decathlon` say which pictures there are. Here
they become splits, decoded when asked for. Classes are ordered by name.
"""

from __future__ import annotations

import numpy as np

from toolchain.core.errors import DataError
from toolchain.core.files import MIB
from toolchain.recipe.copies import find_copies
from toolchain.recipe.listing import Listing, Pairs
from toolchain.recipe.spec import Recipe
from toolchain.training.data.splits import (
    DomainData,
    FileSplit,
    Labels,
    Pictures,
    limits,
    require_pictures,
    spread,
)


def of_listing(recipe: Recipe, listing: Listing) -> DomainData:
    """Return the pictures of ``listing`` for ``recipe``.

    ``data.train`` and ``data.test`` limit how many are used, spread over the classes by
    ``data.seed``. Raises DataError where a part is empty or there are fewer than two classes.
    """
    root = listing.root
    if listing.train and not listing.test:
        raise DataError(
            f"{root}/test: expected pictures, got none: every class has too few to be split",
            fix="give at least 2 pictures per class, or a test folder with pictures",
        )
    require_pictures(str(root), len(listing.train), len(listing.test), len(listing.classes))
    train, train_labels = _chosen(recipe, listing.train, recipe.data.train)
    test, test_labels = _chosen(recipe, listing.test, recipe.data.test)
    held, held_labels = _chosen(recipe, listing.validation, None)
    # One store: what it keeps decoded is bounded for all parts together.
    store = Pictures((*train, *test, *held), root, recipe.preprocess)
    validation = FileSplit(
        f"{recipe.domain}/validation", store, len(train) + len(test), held_labels
    )

    def tell() -> tuple[str, ...]:
        return (
            *listing.lines(),
            *find_copies(listing).lines(),
            *limits(recipe, len(train), len(test)),
            f"at most {store.held_bytes / MIB:.1f} MiB of them and their names are kept in memory",
        )

    return DomainData(
        FileSplit(f"{recipe.domain}/train", store, 0, train_labels),
        FileSplit(f"{recipe.domain}/test", store, len(train), test_labels),
        listing.classes,
        tell=tell,
        validation=validation if held else None,
    )


def _chosen(recipe: Recipe, pairs: Pairs, limit: int | None) -> tuple[list[str], Labels]:
    """Return the paths and labels of at most ``limit`` of ``pairs``."""
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    rows = spread(labels, limit, recipe.data.seed)
    return [str(pairs[row][0]) for row in rows.tolist()], labels[rows]
