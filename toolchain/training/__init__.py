"""The PyTorch side: attach a domain to a frozen backbone, train it, save it, restore it.

Rules of this room: only a domain's own tensors ever change. torch is imported when a name that
needs it is first used, so that data and checkpoints can be read without it. The sub-rooms, lower
first: ``data`` and ``lean``, then ``adapt``, ``memory``, ``loop``; none imports one above it. Users
import the names below; the toolchain imports each from its own file. It knows no ONNX (``export``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.core.lazy import lazily

if TYPE_CHECKING:
    from toolchain.training.adapt.attached import (
        AttachedModel,
        attach,
        domain_state,
        weights_digest,
    )
    from toolchain.training.adapt.backbones import Backbone, Carrier
    from toolchain.training.adapt.checkpoint import Checkpoint, read
    from toolchain.training.adapt.restore import load_checkpoint, restore
    from toolchain.training.adapt.weights import load_backbone
    from toolchain.training.loop.evaluation import Evaluation, evaluate
    from toolchain.training.loop.models import build, save
    from toolchain.training.loop.progress import Progress, Quiet, Status
    from toolchain.training.loop.training import TrainReport, train

__all__ = [
    "AttachedModel",
    "Backbone",
    "Carrier",
    "Checkpoint",
    "Evaluation",
    "Progress",
    "Quiet",
    "Status",
    "TrainReport",
    "attach",
    "build",
    "domain_state",
    "evaluate",
    "load_backbone",
    "load_checkpoint",
    "read",
    "restore",
    "save",
    "train",
    "weights_digest",
]

__getattr__ = lazily(
    __name__,
    {
        "adapt.attached": ("AttachedModel", "attach", "domain_state", "weights_digest"),
        "adapt.backbones": ("Backbone", "Carrier"),
        "adapt.checkpoint": ("Checkpoint", "read"),
        "adapt.restore": ("load_checkpoint", "restore"),
        "adapt.weights": ("load_backbone",),
        "loop.evaluation": ("Evaluation", "evaluate"),
        "loop.models": ("build", "save"),
        "loop.progress": ("Progress", "Quiet", "Status"),
        "loop.training": ("TrainReport", "train"),
    },
)
