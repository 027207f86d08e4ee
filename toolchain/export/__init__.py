"""Export: from a trained domain to a checked bundle, and to kits for boards.

Rules of this room: ``graph`` turns PyTorch into ONNX (capture, split, link), ``check`` compares
with PyTorch, ``emit`` rewrites graphs for a target, ``pipeline`` calls them in order and writes the
result. Importing this package loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.bundle.linkage import Linkage
from toolchain.core.lazy import lazily

if TYPE_CHECKING:
    from toolchain.export.graph.link import link
    from toolchain.export.graph.split import split
    from toolchain.export.pipeline import ExportReport, export
    from toolchain.export.rehearsal import rehearse

__all__ = ["ExportReport", "Linkage", "export", "link", "rehearse", "split"]

__getattr__ = lazily(
    __name__,
    {
        "graph.link": ("link",),
        "graph.split": ("split",),
        "pipeline": ("ExportReport", "export"),
        "rehearsal": ("rehearse",),
    },
)
