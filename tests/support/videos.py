"""Real small videos, and what an attacker makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from toolchain.pictures.decode import Pixels

SIZE, RATE = 32, 10.0
RED, GREEN, BLUE = (200, 20, 20), (20, 200, 20), (20, 20, 200)


def flat(colour: Sequence[int]) -> Pixels:
    """One colour, uint8 ``[32, 32, 3]`` RGB."""
    return np.full((SIZE, SIZE, 3), colour, np.uint8)


def noise(count: int) -> list[Pixels]:
    """Frames that no codec makes small."""
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))


def write(path: Path, frames: Sequence[Pixels], codec: str = "MJPG") -> Path:
    """Write RGB frames at ten a second."""
    shape = frames[0].shape[1], frames[0].shape[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, shape)
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path
