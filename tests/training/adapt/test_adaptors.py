"""Adaptors and gates by themselves: shapes, starts, gradients, options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from toolchain.core.errors import AttachError
from toolchain.recipe import AdaptorOptions
from toolchain.training.adapt.adaptors import (
    BOUND,
    CELLS,
    BlockDomain,
    Gate,
    Pool,
    channels_back,
    channels_first,
    decide,
    straight_through,
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
@given(cells=st.integers(1, 12), factor=st.integers(1, 9))
def test_without_a_ratio_the_grid_is_fine_enough_and_no_finer(cells: int, factor: int) -> None:
    """Law: at most ``CELLS`` a side; no smaller ratio that divides the map would do."""
    pool = Pool(site((3, cells * factor, cells * factor)), None)
    side = cells * factor
    assert side // pool.up <= CELLS
    assert all(side % ratio or side // ratio > CELLS for ratio in range(1, pool.up))


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
@given(logits=st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=8))
def test_the_straight_through_gradient_is_the_sigmoids(logits: list[float]) -> None:
    """Law: forward is exactly 0 or 1, backward that of sigmoid(logit)."""
    hard, soft = (torch.tensor(logits)[:, None].requires_grad_() for _ in range(2))
    decision = straight_through(decide(hard), hard)
    assert torch.equal(decision.detach(), (hard.detach() >= 0).float())
    upstream = torch.randn(len(logits), 1)
    torch.autograd.backward(decision, upstream)
    torch.autograd.backward(torch.sigmoid(soft), upstream)
    torch.testing.assert_close(hard.grad, soft.grad)


def test_a_decision_is_hard_and_has_no_gradient() -> None:
    logits = torch.tensor([[-1e-6], [0.0], [3.0]], requires_grad=True)
    decision = decide(logits)
    assert decision.reshape(-1).tolist() == [0, 1, 1]
    assert not decision.requires_grad


def learning(channels: int = 4, seed: int = 0) -> Gate:
    gate = Gate(channels)
    gate.learn(torch.Generator().manual_seed(seed))
    return gate


@laws
@given(
    scale=st.floats(0.1, 1e3),
    shift=st.floats(-10, 10),
    bias=st.floats(-50, 50),
    seed=st.integers(0, 99),
)
def test_a_learning_gate_keeps_the_pictures_of_a_batch_apart(
    scale: float, shift: float, bias: float, seed: int
) -> None:
    """Law: whatever the map's scale and the bias, logits have a spread of 1 around a bounded one.

    So no gate is out of its gradient's reach.
    """
    gate = learning(seed=seed)
    torch.nn.init.constant_(gate.bias, bias)
    gate(torch.randn(2, 4, 2, 2))
    gate.stepped()
    maps = torch.randn(256, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
    logits = gate(maps * scale + shift).detach()
    assert abs(float(logits.mean())) <= BOUND + 0.01
    assert float(logits.std(correction=0)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("maps", [torch.randn(1, 4, 2, 2), torch.zeros(5, 4, 2, 2)])
def test_pictures_that_are_all_alike_give_a_gate_finite_gradients(maps: Tensor) -> None:
    gate = learning()
    torch.autograd.backward(gate(maps).sum())
    for parameter in gate.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


@laws
@given(batches=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_folded_gate_answers_as_it_learnt(batches: int, seed: int) -> None:
    """Law: the norm goes into weight and bias, and nothing else of it is left."""
    gate, generator = learning(seed=seed), torch.Generator().manual_seed(seed)
    for _ in range(batches):
        gate(3 + 2 * torch.randn(16, 4, 2, 2, generator=generator))
        gate.stepped()
    maps = 3 + 2 * torch.randn(64, 4, 2, 2, generator=generator)
    before = gate.eval()(maps)
    gate.fold()
    torch.testing.assert_close(gate(maps), before, rtol=1e-4, atol=1e-4)
    assert set(gate.state_dict()) == {"weight", "bias"}
    assert torch.equal(gate.train()(maps), gate.eval()(maps))


def test_a_step_that_fails_leaves_a_gate_as_it_was() -> None:
    gate = learning()
    before = {name: tensor.clone() for name, tensor in gate.state_dict().items()}
    gate(torch.randn(8, 4, 2, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in gate.state_dict().items())


def test_the_first_batches_count_alike_in_a_gates_norm() -> None:
    """A training of a few steps has statistics, too."""
    gate, maps = learning(), torch.randn(3, 16, 4, 2, 2)
    with torch.no_grad():
        means = [float((batch.mean((2, 3)) @ gate.weight).mean()) for batch in maps]
    for batch in maps:
        gate(batch)
        gate.stepped()
    assert float(gate.mean) == pytest.approx(sum(means) / 3, abs=1e-5)


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
