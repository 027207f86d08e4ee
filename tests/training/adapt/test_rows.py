"""Rows in training: what autograd would say of the same equation written plainly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toolchain.training.adapt import rows
from toolchain.training.adapt.adaptors import channels_back, channels_first, upsample
from toolchain.training.adapt.blocks import Layout
from toolchain.training.lean.compression import error_bound
from toolchain.training.lean.options import Keep

laws = settings(max_examples=60, deadline=None)
decisions = st.lists(st.booleans(), min_size=1, max_size=6)
LAYOUTS: tuple[Layout, ...] = ("NCHW", "NHWC", "NLC")
CELLS = {"NCHW": (2, 2), "NHWC": (2, 1), "NLC": (1, 1)}


def maps(count: int, layout: Layout) -> Tensor:
    shape = {"NCHW": (3, 4, 4), "NHWC": (4, 4, 3), "NLC": (4, 3)}[layout]
    return torch.randn(count, *shape, dtype=torch.float64)


def pooled(x: Tensor, layout: Layout, cells: tuple[int, int]) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(channels_first(x, layout), cells)


@laws
@given(opened=decisions, layout=st.sampled_from(LAYOUTS), whole=st.booleans())
def test_values_and_gradients_are_those_of_the_plain_equation(
    opened: list[bool], layout: Layout, whole: bool
) -> None:
    """Law: joined = (y if open else x) + up(c); d open = <dc, pool(y) - pool(x)> where seen."""
    count = len(opened)
    cells = (1, 1) if whole else CELLS[layout]
    x, y = (maps(count, layout).requires_grad_() for _ in range(2))
    correction = torch.randn(count, 3, *cells, dtype=torch.float64, requires_grad=True)
    hard = torch.tensor(opened, dtype=torch.float64).reshape(-1, 1)
    soft = torch.rand(count, 1, dtype=torch.float64, requires_grad=True)
    decision = hard + (soft - soft.detach())

    chosen = rows.Rows.of(decision)
    run, rest = rows.split_rows(x, chosen)
    block = y.index_select(0, chosen.opened) + 0 * run  # depends on the rows that were given
    with torch.no_grad():
        change = pooled(block, layout, cells) - pooled(x, layout, cells)[chosen.opened]
    weight = torch.full((len(chosen.opened),), 2.0, dtype=torch.float64)
    gradient = rows.DecisionGradient(decision, change, chosen.opened, weight)
    joined = rows.join(block, rest, correction, chosen, layout, gradient=gradient)

    mask = hard.reshape(-1, *[1] * (x.dim() - 1))
    change_all = (pooled(y, layout, cells) - pooled(x, layout, cells)).detach()
    through = 2 * ((decision - hard) * hard)[:, :, None, None] * change_all
    first = channels_first(torch.where(mask > 0, y, x), layout)
    plain = first + upsample(correction + through, *first.shape[2:])
    expected = channels_back(plain, layout)
    torch.testing.assert_close(joined, expected)

    upstream = torch.randn_like(expected)
    leaves = (x, y, correction, soft)
    got = torch.autograd.grad(joined, leaves, upstream, retain_graph=True, allow_unused=True)
    want = torch.autograd.grad(expected, leaves, upstream, allow_unused=True)
    for one, other, leaf in zip(got, want, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other)


@pytest.mark.parametrize("kept", ["half", "int8"])
def test_what_waits_in_fewer_bytes_bends_the_gates_gradient_a_little(
    kept: Keep,
) -> None:
    """The decision's gradient stays within the bound of ``kept``; nothing else moves."""
    y, x = maps(4, "NCHW").float(), maps(4, "NCHW").float()
    correction = torch.zeros(4, 3, 2, 2, requires_grad=True)
    decision = torch.ones(4, 1, requires_grad=True)
    change = pooled(y, "NCHW", (2, 2)) - pooled(x, "NCHW", (2, 2))
    upstream = torch.randn_like(y)
    grads = []
    for precision in ("fp32", kept):
        chosen = rows.Rows.of(decision)
        joined = rows.join(
            y,
            y[:0],
            correction,
            chosen,
            "NCHW",
            gradient=rows.DecisionGradient(decision, change, chosen.opened, torch.ones(4)),
            precision=precision,
        )
        grads.append(torch.autograd.grad(joined, (correction, decision), upstream))
    (exact_c, exact), (coarse_c, coarse) = grads
    assert torch.equal(exact_c, coarse_c)
    bound = error_bound(change, kept) * exact_c.abs().flatten(1).sum(1)
    assert bool(((exact - coarse).abs().reshape(-1) <= bound).all())
    assert not torch.equal(exact, coarse)


def test_parting_keeps_indices_alone() -> None:
    """Nothing of the map waits for the backward pass."""
    x = maps(4, "NCHW").requires_grad_()
    chosen = rows.Rows.of(torch.tensor([[1.0], [0.0], [1.0], [0.0]]))
    tensors: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda t: t):
        run, _ = rows.split_rows(x, chosen)
        rows.corrected(run, torch.zeros(2, 3, 2, 2), "NCHW")
    assert {t.dtype for t in tensors} == {torch.int64}


@laws
@given(layout=st.sampled_from(LAYOUTS), last=st.booleans())
def test_a_correction_is_added_as_upsampling_would(layout: Layout, last: bool) -> None:
    """Law: values and gradients of y + up(c), for maps of any layout and memory format."""
    y = maps(3, layout)
    if last and layout == "NCHW":
        y = y.to(memory_format=torch.channels_last)
    y = y.requires_grad_()
    correction = torch.randn(3, 3, *CELLS[layout], dtype=torch.float64, requires_grad=True)
    first = channels_first(y, layout)
    plain = channels_back(first + upsample(correction, *first.shape[2:]), layout)
    total = rows.corrected(y, correction, layout)
    torch.testing.assert_close(total, plain)
    upstream = torch.randn_like(plain)
    for one, other in zip(
        torch.autograd.grad(total, (y, correction), upstream),
        torch.autograd.grad(plain, (y, correction), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_probes_are_rows_of_closed_gates_one_in_eight() -> None:
    """Law: none whose gate is open; the share is that of ``PROBED``; one seed, one draw."""
    chosen = rows.Rows.of((torch.arange(8000) % 2).reshape(-1, 1).float())
    one, two = (chosen.probes(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert bool((one % 2 == 0).all())
    expected = 4000 / rows.PROBED
    assert abs(len(one) - expected) < 5 * expected**0.5
