"""What every lean function shares: when it applies, and its one backward pass.

Rules of this file: no arithmetic on maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from toolchain.core.errors import AttachError

Gradients = tuple[Tensor | None, ...]


def records(*tensors: Tensor | None) -> bool:
    """Return whether autograd records a function of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Guard a ``backward(ctx, gradient)``: it can be run, but not differentiated.

    A gradient of a gradient needs the maps that were dropped. Autocast is off inside, as it is in
    stock backward formulas, so that the gradient's own dtype decides. Raises AttachError under
    ``create_graph=True``.
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
        if gradient.is_meta:  # which autocast does not know
            return backward(ctx, gradient)
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(ctx, gradient)

    return guarded


def apply(function: type[torch.autograd.Function], *inputs: object) -> Tensor:
    """Return ``function.apply(*inputs)``, which torch leaves untyped."""
    result: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return result
