"""Overrides: each starts as the frozen tensor, and adapters fold into kernels exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from toolchain.core.errors import AttachError
from toolchain.training.adapt.overrides import (
    BinaryMask,
    ParallelAdapter,
    Replacement,
    SeriesAdapter,
    SparseUpdate,
)

laws = settings(max_examples=30, deadline=None)


def conv(groups: int, kernel: int, stride: int, dilation: int) -> nn.Conv2d:
    pad = dilation * (kernel // 2)
    return nn.Conv2d(4, 8, kernel, stride, pad, dilation, groups, bias=False).double()


shapes = st.tuples(
    st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 5]), st.integers(1, 2), st.integers(1, 2)
)


@laws
@given(shape=shapes)
def test_a_parallel_adapter_is_a_convolution_beside(shape: tuple[int, int, int, int]) -> None:
    """Law: conv(x, W with A at its centre) = conv(x, W) + conv1x1(x, A)."""
    layer = conv(*shape)
    override = ParallelAdapter(layer.weight)
    nn.init.normal_(override.adapter)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    groups, _, stride, dilation = shape
    folded = F.conv2d(x, override(layer.weight), None, stride, layer.padding, dilation, groups)
    beside = F.conv2d(x, override.adapter[:, :, None, None], None, stride, 0, 1, groups)
    torch.testing.assert_close(folded, layer(x) + beside)


@laws
@given(shape=shapes)
def test_a_series_adapter_is_a_convolution_after(shape: tuple[int, int, int, int]) -> None:
    """Law: conv(x, W + A W) = y + conv1x1(y, A) of y = conv(x, W)."""
    layer = conv(*shape)
    groups, _, stride, dilation = shape
    override = SeriesAdapter(layer.weight, groups)
    nn.init.normal_(override.adapter)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    folded = F.conv2d(x, override(layer.weight), None, stride, layer.padding, dilation, groups)
    y = layer(x)
    after = F.conv2d(y, override.adapter.reshape(8, 8 // groups, 1, 1), None, groups=groups)
    torch.testing.assert_close(folded, y + after)


def test_every_override_starts_as_the_frozen_tensor() -> None:
    """Law: a fresh domain answers as the backbone does."""
    weight = torch.randn(8, 4, 3, 3)
    for override in (
        Replacement(weight),
        BinaryMask(weight),
        ParallelAdapter(weight),
        SeriesAdapter(weight, 1),
        SparseUpdate(weight, (0, 2), depthwise=False),
    ):
        assert torch.equal(override(weight), weight)


def test_what_a_bundle_stores_is_a_kernel_a_bit_or_a_factor() -> None:
    """An adapter after a depthwise convolution is a factor per channel, as a norm's weight is."""
    plain, depthwise = torch.randn(8, 4, 3, 3), torch.randn(8, 1, 3, 3)
    whole = (
        Replacement(plain),
        ParallelAdapter(plain),
        SeriesAdapter(plain, 2),
        SparseUpdate(plain, (1,), depthwise=False),
    )
    assert {override.deployed_bytes() for override in whole} == {4 * plain.numel()}
    assert BinaryMask(plain).deployed_bytes() == 36
    assert SeriesAdapter(depthwise, 8).deployed_bytes() == 32


def test_a_masks_gradient_is_that_of_the_identity() -> None:
    """Mallya et al., equation 2: the threshold's gradient is one everywhere."""
    weight = torch.randn(2, 3)
    override = BinaryMask(weight)
    with torch.no_grad():
        override.scores[0] = 0.0  # below the threshold
    masked = override(weight)
    assert torch.equal(masked[0], torch.zeros(3))
    assert torch.equal(masked[1], weight[1])
    torch.autograd.backward(masked.sum())
    torch.testing.assert_close(override.scores.grad, weight)
    assert override.deployed_bytes() == 1


def test_partial_kernels_name_channels_in_order() -> None:
    weight = torch.zeros(2, 4, 1, 1)
    for channels in ((), (2, 1), (1, 1), (4,)):
        with pytest.raises(AttachError, match="rising order"):
            SparseUpdate(weight, channels, depthwise=False)
