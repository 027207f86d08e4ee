"""Recipes: one flat YAML file per domain, checked whole.

Rules of this room: no torch, no onnx; a recipe is data, never code; all faults are reported at
once, with key path and fix. `spec` says what a recipe holds, `yamlio` reads and writes the text,
`library` finds files. `listing` says what a folder of pictures holds, `examined` what the pictures
are, and `scaffold` writes a recipe for them.
"""

from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe.examined import Examined, examine
from toolchain.recipe.library import Entry, available, changed, dump, find, load, loads
from toolchain.recipe.listing import Listing, look, scan
from toolchain.recipe.scaffold import build_command, new, place
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
    "Examined",
    "Listing",
    "Preprocessing",
    "Recipe",
    "TrainSpec",
    "available",
    "build_command",
    "changed",
    "dump",
    "examine",
    "find",
    "load",
    "loads",
    "look",
    "new",
    "place",
    "scan",
]
