"""Masks at one bit per element.

Rules of this file: element ``i`` of the flattened mask is bit ``i % 8`` of byte ``i // 8``, on
every device and both paths; the last byte is padded with zeros. No layers here.

On the CPU numpy packs and unpacks several times faster than torch arithmetic. On other devices, and
under a compiler, a multiplication of 64-bit words moves eight bytes at a time (after Warren,
Hacker's Delight). That assumes a little-endian machine, as CUDA's hosts are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_GATHER = 0x0102040810204080  # moves bit 8i of a word to bit 56 + i
_SPREAD = 0x0101010101010101  # repeats a byte eight times
_SELECT = 0x8040201008040201 - 2**64  # bit i in byte i, as a signed word


def by_numpy(tensor: Tensor) -> bool:
    """Return whether numpy may read the tensor's storage: plain, on the CPU, not being traced."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    return tensor.device.type == "cpu" and not tensor.is_neg()


def pack(mask: Tensor) -> Tensor:
    """Return a bool mask as uint8 ``[ceil(numel / 8)]``, which owns its storage."""
    flat = mask.reshape(-1)
    if by_numpy(flat):
        # A clone, since torch's memory counters do not see what numpy allocates.
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little")).clone()
    # Eight bools are eight bytes of 0 or 1, and so one word; the product collects their low bits in
    # its top byte.
    words = F.pad(flat, (0, -flat.numel() % 8)).view(torch.int64)
    return (((words * _GATHER) >> 56) & 0xFF).to(torch.uint8)


def unpack(packed: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a packed mask as zeros and ones of ``dtype``, contiguous in ``shape``."""
    count = shape.numel()
    if by_numpy(packed):
        bits = np.unpackbits(packed.numpy(), count=count, bitorder="little")
        return torch.from_numpy(bits).to(dtype).view(shape)
    # Each byte stands eight times in its word, and each copy keeps one bit.
    words = (packed.to(torch.int64) * _SPREAD) & _SELECT
    return words.view(torch.uint8)[:count].ne(0).to(dtype).view(shape)
