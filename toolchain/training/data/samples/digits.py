"""The real handwritten digits that scikit-learn carries.

Rules of this file: 1,797 grey pictures of 8 x 8, from the UCI data set "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998). The split is fixed: 1,397 to train, and 400 to test
with 40 of each digit. The preprocessing enlarges them to the recipe's size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError, MissingPackageError
from toolchain.pictures.decode import Pixels

CLASSES = tuple("0123456789")
COUNTS = {"train": 1397, "test": 400}
_SPLIT_SEED = 1998


def read(part: str, count: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Return the first ``count`` digits of ``part``: uint8 [N, 8, 8, 3] and int64 [N].

    Raises DataError for more than there are, MissingPackageError without scikit-learn.
    """
    if count > COUNTS[part]:
        raise DataError(
            f"expected at most {COUNTS[part]} digits to {part}, got {count}",
            fix=f"set data.{part}: {COUNTS[part]}",
        )
    pictures, labels = _all()
    rows = _rows(labels)[part][:count]
    # The data set counts grey levels from 0 to 16.
    grey = (pictures[rows] * (255.0 / 16.0)).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), labels[rows]


def _all() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise MissingPackageError("scikit-learn", "the sample 'digits'", "export") from err
    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


def _rows(labels: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Return the shuffled rows of both parts; the first 40 of each digit are for the test."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    each = COUNTS["test"] // len(CLASSES)
    test = np.concatenate([order[labels[order] == digit][:each] for digit in range(10)])
    tested = np.isin(order, test)
    return {"train": order[~tested], "test": order[tested]}
