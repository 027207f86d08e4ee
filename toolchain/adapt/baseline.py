"""The head-only baseline: what the frozen features alone are good for.

Rules of this file: nothing before the head changes, so every picture runs through the backbone once
and the head is fitted to kept features. That leaves augmentation out; ``method: head`` in a recipe
trains the same model with it, at the price of a whole training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.adapt.attach import HEAD, AttachedModel
from toolchain.adapt.data.splits import DomainData, Split
from toolchain.adapt.evaluate import batches
from toolchain.preprocess import Preprocessing

STEPS = 200
DECAY = 1e-4


def head_accuracy(model: AttachedModel, data: DomainData, preprocess: Preprocessing) -> float:
    """Return the test accuracy of a linear head fitted to the plain backbone's features.

    Multinomial logistic regression with a small decay, which has one optimum and so needs no seed.
    ``model`` lends its backbone; its domain is neither used nor changed.
    """
    plain = AttachedModel(model.backbone, model.anatomy, HEAD, model.classes, model.options)
    train, labels = _features(plain, data.train, preprocess)
    test, wanted = _features(plain, data.test, preprocess)
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    head = _fit((train - mean) / spread, labels, model.classes)
    with torch.no_grad():
        answers: Tensor = head((test - mean) / spread).argmax(1)
    return float((answers == wanted).float().mean())


@torch.no_grad()
def _features(
    model: AttachedModel, split: Split, preprocess: Preprocessing
) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    labels: list[Tensor] = []
    for images, wanted in batches(split, preprocess):
        found = model.trace(images).features
        assert found is not None
        kept.append(found)
        labels.append(wanted)
    return torch.cat(kept), torch.cat(labels)


def _fit(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(head(features), labels) + DECAY * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return head
