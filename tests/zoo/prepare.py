"""Make an untrained model a fair subject: no norm is the identity, no block is a no-op, gates mix.

Rules of this file: deterministic; it changes weights and statistics, never structure. Zoos start
some scales at zero (the last norm of a residual branch, layer scale), which would hide whatever a
closed gate or a wrong branch does: such constants are drawn anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.pictures.decode import Pixels
from toolchain.pictures.preprocess import Preprocessing, normalise
from toolchain.training.adapt.adaptors import Gate
from toolchain.training.adapt.attached import AttachedModel

CLASSES = 7
COUNT = 48
SEED = 7


def preprocessing(size: int) -> Preprocessing:
    """Return what turns a drawn picture into the model's input."""
    half = (0.5, 0.5, 0.5)
    return Preprocessing(size, size, "none", "bilinear", "RGB", half, (0.25, 0.25, 0.25))


def pictures(size: int, count: int = COUNT) -> Pixels:
    """Draw uint8 ``[count, size, size, 3]``: colour patches of varied contrast, and noise."""
    rng = np.random.default_rng(SEED)
    cells = size // 8
    coarse = rng.normal(0, 50, (count, 8, 8, 3)) * rng.uniform(0.3, 1.6, (count, 1, 1, 1))
    patches = np.kron(coarse, np.ones((1, cells, cells, 1)))
    noise = rng.normal(0, 12, (count, size, size, 3))
    tint = rng.normal(128, 30, (count, 1, 1, 3))
    return np.clip(patches + noise + tint, 0, 255).astype(np.uint8)


def tensor(pixels: Pixels) -> Tensor:
    """Return the model's input, float32 ``[N, 3, S, S]``."""
    return torch.from_numpy(normalise(preprocessing(pixels.shape[1]), pixels))


@torch.no_grad()
def enliven(net: nn.Module, images: Tensor) -> nn.Module:
    """Draw constant vectors anew and take BatchNorm statistics from ``images``."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in net.named_parameters():
        if parameter.numel() == max(parameter.shape, default=1) and bool(
            (parameter == parameter.flatten()[0]).all()
        ):
            low, high = (-0.1, 0.1) if name.endswith("bias") else (0.5, 1.5)
            parameter.uniform_(low, high, generator=generator)
    net.eval()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of this one batch
        norm.train()
    net(images)
    return net.eval()


@torch.no_grad()
def scramble(model: AttachedModel, images: Tensor) -> None:
    """Give every adaptor and gate random weights; half of ``images`` find each gate open.

    A gate is set while the pictures run, so each one sees what the gates before it left.
    """
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.domain.named_parameters():
        scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        if name.endswith("gate.weight"):
            parameter.sub_(parameter.mean())

    def centre(gate: nn.Module, _: object, logits: Tensor) -> Tensor:
        assert isinstance(gate, Gate)
        spread = logits.std().clamp_min(1e-6)
        middle = logits.quantile(0.5)
        gate.weight.div_(spread)
        gate.bias.sub_(middle).div_(spread)
        return (logits - middle) / spread

    handles = [
        m.register_forward_hook(centre) for m in model.domain.modules() if isinstance(m, Gate)
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
