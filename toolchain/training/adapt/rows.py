"""Blocks in training: rows whose gate is closed neither run nor keep anything.

Rules of this file: pure functions of tensors with gradients of their own; no module, no gate, no
backbone. It splits a batch into the rows that a block computes and the rows that skip it, and joins
them again with the correction on top, each in one pass over the map.

The gradient of a decision is the straight-through one, taken on the adaptor's coarse grid::

    dL / d open_n  =  < dL / d correction_n , pool(block(x))_n - pool(x)_n >

The full-resolution product would keep the whole map ``block(x) - x`` for each block, and avoiding
that is what this project is for. For a row whose gate is open the block has run anyway. Of the
closed rows, one in ``PROBED`` runs for its gate's sake, without a gradient of its own, and counts
``PROBED`` times: the expectation is that of running all of them. Without probes, a gate that closes
early never learns that its block would have helped (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.training.adapt.adaptors import channels_back, channels_first
from toolchain.training.adapt.blocks import Layout
from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.function import is_last
from toolchain.training.lean.options import Keep

PROBED = 8
"""One in so many closed rows runs, to tell its gate what the block would have changed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch split by a decision: indices (int64) of the rows with an open and a closed gate."""

    opened: Tensor
    closed: Tensor

    @classmethod
    def of(cls, decision: Tensor) -> Rows:
        """Split a batch by a decision ``[N, 1]`` of 0 and 1."""
        # nonzero() reads values: a GPU has to finish first, and the meta device has none to read.
        # So memory.analytic passes another split.
        is_open = decision.detach().reshape(-1) > 0
        return cls(is_open.nonzero().reshape(-1), (~is_open).nonzero().reshape(-1))

    def probes(self, generator: torch.Generator | None) -> Tensor:
        """Draw the closed rows that run to inform their gate: int64 indices ``[R]``, rising."""
        # Drawn on the CPU, where the seeded generator lives, so that every device draws the same
        # rows.
        drawn = torch.rand(len(self.closed), generator=generator) < 1 / PROBED
        return self.closed[drawn.to(self.closed.device)]


@dataclass(frozen=True, slots=True)
class DecisionGradient:
    """What a decision's gradient needs: the decision ``[N, 1]`` and what the block changed.

    ``change``: ``pool(block(x)) - pool(x)`` ``[R, C, h, w]`` of the rows that ran, ``ran`` (int64
    ``[R]``); each of them counts ``weight`` ``[R]`` times.
    """

    decision: Tensor
    change: Tensor
    ran: Tensor
    weight: Tensor


def split_rows(x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the open rows of ``x``, a map ``[N, ...]``, and the closed ones, in their order."""
    # Without rows on one side there is nothing to split and nothing to copy.
    if not len(rows.closed):
        return x, x[:0]
    if not len(rows.opened):
        return x[:0], x
    opened, closed = _SplitRows.apply(x, rows.opened, rows.closed)  # type: ignore[no-untyped-call]
    return opened, closed


def corrected(y: Tensor, correction: Tensor, layout: Layout) -> Tensor:
    """Return ``y`` plus the upsampled correction ``[N, C, h, w]``; nothing is kept."""
    result: Tensor = _Corrected.apply(y, correction, layout)  # type: ignore[no-untyped-call]
    return result


def join(
    opened: Tensor,
    closed: Tensor,
    correction: Tensor,
    rows: Rows,
    layout: Layout,
    *,
    gradient: DecisionGradient,
    precision: Keep = "fp32",
) -> Tensor:
    """Return the whole map: each row from ``opened`` or ``closed``, plus the upsampled correction.

    ``correction``: ``[N, C, h, w]`` for maps of any layout. ``gradient`` gives the decision its
    gradient; the change in it waits for the backward pass in ``precision``.
    """
    joined: Tensor = _Join.apply(  # type: ignore[no-untyped-call]
        (layout, precision),
        *(opened, closed, correction),
        *(gradient.decision, gradient.change, gradient.ran, gradient.weight),
        *(rows.opened, rows.closed),
    )
    return joined


class _SplitRows(torch.autograd.Function):
    """The rows of a batch in two parts; one pass over the map merges their gradients.

    Two plain indexings would each fill a gradient of full size with zeros, and then add both.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, opened_rows: Tensor, closed_rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(opened_rows, closed_rows)
        return take_rows(x, opened_rows), take_rows(x, closed_rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        opened_rows, closed_rows = ctx.saved_tensors
        return _merged(grads[0], grads[1], opened_rows, closed_rows), None, None


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (int64 ``[R]``) of a batch, in the batch's memory format."""
    # Indexing a channels-last map would return a contiguous one.
    if is_last(x):
        return x.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    return x[rows]


