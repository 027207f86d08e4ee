"""The loss: right answers at a share of the backbone's cost.

Rules of this file: pure functions of tensors. It decides no gates (``adaptors``) and knows no
recipe.

::

    loss = cross-entropy + weight * (mean executed share - budget)^2

Each sample's cross-entropy may count by its class (``classes``).

The squared distance is a reconstruction. DA3 (Yang, Rakin, Fan, CVPR-W 2022) publishes that gates
cut the inference cost, not the term that trains them to. The form is that of convolutional networks
with adaptive inference graphs (Veit and Belongie, ECCV 2018), with FLOPs in place of layer counts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def budget_loss(share: Tensor, *, budget: float) -> Tensor:
    """Return the squared distance of a batch's mean executed share from ``budget``, a scalar.

    ``share``: float [N] in 0..1, the part of the backbone's multiply-adds that each sample's open
    gates execute. The mean comes first, so an easy sample may cost little and a hard one much.
    """
    return (share.mean() - budget).square()


def training_loss(
    logits: Tensor,
    labels: Tensor,
    share: Tensor,
    *,
    budget: float,
    weight: float,
    classes: Tensor | None = None,
) -> Tensor:
    """Return the scalar that training lowers.

    ``logits``: float [N, classes]; ``labels``: int64 [N]; ``share``: float [N], or [1] where the
    model has no gate; the term is then a constant without a gradient. ``classes``: float [classes],
    the weight of each class.
    """
    crossed = class_loss(logits, labels, classes)
    return crossed + weight * budget_loss(share, budget=budget)


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy, a scalar, in which a sample counts by its class's weight.

    ``weights``: float [classes], None for ones. The mean is over samples, not over their weights
    (torch's own way): so a batch of few rare ones is not blown up, and the gradient of a batch is
    that of the whole set on average.
    """
    if weights is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, weight=weights, reduction="none").mean()
