"""The head-only baseline: what the frozen features alone are good for, and where training starts.

Rules of this file: nothing before the head changes, so every picture runs through the backbone
once, without augmentation, and the head is fitted to the stored features. Training starts from this
head. With a random one the first epochs would bend the adaptors to noise (linear probing before
fine-tuning: Kumar et al., ICLR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.pictures.preprocess import Preprocessing
from toolchain.training.adapt.attached import HEAD, AttachedModel
from toolchain.training.data.splits import DomainData, Split
from toolchain.training.loop.evaluation import batches

STEPS = 200
DECAY = 1e-3


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted head (``weight`` [classes, features], ``bias`` [classes]) and its test accuracy."""

    weight: Tensor
    bias: Tensor
    accuracy: float


def probe(model: AttachedModel, data: DomainData, preprocess: Preprocessing) -> Probe:
    """Fit a linear head to the plain backbone's features of ``data.train``.

    Multinomial logistic regression with a small decay, which has one optimum and so needs no seed.
    ``model`` lends its backbone; its domain is neither used nor changed.
    """
    plain = AttachedModel(model.backbone, model.anatomy, HEAD, model.classes, model.options)
    train, labels = _features(plain, data.train, preprocess)
    # A feature that never changes has no spread to divide by.
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-3)
    head = _fit((train - mean) / spread, labels, model.classes)
    with torch.no_grad():
        # The head was fitted to scaled features. Fold the scaling in: it then takes plain ones.
        weight = head.weight / spread
        bias = head.bias - weight @ mean
        features, labels = _features(plain, data.test, preprocess)
        right = (features @ weight.T + bias).argmax(1) == labels
    return Probe(weight, bias, int(right.sum()) / len(labels))


@torch.no_grad()
def _features(
    model: AttachedModel, split: Split, preprocess: Preprocessing
) -> tuple[Tensor, Tensor]:
    """Return the backbone's features of a split, float32 [N, features], and its labels [N]."""
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for images, batch_labels in batches(split, preprocess):
        batch_features = model.trace(images, maps=False).features
        assert batch_features is not None
        features.append(batch_features)
        labels.append(batch_labels)
    return torch.cat(features), torch.cat(labels)


def _fit(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # its random start is overwritten below
        head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    # Convex and small: all features at once, and the line search needs no learning rate.
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = F.cross_entropy(head(features), labels) + DECAY * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return head
