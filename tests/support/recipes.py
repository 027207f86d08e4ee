"""The recipes that come with the toolchain."""

from __future__ import annotations

from toolchain import recipe
from toolchain.recipe import Recipe
from toolchain.recipe.library import packaged

SHIPPED = sorted(path.stem for path in packaged().glob("*.yaml"))


def cars() -> Recipe:
    return recipe.load(packaged() / "cars.yaml")
