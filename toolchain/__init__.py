"""DA3 toolchain: split a frozen vision backbone from its domains, and link them again.

One frozen backbone serves many domains. For each domain ``training`` trains a small adaptor, a gate
for each block and a head. ``export`` splits these from the backbone, links them again in ONNX,
compares the result with PyTorch and packs it as a ``bundle``. ``device`` runs bundles. ``cli`` is
the ``da3`` command. Importing this package imports none of its rooms.
"""

from __future__ import annotations

DISTRIBUTION = "da3-toolchain"

__all__ = ["DISTRIBUTION"]


def __getattr__(name: str) -> str:
    """Return ``__version__`` of the installed distribution; it is looked up on use."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version(DISTRIBUTION)
