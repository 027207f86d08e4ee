"""Finding blocks: every toy family by structure, and clear words where there is nothing to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import toys
from toolchain.core.errors import AttachError
from toolchain.training.adapt.blocks import examine


@pytest.mark.parametrize("name", sorted(toys.TOYS))
def test_the_blocks_of_every_family_are_found(name: str) -> None:
    toy = toys.TOYS[name]
    anatomy = examine(toys.backbone(name), toy.input_shape)
    assert tuple(site.gateable for site in anatomy.sites) == toy.gateable
    assert {site.layout for site in anatomy.sites} == {toy.layout}
    assert [site.name for site in anatomy.sites] == [
        f"blocks.{i}" for i in range(len(toy.gateable))
    ]


@pytest.mark.parametrize(
    ("name", "head"), [("plain", "fc"), ("tokens", "head"), ("headless", None)]
)
def test_the_classifier_is_the_linear_that_returns_the_answer(name: str, head: str | None) -> None:
    anatomy = examine(toys.backbone(name), toys.TOYS[name].input_shape)
    assert anatomy.head == head
    assert anatomy.features == {"plain": 16, "tokens": 8, "headless": 8}[name]


def test_flops_are_multiply_adds_counted_by_hand() -> None:
    """A 3x3 convolution from 8 to 8 channels on 8x8 maps: 8 * 8 * 9 * 64 multiply-adds."""
    anatomy = examine(toys.backbone("single"), (3, 8, 8))
    one = 8 * 8 * 9 * 64
    assert anatomy.sites[0].flops == 2 * one
    assert anatomy.flops == 2 * one + 3 * 8 * 9 * 64


def test_shapes_are_those_of_one_sample() -> None:
    sites = examine(toys.backbone("odd"), (3, 15, 11)).sites
    assert [(s.in_shape, s.out_shape) for s in sites] == [
        ((8, 15, 11), (8, 8, 6)),
        ((8, 8, 6), (8, 8, 6)),
        ((8, 8, 6), (16, 4, 3)),
    ]


def test_examining_leaves_the_mode_and_the_statistics() -> None:
    net = toys.backbone("plain").train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    examine(net, (3, 12, 12))
    assert net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_named_blocks_are_taken_as_they_are() -> None:
    anatomy = examine(toys.backbone("plain"), (3, 12, 12), blocks=["blocks.2"])
    assert [site.name for site in anatomy.sites] == ["blocks.2"]


class Plain(nn.Module):
    """Layers by attribute, nothing in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc(self.two(self.one(x)).mean((2, 3)))
        return answer


class TwoInputs(nn.Module):
    """A block that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(4, 4))
        self.stem = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc(self.blocks(self.blocks(self.stem(x))).mean((2, 3)))
        return answer


class Caster(nn.Module):
    """A block that returns another dtype than it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.more = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.more(self.conv(x)).double()
        return answer


class ConvHead(nn.Module):
    """Scores from a convolution: no Linear layer to replace."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(3, 4))
        self.scores = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.scores(self.blocks(x)).mean((2, 3))
        return answer


class Cells(nn.Module):
    """Answers with a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(3, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"answer": self.blocks(x).mean((2, 3))}


def casting() -> nn.Module:
    return toys.Net(toys.stem(8), [Caster()], 8, head=False)


@pytest.mark.parametrize(
    ("build", "arguments", "words"),
    [
        (Plain, {}, "found no blocks in Plain"),
        (TwoInputs, {"blocks": ["blocks.0"]}, "ran 2 times"),
        (ConvHead, {}, "found no classifier"),
        (Cells, {}, "returns dict"),
        (casting, {}, r"blocks\.0.*float32.*float64"),
        (Plain, {"blocks": ["nowhere"]}, "is not a module of Plain"),
        (Plain, {"blocks": ["fc"]}, "cannot take an adaptor"),
        (Plain, {"blocks": ["two"], "head": "one"}, "expected a Linear layer"),
        (Plain, {"blocks": ["two"], "head": "nowhere"}, "not a module"),
    ],
)
def test_what_cannot_be_examined_is_named_with_what_would_help(
    build: Callable[[], nn.Module], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(AttachError, match=words) as caught:
        examine(build(), (3, 8, 8), **arguments)
    assert caught.value.fix


def test_a_wrong_input_shape_tells_the_shape_that_was_tried() -> None:
    with pytest.raises(AttachError, match=r"\[1, 5, 8, 8\]"):
        examine(toys.backbone("plain"), (5, 8, 8))


def test_naming_blocks_helps_where_structure_does_not() -> None:
    anatomy = examine(Plain(), (3, 8, 8), blocks=["two"])
    assert [(s.name, s.gateable) for s in anatomy.sites] == [("two", True)]
