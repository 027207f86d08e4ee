"""How good and how cheap a domain is on a split.

Rules of this file: gates are exact (no noise), every sample counts by itself, and the model stays
in evaluation mode. It does not compare with ONNX (``export.check`` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.core.confusion import Confusion
from toolchain.pictures.decode import Pixels
from toolchain.pictures.preprocess import Preprocessing, normalise
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.data.splits import Labels, Split
from toolchain.training.loop.devices import device_of
from toolchain.training.loop.progress import Tick, unheard

BATCH = 250


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a domain answered on a split, and means over its samples.

    ``executed_share``: of the backbone's multiply-adds, 1 without gates. ``gate_rates``: by gated
    site (``block03``), the share of samples for which its gate was open.
    """

    confusion: Confusion
    loss: float
    executed_share: float
    gate_rates: dict[str, float]

    @property
    def accuracy(self) -> float:
        """The share of samples that were recognised."""
        return self.confusion.accuracy

    @property
    def balanced_accuracy(self) -> float:
        """The mean of that share over the classes."""
        return self.confusion.balanced_accuracy

    @property
    def samples(self) -> int:
        """How many there were."""
        return self.confusion.pictures


def batches(
    split: Split,
    preprocess: Preprocessing,
    *,
    batch: int = BATCH,
    device: torch.device | None = None,
    tick: Tick = unheard,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all of a split in order: float32 [B, 3, S, S] and labels int64 [B], on ``device``.

    ``tick`` hears before the first batch and after each one, once the caller is done with it.
    """
    count = len(split)
    tick(0, count)
    for start in range(0, count, batch):
        end = min(start + batch, count)
        # Only the caller holds the tensor: it lets go of it before the next one is made.
        yield as_tensors(preprocess, *split.batch(np.arange(start, end)), device)
        tick(end, count)


def as_tensors(
    preprocess: Preprocessing,
    pictures: Pixels,
    labels: Labels,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a batch of a split as a model takes it, on ``device``; None is the CPU.

    ``pictures``: uint8 ``[N, H, W, 3]``. Returns float32 ``[N, 3, H, W]`` and int64 ``[N]``.
    """
    images = torch.from_numpy(normalise(preprocess, pictures))
    return images.to(device), torch.from_numpy(labels).to(device)


@torch.no_grad()
def evaluate(
    model: AttachedModel,
    split: Split,
    preprocess: Preprocessing,
    *,
    batch: int = BATCH,
    tick: Tick = unheard,
) -> Evaluation:
    """Return what ``model`` reaches on ``split``; the model is left in evaluation mode.

    ``tick`` hears how many pictures are done.
    """
    model.train(False)
    loss = share = 0.0
    answers: list[Tensor] = []
    opened: dict[str, float] = {}
    place = device_of(model)
    for images, labels in batches(split, preprocess, batch=batch, device=place, tick=tick):
        trace = model.trace(images, maps=False)
        assert trace.logits is not None
        # Sums, since the last batch may be smaller than the others.
        loss += float(F.cross_entropy(trace.logits, labels, reduction="sum"))
        answers.append(trace.logits.argmax(1).cpu())
        # Without gates the share is one number for the whole batch.
        share += float(model.executed_share(trace).expand(len(labels)).sum())
        for name, decision in trace.opened.items():
            opened[name] = opened.get(name, 0.0) + float(decision.sum())
        del images  # before the next ones are made: one batch is what was told
    count = len(split)
    confusion = Confusion.of(split.labels, torch.cat(answers).numpy(), model.classes)
    rates = {name: total / count for name, total in opened.items()}
    return Evaluation(confusion, loss / count, share / count, rates)
