"""Run linked models: one backbone, many domains, swapped without a rebuild.

Rules of this room: numpy, Pillow and onnxruntime; never torch and never onnx, so that a device
runs bundles without either. ``runner`` is what an application calls; ``engine`` holds a session,
``release`` what a bundle gives it, ``selftest`` compares with golden data, ``installed`` keeps what
was verified. It verifies nothing that :mod:`toolchain.bundle` verifies, and links nothing. Names
are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.runtime.answers import Domain, Outcome, Prediction
    from toolchain.runtime.runner import Runner, RunnerFacts
    from toolchain.runtime.stream import Frame

_HOMES = {
    "answers": ("Domain", "Outcome", "Prediction"),
    "runner": ("Runner", "RunnerFacts"),
    "stream": ("Frame",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["Domain", "Frame", "Outcome", "Prediction", "Runner", "RunnerFacts"]


def __getattr__(name: str) -> Any:
    """Import a public name's home when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
