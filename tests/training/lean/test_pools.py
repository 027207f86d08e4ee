"""Lean pools against stock autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.lean_parity import (
    LAYOUTS,
    assert_parity,
    double,
    kept_bytes,
    lean_bytes,
    lean_gradcheck,
)
from toolchain.training.lean import Lean, LeanMode

windows = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=80, deadline=None)
@given(
    batch=st.sampled_from([None, 0, 1, 2]),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=windows,
    stride=st.one_of(st.none(), windows),
    padded=st.booleans(),
    ceil_mode=st.booleans(),
    count=st.booleans(),
    divisor=st.sampled_from([None, 3]),
    layout=st.sampled_from(LAYOUTS),
)
def test_averages_are_stock(
    batch: int | None,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int] | None,
    padded: bool,
    ceil_mode: bool,
    count: bool,
    divisor: int | None,
    layout: str,
) -> None:
    shape = (3, *size) if batch is None else (batch, 3, *size)
    assume(batch is not None or layout != "channels_last")
    padding = tuple(k // 2 for k in kernel) if padded else 0
    options: dict[str, Any] = {"ceil_mode": ceil_mode, "count_include_pad": count}

    def run(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel, stride, padding, **options, divisor_override=divisor)

    assert_parity(run, double(*shape), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [2, (4, 3), (8, 6)])
def test_windows_that_tile_the_map(kernel: Any, layout: str) -> None:
    assert_parity(lambda x: F.avg_pool2d(x, kernel), double(2, 3, 8, 6), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", [1, 2, (3, 5), (None, 2), (7, 6)])
def test_adaptive_averages_are_stock(grid: Any, layout: str) -> None:
    for batch in (0, 2):
        x = double(batch, 3, 7, 6)
        assert_parity(lambda x: F.adaptive_avg_pool2d(x, grid), x, layout=layout)
    if layout != "channels_last":
        assert_parity(lambda x: F.adaptive_avg_pool2d(x, grid), double(3, 7, 6), layout=layout)


@settings(max_examples=80, deadline=None)
@given(
    batch=st.sampled_from([None, 0, 1, 2]),
    size=st.tuples(st.integers(6, 9), st.integers(6, 9)),
    kernel=windows,
    stride=st.one_of(st.none(), windows),
    padded=st.booleans(),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil_mode=st.booleans(),
    few=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_maxima_are_stock(
    batch: int | None,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int] | None,
    padded: bool,
    dilation: tuple[int, int],
    ceil_mode: bool,
    few: bool,
    layout: str,
) -> None:
    shape = (3, *size) if batch is None else (batch, 3, *size)
    assume(batch is not None or layout != "channels_last")
    assume(all(d * (k - 1) < s for d, k, s in zip(dilation, kernel, size, strict=True)))
    padding = tuple(k // 2 for k in kernel) if padded else 0
    x = double(*shape)
    if few:  # ties everywhere
        x = x.detach().round().requires_grad_()

    def run(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)

    assert_parity(run, x, layout=layout)


def test_maxima_of_what_is_not_finite() -> None:
    x = torch.randn(2, 3, 6, 6)
    x[0, 0], x[0, 1, 2:4, 1] = -torch.inf, torch.nan
    x[1, :, 3] = torch.inf
    assert_parity(lambda x: F.max_pool2d(x, 3, 2, 1), x.requires_grad_(), rtol=0)


def test_gradcheck() -> None:
    x = double(2, 3, 6, 5)
    assert lean_gradcheck(lambda x: F.avg_pool2d(x, 3, 2, 1), x)
    assert lean_gradcheck(lambda x: F.avg_pool2d(x, (2, 5)), x)
    assert lean_gradcheck(lambda x: F.adaptive_avg_pool2d(x, (4, 2)), x)
    assert lean_gradcheck(lambda x: F.max_pool2d(x, 3, 2, 1), x)


def test_bytes_are_those_stated() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True) * 1
    assert kept_bytes(lambda: F.avg_pool2d(x, 2)) == 4 * x.numel()
    assert lean_bytes(lambda: F.avg_pool2d(x, 2)) == 0
    assert lean_bytes(lambda: F.adaptive_avg_pool2d(x, 3)) == 0
    assert kept_bytes(lambda: F.max_pool2d(x, 3, 2, 1)) == 4 * x.numel() + 8 * 2 * 3 * 4 * 4
    assert lean_bytes(lambda: F.max_pool2d(x, 3, 2, 1)) == 2 * 3 * 4 * 4


def test_a_window_beyond_a_byte_stays_stock() -> None:
    x = torch.randn(1, 1, 18, 18, requires_grad=True) * 1
    assert lean_bytes(lambda: F.max_pool2d(x, 16)) == 1
    assert lean_bytes(lambda: F.max_pool2d(x, (16, 17))) == 4 * x.numel() + 8
    assert_parity(lambda x: F.max_pool2d(x, 16), double(1, 2, 32, 32))


def test_indices_are_given_when_asked_for() -> None:
    x = double(1, 2, 6, 6)
    with LeanMode(Lean()):
        y, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(indices, F.max_pool2d(x, 2, return_indices=True)[1])
    assert y.requires_grad


def test_other_spellings() -> None:
    assert_parity(lambda x: torch.max_pool2d(x, [2]), double(1, 2, 6, 6))
    assert_parity(lambda x: F.avg_pool2d(x, [2], stride=[]), double(1, 2, 6, 6))
