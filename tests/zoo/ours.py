"""Hold our larger backbones against torchvision's and timm's: keys, shapes, outputs.

Rules of this file: the same drawn weights in both, loaded with ``strict=True``, so that the zoo's
checkpoints load into ours unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from da3_models import efficientnet_lite0, mobilenet_v2, resnet50
from torch import nn

from tests.zoo.prepare import SEED, enliven, pictures, tensor

TOLERANCE = 1e-5
OURS: dict[str, Callable[[int], nn.Module]] = {
    "resnet50": resnet50.build,
    "mobilenet_v2": mobilenet_v2.build,
    "efficientnet_lite0": efficientnet_lite0.build,
}
# All others are torchvision's, by the same name.
TIMMS = {"efficientnet_lite0": "tf_efficientnet_lite0"}


@dataclass(frozen=True, slots=True)
class Twin:
    """One of our backbones beside the zoo's; ``error`` is relative to the logits' range."""

    name: str
    tensors: int
    same_keys: bool
    same_shapes: bool
    error: float

    @property
    def passed(self) -> bool:
        """Whether ours is the zoo's."""
        return self.same_keys and self.same_shapes and self.error <= TOLERANCE


@torch.no_grad()
def compare(name: str) -> Twin:
    """Build both, give ours the zoo's tensors, and compare their answers at 224 pixels."""
    torch.manual_seed(SEED)
    images = tensor(pictures(224, 4))
    theirs = enliven(_theirs(name), images)
    ours = OURS[name](1000).eval()
    their_tensors, our_tensors = theirs.state_dict(), ours.state_dict()
    same_keys = list(their_tensors) == list(our_tensors)
    same_shapes = same_keys and all(
        their_tensors[key].shape == our_tensors[key].shape for key in their_tensors
    )
    if not same_shapes:
        return Twin(name, len(their_tensors), same_keys, same_shapes, float("inf"))
    ours.load_state_dict(their_tensors, strict=True)
    want, got = theirs(images), ours(images)
    error = float((want - got).abs().max() / (want.max() - want.min()))
    return Twin(name, len(their_tensors), same_keys, same_shapes, error)


def _theirs(name: str) -> nn.Module:
    if name in TIMMS:
        net: nn.Module = import_module("timm").create_model(TIMMS[name])
    else:
        net = import_module("torchvision.models").get_model(name, weights=None)
    return net
