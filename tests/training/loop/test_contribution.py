"""What channels contribute: squared gradients, and the search that takes the largest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import stripes, toys
from toolchain.core.errors import MemoryBudgetError
from toolchain.training.adapt import sparse
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.blocks import Anatomy, examine
from toolchain.training.lean import Lean
from toolchain.training.loop import contribution

SHAPE = (3, stripes.SIDE, stripes.SIDE)


def search(backbone: nn.Module, anatomy: Anatomy, update_kib: int) -> Mapping[str, tuple[int, ...]]:
    options = dataclasses.replace(stripes.RECIPE.adaptor, update_kib=update_kib)
    recipe = stripes.recipe(adaptor=options)
    return contribution.search(backbone, anatomy, stripes.data(), recipe, batches=2)


def test_the_search_finds_the_one_channel_that_matters() -> None:
    """Block 0 is dead; in block 1 the second kernel alone has a gradient, at one channel."""
    backbone = toys.backbone("headless")
    with torch.no_grad():
        for block in (0, 1):
            norm = backbone.get_submodule(f"blocks.{block}.bn1")
            assert isinstance(norm, nn.BatchNorm2d)
            norm.weight.zero_()
            nn.init.constant_(norm.bias, -1)
        backbone.get_parameter("blocks.1.bn1.bias")[3] = 1
    anatomy = examine(backbone, SHAPE)
    assert search(backbone, anatomy, 64) == {"blocks.1.conv2.weight": (3,)}


def test_the_search_is_deterministic_and_leaves_the_backbone_as_it_was() -> None:
    backbone = toys.backbone("plain")
    anatomy = examine(backbone, SHAPE)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    first = search(backbone, anatomy, 16)
    torch.manual_seed(1)
    assert search(backbone, anatomy, 16) == first
    assert all(torch.equal(before[name], t) for name, t in backbone.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_contributions_are_squared_gradients_by_input_channel() -> None:
    """Against autograd on the whole loss, for plain and depthwise kernels."""
    model = stripes.model(method="head", toy="inverted")
    kernels = sparse.candidates(model.backbone, model.anatomy)
    images = toys.pictures("plain", 4)
    labels = torch.tensor([0, 1, 2, 0])
    contributions = contribution._contributions(model, kernels, iter([(images, labels)]))
    for kernel, got in zip(kernels, contributions, strict=True):
        weight = model.backbone.get_parameter(kernel.name).requires_grad_(True)
        loss = nn.functional.cross_entropy(model(images), labels)
        (grad,) = torch.autograd.grad(loss, [weight])
        weight.requires_grad_(False)
        depthwise = grad.shape[1] == 1
        want = [
            float((grad[c] if depthwise else grad[:, c]).square().sum())
            for c in range(kernel.channels)
        ]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-10)


def test_what_the_search_takes_is_told_and_a_budget_holds_it() -> None:
    """It comes before the training and takes more, so nobody may meet it unprepared."""
    backbone = toys.backbone("plain")
    anatomy = examine(backbone, SHAPE)
    recipe = stripes.recipe(adaptor=dataclasses.replace(stripes.RECIPE.adaptor, update_kib=16))
    lines: list[str] = []
    data = stripes.data()
    plain = contribution.search(backbone, anatomy, data, recipe, batches=2, notify=lines.append)
    (line,) = lines
    assert line.startswith("search for what to update: at most ")
    model = AttachedModel(backbone, anatomy, "head", 3, recipe.adaptor, lean=Lean())
    needed = contribution.need(model, sparse.candidates(backbone, anatomy), contribution.BATCH)
    choice = contribution.search(backbone, anatomy, data, recipe, batches=2, memory=needed)
    assert choice == plain
    with pytest.raises(MemoryBudgetError, match="search for what to update") as caught:
        contribution.search(backbone, anatomy, data, recipe, batches=2, memory=needed - 1)
    assert "without a budget" in caught.value.fix
