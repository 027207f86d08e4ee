"""The PyTorch side: attach a domain to a frozen backbone, train it, keep it.

Rules of this room: only a domain's own tensors ever change; torch is imported when a name that
needs it is first used, so that data and checkpoints can be read without it. ``blocks`` finds the
places, ``adaptors`` is what joins there, ``attach`` joins it, ``train`` trains it, ``checkpoint``
and ``models`` keep and restore it. ONNX is another room's (``graph``).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.adapt.attach import METHODS, AttachedModel, attach, domain_state, weights_digest
    from toolchain.adapt.checkpoint import Checkpoint, read
    from toolchain.adapt.evaluate import Evaluation, evaluate
    from toolchain.adapt.models import build, load_checkpoint, restore, save
    from toolchain.adapt.progress import Progress, Quiet, Status, Terminal
    from toolchain.adapt.train import TrainReport, train
    from toolchain.adapt.weights import load_backbone

_HOMES = {
    "attach": ("METHODS", "AttachedModel", "attach", "domain_state", "weights_digest"),
    "checkpoint": ("Checkpoint", "read"),
    "evaluate": ("Evaluation", "evaluate"),
    "models": ("build", "load_checkpoint", "restore", "save"),
    "progress": ("Progress", "Quiet", "Status", "Terminal"),
    "train": ("TrainReport", "train"),
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


class _Room(ModuleType):
    """A submodule that is called like its function does not take the function's name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{self.__name__}.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value


sys.modules[__name__].__class__ = _Room
