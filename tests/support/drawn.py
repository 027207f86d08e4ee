"""Pictures and prepared tensors drawn from a seed, at the size of the toys."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 12


def pixels(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Noise, uint8 ``[count, 12, 12, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def tensor(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normal values, float32 ``[count, 3, 12, 12]``."""
    drawn = np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE))
    return drawn.astype(np.float32)


def same(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    """Whether two arrays are equal bit for bit."""
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()
