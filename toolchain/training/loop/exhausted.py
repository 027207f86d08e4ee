"""Out of memory in the middle of a training: what is told, and what stays whole.

Rules of this file: it recognises the error in all its forms and names the largest holders by rule
(``memory.analytic``), which needs no memory to speak of. It saves nothing and frees nothing.
"""

from __future__ import annotations

import torch

from toolchain.core.errors import TrainingError
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.memory.analytic import analytic
from toolchain.training.memory.fit import mib

HOLDERS = 4
# What PyTorch's CPU allocator and oneDNN say; CUDA's has a class of its own.
_WORDS = ("can't allocate memory", "not enough memory", "could not create a memory")


def is_exhaustion(err: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    if isinstance(err, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(err, RuntimeError) and any(word in str(err).lower() for word in _WORDS)


def exhausted(model: AttachedModel, batch: int, left: str) -> TrainingError:
    """Return the error that names the largest holders; ``left`` says where the state lies."""
    try:
        found = analytic(model, batch)
    except TrainingError:
        holders = "what its layers keep is not known by rule"
    else:
        named = ", ".join(f"{name} {mib(size)}" for name, size in found.largest(HOLDERS))
        holders = f"a step keeps {mib(found.bytes)} for the backward pass, most of it in {named}"
    return TrainingError(
        f"out of memory with batch {batch}: {holders}; {left}",
        fix="free memory and go on with --resume, or lower train.batch and train from the start "
        "(`da3 memory --budget` says what fits)",
    )
