"""Lean norms against stock autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.lean_parity import (
    LAYOUTS,
    Function,
    answers,
    assert_parity,
    double,
    kept_bytes,
    lean_bytes,
    lean_gradcheck,
)
from toolchain.training.lean import Lean, LeanMode
from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.options import Keep


def batch_norm(mean: Tensor, variance: Tensor, training: bool = False) -> Function:
    def run(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training)

    return run


def group_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.group_norm(x, 2, weight, bias)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[-2:], weight, bias)


MEAN = torch.linspace(-1, 1, 4, dtype=torch.float64)
VARIANCE = torch.linspace(0.1, 2, 4, dtype=torch.float64)
NORMS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "batch": (batch_norm(MEAN, VARIANCE), (4,)),
    "batch statistics": (batch_norm(MEAN, VARIANCE, training=True), (4,)),
    "group": (group_norm, (4,)),
    "layer": (layer_norm, (5, 5)),
}


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(NORMS)),
    batch=st.integers(0, 2),
    layout=st.sampled_from(LAYOUTS),
    affine=st.booleans(),
    trained=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_gradients_are_stock(
    name: str, batch: int, layout: str, affine: bool, trained: tuple[bool, bool, bool]
) -> None:
    assume(any(trained[: 3 if affine else 1]))
    assume(batch or name != "batch statistics")
    # Stock GroupNorm crashes the process here (torch 2.13, CPU: no gradient of the map is wanted).
    assume(trained[0] or name != "group" or layout != "channels_last")
    norm, shape = NORMS[name]
    sizes = [(batch, 4, 5, 5), shape, shape][: 3 if affine else 1]
    tensors = [double(*s, grad=g) for s, g in zip(sizes, trained, strict=False)]
    assert_parity(norm, *tensors, layout=layout)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 7), (2, 4, 3, 3, 2)])
def test_other_numbers_of_dimensions(shape: tuple[int, ...]) -> None:
    x, weight, bias = double(*shape), double(4, grad=False), double(4)
    assert_parity(batch_norm(MEAN, VARIANCE), x, weight, bias, lean=Lean("int8"))
    assert_parity(group_norm, x, weight, bias)
    assert_parity(group_norm, x, weight, bias, lean=Lean("half"), rtol=2e-2)


@pytest.mark.parametrize("precision", ["half", "int8"])
def test_a_trained_weight_of_batch_norm_sees_the_restored_map(precision: Keep) -> None:
    x, weight, bias = double(3, 4, 5, 5), double(4), double(4)
    restored = decompress(compress(x.detach(), precision), x.dtype)
    norm = batch_norm(MEAN, VARIANCE)
    stock = answers(norm, [restored, weight, bias], "contiguous")[1]
    exact = answers(norm, [x, weight, bias], "contiguous")[1]
    with LeanMode(Lean(precision)):
        lean = answers(norm, [x, weight, bias], "contiguous")[1]
    torch.testing.assert_close(lean, [exact[0], *stock], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["group", "layer"])
@pytest.mark.parametrize("affine", [False, True])
def test_frozen_norms_under_half_are_near_stock(name: str, affine: bool) -> None:
    norm, shape = NORMS[name]
    weights = [double(*shape, grad=False), double(*shape)] if affine else []
    for layout in LAYOUTS:
        assert_parity(norm, double(2, 4, 5, 5), *weights, layout=layout, lean=Lean("half"),
                      rtol=2e-2)  # fmt: skip
    # Two bytes are what half keeps: nothing is rounded then, and the path itself is exact.
    x = torch.randn(2, 4, 5, 5).bfloat16().requires_grad_()
    weights = [w.detach().bfloat16().requires_grad_(w.requires_grad) for w in weights]
    assert_parity(norm, x, *weights, lean=Lean("half"), rtol=2e-2)


def test_gradcheck() -> None:
    for norm, shape in (NORMS["batch"], NORMS["group"], NORMS["layer"]):
        assert lean_gradcheck(norm, double(2, 4, 5, 5), double(*shape, grad=False), double(*shape))


def test_bytes_are_those_stated() -> None:
    x = torch.randn(3, 4, 5, 5, requires_grad=True) * 1
    mean, variance = MEAN.float(), VARIANCE.float()
    frozen, trained = torch.ones(4), torch.ones(4, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    free = (mean, variance, frozen, trained, bias)
    elements = 3 * 4 * 5 * 5

    def batch(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: F.batch_norm(x, mean, variance, weight, bias)

    def group() -> Tensor:
        return F.group_norm(x, 2, frozen, bias)

    def layer() -> Tensor:
        return F.layer_norm(x, (5, 5), None, None)

    assert kept_bytes(batch(frozen), *free) == 4 * elements
    stated: dict[Keep, tuple[int, int]] = {"fp32": (4, 0), "half": (2, 0), "int8": (1, 24)}
    for precision, (each, more) in stated.items():
        lean, size = Lean(precision), each * elements + more
        assert lean_bytes(batch(frozen), *free, lean=lean) == 0
        assert lean_bytes(batch(trained), *free, lean=lean) == size
        assert lean_bytes(group, *free, lean=lean) == size + 2 * 4 * 3 * 2
        assert lean_bytes(layer, *free, lean=lean) == size + 2 * 4 * 3 * 4


def test_a_shift_alone_keeps_nothing() -> None:
    x, weight, bias = torch.randn(2, 4, 5, 5), torch.ones(4), torch.zeros(4, requires_grad=True)
    assert kept_bytes(lambda: group_norm(x, weight, bias), weight, bias) > 0
    assert lean_bytes(lambda: group_norm(x, weight, bias), weight, bias) == 0
    shift = torch.zeros(5, 5, requires_grad=True)
    assert lean_bytes(lambda: layer_norm(x, None, shift), shift) == 0
