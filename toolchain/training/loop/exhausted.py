"""Out of memory in the middle of a training: the error that says what took it.

Rules of this file: it recognises the error in all its forms and names the layers that keep the
most. ``memory.analytic`` counts them from shapes alone, which needs almost no memory. It saves
nothing and frees nothing.
"""

from __future__ import annotations

import torch

from toolchain.core.errors import TrainingError
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.memory.analytic import analytic
from toolchain.training.memory.fit import mib

LAYERS = 4
# What PyTorch's CPU allocator and oneDNN say; CUDA's has a class of its own.
_WORDS = ("can't allocate memory", "not enough memory", "could not create a memory")


def is_exhaustion(err: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    if isinstance(err, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(err, RuntimeError) and any(word in str(err).lower() for word in _WORDS)


def exhausted(model: AttachedModel, batch: int, state: str) -> TrainingError:
    """Return the error that names the layers that keep the most; ``state`` says what was saved."""
    try:
        stored = analytic(model, batch)
    except TrainingError:
        cause = "what its layers keep is not known by rule"
    else:
        layers = ", ".join(f"{name} {mib(size)}" for name, size in stored.largest(LAYERS))
        cause = f"a step keeps {mib(stored.bytes)} for the backward pass, most of it in {layers}"
    return TrainingError(
        f"out of memory with batch {batch}: {cause}; {state}",
        fix="free memory and go on with --resume, or lower train.batch and train from the start "
        "(`da3 memory --budget` says what fits)",
    )
