"""Kept maps come back within their stated bound and in their stated bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolchain.training.lean.compression import compress, decompress, error_bound
from toolchain.training.lean.options import Keep

PRECISIONS: list[Keep] = ["fp32", "half", "int8"]


@st.composite
def maps(draw: st.DrawFn) -> Tensor:
    shape = draw(st.sampled_from([(1, 1), (3, 5), (2, 3, 4, 4), (0, 3, 2, 2), (2, 0)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    magnitude = 10.0 ** draw(st.integers(-44, 4))
    offset = draw(st.sampled_from([0.0, 1.0, -1e4])) * draw(st.sampled_from([1.0, magnitude]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x * magnitude + offset).to(dtype)


def largest_error(x: Tensor, precision: Keep) -> Tensor:
    back = decompress(compress(x, precision), x.dtype)
    assert back.shape == x.shape
    assert back.dtype == x.dtype
    rows = (back.double() - x.double()).abs().flatten(1)
    return rows.amax(1) if rows.numel() else rows.new_zeros(x.shape[0])


@given(x=maps(), precision=st.sampled_from(PRECISIONS))
def test_the_error_stays_within_the_bound(x: Tensor, precision: Keep) -> None:
    bound = error_bound(x, precision).double()
    assert bound.shape == x.shape[:1]
    assert bool((largest_error(x, precision) <= bound).all())


def test_the_int8_bound_is_half_a_step_and_tight() -> None:
    x = torch.linspace(-1, 3, 4001).expand(2, -1)
    bound = error_bound(x, "int8")
    torch.testing.assert_close(bound, torch.full((2,), 4 / 510), rtol=1e-3, atol=0)
    assert bool((largest_error(x, "int8") > 0.99 * bound).all())


def test_bytes_are_those_stated_and_owned() -> None:
    x = torch.randn(4, 3, 5, 5)
    sizes = {
        precision: [t.untyped_storage().nbytes() for t in compress(x[:2, :, ::2], precision)]
        for precision in PRECISIONS
    }
    assert sizes["half"] == [2 * 3 * 3 * 5 * 2]
    assert sizes["int8"] == [2 * 3 * 3 * 5, 2 * 4, 2 * 4]
    assert compress(x, "fp32")[0] is x
    assert compress(x.bfloat16(), "half")[0].dtype == torch.bfloat16


def test_a_sample_does_not_coarsen_its_neighbours() -> None:
    x = torch.randn(3, 50)
    x[1] *= 1e6
    alone = decompress(compress(x[:1], "int8"), x.dtype)
    assert torch.equal(decompress(compress(x, "int8"), x.dtype)[:1], alone)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    x = torch.ones(2, 4)
    x[1, 2] = bad
    for precision in PRECISIONS:
        back = decompress(compress(x, precision), x.dtype)
        assert torch.equal(back[0], x[0])
        assert not back[1].isfinite().all()


def test_beyond_float16_the_bound_says_so() -> None:
    x = torch.tensor([[65519.0], [65520.0]])
    assert error_bound(x, "half").isfinite().tolist() == [True, False]
    assert decompress(compress(x, "half"), x.dtype).isfinite().flatten().tolist() == [True, False]
