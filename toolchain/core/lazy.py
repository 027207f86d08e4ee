"""Names of a package that are imported when they are first used (PEP 562).

A room's face names what users need; importing the face must not load torch or onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``: it imports a name's home file when the name is used.

    ``package`` is the ``__name__`` of the package that offers the names; ``homes`` maps a file
    inside it, such as ``loop.training``, to the names that the file defines. For any other name the
    function raises AttributeError, as Python asks for.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def attribute(name: str) -> Any:
        """Return what the home file of ``name`` defines. Raises AttributeError."""
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return attribute
