"""Lean activations against stock autograd: borders, NaN, strides, in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.lean_parity import (
    LAYOUTS,
    Function,
    assert_parity,
    double,
    kept_bytes,
    lean_bytes,
    lean_gradcheck,
)
from toolchain.training.lean import Lean, LeanMode, activations, bits

MASK = Lean(smooth="mask")

LINEAR: dict[str, Function] = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "F.relu inplace": lambda x: F.relu(x.clone(), inplace=True),
    "torch.relu_": lambda x: torch.relu_(x.clone()),
    "Tensor.relu_": lambda x: x.clone().relu_(),
    "F.relu6": F.relu6,
    "F.relu6 inplace": lambda x: F.relu6(x.clone(), inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x.clone(), -0.5, 2.0),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.leaky_relu negative": lambda x: F.leaky_relu(x, -0.2),
    "F.leaky_relu zero": lambda x: F.leaky_relu(x, 0.0),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x.clone(), 0.2),
}
CLAMPS = ["F.relu6", "F.relu6 inplace", "F.hardtanh", "F.hardtanh_"]
SMOOTH: dict[str, Function] = {
    "hardswish": F.hardswish,
    "hardswish inplace": lambda x: F.hardswish(x.clone(), inplace=True),
    "silu": F.silu,
    "silu inplace": lambda x: F.silu(x.clone(), inplace=True),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_are_stock(name: str) -> None:
    @settings(max_examples=15, deadline=None)
    @given(
        shape=st.sampled_from([(2, 3, 4, 5), (0, 3, 2, 2), (1, 8, 1, 1)]),
        layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    )
    def law(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
        x = (4 * torch.randn(shape)).to(dtype).requires_grad_()
        assert_parity(LINEAR[name], x, layout=layout, rtol=0)

    law()


@pytest.mark.parametrize("name", LINEAR)
def test_borders_and_what_is_not_finite(name: str) -> None:
    special = [0.0, -0.0, 6.0, -0.5, 2.0, 1e-40, torch.nan, torch.inf, -torch.inf, -1.0, 1.0]
    x, g = torch.meshgrid(torch.tensor(special), torch.tensor(special), indexing="ij")
    if name in CLAMPS:  # stock is not one rule on NaN, see test_clamps_pass_where_the_map_is_nan
        x = x.nan_to_num(1.0)
    assert_parity(LINEAR[name], x.clone().requires_grad_(), cotangent=g.clone(), rtol=0)


@pytest.mark.parametrize("name", CLAMPS)
def test_clamps_pass_where_the_map_is_nan(name: str) -> None:
    x = torch.full((40,), torch.nan, requires_grad=True)
    with LeanMode(Lean()):
        y = LINEAR[name](x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(40))
    (stock,) = torch.autograd.grad(LINEAR[name](x).sum(), x)
    assert 0 < float(stock.sum()) < 40, "stock has one rule now: take it over"


@pytest.mark.parametrize("name", ["F.relu", "F.leaky_relu_", "F.hardtanh"])
def test_maps_of_many_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_CHUNK", 16)
    for layout in LAYOUTS:
        assert_parity(LINEAR[name], double(2, 3, 5, 7), layout=layout, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
def test_the_path_of_other_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (activations, bits):
        monkeypatch.setattr(module, "by_numpy", lambda _: False)
    for layout in LAYOUTS:
        assert_parity(LINEAR[name], double(2, 3, 5, 7), layout=layout, rtol=0)


def test_a_gradient_in_another_layout_than_the_map() -> None:
    x, g = double(2, 3, 4, 5), double(2, 3, 4, 5, grad=False)
    for layout in ("contiguous", "channels_last"):
        for other in (g, g.contiguous(memory_format=torch.channels_last), g[:1].expand_as(g)):
            assert_parity(F.relu, x, layout=layout, cotangent=other, rtol=0)


@pytest.mark.parametrize("name", [n for n in LINEAR if n != "F.leaky_relu negative"])
def test_gradcheck(name: str) -> None:
    assert lean_gradcheck(LINEAR[name], double(2, 3, 4))


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_ones_are_exact_unless_asked(name: str) -> None:
    x = double(2, 3, 4, 5)
    assert_parity(SMOOTH[name], x)
    stock = SMOOTH[name](x.detach())
    y = laid_mask(SMOOTH[name], x)
    assert torch.equal(y, stock)
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 3.0))
    assert torch.equal(gradient, 3.0 * (x > 0))


def laid_mask(function: Function, x: Tensor) -> Tensor:
    with LeanMode(MASK):
        return function(x)


def test_bytes_are_those_stated() -> None:
    x = torch.randn(3, 5, 7, 3, requires_grad=True) * 1
    elements = 3 * 5 * 7 * 3
    for name, function in LINEAR.items():
        expected = (elements + 7) // 8
        assert lean_bytes(lambda f=function: f(x)) == expected, name  # type: ignore[misc]
        assert kept_bytes(lambda f=function: f(x)) == 4 * elements, name  # type: ignore[misc]
    for name, function in SMOOTH.items():
        size = lean_bytes(lambda f=function: f(x), lean=MASK)  # type: ignore[misc]
        assert size == (elements + 7) // 8, name
        assert lean_bytes(lambda f=function: f(x)) == 4 * elements, name  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: F.relu(x, inplace=True),
        F.hardtanh_,
        lambda x: F.leaky_relu_(x, 0.1),
    ],
)
def test_in_place_is_in_place(change: Callable[[Tensor], Tensor]) -> None:
    leaf = torch.randn(3, 4, requires_grad=True)
    with LeanMode(Lean()):
        x = leaf * 1
        before = x._version
        y = change(x)
        assert y is x
        assert x._version > before
        with pytest.raises(RuntimeError, match=r"leaf Variable.*in-place"):
            change(leaf)


def test_in_place_with_a_negative_slope_is_refused_as_by_stock() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with LeanMode(Lean()):
        y = F.leaky_relu_(x * 1, -0.2)
    with pytest.raises(RuntimeError, match="negative slope"):
        torch.autograd.backward(y.sum())
