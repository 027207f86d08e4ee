"""How a map lies in memory.

Rules of this file: it looks at strides and moves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Return the memory format of a map, contiguous for all but channels last."""
    return torch.channels_last if is_last(x) else torch.contiguous_format