def _merged(opened: Tensor, closed: Tensor, opened_rows: Tensor, closed_rows: Tensor) -> Tensor:
    """Put two parts of a batch together again, in one pass."""
    shape = (len(opened_rows) + len(closed_rows), *opened.shape[1:])
    # An empty part is contiguous in every format, so it cannot tell how the map lies.
    like = closed if len(closed_rows) else opened
    if is_last(like):
        last = (0, 2, 3, 1)
        batch = _merged(opened.permute(last), closed.permute(last), opened_rows, closed_rows)
        return batch.permute(0, 3, 1, 2)
    batch = like.new_empty(shape)
    batch.index_copy_(0, opened_rows, opened)
    return batch.index_copy_(0, closed_rows, closed)


class _Corrected(torch.autograd.Function):
    """A map plus its upsampled correction. The backward pass needs shapes alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, correction: Tensor, layout: Layout) -> Tensor:
        ctx.layout, ctx.coarse = layout, correction.shape[2:]
        return channels_back(_add(channels_first(y, layout), correction), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return grad, _pooled_sum(channels_first(grad, ctx.layout), ctx.coarse), None


class _Join(torch.autograd.Function):
    """Two parts of a batch and the correction, joined; the decision gets its coarse gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        how: tuple[Layout, Keep],
        opened: Tensor,
        closed: Tensor,
        correction: Tensor,
        decision: Tensor,  # noqa: ARG004 - it receives a gradient
        change: Tensor,
        ran: Tensor,
        weight: Tensor,
        opened_rows: Tensor,
        closed_rows: Tensor,
    ) -> Tensor:
        layout, precision = how
        ctx.layout, ctx.coarse = layout, correction.shape[2:]
        ctx.save_for_backward(opened_rows, closed_rows, ran, weight, *compress(change, precision))
        # Where all rows are on one side, that side is the whole map and needs no copy.
        if not len(closed_rows):
            y = opened
        elif not len(opened_rows):
            y = closed
        else:
            y = _merged(opened, closed, opened_rows, closed_rows)
        return channels_back(_add(channels_first(y, layout), correction), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        opened_rows, closed_rows, ran, weight, *change = ctx.saved_tensors
        # The adaptor's own gradient, which is also the left side of the decision's.
        correction = _pooled_sum(channels_first(grad, ctx.layout), ctx.coarse)
        opened, closed = grad, grad[:0]
        if len(closed_rows):
            opened, closed = take_rows(grad, opened_rows), take_rows(grad, closed_rows)
        # The equation above. Rows that did not run say nothing: their gate's gradient is zero.
        decision = grad.new_zeros(grad.shape[0], 1)
        products = correction.index_select(0, ran) * decompress(tuple(change), grad.dtype)
        decision[ran] = (products.flatten(1).sum(1) * weight).unsqueeze(1)
        return None, opened, closed, correction, decision, None, None, None, None, None


def _cells(first: Tensor, coarse: Sequence[int]) -> Tensor:
    """View ``[N, C, H, W]`` as ``[N, C, h, H / h, w, W / w]``: the pixels of each coarse cell."""
    (n, c, height, width), (high, wide) = first.shape, coarse
    shape = (n, c, high, height // high, wide, width // wide)
    # Tensor.view refuses a channels-last map, though splitting an axis has always a view.
    return first.as_strided(shape, _split(first.stride(), height // high, width // wide))


def _split(strides: Sequence[int], rows: int, columns: int) -> tuple[int, ...]:
    batch, channel, down, along = strides
    return (batch, channel, down * rows, down, along * columns, along)


def _add(first: Tensor, correction: Tensor) -> Tensor:
    """Add a correction on the coarse grid to a map ``[N, C, H, W]``."""
    coarse = correction.shape[2:]
    if coarse == first.shape[2:] or tuple(coarse) == (1, 1):
        return first + correction
    # Broadcasting over the cells makes no upsampled copy of the correction.
    return (_cells(first, coarse) + correction[:, :, :, None, :, None]).reshape(first.shape)


def _pooled_sum(grad: Tensor, coarse: Sequence[int]) -> Tensor:
    """Sum a gradient ``[N, C, H, W]`` over each cell of the coarse grid: upsampling's transpose."""
    if tuple(coarse) == tuple(grad.shape[2:]):
        return grad
    if tuple(coarse) == (1, 1):
        return grad.sum((2, 3), keepdim=True)
    window = (grad.shape[2] // coarse[0], grad.shape[3] // coarse[1])
    # Averaging is vectorised where summing over two strided dimensions is not.
    return F.avg_pool2d(grad, window) * (window[0] * window[1])
