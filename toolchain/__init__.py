"""DA3 toolchain: split a frozen vision backbone from its domains, and link them again.

One frozen backbone serves many domains; per domain a small adaptor, a gate per block and a head are
trained (``adapt``), split from the backbone and linked again in ONNX (``graph``), compared with
PyTorch (``check``) and packed (``bundle``). ``export`` does all of it, ``cli`` is the ``da3``
command. Importing this package imports none of its rooms.
"""

from __future__ import annotations

DISTRIBUTION = "da3-toolchain"

__all__ = ["DISTRIBUTION"]


def __getattr__(name: str) -> str:
    """Return ``__version__`` from the installed distribution, looked up when asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version(DISTRIBUTION)
