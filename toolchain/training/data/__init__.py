"""Data: from a recipe to pictures and labels.

Rules of this room: numpy, Pillow and scikit-learn's digits, no torch. The same recipe gives the
same pictures in the same order. Every picture is uint8 and has passed `preprocess.pixels`, so that
training and devices share one path. No shuffling and no augmentation here: ``loop`` does both.
`forms` says which recipe fits data that have none yet.
"""

from toolchain.training.data.arrays import Arrays
from toolchain.training.data.forms import first_look
from toolchain.training.data.loaders import listed, load, looked_at
from toolchain.training.data.splits import ArraySplit, DomainData, FileSplit, Split

__all__ = [
    "ArraySplit",
    "Arrays",
    "DomainData",
    "FileSplit",
    "Split",
    "first_look",
    "listed",
    "load",
    "looked_at",
]
