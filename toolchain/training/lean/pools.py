"""Pools that drop their input.

Rules of this file: an average's gradient needs shapes alone. A maximum keeps its place in the
window, in one byte. torch's own backward kernels do the sums. They take the input for its sizes
only, so they get a stand-in that is never read. Stock runs where a place does not fit a byte, where
the caller wants indices, and for an average over the whole map, for which stock keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.training.lean.function import (
    Gradients,
    Pair,
    Size,
    apply,
    format_of,
    once_differentiable,
    pair,
    records,
)
from toolchain.training.lean.options import Lean

_PLACES = 256  # that fit a byte


@dataclass(frozen=True, slots=True)
class _Map:
    """Shape and memory format of a dropped input."""

    shape: torch.Size
    format: torch.memory_format

    @staticmethod
    def of(x: Tensor) -> _Map:
        """Return those of ``x``."""
        return _Map(x.shape, format_of(x))

    def stand_in(self, g: Tensor) -> Tensor:
        """Return a tensor of the dropped input's shape and of any values, in g's dtype."""
        # The kernels choose their layout by the input, and a layout other than the gradient's costs
        # copies. One element can stand for a contiguous map, but not for channels last.
        if self.format is torch.channels_last:
            return torch.empty(
                self.shape, dtype=g.dtype, device=g.device, memory_format=self.format
            )
        return g.new_empty(()).expand(self.shape)

    def shaped(self, gradient: Tensor) -> Tensor:
        """Return a gradient in the dropped input's memory format."""
        return gradient.contiguous(memory_format=self.format)


@dataclass(frozen=True, slots=True)
class _Average:
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    def value(self, x: Tensor) -> Tensor:
        """Return the averages of ``[N, C, H, W]`` or ``[C, H, W]``."""
        return F.avg_pool2d(
            x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
            self.divisor,
        )  # fmt: skip

    def gradient(self, g: Tensor, source: _Map) -> Tensor:
        """Return the input's gradient from that of the averages."""
        if self._tiles(g, source):
            return source.shaped(self._repeat(g, source))
        result: Tensor = torch.ops.aten.avg_pool2d_backward(
            g, source.stand_in(g), self.kernel, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor,
        )  # fmt: skip
        return source.shaped(result)

    def _tiles(self, g: Tensor, source: _Map) -> bool:
        """Tell whether the windows cover the map and nowhere overlap: then a gradient is a copy."""
        whole = all(g.shape[i - 2] * self.kernel[i] == source.shape[i - 2] for i in (0, 1))
        return g.dim() == 4 and whole and self.kernel == self.stride and self.padding == (0, 0)

    def _repeat(self, g: Tensor, source: _Map) -> Tensor:
        """Repeat each share over its window, in the storage order of the dropped input."""
        n, c, h, w = g.shape
        a, b = self.kernel
        # Whole windows have no padding, so every one divides by the same number.
        share = g / (self.divisor or a * b)
        if source.format is torch.channels_last:
            cells = share.permute(0, 2, 3, 1)[:, :, None, :, None].expand(n, h, a, w, b, c)
            return cells.reshape(n, h * a, w * b, c).permute(0, 3, 1, 2)
        return share[:, :, :, None, :, None].expand(n, c, h, a, w, b).reshape(source.shape)


@dataclass(frozen=True, slots=True)
class _Adaptive:
    target: Any

    def value(self, x: Tensor) -> Tensor:
        """Return the averages of ``[N, C, H, W]`` or ``[C, H, W]``."""
        return F.adaptive_avg_pool2d(x, self.target)

    def gradient(self, g: Tensor, source: _Map) -> Tensor:
        """Return the input's gradient from that of the averages."""
        result: Tensor = torch.ops.aten._adaptive_avg_pool2d_backward(g, source.stand_in(g))
        return source.shaped(result)


