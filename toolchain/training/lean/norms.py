"""Norms whose weight is frozen, and BatchNorm in evaluation with a trained weight.

Rules of this file: a BatchNorm in evaluation whose weight is frozen is an affine function and keeps
no map. A trained weight needs the input and keeps it at ``lean.keep``. The gradients of GroupNorm
and LayerNorm need the normalised map even when the layer is frozen: they keep the input at
``lean.keep``, with one mean and one inverse deviation per group. Stock torch runs for batch
statistics, for trained weights of GroupNorm and LayerNorm, and where ``fp32`` keeps just what stock
keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.function import (
    Gradients,
    apply,
    format_of,
    once_differentiable,
    records,
)
from toolchain.training.lean.options import Keep, Lean


class _EvaluatedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        precision: Keep,
    ) -> Tensor:
        # Argument 3 is the weight; its gradient alone needs the map.
        saved = (mean, *compress(x, precision)) if ctx.needs_input_grad[3] else ()
        ctx.save_for_backward(variance, weight, *saved)
        ctx.eps, ctx.dtype = eps, x.dtype
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        variance, weight, *saved = ctx.saved_tensors
        # Among the arguments 0 is the map, 3 the weight and 4 the bias.
        grad_x = grad_weight = grad_bias = None
        column = [-1] + [1] * (g.dim() - 2)
        across = [d for d in range(g.dim()) if d != 1]
        inverse = torch.rsqrt(variance + ctx.eps)
        if ctx.needs_input_grad[0]:
            scale = inverse if weight is None else inverse * weight
            grad_x = (g * scale.view(column)).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            mean, *compressed = saved
            centred = decompress(tuple(compressed), mean.dtype).sub(mean.view(column))
            grad_weight = (centred.mul_(g).sum(across) * inverse).to(weight.dtype)
        if ctx.needs_input_grad[4]:
            grad_bias = g.sum(across, dtype=variance.dtype)
        return grad_x, None, None, grad_weight, grad_bias, None, None


def batch_norm(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    lean: Lean,
) -> Tensor:
    """Normalise ``[N, C, ...]`` per channel as ``torch.nn.functional.batch_norm`` does."""
    trained = weight is not None and weight.requires_grad
    stock = training or (trained and lean.keep == "fp32") or not records(input, weight, bias)
    if stock or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return apply(
        _EvaluatedBatchNorm, input, running_mean, running_var, weight, bias, eps, lean.keep
    )


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        precision: Keep,
    ) -> Tensor:
        saved: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[0]:
            saved = (*_group_statistics(x, groups, eps), *compress(x, precision))
        ctx.save_for_backward(weight, *saved)
        ctx.groups, ctx.dtype = groups, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.group_norm(x, groups, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        weight, *saved = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            mean, inverse, *compressed = saved
            x = decompress(tuple(compressed), mean.dtype)
            layout = _layout(x)
            x = x.contiguous(memory_format=layout)
            n, c, *rest = x.shape
            g_x = g.to(x.dtype).contiguous(memory_format=layout)
            grad_x = torch.ops.aten.native_group_norm_backward(
                g_x, x, mean, inverse, _to(weight, x.dtype), n, c, torch.Size(rest).numel(),
                ctx.groups, (True, False, False),
            )[0].to(ctx.dtype)  # fmt: skip
        if ctx.needs_input_grad[3]:
            grad_bias = g.sum([d for d in range(g.dim()) if d != 1], dtype=ctx.bias_dtype)
        return grad_x, None, None, grad_bias, None, None


def group_norm(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    lean: Lean,
) -> Tensor:
    """Normalise ``[N, C, ...]`` per sample and group as ``torch.nn.functional.group_norm``."""
    if _norm_is_stock(input, weight, bias, lean):
        if not input.requires_grad:
            # torch 2.13's backward dies on channels-last maps that need no gradient themselves.
            input = input.contiguous()  # noqa: A001
        return F.group_norm(input, num_groups, weight, bias, eps)
    return apply(_GroupNorm, input, num_groups, weight, bias, eps, lean.keep)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        precision: Keep,
    ) -> Tensor:
        saved: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[0]:
            saved = (*_statistics(x, shape, eps), *compress(x, precision))
        ctx.save_for_backward(weight, *saved)
        ctx.shape, ctx.dtype = shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.layer_norm(x, shape, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        weight, *saved = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            mean, inverse, *compressed = saved
            x = decompress(tuple(compressed), mean.dtype).contiguous()
            grad_x = torch.ops.aten.native_layer_norm_backward(
                g.to(x.dtype).contiguous(), x, ctx.shape, mean, inverse, _to(weight, x.dtype),
                None, (True, False, False),
            )[0].to(ctx.dtype)  # fmt: skip
        if ctx.needs_input_grad[3]:
            grad_bias = g.reshape(-1, *ctx.shape).sum(0, dtype=ctx.bias_dtype)
        return grad_x, None, None, grad_bias, None, None


def layer_norm(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    lean: Lean,
) -> Tensor:
    """Normalise ``[..., *normalized_shape]`` as ``torch.nn.functional.layer_norm`` does."""
    shape = list(normalized_shape)
    if _norm_is_stock(input, weight, bias, lean):
        return F.layer_norm(input, shape, weight, bias, eps)
    return apply(_LayerNorm, input, shape, weight, bias, eps, lean.keep)


def _norm_is_stock(x: Tensor, weight: Tensor | None, bias: Tensor | None, lean: Lean) -> bool:
    trained = weight is not None and weight.requires_grad
    # Without a gradient of the map, a shift needs nothing kept, where stock torch keeps the map.
    gains = lean.keep != "fp32" or not x.requires_grad
    return trained or not gains or x.dim() < 2 or not records(x, weight, bias)


def _layout(x: Tensor) -> torch.memory_format:
    """Return the memory format that GroupNorm's kernel works in: channels last on the CPU alone."""
    return format_of(x) if x.device.type == "cpu" else torch.contiguous_format


def _group_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    width = x.numel() // max(1, x.shape[0] * groups)
    mean, inverse = _statistics(x.reshape(x.shape[0], groups, width), [width], eps)
    return mean.squeeze(-1), inverse.squeeze(-1)  # [N, groups], as GroupNorm's kernel wants them


def _statistics(x: Tensor, shape: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and inverse deviation over the last dimensions, at least in float32."""
    wide = x.to(torch.float32) if x.element_size() < 4 else x
    # The norm's own kernel, for its statistics: var_mean takes ten times as long.
    _, mean, inverse = torch.native_layer_norm(wide, shape, None, None, eps)
    return mean, inverse


def _to(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.to(dtype)
