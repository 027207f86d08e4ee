"""From a picture to the tensor that a model sees: the same in training and on a device.

Rules of this file: numpy and Pillow only. The settings are data (`Preprocessing`): recipes, bundles
and installed domains hold this one record. Every step is deterministic and looks at one picture.
Colour profiles are not applied, an animation stops at its first frame, and nothing is random:
augmentation belongs to training.

::

    picture -> upright (EXIF) -> 8-bit RGB -> square -> colour order      `pixels`
            -> (value / 255 - mean) / std, channels first                 `normalise`
"""

from __future__ import annotations

import errno
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from toolchain.core.errors import DataError, Fault, StorageError
from toolchain.core.fields import ListOf, Section, choice, key, number, whole

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 128 * 1024 * 1024
# Formats that decode without helper programs; Pillow would hand EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# I;16 and its kin besides.
_MODES = frozenset(
    ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "I")
)
_WHITE = (255, 255, 255, 255)

Pixels = npt.NDArray[np.uint8]


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
    if isinstance(image, str | Path):
        return _square(p, _open(Path(image)))
    if isinstance(image, bytes):
        return _square(p, _decoded(io.BytesIO(image), len(image), "the bytes"))
    if isinstance(image, np.ndarray):
        return _square(p, _from_array(image))
    _check_area(image, "the picture")
    return _square(p, _upright_rgb(image, "the picture"))


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


def _open(path: Path) -> Image.Image:
    try:
        status = path.stat()
    except FileNotFoundError as err:
        raise DataError(f"{path}: no such picture", fix="check the path") from err
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read: {err}", fix="check its permissions") from err
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe that nobody writes to would wait for ever.
        raise DataError(f"{path}: expected a picture file, got none", fix="name the file itself")
    return _decoded(path, status.st_size, str(path))


def _decoded(source: Path | io.BytesIO, size: int, what: str) -> Image.Image:
    """Return the picture in a file of ``size`` bytes, upright, in 8-bit RGB.

    Pillow warns of very large pictures, which are refused here anyway. The warnings stay: silencing
    them for a moment would silence them in every thread.
    """
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{what}: expected at most {MAX_FILE_BYTES} bytes, got {size}", fix="shrink the picture"
        )
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check_area(image, what)
            return _upright_rgb(image, what)
    except DataError:
        raise
    # Pillow's decoders raise many kinds on damaged bytes (OSError, SyntaxError, struct.error, ...);
    # where there is no path, what they say shows an object of this process.
    except Exception as err:
        if isinstance(err, OSError) and err.errno in (errno.EMFILE, errno.ENFILE):
            raise StorageError(
                f"{what}: cannot be opened: {err.strerror}", fix="raise the limit: ulimit -n"
            ) from err
        got = f"{size} other bytes" if isinstance(err, UnidentifiedImageError) else str(err)
        raise DataError(
            f"{what}: expected a whole picture ({', '.join(FORMATS)}), got: {got}",
            fix="replace or remove the file",
        ) from err


def _check_area(image: Image.Image, what: str) -> None:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"{what}: expected 1 to {MAX_PIXELS} pixels, got {width} x {height}",
            fix="shrink the picture",
        )


def _from_array(array: Pixels) -> Image.Image:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise DataError(
            f"expected a uint8 picture [H, W, 3] or [H, W], got {array.dtype} {list(array.shape)}",
            fix="convert to 8-bit RGB or grey first",
        )
    if not array.size:
        raise DataError(f"expected at least one pixel, got {list(array.shape)}", fix="skip it")
    image = Image.fromarray(np.ascontiguousarray(array))
    _check_area(image, "the picture")
    return image.convert("RGB")


def _upright_rgb(image: Image.Image, what: str) -> Image.Image:
    """Return 8-bit RGB: turned upright, transparency over white, 16 bits to their upper 8."""
    wide = image.mode == "I" or image.mode.startswith("I;16")
    if not wide and image.mode not in _MODES:
        raise DataError(
            f"{what}: expected 8 or 16 bits per channel, got Pillow's mode {image.mode}",
            fix="save it as PNG or JPEG",
        )
    image = ImageOps.exif_transpose(image)
    if wide:
        upper = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(np.clip(upper, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return image.convert("RGB")


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
