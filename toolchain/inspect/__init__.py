"""Looking at any file that the toolchain writes.

Rules of this room: a file is recognised by what it holds, never by its name alone; what is shown
was verified first wherever the format allows it; values come out, nothing is printed (``cli``
does); no torch, and onnx only for an ONNX file. No path or address found in a file is followed.
"""

from __future__ import annotations

from toolchain.inspect.engine_facts import EngineFacts, KitFacts
from toolchain.inspect.file_facts import (
    BackboneFacts,
    BundleFacts,
    CheckpointFacts,
    GoldenFacts,
    RecipeFacts,
    TensorsFacts,
    TrainingFacts,
)
from toolchain.inspect.graph_facts import GraphFacts
from toolchain.inspect.groups import Block, TensorEntry
from toolchain.inspect.recognise import KINDS, Facts, Inspection, inspect

__all__ = [
    "KINDS",
    "BackboneFacts",
    "Block",
    "BundleFacts",
    "CheckpointFacts",
    "EngineFacts",
    "Facts",
    "GoldenFacts",
    "GraphFacts",
    "Inspection",
    "KitFacts",
    "RecipeFacts",
    "TensorEntry",
    "TensorsFacts",
    "TrainingFacts",
    "inspect",
]
