"""Lean layers: the gradients of the stock layers from fewer kept bytes.

Rules of this room: a layer's values are those of torch, bit for bit. Its gradients are equal up to
rounding wherever nothing is quantised (``options`` says what may be). What a layer keeps for its
backward pass goes through ``save_for_backward``, so every counter sees it and torch finds a later
change in place. ``mode`` replaces torch's functions while a forward runs; it touches neither the
module tree nor weights nor hooks. The room does not choose what is trained.

To add a lean activation: its function in ``activations`` and its row in ``mode.TABLE``.

Why: PyTorch keeps a full map per convolution, norm and activation even where no weight is trained
(pytorch #133566). TinyTL's rule (Cai et al., NeurIPS 2020, section 3.1): a layer needs its input
only if its weight is trained, and a ReLU one bit per element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.core.lazy import lazily
from toolchain.training.lean.options import Lean

if TYPE_CHECKING:
    from toolchain.training.lean.conv import Slice
    from toolchain.training.lean.mode import LeanMode

__all__ = ["Lean", "LeanMode", "Slice"]

__getattr__ = lazily(__name__, {"mode": ("LeanMode",), "conv": ("Slice",)})
