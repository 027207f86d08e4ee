"""The device side: boards, engines, installed domains, running and serving them.

Rules of this room: no torch and no onnx, anywhere, so that a board needs neither. ``boards`` says
what a board can do, ``engine`` builds for TensorRT, ``store`` keeps what is installed, ``runtime``
runs it and ``serve`` answers over HTTP. Importing this package loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.core.lazy import lazily

if TYPE_CHECKING:
    from toolchain.device.runtime.answers import Domain, Outcome, Prediction
    from toolchain.device.runtime.runner import Runner, RunnerFacts
    from toolchain.device.runtime.stream import Frame
    from toolchain.device.store.store import Store

__all__ = ["Domain", "Frame", "Outcome", "Prediction", "Runner", "RunnerFacts", "Store"]

__getattr__ = lazily(
    __name__,
    {
        "runtime.answers": ("Domain", "Outcome", "Prediction"),
        "runtime.runner": ("Runner", "RunnerFacts"),
        "runtime.stream": ("Frame",),
        "store.store": ("Store",),
    },
)