class _Averaged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: _Average | _Adaptive) -> Tensor:
        ctx.pool, ctx.source = pool, _Map.of(x)
        return pool.value(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        return ctx.pool.gradient(g, ctx.source), None


def avg_pool2d(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    lean: Lean,  # noqa: ARG001 - every function of the table takes it
) -> Tensor:
    """Average windows of ``[N, C, H, W]`` or ``[C, H, W]`` as ``avg_pool2d`` of torch does."""
    kernel = pair(kernel_size)
    pool = _Average(
        kernel, _stride(stride, kernel), pair(padding), ceil_mode, count_include_pad,
        divisor_override,
    )  # fmt: skip
    if not records(input):
        return pool.value(input)
    return apply(_Averaged, input, pool)


def adaptive_avg_pool2d(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    output_size: int | Sequence[int | None] | None,
    *,
    lean: Lean,  # noqa: ARG001 - every function of the table takes it
) -> Tensor:
    """Average to a grid of ``output_size`` as ``adaptive_avg_pool2d`` of torch does."""
    pool = _Adaptive(output_size)
    if output_size in (1, (1, 1), [1, 1]) or not records(input):
        return pool.value(input)
    return apply(_Averaged, input, pool)


@dataclass(frozen=True, slots=True)
class _Maximum:
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    def value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maxima and their positions in the map, int64."""
        return F.max_pool2d_with_indices(
            x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def offsets(self, indices: Tensor, width: int) -> Tensor:
        """Turn positions in the map, int64 ``[..., h, w]``, into places in their windows, uint8.

        A position is row * width + column of the whole map. Seen from its window's first element it
        is the same for every window, so one table serves all.
        """
        # In a window as wide as the map two places may be one position; either restores it.
        places = self._places(width, indices.device)
        table = torch.zeros(self._reach(width) + 1, dtype=torch.uint8, device=indices.device)
        table[places] = torch.arange(len(places), dtype=torch.uint8, device=indices.device)
        return torch.take(table, indices - self._corners(indices, width))

    def indices(self, offsets: Tensor, width: int) -> Tensor:
        """Undo :meth:`offsets`."""
        places = self._places(width, offsets.device)
        # index_select takes no bytes.
        inside = places.index_select(0, offsets.reshape(-1).to(torch.int32)).view(offsets.shape)
        return inside.add_(self._corners(offsets, width))

    def gradient(self, g: Tensor, offsets: Tensor, source: _Map) -> Tensor:
        """Return the input's gradient from that of the maxima and their places in the windows."""
        result: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            g, source.stand_in(g), self.kernel, self.stride, self.padding, self.dilation,
            self.ceil_mode, self.indices(offsets, source.shape[-1]),
        )  # fmt: skip
        return source.shaped(result)

    def _corners(self, like: Tensor, width: int) -> Tensor:
        """Return the position ``[h, w]`` of each window's first element, padding included."""
        h, w = like.shape[-2:]
        rows = torch.arange(h, device=like.device) * self.stride[0] - self.padding[0]
        columns = torch.arange(w, device=like.device) * self.stride[1] - self.padding[1]
        return rows[:, None] * width + columns

    def _reach(self, width: int) -> int:
        """Return the position of a window's last element, seen from its first one."""
        last = self.kernel[0] - 1, self.kernel[1] - 1
        return last[0] * self.dilation[0] * width + last[1] * self.dilation[1]

    def _places(self, width: int, device: torch.device) -> Tensor:
        """Return the positions ``[kh * kw]`` of a window's elements, from its first one."""
        rows = torch.arange(self.kernel[0], device=device) * (self.dilation[0] * width)
        columns = torch.arange(self.kernel[1], device=device) * self.dilation[1]
        return (rows[:, None] + columns).reshape(-1)


class _Maximised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: _Maximum) -> Tensor:
        y, indices = pool.value(x)
        ctx.pool, ctx.source = pool, _Map.of(x)
        ctx.save_for_backward(pool.offsets(indices, x.shape[-1]))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (offsets,) = ctx.saved_tensors
        return ctx.pool.gradient(g, offsets, ctx.source), None


def max_pool2d(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    lean: Lean,  # noqa: ARG001 - every function of the table takes it
) -> Tensor | tuple[Tensor, Tensor]:
    """Take the maxima of windows of ``[N, C, H, W]`` or ``[C, H, W]`` as ``max_pool2d`` of torch.

    Ties and NaN are decided by torch's own forward.
    """
    kernel = pair(kernel_size)
    pool = _Maximum(kernel, _stride(stride, kernel), pair(padding), pair(dilation), ceil_mode)
    if return_indices:
        return pool.value(input)
    if not fits_a_byte(kernel) or not records(input):
        return F.max_pool2d(input, kernel, pool.stride, pool.padding, pool.dilation, ceil_mode)
    return apply(_Maximised, input, pool)


def fits_a_byte(kernel_size: Size) -> bool:
    """Tell whether places in a window fit a byte; where they do not, the maximum runs stock."""
    height, width = pair(kernel_size)
    return height * width <= _PLACES


def _stride(value: Size | None, kernel: Pair) -> Pair:
    """Return the stride, that of the kernel where none is given."""
    absent = value is None or (not isinstance(value, int) and not len(value))
    return kernel if absent else pair(value)  # type: ignore[arg-type]
