"""Data: from a recipe to pictures and labels.

Rules of this room: numpy, Pillow and scikit-learn's digits, no torch; the same recipe gives the
same pictures in the same order; what is handed out is uint8 after `preprocess.pixels`, so that
training and devices share one path. No shuffling and no augmentation here: that is training's.
"""

from toolchain.training.data.loaders import load
from toolchain.training.data.splits import ArraySplit, DomainData, FileSplit, Split

__all__ = ["ArraySplit", "DomainData", "FileSplit", "Split", "load"]
