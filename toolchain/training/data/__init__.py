"""Data: from a recipe to pictures and labels.

Rules of this room: numpy, Pillow and scikit-learn's digits, no torch. The same recipe gives the
same pictures in the same order. Every picture is uint8 and has passed `preprocess.pixels`, so that
training and devices share one path. No shuffling and no augmentation here: ``loop`` does both.
"""

from toolchain.training.data.loaders import listed, load
from toolchain.training.data.splits import ArraySplit, DomainData, FileSplit, Split

__all__ = ["ArraySplit", "DomainData", "FileSplit", "Split", "listed", "load"]
