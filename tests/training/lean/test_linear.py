"""Lean linear layer against stock autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.lean_parity import answers, assert_parity, double, lean_bytes, lean_gradcheck
from toolchain.training.lean import Lean, LeanMode
from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.options import Keep


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(3,), (2, 3), (0, 3), (2, 4, 3), (2, 0, 3), (2, 2, 2, 3)]),
    strided=st.booleans(),
    trained=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_gradients_are_stock(
    shape: tuple[int, ...], strided: bool, trained: tuple[bool, bool, bool]
) -> None:
    assume(any(trained))
    tensors = [
        double(*size, grad=grad) for size, grad in zip((shape, (5, 3), (5,)), trained, strict=True)
    ]
    assert_parity(F.linear, *tensors, layout="strided" if strided else "contiguous")


@pytest.mark.parametrize("precision", ["half", "int8"])
def test_a_trained_weight_sees_the_restored_map(precision: Keep) -> None:
    x, weight, bias = double(2, 4, 3), double(5, 3), double(5)
    restored = decompress(compress(x.detach(), precision), x.dtype)
    stock = answers(F.linear, [restored, weight, bias], "contiguous")[1]
    exact = answers(F.linear, [x, weight, bias], "contiguous")[1]
    with LeanMode(Lean(precision)):
        lean = answers(F.linear, [x, weight, bias], "contiguous")[1]
    torch.testing.assert_close(lean, [exact[0], *stock], rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    assert lean_gradcheck(F.linear, double(2, 4, 3), double(5, 3, grad=False), double(5))


def test_bytes_are_those_stated() -> None:
    x = torch.randn(2, 7, 8, requires_grad=True) * 1
    frozen, trained = torch.randn(4, 8), torch.randn(4, 8, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    assert lean_bytes(lambda: F.linear(x, frozen, bias), frozen, bias) == 0
    stated: dict[Keep, int] = {"fp32": 4 * 112, "half": 2 * 112, "int8": 112 + 2 * 8}
    for precision, expected in stated.items():
        size = lean_bytes(lambda: F.linear(x, trained, bias), trained, bias, lean=Lean(precision))
        assert size == expected


def test_its_answer_can_be_changed_in_place() -> None:
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight).mul_(2).relu_()

    assert_parity(run, x, weight, rtol=1e-5)


def test_a_weight_of_one_row_stays_stock() -> None:
    assert_parity(F.linear, double(2, 3), double(3, grad=False))
