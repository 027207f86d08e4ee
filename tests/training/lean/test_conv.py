"""Lean convolution against stock autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.lean_parity import (
    EXACT,
    LAYOUTS,
    answers,
    assert_parity,
    double,
    kept_bytes,
    lean_bytes,
    lean_gradcheck,
)
from toolchain.core.errors import AttachError
from toolchain.training.lean import Lean, LeanMode, Slice
from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.conv import conv2d
from toolchain.training.lean.options import Keep


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.integers(1, 2))
    stride: Any = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.just(1))))
    numbers = st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2)))
    named = st.sampled_from(["same", "valid"]) if stride == 1 else st.just("valid")
    return {
        "groups": groups,
        "channels": groups * draw(st.integers(1, 2)),
        "filters": groups * draw(st.integers(1, 2)),
        "kernel": kernel,
        "size": draw(st.tuples(st.integers(5, 8), st.integers(5, 8))),
        "batch": draw(st.integers(0, 2)),
        "options": (stride, draw(st.one_of(numbers, named)), dilation, groups),
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=60, deadline=None)
@given(
    c=convolutions(),
    layout=st.sampled_from(LAYOUTS),
    trained=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    bias=st.booleans(),
    precision=st.sampled_from(["fp32", "half", "int8"]),
)
def test_gradients_are_stock(
    c: dict[str, Any],
    layout: str,
    trained: tuple[bool, bool, bool],
    bias: bool,
    precision: Keep,
) -> None:
    assume(any(trained[: 3 if bias else 2]))
    of_x, of_weight, of_bias = trained
    x = double(c["batch"], c["channels"], *c["size"], grad=of_x)
    weight = double(c["filters"], c["channels"] // c["groups"], *c["kernel"], grad=of_weight)
    shift = [double(c["filters"], grad=of_bias)] if bias else []

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, *c["options"])

    if of_weight and precision != "fp32":
        weight.requires_grad_(False)
        assume(of_x or (bias and of_bias))
    assert_parity(run, x, weight, *shift, lean=Lean(precision), layout=layout)


def test_a_gradient_of_one_pixel_keeps_the_layout_of_the_map() -> None:
    """A map of one pixel and one channel is laid out in both ways; its input is not."""
    x, weight = double(1, 2, 5, 5), double(1, 2, 2, 2, grad=False)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, 3, "valid", 2)

    assert_parity(run, x, weight, layout="channels_last")


@pytest.mark.parametrize("precision", ["half", "int8"])
def test_a_trained_weight_sees_the_restored_map(precision: Keep) -> None:
    x, weight, bias = double(2, 4, 6, 6), double(6, 2, 3, 3), double(6)
    restored = decompress(compress(x.detach(), precision), x.dtype)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, 2, 1, 1, 2)

    stock = answers(run, [restored, weight, bias], "contiguous")[1]
    exact = answers(run, [x, weight, bias], "contiguous")[1]
    with LeanMode(Lean(precision)):
        lean = answers(run, [x, weight, bias], "contiguous")[1]
    torch.testing.assert_close(lean, [exact[0], *stock], rtol=1e-10, atol=1e-10)


def test_a_map_without_a_batch() -> None:
    for of_weight in (False, True):
        x, weight, bias = double(2, 6, 6), double(4, 2, 3, 3, grad=of_weight), double(4)
        assert_parity(lambda x, w, b: F.conv2d(x, w, b, 2, 1), x, weight, bias)
        with LeanMode(Lean("half")):
            gradients = answers(F.conv2d, [x, weight, bias], "contiguous")[1]
        assert [g.dim() for g in gradients] == ([3, 4, 1] if of_weight else [3, 1])


def test_gradcheck() -> None:
    x, weight, bias = double(2, 4, 5, 5), double(4, 2, 3, 3, grad=False), double(4)
    assert lean_gradcheck(lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, 2), x, weight, bias)


def test_a_part_takes_its_gradient_from_its_channels() -> None:
    weight, delta, index = double(3, 4, 2, 2, grad=False), double(3, 2, 2, 2), torch.tensor([2, 0])

    def run(x: Tensor, delta: Tensor) -> Tensor:
        return conv2d(x, weight, None, padding=1, lean=EXACT, part=Slice(delta, index))

    stock = double(2, 4, 5, 5)
    expected = torch.autograd.grad(
        F.conv2d(stock, weight.index_add(1, index, delta), None, padding=1).square().sum(),
        [stock, delta],
    )
    gradients = torch.autograd.grad(run(stock, delta).square().sum(), [stock, delta])
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen_input", [False, True])
def test_a_depthwise_part(frozen_input: bool) -> None:
    x, weight = double(2, 4, 6, 6, grad=not frozen_input), double(4, 1, 3, 3, grad=False)
    delta, index = double(2, 1, 3, 3), torch.tensor([3, 1])
    leaves = [delta] if frozen_input else [x, delta]
    whole = weight.index_add(0, index, delta)
    stock = torch.autograd.grad(F.conv2d(x, whole, None, 2, 1, 1, 4).square().sum(), leaves)
    with LeanMode(Lean(), {id(weight): Slice(delta, index)}):
        y = F.conv2d(x, weight, None, 2, 1, 1, 4)
    torch.testing.assert_close(y, F.conv2d(x, whole, None, 2, 1, 1, 4))
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    torch.testing.assert_close(gradients, stock, rtol=1e-10, atol=1e-10)


def test_bytes_are_those_stated() -> None:
    x = torch.randn(2, 8, 6, 6, requires_grad=True) * 1
    frozen, trained = torch.randn(4, 8, 3, 3), torch.randn(4, 8, 3, 3, requires_grad=True)
    delta, index = torch.randn(4, 3, 3, 3, requires_grad=True), torch.tensor([0, 2, 4])
    bias = torch.zeros(4, requires_grad=True)
    free = (frozen, trained, delta, index, bias)
    elements = 2 * 8 * 6 * 6
    assert kept_bytes(lambda: F.conv2d(x, frozen, bias), *free) == 4 * elements
    assert lean_bytes(lambda: F.conv2d(x, frozen, bias), *free) == 0
    stated: dict[Keep, tuple[int, int]] = {"fp32": (4, 0), "half": (2, 0), "int8": (1, 16)}
    for precision, (each, more) in stated.items():
        lean = Lean(precision)
        assert lean_bytes(lambda: F.conv2d(x, trained), *free, lean=lean) == each * elements + more
        with LeanMode(lean, {id(frozen): Slice(delta, index)}):
            size = kept_bytes(lambda: F.conv2d(x, frozen), *free)
        assert size == each * elements * 3 // 8 + more


def test_nothing_is_kept_where_nothing_is_trained() -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3)
    with LeanMode(Lean()):
        y = F.conv2d(x, weight)
    assert not y.requires_grad
    with LeanMode(Lean()), torch.no_grad():
        assert not F.conv2d(x.requires_grad_(), weight).requires_grad


def test_bad_parts_are_refused() -> None:
    x, part = torch.randn(1, 4, 4, 4), Slice(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]))
    with pytest.raises(AttachError, match="got 2 groups"):
        conv2d(x, torch.randn(4, 2, 1, 1), groups=2, lean=EXACT, part=part)
    with pytest.raises(AttachError, match="requires grad"):
        conv2d(x, torch.randn(4, 4, 1, 1, requires_grad=True), lean=EXACT, part=part)
