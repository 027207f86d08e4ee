"""Toy backbones of every family that the toolchain meets, small enough for thousands of runs.

Rules of this file: real modules, no mocks; weights and BatchNorm statistics are drawn from a seed,
so that no norm is the identity; between them the toys have every layout, odd map sizes under a
stride, 1x1 maps, a single block, depthwise and grouped convolutions, and no classifier at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.training.adapt.attached import AttachedModel, attach

CLASSES = 5


class Residual(nn.Module):
    """Plain residual block: conv, norm, ReLU, conv, norm, add, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class PreActivation(nn.Module):
    """Norm and ReLU come first; nothing follows the addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(y)))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """Expand, depthwise convolution, project; a shortcut only where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        hidden = 3 * inputs
        self.same = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.same else y


class ChannelsLast(nn.Module):
    """ConvNeXt's block on maps ``[N, H, W, C]``: depthwise 7x7, LayerNorm, two Linears."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.grow = nn.Linear(width, 2 * width)
        self.shrink = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.shrink(F.gelu(self.grow(self.norm(y))))  # type: ignore[no-any-return]


class TokenBlock(nn.Module):
    """Attention over tokens ``[N, L, C]``, then two Linears."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.grow = nn.Linear(width, 2 * width)
        self.shrink = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        x = x + self.proj(weights @ v)
        return x + self.shrink(F.gelu(self.grow(self.norm2(x))))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Stem, blocks, average over the map, classifier (or none: the features are the answer)."""

    def __init__(
        self, stem: nn.Module, blocks: list[nn.Module], width: int, *, head: bool = True
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, 7) if head else None

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x)).mean((2, 3))
        if self.fc is not None:
            features = self.fc(features)
        return features


class LastNet(Net):
    """The same with channels last between the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2))
        if self.fc is not None:
            features = self.fc(features)
        return features


class TokenNet(nn.Module):
    """Patches become tokens, blocks stand in a ModuleList, the mean token is classified."""

    def __init__(self, width: int, tokens: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))  # type: ignore[no-any-return]


def stem(width: int, stride: int = 1, kernel: int = 3) -> nn.Module:
    """A convolution, its norm and ReLU."""
    conv = nn.Conv2d(3, width, kernel, stride, kernel // 2 if kernel % 2 else 0, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


@dataclass(frozen=True, slots=True)
class Toy:
    """How to build a toy and what it takes; ``gateable`` is by block, as it is known by hand."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    gateable: tuple[bool, ...]
    layout: str = "NCHW"


def _plain() -> nn.Module:
    return Net(stem(8), [Residual(8, 8), Residual(8, 16, 2), Residual(16, 16)], 16)


def _odd() -> nn.Module:
    return Net(stem(8), [Residual(8, 8, 2), Residual(8, 8), Residual(8, 16, 2)], 16)


def _inverted() -> nn.Module:
    return Net(stem(8), [Inverted(8, 8), Inverted(8, 12, 2), Inverted(12, 12)], 12)


def _preactivation() -> nn.Module:
    return Net(stem(8), [PreActivation(8), PreActivation(8)], 8)


def _channels_last() -> nn.Module:
    return LastNet(stem(8, 2), [ChannelsLast(8), ChannelsLast(8)], 8)


TOYS = {
    "plain": Toy(_plain, (3, 12, 12), (True, False, True)),
    "preactivation": Toy(_preactivation, (3, 9, 7), (True, True)),
    "inverted": Toy(_inverted, (3, 14, 10), (True, False, True)),
    "odd": Toy(_odd, (3, 15, 11), (False, True, False)),
    "one_pixel": Toy(
        lambda: Net(stem(8, 4, 4), [Residual(8, 8), Residual(8, 8)], 8), (3, 4, 4), (True, True)
    ),
    "single": Toy(lambda: Net(stem(8), [Residual(8, 8)], 8), (3, 8, 8), (True,)),
    "grouped": Toy(
        lambda: Net(stem(8), [Residual(8, 8, groups=4), Residual(8, 8, groups=2)], 8),
        (3, 8, 8),
        (True, True),
    ),
    "headless": Toy(
        lambda: Net(stem(8), [Residual(8, 8), Residual(8, 8)], 8, head=False),
        (3, 8, 8),
        (True, True),
    ),
    "channels_last": Toy(_channels_last, (3, 12, 20), (True, True), "NHWC"),
    "tokens": Toy(lambda: TokenNet(8, 12, 2), (3, 12, 16), (True, True), "NLC"),
}


def backbone(name: str, seed: int = 0) -> nn.Module:
    """The toy ``name`` with weights and statistics drawn from ``seed``, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TOYS[name].build()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                shake(module)
    return net.eval()


def shake(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_mean, -0.3, 0.3)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.3, 0.3)


def attached(name: str, *, method: str = "da3", seed: int = 0, **options: Any) -> AttachedModel:
    """The toy with a fresh domain: adaptors are zero and gates open."""
    return attach(
        backbone(name, seed),
        method=method,
        classes=CLASSES,
        input_shape=TOYS[name].input_shape,
        seed=seed,
        **options,
    )


def scrambled(model: AttachedModel, seed: int = 0) -> AttachedModel:
    """The model with every domain tensor drawn anew: adaptors act, gates depend on the sample."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.domain.named_parameters():
            scale = 3.0 if ".gate.weight" in name else 0.4
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def balanced(model: AttachedModel, images: Tensor) -> AttachedModel:
    """The model with each gate's bias moved so that half of ``images`` find it open.

    Gates are set from the first to the last, since each decides what the later ones see.
    """
    with torch.no_grad():
        for name in tuple(model.trace(images).gates):
            gates = model.trace(images).gates[name].sort(dim=0).values
            middle = len(images) // 2
            bias = model.domain.get_parameter(f"{name}.gate.bias")
            bias.sub_((gates[middle - 1] + gates[middle]).squeeze() / 2)
    return model


def pictures(name: str, count: int, seed: int = 0) -> Tensor:
    """Normal float32 ``[count, C, H, W]`` for the toy ``name``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *TOYS[name].input_shape, generator=generator)
