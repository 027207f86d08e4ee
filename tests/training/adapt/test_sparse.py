"""Sparse's search: the knapsack against brute force, and what is measured against known nets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support import stripes, toys
from toolchain.core.errors import TrainingError
from toolchain.training.adapt import sparse
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.adapt.blocks import Anatomy, examine
from toolchain.training.adapt.sparse import Contribution, Kernel, choose


class Keyword(toys.Residual):
    """A block that calls its convolution by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(input=self.conv1(input=x).relu())  # type: ignore[no-any-return]


def test_convolutions_that_are_called_by_keyword_are_candidates() -> None:
    net = toys.Net(toys.stem(8), [Keyword(8, 8)], 8).eval()
    kernels = sparse.candidates(net, examine(net, (3, 8, 8)))
    assert [kernel.name for kernel in kernels] == ["blocks.0.conv1.weight", "blocks.0.conv2.weight"]


SHAPE = (3, stripes.SIDE, stripes.SIDE)
CLASSES = len(stripes.CLASSES)


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[Kernel], list[Contribution]]:
    """Up to three kernels whose later ones need no longer tail, with whole worths above zero."""
    count = draw(st.integers(1, 3))
    tails = sorted(draw(st.lists(st.integers(0, 4000), min_size=count, max_size=count)))[::-1]
    kernels = [
        Kernel(f"conv{place}.weight", draw(st.integers(1, 9)), draw(st.integers(1, 1500)), tail)
        for place, tail in enumerate(tails)
    ]
    worth = [
        np.array(
            draw(st.lists(st.integers(1, 50), min_size=k.channels, max_size=k.channels)), float
        )
        for k in kernels
    ]
    return kernels, worth


