"""What makes a test run fast and changes no answer: PyTorch's translations, and Python's garbage.

Rules of this file: it does nothing where PyTorch's exporter was not imported, and imports nothing.
"""

from __future__ import annotations

import gc
import sys
from functools import cache
from typing import Any

_REGISTRATION = "torch.onnx._internal.exporter._registration"


def keep_translations() -> None:
    """Read the translations of PyTorch's operators once a process.

    Each export parses the source of all 497 anew, which takes as long as the capture of a toy. A
    program of a user exports once or twice, a test run 300 times.
    """
    registry: Any = getattr(sys.modules.get(_REGISTRATION), "ONNXRegistry", None)
    if registry is None or hasattr(registry, "read_once"):
        return
    registry.read_once = cache(registry.from_torchlib)
    registry.from_torchlib = classmethod(lambda cls, **options: cls.read_once(**options))


def collect_seldom() -> None:
    """Look for cyclic garbage seldom: the modules of PyTorch are a million objects to look at."""
    gc.set_threshold(50_000, 20, 20)
