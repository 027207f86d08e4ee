"""From a picture to the tensor that a model sees: the same in training and on a device.

Rules of this file: numpy and Pillow only. The settings are data (`Preprocessing`): recipes, bundles
and installed domains hold this one record. Every step is deterministic and looks at one picture.
Nothing is random: augmentation belongs to training.

::

    picture -> upright, 8-bit RGB                                         `decode.upright_rgb`
            -> square -> colour order                                     `pixels`
            -> (value / 255 - mean) / std, channels first                 `normalise`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from toolchain.core.errors import DataError, Fault
from toolchain.core.fields import ListOf, Section, choice, key, number, whole
from toolchain.pictures.decode import Pixels, upright_rgb

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Preprocessing(Section):
    """How a picture becomes a tensor.

    ``size`` and ``resize`` are in pixels. With ``crop: center`` the shorter side is scaled to
    ``resize`` and the central ``size`` x ``size`` square is kept; with ``crop: none`` the whole
    picture is squashed into the square and ``resize`` must equal ``size``. ``mean`` and ``std``
    are per channel in the order of ``colour``, for values scaled to [0, 1].
    """

    size: int = key(whole(8, 1024))
    resize: int = key(whole(8, 2048))
    crop: str = key(choice("center", "none"))
    interpolation: str = key(choice(*_FILTERS))
    colour: str = key(choice("RGB", "BGR", "L3"))
    mean: tuple[float, float, float] = key(ListOf(number(-10, 10), 3, 3))
    std: tuple[float, float, float] = key(ListOf(number(1e-3, 10), 3, 3))

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between size, resize and crop."""
        if self.resize < self.size:
            message = f"expected at least the size of {self.size}, got {self.resize}"
            yield Fault("resize", message, f"set resize: {self.size}")
        if self.crop == "none" and self.resize > self.size:
            message = f"expected the size of {self.size} because crop is none, got {self.resize}"
            yield Fault("resize", message, f"set resize: {self.size} or crop: center")


def pixels(p: Preprocessing, image: Image.Image | Pixels | Path | str | bytes) -> Pixels:
    """Return the square that the model sees, uint8 [size, size, 3] in the order ``p.colour``.

    ``image`` is a path, the bytes of a picture file, a Pillow image, or a uint8 array [H, W, 3]
    (RGB) or [H, W] (grey). Raises DataError for a file that is missing, damaged, too large or of an
    unknown format.
    """
    return _square(p, upright_rgb(image))


def normalise(p: Preprocessing, pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return ``(value / 255 - mean) / std`` as float32 [N, 3, H, W] of uint8 [N, H, W, 3].

    A value depends on its byte and its channel only, through a table computed in float64, so the
    answer is the same bit for bit on every machine and for every batch.
    Raises DataError for another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(
            f"expected uint8 pixels [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}",
            fix="pass a stack of what pixels() returns",
        )
    table = _table(p)
    return np.stack([table[c][pixels[..., c]] for c in range(3)], axis=1)


def tensor(p: Preprocessing, image: Image.Image | Pixels | Path | str) -> npt.NDArray[np.float32]:
    """Return ``image`` as the model's input for one sample, float32 [1, 3, size, size]."""
    return normalise(p, pixels(p, image)[None])


def _table(p: Preprocessing) -> npt.NDArray[np.float32]:
    """Return the normalised value of each byte per channel, float32 [3, 256]."""
    steps = np.arange(256, dtype=np.float64)[None, :] / 255.0
    mean, std = (np.asarray(values, dtype=np.float64)[:, None] for values in (p.mean, p.std))
    table: npt.NDArray[np.float32] = ((steps - mean) / std).astype(np.float32)
    return table


def _square(p: Preprocessing, image: Image.Image) -> Pixels:
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if p.crop == "center":
        # Scale-then-crop in one step: the region is cut in source pixels, so a 100 000 x 1 strip
        # never becomes a giant in between and no border is rounded twice.
        side = min(width, height) * p.size / p.resize
        left, top = (width - side) / 2, (height - side) / 2
        # A sum of floats may pass the border by a rounding, which Pillow refuses.
        box = (left, top, min(left + side, width), min(top + side, height))
    image = image.resize((p.size, p.size), _FILTERS[p.interpolation], box=box)
    if p.colour == "L3":
        image = image.convert("L").convert("RGB")
    out = np.asarray(image)
    # Both copy: the array of a Pillow image is read-only.
    return np.ascontiguousarray(out[..., ::-1]) if p.colour == "BGR" else out.copy()
