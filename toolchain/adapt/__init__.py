"""The PyTorch side: attach a domain to a frozen backbone, train it, keep it.

Rules of this room: only a domain's own tensors ever change; torch is imported when a name that
needs it is first used, so that data and checkpoints can be read without it. ``blocks`` finds the
places, ``adaptors`` is what joins there, ``attached`` joins it, ``training`` trains it,
``checkpoint`` and ``models`` keep and restore it. ONNX is another room's (``graph``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolchain.recipe import METHODS

if TYPE_CHECKING:
    from toolchain.adapt.attached import (
        AttachedModel,
        attach,
        domain_state,
        weights_digest,
    )
    from toolchain.adapt.checkpoint import Checkpoint, read
    from toolchain.adapt.evaluation import Evaluation, evaluate
    from toolchain.adapt.models import build, load_checkpoint, restore, save
    from toolchain.adapt.progress import Progress, Quiet, Status, Terminal
    from toolchain.adapt.training import TrainReport, train
    from toolchain.adapt.weights import load_backbone

_HOMES = {
    "attached": ("AttachedModel", "attach", "domain_state", "weights_digest"),
    "checkpoint": ("Checkpoint", "read"),
    "evaluation": ("Evaluation", "evaluate"),
    "models": ("build", "load_checkpoint", "restore", "save"),
    "progress": ("Progress", "Quiet", "Status", "Terminal"),
    "training": ("TrainReport", "train"),
    "weights": ("load_backbone",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "AttachedModel",
    "Checkpoint",
    "Evaluation",
    "Progress",
    "Quiet",
    "Status",
    "Terminal",
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


def __getattr__(name: str) -> Any:
    """Import a public name's home when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
