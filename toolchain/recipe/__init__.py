"""Recipes: one flat YAML file per domain, checked whole.

Rules of this room: no torch, no onnx; a recipe is data, never code; all faults are reported at
once, with key path and fix. `spec` says what a recipe holds, `yamlio` reads and writes the text,
`library` finds files, `scaffold` writes a recipe for a folder of pictures.
"""

from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe.library import Entry, available, dump, find, load, loads
from toolchain.recipe.scaffold import new
from toolchain.recipe.spec import (
    METHOD_OPTIONS,
    METHODS,
    AdaptorOptions,
    DataSpec,
    Recipe,
    TrainSpec,
)

__all__ = [
    "METHODS",
    "METHOD_OPTIONS",
    "AdaptorOptions",
    "DataSpec",
    "Entry",
    "Preprocessing",
    "Recipe",
    "TrainSpec",
    "available",
    "dump",
    "find",
    "load",
    "loads",
    "new",
]
