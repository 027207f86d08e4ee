"""What every lean function shares: when it applies, its one backward pass, how maps lie in memory.

Rules of this file: no arithmetic on maps; it looks at strides and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from toolchain.core.errors import AttachError

Gradients = tuple[Tensor | None, ...]
Size = int | Sequence[int]
"""A window's size as torch takes it: one number for both sides, or two."""
Pair = tuple[int, int]


def records(*tensors: Tensor | None) -> bool:
    """Return whether autograd records a function of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Guard a ``backward(ctx, gradient)``: it can be run, but not differentiated.

    A gradient of a gradient needs the maps that lean layers dropped. Raises AttachError under
    ``create_graph=True``. (torch's decorator of this name raises later, and without a fix.)
    """

    @wraps(backward)
    def guarded(ctx: Any, gradient: Tensor) -> Gradients:
        # A compiler traces this with gradients on and never differentiates it twice.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise AttachError(
                "expected one backward pass through lean layers, got a second one to be prepared "
                "(create_graph=True), which needs the maps that they drop",
                fix="attach with lean=False",
            )
        if gradient.is_meta:  # autocast does not know the meta device
            return backward(ctx, gradient)
        # Stock backward formulas run without autocast: the gradient's own dtype decides.
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(ctx, gradient)

    return guarded


def apply(function: type[torch.autograd.Function], *inputs: object) -> Tensor:
    """Return ``function.apply(*inputs)``, which torch leaves untyped."""
    result: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


def is_last(x: Tensor) -> bool:
    """Tell whether a map ``[N, C, H, W]`` has its channels last, and last alone.

    Maps of one pixel or one channel lie both ways; they count as channels first.
    """
    return (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of a map: channels last, or contiguous for every other map."""
    return torch.channels_last if is_last(x) else torch.contiguous_format


def pair(value: Size) -> Pair:
    """Return the sizes of both sides."""
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]
