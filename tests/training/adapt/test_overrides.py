"""What a domain has of its own: versions of tensors, folded adapters, patched copies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.support import toys
from toolchain.core.errors import AttachError
from toolchain.training.adapt.attached import attach, weights_digest
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.adapt.overrides import (
    After,
    Beside,
    Masked,
    Partial,
    Replaced,
    base,
    patched,
)

laws = settings(max_examples=30, deadline=None)
CHANGING = [name for name in REGISTRY if name not in ("da3", "da2", "head")]


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
    version = Beside(layer.weight)
    nn.init.normal_(version.adapter)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    groups, _, stride, dilation = shape
    folded = F.conv2d(x, version(layer.weight), None, stride, layer.padding, dilation, groups)
    beside = F.conv2d(x, version.adapter[:, :, None, None], None, stride, 0, 1, groups)
    torch.testing.assert_close(folded, layer(x) + beside)


@laws
@given(shape=shapes)
def test_a_series_adapter_is_a_convolution_after(shape: tuple[int, int, int, int]) -> None:
    """Law: conv(x, W + A W) = y + conv1x1(y, A) of y = conv(x, W)."""
    layer = conv(*shape)
    groups, _, stride, dilation = shape
    version = After(layer.weight, groups)
    nn.init.normal_(version.adapter)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    folded = F.conv2d(x, version(layer.weight), None, stride, layer.padding, dilation, groups)
    y = layer(x)
    after = F.conv2d(y, version.adapter.reshape(8, 8 // groups, 1, 1), None, groups=groups)
    torch.testing.assert_close(folded, y + after)


def test_every_version_starts_as_the_frozen_tensor() -> None:
    """Law: a fresh domain answers as the backbone does."""
    weight = torch.randn(8, 4, 3, 3)
    for version in (
        Replaced(weight),
        Masked(weight),
        Beside(weight),
        After(weight, 1),
        Partial(weight, (0, 2), depthwise=False),
    ):
        assert torch.equal(version(weight), weight)


def test_what_a_bundle_stores_is_a_kernel_a_bit_or_a_factor() -> None:
    """An adapter after a depthwise convolution is a factor per channel, as a norm's weight is."""
    plain, depthwise = torch.randn(8, 4, 3, 3), torch.randn(8, 1, 3, 3)
    whole = (Replaced(plain), Beside(plain), After(plain, 2), Partial(plain, (1,), depthwise=False))
    assert {version.deployed_bytes() for version in whole} == {4 * plain.numel()}
    assert Masked(plain).deployed_bytes() == 36
    assert After(depthwise, 8).deployed_bytes() == 32


def test_a_masks_gradient_is_that_of_the_identity() -> None:
    """Mallya et al., equation 2: the threshold's gradient is one everywhere."""
    weight = torch.randn(2, 3)
    version = Masked(weight)
    with torch.no_grad():
        version.scores[0] = 0.0  # below the threshold
    masked = version(weight)
    assert torch.equal(masked[0], torch.zeros(3))
    assert torch.equal(masked[1], weight[1])
    torch.autograd.backward(masked.sum())
    torch.testing.assert_close(version.scores.grad, weight)
    assert version.deployed_bytes() == 1


def test_partial_kernels_name_channels_in_order() -> None:
    weight = torch.zeros(2, 4, 1, 1)
    for channels in ((), (2, 1), (1, 1), (4,)):
        with pytest.raises(AttachError, match="rising order"):
            Partial(weight, channels, depthwise=False)


@pytest.mark.parametrize("method", CHANGING)
@torch.no_grad()
def test_a_patched_copy_answers_as_the_model(method: str) -> None:
    """Law: slots on the changed copy = the model; the frozen backbone is neither moved nor used."""
    selection = {"blocks.0.conv1.weight": (0, 2)} if method == "sparse" else None
    net = toys.backbone("plain")
    model = attach(
        net, method=method, classes=3, input_shape=(3, 12, 12), rank=4, selection=selection
    )
    digest = weights_digest(model)
    for parameter in model.domain.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    images = toys.pictures("plain", 4)
    copy = patched(model)
    assert copy is not None
    torch.testing.assert_close(copy(images), model(images))
    assert copy.own is None
    assert weights_digest(copy) != digest
    assert weights_digest(model) == digest
    assert weights_digest(base(model)) == digest
    plain = base(model)(images)
    assert not torch.allclose(plain, model(images))


def test_slots_alone_need_no_patch() -> None:
    assert patched(toys.attached("plain")) is None
