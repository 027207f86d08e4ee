"""Write what a zoo run found as docs/models.md.

Rules of this file: the whole page is made here; a run of all models replaces it.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.zoo.trial import Row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
