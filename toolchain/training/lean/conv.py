"""Convolution that keeps its input only for a weight that is trained.

Rules of this file: a frozen convolution keeps its weight, which is shared, and nothing else. The
input's gradient is the transposed convolution of the output's gradient. A trained weight keeps its
input at ``lean.keep``; at ``fp32`` stock torch does the same. Where only some input channels of a
weight are trained (:class:`Slice`), it keeps only those channels. The sum of weight and delta
exists during a call only, forward or backward, so that no second kernel waits between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.core.errors import AttachError
from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.function import (
    Gradients,
    Pair,
    apply,
    once_differentiable,
    pair,
    records,
)
from toolchain.training.lean.options import Keep, Lean


@dataclass(frozen=True, slots=True)
class Slice:
    """The trained part of a convolution's weight: a ``delta`` on some input channels.

    ``delta``: trainable, ``[O, k, kh, kw]``. ``index``: int64 ``[k]``, the input channels. For a
    depthwise convolution ``delta`` is ``[k, 1, kh, kw]`` and ``index`` picks its channels.
    """

    delta: Tensor
    index: Tensor


def _summed(weight: Tensor, delta: Tensor | None, index: Tensor | None, groups: int) -> Tensor:
    """Return the weight that the convolution runs with."""
    if delta is None or index is None:
        return weight
    return weight.index_add(1 if groups == 1 else 0, index, delta)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How a convolution's windows move, and its gradients."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def input_gradient(self, g: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
        """Return the gradient of an input of ``size`` (height, width) from the output's ``g``."""
        # aten's convolution_backward wants the input even for this gradient. Given a stand-in of
        # one element it would first copy it to full size; the transposed convolution needs none.
        # A stride may leave input rows and columns that no window reached: they belong to the size.
        rests = [
            size[i]
            - ((g.shape[i - 2] - 1) * self.stride[i] - 2 * self.padding[i])
            - (self.dilation[i] * (weight.shape[i - 2] - 1) + 1)
            for i in (0, 1)
        ]
        return F.conv_transpose2d(
            g, weight, None, self.stride, self.padding, rests, self.groups, self.dilation
        )

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """Return the gradient of ``weight`` from the output's ``g`` and the input ``x``."""
        if g.dim() == 3:  # one map without a batch
            g, x = g.unsqueeze(0), x.unsqueeze(0)
        gradients = torch.ops.aten.convolution_backward(
            g, x, weight.to(g.dtype), None, self.stride, self.padding, self.dilation, False, (0, 0),
            groups, (False, True, False),
        )  # fmt: skip
        gradient: Tensor = gradients[1]
        return gradient.to(weight.dtype)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        delta: Tensor | None,
        index: Tensor | None,
        geometry: _Geometry,
        precision: Keep,
    ) -> Tensor:
        # The positions are those of the arguments: 1 is the weight, 3 the delta.
        saved: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[1]:
            saved = compress(x, precision)
        elif index is not None and ctx.needs_input_grad[3]:
            saved = compress(x.index_select(-3, index), precision)
        ctx.save_for_backward(weight, delta, index, *saved)
        ctx.geometry, ctx.dtype, ctx.size = geometry, x.dtype, x.shape[-2:]
        ctx.channels_last = _is_channels_last(x)
        ctx.bias_dtype = None if bias is None else bias.dtype
        whole = _summed(weight, delta, index, geometry.groups)
        return F.conv2d(
            x, whole, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        weight, delta, index, *saved = ctx.saved_tensors
        geometry: _Geometry = ctx.geometry
        needs_x, needs_weight, needs_bias, needs_delta = ctx.needs_input_grad[:4]
        grad_x = grad_weight = grad_bias = grad_delta = None
        if needs_x:
            whole = _summed(weight, delta, index, geometry.groups)
            grad_x = geometry.input_gradient(g, whole.to(g.dtype), ctx.size).to(ctx.dtype)
            if ctx.channels_last:
                # A gradient of one pixel and one channel does not show its layout: it is the map's.
                grad_x = grad_x.contiguous(memory_format=torch.channels_last)
        if needs_weight:
            x = decompress(tuple(saved), g.dtype)
            grad_weight = geometry.weight_gradient(g, x, weight, geometry.groups)
        if needs_bias:
            grad_bias = g.sum((0, 2, 3) if g.dim() == 4 else (1, 2), dtype=ctx.bias_dtype)
        if needs_delta:
            x = decompress(tuple(saved), g.dtype)
            # Of a depthwise convolution an output channel sees its own input channel alone, so the
            # chosen ones are a smaller depthwise convolution.
            depthwise = geometry.groups > 1
            part = g.index_select(-3, index) if depthwise else g
            groups = len(index) if depthwise else 1
            grad_delta = geometry.weight_gradient(part, x, delta, groups)
        return grad_x, grad_weight, grad_bias, grad_delta, None, None, None


def _is_channels_last(x: Tensor) -> bool:
    """Return whether a map is laid out so, and in no other way at the same time."""
    laid_out = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return laid_out and not x.is_contiguous()


def conv2d(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    lean: Lean,
    part: Slice | None = None,
) -> Tensor:
    """Convolve ``[N, C, H, W]`` or ``[C, H, W]`` as ``torch.conv2d`` does.

    ``part`` is added to the frozen ``weight`` and takes the gradient. Raises AttachError for a part
    of a grouped convolution that is not depthwise, or whose whole weight is trained as well.
    """
    if part is not None:
        _check_part(weight, groups)
    delta, index = (None, None) if part is None else (part.delta, part.index)
    dilations, strides = pair(dilation), pair(stride)
    # At fp32 a trained weight keeps the input as stock torch does: nothing to gain.
    stock = part is None and lean.keep == "fp32" and weight.requires_grad
    stock = stock or _refused_by_torch(padding, strides)
    if stock or not input.is_floating_point() or not records(input, weight, bias, delta):
        whole = _summed(weight, delta, index, groups)
        return F.conv2d(input, whole, bias, stride, padding, dilation, groups)
    x, pads = _padded(input, weight, padding, dilations)
    geometry = _Geometry(strides, pads, dilations, groups)
    return apply(_Conv, x, weight, bias, delta, index, geometry, lean.keep)


def _check_part(weight: Tensor, groups: int) -> None:
    depthwise = weight.shape[1] == 1 and groups == weight.shape[0]
    if groups != 1 and not depthwise:
        raise AttachError(
            f"expected a plain or a depthwise convolution to train some channels of, got {groups} "
            f"groups for a weight {list(weight.shape)}",
            fix="train the whole weight, or leave the layer frozen",
        )
    if weight.requires_grad:
        raise AttachError(
            "expected a frozen weight beside a trained part of it, got one that requires grad",
            fix="freeze the weight, or train all of it",
        )


def _refused_by_torch(padding: object, stride: Pair) -> bool:
    """Tell whether torch refuses a named padding; its own error says it best."""
    return isinstance(padding, str) and (
        padding not in ("same", "valid") or (padding == "same" and stride != (1, 1))
    )


def _padded(
    x: Tensor, weight: Tensor, padding: int | Sequence[int] | str, dilation: Pair
) -> tuple[Tensor, Pair]:
    """Turn named paddings into numbers; 'same' may need one row or column more at the end."""
    if not isinstance(padding, str):
        return x, pair(padding)
    if padding == "valid":
        return x, (0, 0)
    height, width = (dilation[i] * (weight.shape[i - 2] - 1) for i in (0, 1))
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return x, (height // 2, width // 2)