def kib(size: int) -> int:
    return -(-size // 1024)


def least(kernels: Sequence[Kernel]) -> int:
    return min(kib(k.tail_bytes) + kib(k.counts()[1] * k.channel_bytes) for k in kernels)


def value(
    chosen: Mapping[str, Sequence[int]], kernels: Sequence[Kernel], worth: list[Contribution]
) -> float:
    return sum(
        float(w[list(chosen.get(k.name, ()))].sum()) for k, w in zip(kernels, worth, strict=True)
    )


def brute_force(kernels: Sequence[Kernel], worth: list[Contribution], budget: int) -> float:
    best = 0.0
    for counts in itertools.product(*(kernel.counts() for kernel in kernels)):
        if not any(counts):
            continue
        pairs = list(zip(kernels, counts, strict=True))
        tail = next(k.tail_bytes for k, count in pairs if count)
        if kib(tail) + sum(kib(count * k.channel_bytes) for k, count in pairs) <= budget:
            sums = (np.sort(w)[::-1][:n].sum() for w, n in zip(worth, counts, strict=True))
            best = max(best, float(sum(sums)))
    return best


@given(instance=instances(), spare=st.integers(0, 30))
def test_the_choice_is_the_best_that_the_budget_holds(
    instance: tuple[list[Kernel], list[Contribution]], spare: int
) -> None:
    kernels, worth = instance
    budget = least(kernels) + spare
    chosen = choose(kernels, worth, budget)
    assert value(chosen, kernels, worth) == brute_force(kernels, worth, budget)


@given(instance=instances(), spare=st.integers(0, 30))
def test_the_choice_is_never_above_the_budget(
    instance: tuple[list[Kernel], list[Contribution]], spare: int
) -> None:
    """Law: bytes of the kept channels and of the tail fit, and channels rise within the kernel."""
    kernels, worth = instance
    budget = least(kernels) + spare
    chosen = choose(kernels, worth, budget)
    first = next(k for k in kernels if k.name in chosen)
    size = sum(len(chosen.get(k.name, ())) * k.channel_bytes for k in kernels)
    assert first.tail_bytes + size <= 1024 * budget
    for kernel in kernels:
        channels = chosen.get(kernel.name, ())
        assert list(channels) == sorted(set(channels))
        assert all(0 <= channel < kernel.channels for channel in channels)
        assert len(channels) in kernel.counts()


@given(instance=instances(), spare=st.integers(0, 20), more=st.integers(0, 20))
def test_more_budget_is_never_worse(
    instance: tuple[list[Kernel], list[Contribution]], spare: int, more: int
) -> None:
    kernels, worth = instance
    budget = least(kernels) + spare
    small, large = (choose(kernels, worth, size) for size in (budget, budget + more))
    assert value(small, kernels, worth) <= value(large, kernels, worth)


@given(instance=instances())
def test_a_budget_too_small_names_the_one_that_would_do(
    instance: tuple[list[Kernel], list[Contribution]],
) -> None:
    kernels, worth = instance
    enough = least(kernels)
    assert choose(kernels, worth, enough)
    with pytest.raises(TrainingError, match=f"at least {enough}"):
        choose(kernels, worth, enough - 1)


def test_channels_that_contribute_nothing_are_not_chosen() -> None:
    kernels = [Kernel("a.weight", 8, 10, 0), Kernel("b.weight", 8, 10, 0)]
    worth = [np.zeros(8), np.eye(8)[5]]
    assert choose(kernels, worth, 64) == {"b.weight": (5,)}
    with pytest.raises(TrainingError, match="contributes"):
        choose(kernels, [np.zeros(8)] * 2, 64)


def examined(toy: str) -> tuple[nn.Module, Anatomy]:
    backbone = toys.backbone(toy)
    return backbone, examine(backbone, toys.TOYS[toy].input_shape)


def test_the_tail_is_the_bits_of_the_relus_that_follow() -> None:
    """One bit per element and ReLU; convolutions, norms, additions and the mean keep nothing."""
    kernels = {kernel.name: kernel for kernel in sparse.candidates(*examined("plain"))}
    assert "stem.0.weight" not in kernels
    large, small = 8 * 12 * 12 // 8, 16 * 6 * 6 // 8
    want = Kernel("blocks.2.conv2.weight", 16, 4 * 6 * 6, small)
    assert kernels["blocks.2.conv2.weight"] == want
    assert kernels["blocks.2.conv1.weight"].tail_bytes == 2 * small
    assert kernels["blocks.1.shortcut.weight"].channel_bytes == 4 * 12 * 12
    assert kernels["blocks.0.conv1.weight"].tail_bytes == 2 * large + 4 * small


def test_plain_and_depthwise_kernels_are_candidates_grouped_ones_are_not() -> None:
    depthwise = [k.name for k in sparse.candidates(*examined("inverted"))]
    assert "blocks.0.conv.3.weight" in depthwise
    grouped = [k.name for k in sparse.candidates(*examined("grouped"))]
    assert grouped == ["blocks.0.conv1.weight", "blocks.1.conv1.weight"]


def test_a_backbone_without_candidates_is_told() -> None:
    with pytest.raises(TrainingError, match="convolutions"):
        sparse.by_size(*examined("tokens"), 64)


@pytest.mark.parametrize("toy", ["plain", "inverted", "channels_last"])
@pytest.mark.parametrize("budget", [8, 14, 64])
def test_training_keeps_of_a_sample_what_the_budget_says(toy: str, budget: int) -> None:
    """Law: measured with autograd's own hooks, the head's input apart, which every method keeps."""
    backbone, anatomy = examined(toy)
    selection = sparse.by_size(backbone, anatomy, budget)
    model = attach(
        backbone,
        method="sparse",
        classes=CLASSES,
        input_shape=anatomy.input_shape,
        selection=selection,
        lean=True,
    )
    one, two = (kept(model, toys.pictures(toy, count)) for count in (1, 2))
    assert 0 < two - one <= 1024 * budget + 4 * anatomy.features


def kept(model: AttachedModel, images: Tensor) -> int:
    tensors: dict[int, Tensor] = {}

    def add(tensor: Tensor) -> Tensor:
        tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(add, lambda tensor: tensor):
        model(images)
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
