"""Adaptors and gates by themselves: shapes, starts, gradients, options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from toolchain.core.errors import AttachError
from toolchain.recipe import AdaptorOptions
from toolchain.training.adapt.adaptors import (
    BlockDomain,
    Gate,
    Pool,
    channels_back,
    channels_first,
    decide,
    logistic_noise,
    upsample,
)
from toolchain.training.adapt.blocks import Layout, Site

sides = st.integers(1, 12)
Shape = tuple[int, ...]
laws = settings(max_examples=60, deadline=None)


def site(in_shape: Shape, out_shape: Shape | None = None) -> Site:
    return Site("blocks.0", "NCHW", in_shape, out_shape or in_shape, 100)


@laws
@given(
    height=sides,
    width=sides,
    stride=st.integers(1, 3),
    ratio=st.integers(0, 8),
    odd=st.integers(0, 1),
)
def test_the_coarse_grid_always_divides_the_output(
    height: int, width: int, stride: int, ratio: int, odd: int
) -> None:
    """Law: whatever the map, stride and ratio, nearest upsampling lands on whole cells."""
    source = (4, height * stride - odd * (stride > 1), width * stride)
    where = site(source, (6, height, width))
    module = BlockDomain(where, AdaptorOptions(pool=ratio, rank=4))
    correction, _ = module(torch.randn(2, *source))
    assert height % correction.shape[2] == 0
    assert width % correction.shape[3] == 0
    wide = upsample(correction, height, width).expand(-1, -1, height, width)
    assert torch.equal(wide, F.interpolate(correction, (height, width), mode="nearest"))


@laws
@given(height=sides, width=sides, ratio=st.integers(1, 8))
def test_pooling_keeps_the_mean(height: int, width: int, ratio: int) -> None:
    """Law: average pooling, whatever its window, leaves the map's mean as it is."""
    x = torch.randn(2, 3, height, width)
    pooled = Pool(site((3, height, width)), ratio)(x)
    torch.testing.assert_close(pooled.mean((2, 3)), x.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "shape"), [("NCHW", (4, 6, 8)), ("NHWC", (6, 8, 4)), ("NLC", (9, 4))]
)
def test_layouts_are_viewed_channels_first_and_back(layout: Layout, shape: tuple[int, ...]) -> None:
    """Law: channels_back undoes channels_first."""
    x = torch.randn(2, *shape)
    first = channels_first(x, layout)
    assert first.dim() == 4
    assert first.shape[1] == 4
    assert torch.equal(channels_back(first, layout), x)


@laws
@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=8),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_the_straight_through_gradient_is_the_sigmoids(
    logits: list[float], temperature: float, seed: int
) -> None:
    """Law: forward is exactly 0 or 1, backward that of sigmoid((logit + noise) / temperature)."""
    noise = logistic_noise(torch.Size([len(logits), 1]), torch.Generator().manual_seed(seed))
    hard, soft = (torch.tensor(logits)[:, None].requires_grad_() for _ in range(2))
    decision = decide(hard, noise=noise, temperature=temperature)
    assert torch.equal(decision.detach(), (hard.detach() + noise >= 0).float())
    upstream = torch.randn(len(logits), 1)
    torch.autograd.backward(decision, upstream)
    torch.autograd.backward(torch.sigmoid((soft + noise) / temperature), upstream)
    torch.testing.assert_close(hard.grad, soft.grad)


def test_without_noise_a_decision_is_hard_and_has_no_gradient() -> None:
    logits = torch.tensor([[-1e-6], [0.0], [3.0]], requires_grad=True)
    decision = decide(logits)
    assert decision.reshape(-1).tolist() == [0, 1, 1]
    assert not decision.requires_grad


def test_noise_is_logistic_and_comes_from_its_generator() -> None:
    """Logistic noise has mean 0 and variance pi^2 / 3."""
    one, two = (
        logistic_noise(torch.Size([40_000, 1]), torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, two)
    assert bool(one.isfinite().all())
    assert abs(float(one.mean())) < 0.05
    assert abs(float(one.var()) - torch.pi**2 / 3) < 0.1


@pytest.mark.parametrize("method", ["da3", "da2"])
def test_a_fresh_adaptor_answers_zero_and_still_learns(method: str) -> None:
    module = BlockDomain(
        site((4, 8, 8)), AdaptorOptions(rank=4), attention=method == "da2", gated=method == "da3"
    )
    correction, _ = module(torch.randn(3, 4, 8, 8))
    assert not bool(correction.any())
    torch.autograd.backward(correction.sum())
    slope = module.get_parameter("adaptor.expand.weight").grad
    assert slope is not None
    assert bool(slope.any())


def test_a_fresh_gate_is_open() -> None:
    assert bool((Gate(4)(torch.randn(5, 4, 2, 2)) > 0).all())


@pytest.mark.parametrize(
    ("function", "total"), [("sigmoid", None), ("tanh", None), ("softmax", 4.0)]
)
def test_the_attention_functions_weigh_channels(function: str, total: float | None) -> None:
    options = AdaptorOptions(rank=4, attention=function)
    module = BlockDomain(site((4, 8, 8)), options, attention=True).adaptor
    # The lite residual then answers one everywhere.
    torch.nn.init.ones_(module.get_parameter("expand.bias"))
    weights = module(torch.randn(2, 4, 2, 2))[:, :, 0, 0]
    low = -1.0 if function == "tanh" else 0.0
    assert bool((weights > low).all())
    if total is None:
        assert bool((weights < 1).all())
    else:
        torch.testing.assert_close(weights.sum(1), torch.full((2,), total))


def test_a_closed_gate_hides_even_an_infinite_block() -> None:
    module = BlockDomain(site((4, 2, 2)), AdaptorOptions(rank=4))
    x = torch.randn(2, 4, 2, 2)
    broken = torch.full_like(x, float("inf"))
    correction, _ = module(x)
    assert torch.equal(module.join(x, broken, correction, torch.zeros(2, 1)), x)


def test_groups_that_do_not_divide_are_named_with_the_fix() -> None:
    with pytest.raises(AttachError, match=r"blocks\.0.*groups=4 does not divide its 6") as caught:
        BlockDomain(site((6, 4, 4)), AdaptorOptions(rank=4, groups=4))
    assert "groups=2" in caught.value.fix


def test_group_norm_needs_two_channels() -> None:
    with pytest.raises(AttachError, match="rank"):
        BlockDomain(site((6, 4, 4)), AdaptorOptions(rank=1, norm="group"))


def test_a_gate_needs_a_block_that_keeps_its_shape() -> None:
    module = BlockDomain(site((4, 8, 8), (4, 4, 4)), AdaptorOptions(rank=4), gated=True)
    assert module.gate is None
