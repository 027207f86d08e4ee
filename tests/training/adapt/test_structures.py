"""Structures that real model zoos have and the toys do not: found, or refused with what helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import toys
from toolchain.core.errors import AttachError
from toolchain.export.graph.split import split
from toolchain.training.adapt.attached import attach
from toolchain.training.adapt.blocks import Anatomy, examine


class Shuffled(nn.Module):
    """ShuffleNet's block: half of the channels pass, half are convolved, then both are mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.two = nn.Conv2d(width // 2, width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, turned = x.chunk(2, dim=1)
        return torch.stack([kept, self.two(self.one(turned))], dim=2).flatten(1, 2)


class Dense(nn.ModuleDict):
    """DenseNet's block: a container with a forward of its own that joins all it computed."""

    def __init__(self, width: int) -> None:
        super().__init__({"a": nn.Conv2d(width, 4, 1), "b": nn.Conv2d(width + 4, 4, 1)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Scaled(nn.Conv2d):
    """One layer with two parameters of rank four, as weight-standardised convolutions have."""

    def __init__(self, width: int) -> None:
        super().__init__(3, width, 1)
        self.gain = nn.Parameter(torch.ones(width, 1, 1, 1))


class PixelHead(nn.Module):
    """Pool first, then a 1x1 convolution as the classifier, as pre-activation nets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(toys.PreActivation(8))
        self.fc = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.blocks(self.stem(x)).mean((2, 3), keepdim=True)
        scores: Tensor = self.fc(pooled)
        return scores.flatten(1)


class Overwriting(nn.Module):
    """Its first activation writes into the map that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(self.act(x)))
        return y


class Features(nn.Module):
    """Convolutions in one Sequential, pooled: nothing says whether the answer is scores."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(inplace)]
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.features(x).mean((2, 3))
        return pooled


def anatomy(block: nn.Module, size: int = 8, **arguments: Any) -> Anatomy:
    return examine(toys.Net(toys.stem(8), [block], 8), (3, size, size), **arguments)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_block_that_convolves_half_of_its_channels_has_them_first(size: int) -> None:
    """Also where the map is as wide as the convolution (4) or as the block has channels (8)."""
    assert [site.layout for site in anatomy(Shuffled(8), size).sites] == ["NCHW"]


def test_a_container_with_a_forward_of_its_own_is_a_block() -> None:
    net = toys.Net(toys.stem(8), [Dense(8)], 16)
    assert [(s.name, s.gateable) for s in examine(net, (3, 8, 8)).sites] == [("blocks.0", False)]


def test_one_layer_is_no_block_however_many_parameters_it_has() -> None:
    net = toys.Net(nn.Sequential(Scaled(8)), [toys.Residual(8, 8)], 8)
    assert [site.name for site in examine(net, (3, 8, 8)).sites] == ["blocks.0"]


def test_a_classifier_of_one_pixel_is_replaced_like_a_linear_layer() -> None:
    model = attach(PixelHead().eval(), classes=5, input_shape=(3, 8, 8))
    assert (model.anatomy.head, model.anatomy.features) == ("fc", 8)
    toys.scrambled(model)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    trace = model.trace(images)
    assert trace.features is not None
    assert trace.logits is not None
    torch.testing.assert_close(trace.logits, model.domain["head"](trace.features))
    assert trace.logits.shape == (3, 5)
    assert "head.weight" in split(model).slots


@pytest.mark.parametrize(
    ("build", "blocks", "words"),
    [
        (lambda: toys.Net(toys.stem(8), [Overwriting()], 8), None, "input of block 'blocks.0'"),
        (lambda: Features(inplace=True), ["features.2"], "output of block 'features.2'"),
    ],
)
def test_a_map_that_is_overwritten_in_place_is_refused(
    build: Any, blocks: list[str] | None, words: str
) -> None:
    with pytest.raises(AttachError, match=words) as caught:
        examine(build(), (3, 8, 8), blocks=blocks, head=None if blocks is None else "")
    assert "inplace=False" in caught.value.fix


def test_an_empty_head_says_that_the_answer_is_features() -> None:
    with pytest.raises(AttachError, match="found no classifier") as caught:
        examine(Features(), (3, 8, 8), blocks=["features.2"])
    assert "head=''" in caught.value.fix
    assert examine(Features(), (3, 8, 8), blocks=["features.2"], head="").features == 8


def test_where_nothing_is_found_the_error_lists_what_could_be_named() -> None:
    with pytest.raises(AttachError) as caught:
        examine(Features(), (3, 8, 8))
    assert "['features.0', 'features.2']" in caught.value.fix
