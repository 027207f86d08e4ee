"""How much a picture of each class counts in the loss.

Rules of this file: numpy only; a pure function of the training labels and the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolchain.core.arrays import Floats
from toolchain.core.errors import TrainingError
from toolchain.recipe import TrainSpec
from toolchain.training.data.splits import Labels


def class_weights(labels: Labels, classes: Sequence[str], spec: TrainSpec) -> Floats | None:
    """Return float32 [classes], None where every picture counts the same.

    ``balanced`` weighs a class by the inverse of its number of pictures (King and Zeng, 2001, and
    scikit-learn's word for it). Whatever the weights, the mean over the pictures is 1, so that they
    do not change the learning rate. Raises TrainingError for another number of weights than of
    classes.
    """
    if spec.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
    if isinstance(spec.class_weights, str):
        # A class without a picture has no loss to weigh.
        weights = np.divide(1, counts, out=np.zeros_like(counts), where=counts > 0)
    elif len(spec.class_weights) == len(classes):
        weights = np.array(spec.class_weights)
    else:
        raise TrainingError(
            f"expected one number of train.class_weights for each of {len(classes)} classes, got "
            f"{len(spec.class_weights)}",
            fix=f"write one for each of {', '.join(classes[:8])}"
            + ", ..." * (len(classes) > 8)
            + ", or balanced",
        )
    scaled: Floats = (weights * (counts.sum() / (weights * counts).sum())).astype(np.float32)
    return scaled
