"""Maps kept in fewer bytes, with a stated error.

Rules of this file: one map in, its compressed form out, and back. ``fp32`` is the map itself,
whatever its dtype. ``half`` is float16; a map of two bytes per element stays as it is. ``int8`` is
one unsigned byte per element, with one offset and one step per sample (dimension 0), rounded to
nearest. The same map always compresses to the same bytes. No layers here.

Errors stay visible. A value beyond float16's range becomes infinite under ``half``, and a sample
with NaN or Inf comes back from ``int8`` as not finite: the error bound says so and training stops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolchain.training.lean.options import Keep

_LEVELS = 255
_HALF_OVERFLOW = 65520.0  # the least magnitude that rounds to infinity in float16


def compress(x: Tensor, precision: Keep) -> tuple[Tensor, ...]:
    """Return a map ``[N, ...]`` in the form in which it waits for the backward pass.

    That is ``(x,)``, or ``(bytes, offset, step)`` for int8. ``offset`` and ``step`` are ``[N]`` in
    the map's dtype, at least float32. All but ``fp32`` own their storage.
    """
    if precision == "int8":
        return _quantise(x)
    if precision == "half" and x.element_size() > 2:
        return (x.to(torch.float16),)
    return (x,)


def decompress(compressed: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Return the map in its shape, in ``dtype``, within :func:`error_bound`."""
    if len(compressed) == 1:
        return compressed[0].to(dtype)
    levels, offset, step = compressed
    x = levels.to(offset.dtype)
    return x.mul_(_column(step, x)).add_(_column(offset, x)).to(dtype)


def error_bound(x: Tensor, precision: Keep) -> Tensor:
    """Return the largest absolute error per sample ``[N]`` of a decompressed map ``[N, ...]``.

    ``half``: 2^-11 of the largest magnitude, plus half of the smallest subnormal. ``int8``: half a
    step, (max - min) / 510, and the rounding of the arithmetic. Not finite where nothing holds.
    """
    wide = _widen(x)
    low, high = _range(wide)
    largest = torch.maximum(low.abs(), high.abs())
    if precision == "int8":
        wide_eps, map_eps = torch.finfo(wide.dtype).eps, torch.finfo(x.dtype).eps
        # Half a step is half of one level in 255. Four roundings by one eps of a level up to 255
        # are about 2048 eps of it.
        rounding = 4 * map_eps * largest + torch.finfo(wide.dtype).tiny
        return (high - low) / (2 * _LEVELS) * (1 + 2048 * wide_eps) + rounding
    if precision == "half" and x.element_size() > 2:
        bound = largest * 2.0**-11 + 2.0**-25
        return bound.masked_fill(largest >= _HALF_OVERFLOW, torch.inf)
    return torch.zeros_like(largest)


def _quantise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = _widen(x)
    low, high = _range(wide)
    # Divide first: the difference of two large values of either sign could overflow.
    step = high / _LEVELS - low / _LEVELS
    # A constant sample has no range; its offset alone restores it.
    divisor = step.masked_fill(step == 0, 1)
    levels = (wide - _column(low, wide)).div_(_column(divisor, wide)).round_().clamp_(0, _LEVELS)
    return levels.to(torch.uint8), low, step


def _widen(x: Tensor) -> Tensor:
    x = x.detach()
    return x.to(torch.float32) if x.element_size() < 4 else x


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest value of each sample, ``[N]`` each."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[:1]), x.new_zeros(x.shape[:1])
    # The extra last dimension lets a map of one dimension have something to reduce over.
    within = tuple(range(1, x.dim() + 1))
    # Two passes, since torch's aminmax over dimensions takes ten times as long.
    return x.unsqueeze(-1).amin(within), x.unsqueeze(-1).amax(within)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """View ``[N]`` so that it meets ``[N, ...]`` sample by sample."""
    return values.view(-1, *[1] * (x.dim() - 1))
