"""Run linked models: one backbone, many domains, swapped without a rebuild.

Rules of this room: numpy, Pillow and onnxruntime; never torch and never onnx, so that a device
runs bundles without either. ``runner`` is what an application calls; ``engine`` holds a session,
``release`` what a bundle gives it, ``selftest`` compares with golden data, ``installed`` keeps what
was verified. It verifies nothing that :mod:`toolchain.bundle` verifies, and links nothing. Names
are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.core.lazy import lazily

if TYPE_CHECKING:
    from toolchain.device.runtime.answers import Domain, Outcome, Prediction
    from toolchain.device.runtime.runner import Runner, RunnerFacts
    from toolchain.device.runtime.stream import Frame

__all__ = ["Domain", "Frame", "Outcome", "Prediction", "Runner", "RunnerFacts"]

__getattr__ = lazily(
    __name__,
    {
        "answers": ("Domain", "Outcome", "Prediction"),
        "runner": ("Runner", "RunnerFacts"),
        "stream": ("Frame",),
    },
)
