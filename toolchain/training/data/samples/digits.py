"""The real handwritten digits that scikit-learn carries.

Rules of this file: 1,797 grey pictures of 8 x 8, from the UCI data set "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998). The split is fixed, and it is by writer: the digits
of a writer stand together in the set, and those of the last three test. Mixed, the nearest
neighbour in raw pixels knows the writer and is right in 99 of 100; split so, in 96. The
preprocessing enlarges the pictures to the recipe's size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError, MissingPackageError
from toolchain.pictures.decode import Pixels

CLASSES = tuple("0123456789")
COUNTS = {"train": 1415, "test": 382}
"""Row 1,415 is the first of a writer: each begins with the digits from 0 to 9 in turn."""
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
    rows = _rows()[part][:count]
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


def _rows() -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows of both parts, shuffled, so that a smaller count takes every digit."""
    rng = np.random.default_rng(_SPLIT_SEED)
    train, test = COUNTS["train"], COUNTS["test"]
    return {"train": rng.permutation(train), "test": train + rng.permutation(test)}
