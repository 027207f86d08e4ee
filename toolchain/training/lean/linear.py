"""Linear layer that keeps its input only for a weight that is trained.

Rules of this file: as in ``conv``. Inputs may have any number of dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.training.lean.compression import compress, decompress
from toolchain.training.lean.function import Gradients, apply, once_differentiable, records
from toolchain.training.lean.options import Keep, Lean


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, precision: Keep
    ) -> Tensor:
        # Only the weight's gradient reads the input.
        saved = compress(x, precision) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(weight, *saved)
        ctx.dtype, ctx.bias_dtype = x.dtype, None if bias is None else bias.dtype
        rows = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        # A view could not be changed in place outside; torch's own layer makes this one too.
        shape = [*x.shape[:-1], weight.shape[0]]
        return torch.ops.aten._unsafe_view(rows, shape)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        weight, *saved = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        rows = g.reshape(-1, g.shape[-1])
        if needs_x:
            grad_x = (g @ weight.to(g.dtype)).to(ctx.dtype)
        if needs_weight:
            x = decompress(tuple(saved), g.dtype)
            grad_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
        if needs_bias:
            grad_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None


def linear(
    input: Tensor,  # noqa: A002 - torch's name, which callers may use
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    lean: Lean,
) -> Tensor:
    """Map ``[..., I]`` to ``[..., O]`` as ``torch.nn.functional.linear`` does."""
    # At fp32 a trained weight keeps the input as stock torch does: nothing to gain.
    stock = weight.dim() != 2 or (lean.keep == "fp32" and weight.requires_grad)
    if stock or not input.is_floating_point() or not records(input, weight, bias):
        return F.linear(input, weight, bias)
    return apply(_Linear, input, weight, bias, lean.keep)
