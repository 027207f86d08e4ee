"""Blocks in training: rows whose gate is closed neither run nor keep anything.

Rules of this file: pure functions of tensors with gradients of their own; no module, no gate, no
backbone. A batch is parted into the rows that a block computes and those that pass it by, and
joined again with the correction on top, each in one pass over the map.

The gradient of a decision is the straight-through one, seen on the adaptor's coarse grid::

    dL / d open_n  =  < dL / d correction_n , pool(block(x))_n - pool(x)_n >

The full-resolution product would keep the whole map ``block(x) - x`` for each block, which is what
this project exists to avoid. For a row whose gate is open the block has run anyway. Of the others
one in ``PROBED`` is run for its gate's sake, without a gradient of its own, and counts ``PROBED``
times: the expectation is that of running all. Without them a gate that closes early never hears
that its block would have helped (docs/decisions/0014).
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
from toolchain.training.lean.options import Precision

PROBED = 8
"""One in so many rows of closed gates is run to tell the gate what its block would have changed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch parted by a decision: indices (int64) of the rows that run and of the others."""

    run: Tensor
    rest: Tensor

    @classmethod
    def of(cls, decision: Tensor) -> Rows:
        """Part a batch by a decision ``[N, 1]`` of 0 and 1."""
        chosen = decision.detach().reshape(-1) > 0
        return cls(chosen.nonzero().reshape(-1), (~chosen).nonzero().reshape(-1))

    def probes(self, generator: torch.Generator | None) -> Tensor:
        """Draw the rows of closed gates that run to inform their gate: int64 indices."""
        drawn = torch.rand(len(self.rest), generator=generator) < 1 / PROBED
        return self.rest[drawn.to(self.rest.device)]


@dataclass(frozen=True, slots=True)
class DecisionGradient:
    """What a decision's gradient needs: the decision ``[N, 1]`` and what blocks changed.

    ``change``: ``pool(block(x)) - pool(x)`` ``[R, C, h, w]`` of the rows ``seen`` (int64 ``[R]``),
    each of which counts ``weight`` ``[R]`` times.
    """

    decision: Tensor
    change: Tensor
    seen: Tensor
    weight: Tensor


def part(x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the rows of ``x`` that run and the others."""
    if not len(rows.rest):
        return x, x[:0]
    if not len(rows.run):
        return x[:0], x
    run, rest = _Part.apply(x, rows.run, rows.rest)  # type: ignore[no-untyped-call]
    return run, rest


def corrected(y: Tensor, correction: Tensor, layout: Layout) -> Tensor:
    """Return ``y`` plus the upsampled correction ``[N, C, h, w]``; nothing is kept."""
    result: Tensor = _Corrected.apply(y, correction, layout)  # type: ignore[no-untyped-call]
    return result


def join(
    run: Tensor,
    rest: Tensor,
    correction: Tensor,
    rows: Rows,
    layout: Layout,
    *,
    difference: DecisionGradient,
    kept: Precision = "fp32",
) -> Tensor:
    """Return the whole map: each row from ``run`` or ``rest``, plus the upsampled correction.

    ``correction``: ``[N, C, h, w]`` for maps of any layout. ``difference`` gives the decision its
    gradient; its change waits for it in the precision ``kept``.
    """
    joined: Tensor = _Join.apply(  # type: ignore[no-untyped-call]
        (layout, kept),
        *(run, rest, correction),
        *(difference.decision, difference.change, difference.seen, difference.weight),
        *(rows.run, rows.rest),
    )
    return joined


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(run, rest)
        return taken(x, run), taken(x, rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run, rest = ctx.saved_tensors
        return _merged(grads[0], grads[1], run, rest), None, None


def taken(x: Tensor, chosen: Tensor) -> Tensor:
    """Return rows of a batch in the memory format that it has."""
    if is_last(x):
        return x.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)
    return x[chosen]


def _merged(run: Tensor, rest: Tensor, run_rows: Tensor, rest_rows: Tensor) -> Tensor:
    """Put two parts of a batch together again, in one pass."""
    shape = (len(run_rows) + len(rest_rows), *run.shape[1:])
    like = rest if len(rest_rows) else run
    if is_last(like):
        last = (0, 2, 3, 1)
        whole = _merged(run.permute(last), rest.permute(last), run_rows, rest_rows)
        return whole.permute(0, 3, 1, 2)
    whole = like.new_empty(shape)
    whole.index_copy_(0, run_rows, run)
    return whole.index_copy_(0, rest_rows, rest)


class _Corrected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, correction: Tensor, layout: Layout) -> Tensor:
        ctx.layout, ctx.coarse = layout, correction.shape[2:]
        return channels_back(_add(channels_first(y, layout), correction), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return grad, _pooled_sum(channels_first(grad, ctx.layout), ctx.coarse), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        how: tuple[Layout, Precision],
        run: Tensor,
        rest: Tensor,
        correction: Tensor,
        decision: Tensor,  # noqa: ARG004 - it receives a gradient
        change: Tensor,
        seen: Tensor,
        weight: Tensor,
        run_rows: Tensor,
        rest_rows: Tensor,
    ) -> Tensor:
        layout, kept = how
        ctx.layout, ctx.coarse = layout, correction.shape[2:]
        ctx.save_for_backward(run_rows, rest_rows, seen, weight, *compress(change, kept))
        if not len(rest_rows):
            y = run
        elif not len(run_rows):
            y = rest
        else:
            y = _merged(run, rest, run_rows, rest_rows)
        return channels_back(_add(channels_first(y, layout), correction), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        run_rows, rest_rows, seen, weight, *change = ctx.saved_tensors
        correction = _pooled_sum(channels_first(grad, ctx.layout), ctx.coarse)
        run, rest = grad, grad[:0]
        if len(rest_rows):
            run, rest = taken(grad, run_rows), taken(grad, rest_rows)
        decision = grad.new_zeros(grad.shape[0], 1)
        products = correction.index_select(0, seen) * decompress(tuple(change), grad.dtype)
        decision[seen] = (products.flatten(1).sum(1) * weight).unsqueeze(1)
        return None, run, rest, correction, decision, None, None, None, None, None


def _cells(first: Tensor, coarse: Sequence[int]) -> Tensor:
    """View ``[N, C, H, W]`` as ``[N, C, h, H / h, w, W / w]``."""
    (n, c, height, width), (high, wide) = first.shape, coarse
    shape = (n, c, high, height // high, wide, width // wide)
    # A channels-last map has no such view of one stride; splitting an axis always has.
    return first.as_strided(shape, _split(first.stride(), height // high, width // wide))


def _split(strides: Sequence[int], rows: int, columns: int) -> tuple[int, ...]:
    batch, channel, down, along = strides
    return (batch, channel, down * rows, down, along * columns, along)


def _add(first: Tensor, correction: Tensor) -> Tensor:
    """Add a correction on the coarse grid to a map ``[N, C, H, W]``."""
    coarse = correction.shape[2:]
    if coarse == first.shape[2:] or tuple(coarse) == (1, 1):
        return first + correction
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
