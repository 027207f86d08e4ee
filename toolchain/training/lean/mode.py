"""The switch: torch's functions become lean ones while a forward runs.

Rules of this file: ``TABLE`` lists all that is replaced, by torch function. Every other function
runs stock, and so does a function of the table when autograd does not record it. The mode covers
modules and functional calls alike, and touches no hooks, names or state dicts. A composite function
that torch hands over whole (``multi_head_attention_forward``) runs stock inside as well.
Activation checkpointing recomputes in the backward pass: enter the mode inside the checkpointed
function, or torch finds other saved tensors and refuses.

``torch.compile`` traces the mode whole, whether it is entered inside or outside of the compiled
function, with the same gradients. The compiler then chooses what is kept, not the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from toolchain.training.lean import activations, norms, pools
from toolchain.training.lean.conv import Slice, conv2d
from toolchain.training.lean.linear import linear
from toolchain.training.lean.options import Lean

Function = Callable[..., Any]

# A plain dict, never written to: torch.compile cannot read a mapping proxy with such keys.
TABLE: Mapping[Function, Function] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    F.batch_norm: norms.batch_norm,
    F.group_norm: norms.group_norm,
    F.layer_norm: norms.layer_norm,
    F.relu: activations.relu,
    torch.relu: activations.relu,
    Tensor.relu: activations.relu,
    torch.relu_: activations.relu_,
    Tensor.relu_: activations.relu_,
    F.relu6: activations.relu6,
    F.hardtanh: activations.hardtanh,
    F.hardtanh_: activations.hardtanh_,
    F.leaky_relu: activations.leaky_relu,
    F.leaky_relu_: activations.leaky_relu_,
    F.hardswish: activations.hardswish,
    F.silu: activations.silu,
    F.gelu: activations.gelu,
    F.avg_pool2d: pools.avg_pool2d,
    F.adaptive_avg_pool2d: pools.adaptive_avg_pool2d,
    F.max_pool2d: pools.max_pool2d,
    torch.max_pool2d: pools.max_pool2d,
}


class LeanMode(TorchFunctionMode):
    """Run a forward with lean layers: ``with LeanMode(Lean()): loss = model(x)``.

    ``slices``: by ``id`` of a convolution's weight, the part of it that is trained. The caller
    keeps the weights alive while the mode is active, or another tensor could get the same ``id``.
    ``met``: the ids that a convolution ran with. The backward pass may run outside.
    """

    def __init__(self, lean: Lean, slices: Mapping[int, Slice] | None = None) -> None:
        super().__init__()
        self.lean = lean
        self.slices: Mapping[int, Slice] = slices or {}
        self.met: set[int] = set()

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, or what stands for it in the table."""
        named = dict(kwargs or {})
        lean = TABLE.get(func)
        if lean is None:
            return func(*args, **named)
        if lean is conv2d and self.slices:
            # By identity: a copy or a computed weight is no backbone kernel, and guards refuse it.
            weight = args[1] if len(args) > 1 else named.get("weight")
            named["part"] = self.slices.get(id(weight))
            self.met.add(id(weight))
        return lean(*args, **named, lean=self.lean)
