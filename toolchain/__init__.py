"""DA3 toolchain: split a frozen vision backbone from its domains, and link them again.

One frozen backbone serves many domains. For each domain ``training`` trains a small adaptor, a gate
for each block and a head. ``export`` splits these from the backbone, links them again in ONNX,
compares the result with PyTorch and packs it as a ``bundle``. ``device`` runs bundles. ``cli`` is
the ``da3`` command. Importing this package imports none of its rooms.

It does one thing at once: it turns onnxruntime's telemetry off, which is on by default on Linux
from version 1.29. onnxruntime reads the setting when it is imported, so no room would be early
enough. A setting of the user stays.
"""

from __future__ import annotations

import os

DISTRIBUTION = "da3-toolchain"
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["DISTRIBUTION"]


def __getattr__(name: str) -> str:
    """Return ``__version__`` of the installed distribution; it is looked up on use."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version(DISTRIBUTION)
