"""Piecewise linear activations from one bit per element, and smooth ones if asked.

Rules of this file: a bit says whether the element's gradient passes. Borders and NaN are decided as
stock torch decides them. Bits lie in the storage order of the map, so that channels-last maps need
no copy. Smooth activations need their whole input: with ``smooth="exact"`` stock torch runs.

One difference to stock: where a map is NaN, stock hardtanh passes the gradient in the last few
elements of a map and blocks it elsewhere, because its vector code and its scalar code differ (torch
2.13). Here the gradient always passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.training.lean.bits import by_numpy, pack, unpack
from toolchain.training.lean.function import Gradients, apply, once_differentiable, records
from toolchain.training.lean.options import Lean

# Elements, a multiple of eight. On the CPU a map goes through in chunks that stay in the cache;
# smaller chunks pay for more calls.
_CHUNK = 2**21

Value = Callable[[Tensor], Tensor]
Test = Callable[[Any], Any]  # of a tensor or a numpy array alike: operators alone
Order = tuple[int, ...]


class _Masked(torch.autograd.Function):
    """``value(x)``, whose gradient passes except where ``holds(x)``.

    There ``slope`` scales the gradient; None blocks it. ``inplace``: ``value`` changes ``x`` itself
    and returns it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Value, inplace: bool, holds: Test, slope: float | None
    ) -> Tensor:
        ctx.order, ctx.slope, ctx.shape = _storage_order(x), slope, x.shape
        # Before the value is computed: in place, that overwrites x.
        packed = _pack(x.detach().permute(ctx.order), holds)
        ctx.save_for_backward(packed)
        if inplace:
            value(x)
            ctx.mark_dirty(x)
            return x
        return value(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (packed,) = ctx.saved_tensors
        ordered = g.permute(ctx.order)
        if by_numpy(g) and ordered.is_contiguous():
            result = torch.empty_like(g)
            _gradient_in_chunks(packed, ordered, result.permute(ctx.order), ctx.slope)
            return result, None, None, None, None
        mask = unpack(packed, ordered.shape, g.dtype).permute(_inverse(ctx.order))
        return _gradient(g, mask, ctx.slope), None, None, None, None


def _gradient(g: Tensor, mask: Tensor, slope: float | None) -> Tensor:
    """Apply stock's own kernel: the mask's ones pass, its zeros are at the threshold."""
    # Multiplying by the mask would be as fast, but turns a masked infinite gradient into NaN.
    # torch.where needs several times as long.
    if slope is None:
        return torch.ops.aten.threshold_backward(g, mask, 0)  # type: ignore[no-any-return]
    return torch.ops.aten.leaky_relu_backward(g, mask, slope, False)  # type: ignore[no-any-return]


def _gradient_in_chunks(packed: Tensor, g: Tensor, result: Tensor, slope: float | None) -> None:
    flat, out = g.view(-1), result.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        mask = unpack(packed[start // 8 : (start + _CHUNK) // 8], part.shape, g.dtype)
        into = out[start : start + _CHUNK]
        if slope is None:
            torch.ops.aten.threshold_backward.grad_input(part, mask, 0, grad_input=into)
        else:
            torch.ops.aten.leaky_relu_backward.grad_input(part, mask, slope, False, grad_input=into)


def _pack(x: Tensor, holds: Test) -> Tensor:
    """Pack where the gradient passes."""
    # holds() says where it does not; inverting packed bytes costs an eighth of inverting a mask.
    if not by_numpy(x) or not x.is_contiguous():
        return pack(holds(x)).bitwise_not()
    flat = x.view(-1)
    packed = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        # numpy compares several times faster, but has no bfloat16.
        mask = torch.from_numpy(holds(part.numpy())) if x.element_size() > 2 else holds(part)
        packed[start // 8 : (start + _CHUNK) // 8] = pack(mask)
    return packed.bitwise_not_()


def _storage_order(x: Tensor) -> Order:
    """Return the dimensions as they lie in storage, outermost first; as they are if not dense."""
    unchanged = tuple(range(x.dim()))
    if x.is_contiguous():
        return unchanged
    strides = x.stride()
    order = tuple(sorted(unchanged, key=lambda d: -strides[d]))
    return order if x.permute(order).is_contiguous() else unchanged


def _inverse(order: Order) -> Order:
    return tuple(order.index(d) for d in range(len(order)))


def _masked(
    x: Tensor, value: Value, inplace: bool, holds: Test, slope: float | None = None
) -> Tensor:
    if not x.is_floating_point() or not records(x):
        return value(x)
    return apply(_Masked, x, value, inplace, holds, slope)


def _not_above_zero(x: Any) -> Any:
    """What stock's leaky ReLU scales: NaN counts as negative."""
    return ~(x > 0)


def _at_most_zero(x: Any) -> Any:
    """What stock's threshold blocks: NaN passes."""
    return x <= 0


def relu(input: Tensor, inplace: bool = False, *, lean: Lean) -> Tensor:  # noqa: A002, ARG001
    """Return ``max(x, 0)`` of a map of any shape as ``torch.nn.functional.relu`` does."""
    return _masked(input, torch.relu_ if inplace else torch.relu, inplace, _at_most_zero)


def relu_(input: Tensor, *, lean: Lean) -> Tensor:  # noqa: A002
    """Apply :func:`relu` in place."""
    return relu(input, True, lean=lean)


def hardtanh(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
    *,
    lean: Lean,  # noqa: ARG001 - every function of the table takes it
) -> Tensor:
    """Clamp a map of any shape as ``torch.nn.functional.hardtanh`` does; borders do not pass."""

    def value(x: Tensor) -> Tensor:
        return F.hardtanh(x, min_val, max_val, inplace)

    def outside(x: Any) -> Any:
        return (x <= min_val) | (x >= max_val)

    return _masked(input, value, inplace, outside)


def hardtanh_(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    min_val: float = -1.0,
    max_val: float = 1.0,
    *,
    lean: Lean,
) -> Tensor:
    """Apply :func:`hardtanh` in place."""
    return hardtanh(input, min_val, max_val, True, lean=lean)


def relu6(input: Tensor, inplace: bool = False, *, lean: Lean) -> Tensor:  # noqa: A002
    """Clamp a map of any shape to [0, 6] as ``torch.nn.functional.relu6`` does."""
    return hardtanh(input, 0.0, 6.0, inplace, lean=lean)


def leaky_relu(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    negative_slope: float = 0.01,
    inplace: bool = False,
    *,
    lean: Lean,  # noqa: ARG001 - every function of the table takes it
) -> Tensor:
    """Scale what is negative, as ``torch.nn.functional.leaky_relu`` does, on any shape.

    Stock torch refuses a negative slope in place in the backward pass; for that case stock runs.
    """

    def value(x: Tensor) -> Tensor:
        return F.leaky_relu(x, negative_slope, inplace)

    if inplace and negative_slope < 0:
        return value(input)
    return _masked(input, value, inplace, _not_above_zero, negative_slope)


def leaky_relu_(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    negative_slope: float = 0.01,
    *,
    lean: Lean,
) -> Tensor:
    """Apply :func:`leaky_relu` in place."""
    return leaky_relu(input, negative_slope, True, lean=lean)


def _smooth(x: Tensor, value: Value, inplace: bool, lean: Lean) -> Tensor:
    """Run stock, or pass the gradient as MobileTL does: 1 where x > 0, else 0 (AAAI 2023)."""
    return value(x) if lean.smooth == "exact" else _masked(x, value, inplace, _not_above_zero)


def hardswish(input: Tensor, inplace: bool = False, *, lean: Lean) -> Tensor:  # noqa: A002
    """Return h-swish of a map of any shape; ``lean.smooth`` says with which gradient."""
    return _smooth(input, lambda x: F.hardswish(x, inplace), inplace, lean)


def silu(input: Tensor, inplace: bool = False, *, lean: Lean) -> Tensor:  # noqa: A002
    """Return ``x * sigmoid(x)``; ``lean.smooth`` says with which gradient."""
    return _smooth(input, lambda x: F.silu(x, inplace), inplace, lean)


def gelu(input: Tensor, approximate: str = "none", *, lean: Lean) -> Tensor:  # noqa: A002
    """Return GELU, exact or by tanh; ``lean.smooth`` says with which gradient."""
    return _smooth(input, lambda x: F.gelu(x, approximate=approximate), False, lean)
