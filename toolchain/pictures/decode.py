"""From a picture's file, bytes or array to an upright picture in 8-bit RGB.

Rules of this file: numpy and Pillow only. The first bytes say what a file is, its name does not. A
file has one meaning or it is refused: where no tag or specification says which value is black and
which is white, nothing is guessed. Colour profiles are not applied, and of an animation or a file
with several pages only the first picture is read.

Greys of more than 8 bits keep their upper 8. TIFF 6.0 says which value is white: with BlackIsZero
(PhotometricInterpretation 1, page 37) the largest that BitsPerSample holds, with WhiteIsZero (0)
the value 0. Both are about unsigned whole numbers. For signed ones and for floats (SampleFormat 2
and 3, page 80) the specification names no black and no white.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from toolchain.core.errors import DataError, StorageError
from toolchain.pictures.scans import require_few_scans

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 128 * 1024 * 1024
# Formats that decode without helper programs; Pillow would hand EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
        *(".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
UNREAD_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    ".avif": "AVIF",
    ".jxl": "JPEG XL",
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"), "camera raw"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    **dict.fromkeys((".svg", ".eps"), "drawing"),
    **dict.fromkeys((".tga", ".ico", ".pcx", ".exr", ".hdr", ".pfm", ".dcm"), "other format"),
}
"""Pictures that are not read, by their suffix, and what they are."""

CONVERT = "convert it to JPEG or PNG, for example with ImageMagick: magick IN.heic OUT.jpg"

Pixels = npt.NDArray[np.uint8]
Taken = TypeVar("Taken")

# Everything that Pillow turns into RGB, besides I;16 and its kin.
_MODES = frozenset(
    ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA", "I")
)
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112
# EXIF 2.32, table 4: what undoes each orientation but the upright one.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_UNKNOWN_LAYOUT = "unknown pixel mode"  # what Pillow says of a TIFF that it has no layout for
# The first bytes of what people keep beside pictures or under a picture's name.
_OTHER_HEADS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def upright_rgb(picture: Image.Image | Pixels | Path | str | bytes) -> Image.Image:
    """Return a picture in 8-bit RGB, turned upright, with transparency over white.

    ``picture`` is a path, the bytes of a picture file, a Pillow image, or a uint8 array [H, W, 3]
    (RGB) or [H, W] (grey). Raises DataError for a file that is missing, damaged, too large or of an
    unknown format, StorageError where the process has too many files open.
    """
    if isinstance(picture, str | Path):
        with _opened(Path(picture)) as file:
            return _decoded(file, os.fstat(file.fileno()).st_size, str(picture), _rgb)
    if isinstance(picture, bytes):
        return _decoded(io.BytesIO(picture), len(picture), "the bytes", _rgb)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    _check_area(picture, "the picture")
    return _rgb(picture, "the picture")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a picture file holds: width and height of its picture in pixels, upright.

    ``several``: whether further pictures follow the one that is read (an animation, pages).
    """

    size: tuple[int, int]
    several: bool


def measured(path: Path | str) -> Measured:
    """Return what the picture in a file is.

    It raises what :func:`upright_rgb` raises, and for the same files. A JPEG is decoded to an
    eighth of its sides: that reads every byte of it, in a fraction of the time.
    """
    with _opened(Path(path)) as file:
        return _decoded(file, os.fstat(file.fileno()).st_size, str(path), _measured)


def _decoded(
    file: BinaryIO, size: int, what: str, take: Callable[[Image.Image, str], Taken]
) -> Taken:
    """Return what ``take`` makes of the picture in ``file``, whose header was read."""
    _check_bytes(size, what)
    require_few_scans(file, what)
    try:
        with _image(file) as image:
            _check_area(image, what)
            return take(image, what)
    except DataError:
        raise
    # Pillow's decoders raise many kinds on damaged bytes (OSError, SyntaxError, struct.error, ...).
    except Exception as err:
        raise _damaged(file, size, what, err) from err


def _measured(image: Image.Image, what: str) -> Measured:
    width, height = image.size
    image.draft(None, (1, 1))
    _rgb(image, what)
    size = (height, width) if _turn(image) in _SIDEWAYS else (width, height)
    return Measured(size, _is_followed(image))


def _is_followed(image: Image.Image) -> bool:
    # What follows in a JPEG (MPO) are previews and other views of the same picture.
    if image.format == "MPO":
        return False
    try:
        image.seek(1)
    # It is not read, so its damage is no fault of the first one.
    except Exception:
        return False
    return True


def _opened(path: Path) -> BinaryIO:
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as err:
        raise DataError(f"{path}: no such picture", fix="check the path") from err
    except OSError as err:
        if err.errno in (errno.EMFILE, errno.ENFILE):
            raise StorageError(
                f"{path}: cannot be opened: {err.strerror}", fix="raise the limit: ulimit -n"
            ) from err
        raise DataError(
            f"{path}: cannot be read: {err.strerror}", fix="check its permissions"
        ) from err
    except ValueError as err:  # a null in the name
        raise DataError(f"{str(path)!r}: cannot be read: {err}", fix="check the path") from err
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{path}: expected a picture file, got none", fix="name the file itself")
    return os.fdopen(handle, "rb")


class _Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF whose unsigned samples are read also where Pillow's table of layouts lacks them.

    Pillow knows a twin for each: the same bits, with another meaning. The image is read as that
    twin, and ``white_is_zero``, ``bits`` and ``sample_format`` keep what the file says.
    """

    white_is_zero = False
    bits = 8
    sample_format = _UNSIGNED

    def _setup(self) -> None:
        tags = self.tag_v2
        formats, bits = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)), tags.get(_BITS, (1,))
        self.sample_format, self.bits = max(formats), max(bits)
        if self.sample_format == _UNDEFINED:  # page 80: to be read as if the tag were not there
            self.sample_format = _UNSIGNED
            tags[_SAMPLE_FORMAT] = (_UNSIGNED,)
        # Without the tag Pillow takes WhiteIsZero.
        photometric = tags.get(_PHOTOMETRIC, 0)
        if photometric in (0, 1) and self.sample_format == _UNSIGNED and self.bits in (12, 16, 32):
            self.white_is_zero = photometric == 0
            tags[_PHOTOMETRIC] = 1
            if self.bits == 32:
                tags[_SAMPLE_FORMAT] = (_SIGNED,)
        super()._setup()
        if self.bits == 32 and tags.prefix == b"MM" and self.use_load_libtiff:
            # libtiff gives them in this machine's order, and Pillow would swap them once more.
            raise SyntaxError(_UNKNOWN_LAYOUT)


def _image(file: BinaryIO) -> Image.Image:
    """Return the picture in ``file``, its header read.

    Pillow warns of very large pictures, which are refused here anyway. The warnings stay: silencing
    them for a moment would silence them in every thread.
    """
    head = file.read(4)
    file.seek(0)
    if head in _TIFF_HEADS:
        return _Tiff(file)
    return Image.open(file, formats=FORMATS)


def _damaged(file: BinaryIO, size: int, what: str, err: Exception) -> DataError:
    """Return the error for bytes that Pillow did not decode."""
    file.seek(0)
    head = file.read(16)
    if (kind := _other_kind(head)) is not None:
        return DataError(
            f"{what}: expected a picture ({', '.join(FORMATS)}), got {kind}, which is not read",
            fix=CONVERT,
        )
    if head[:4] in _TIFF_HEADS and str(err) == _UNKNOWN_LAYOUT:
        return DataError(
            f"{what}: expected a TIFF of a layout that Pillow reads, got another",
            fix="save it as PNG or JPEG",
        )
    # What Pillow says of bytes without a path shows an object of this process.
    got = f"{size} other bytes" if isinstance(err, UnidentifiedImageError) else str(err)
    return DataError(
        f"{what}: expected a whole picture ({', '.join(FORMATS)}), got: {got}",
        fix="replace or remove the file",
    )


def _other_kind(head: bytes) -> str | None:
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "HEIC" if brand in _HEIC_BRANDS else "AVIF" if brand[:3] == b"avi" else "a video"
    return next((kind for start, kind in _OTHER_HEADS if head.startswith(start)), None)


def _check_bytes(size: int, what: str) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{what}: expected at most {MAX_FILE_BYTES} bytes, got {size}", fix="shrink the picture"
        )


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


def _rgb(image: Image.Image, what: str) -> Image.Image:
    _refuse_without_range(image, what)
    wide = image.mode == "I" or image.mode.startswith("I;16")
    image.load()
    turn = _turn(image)
    if wide:
        flat = _upper_bits(image, what)
    elif image.has_transparency_data:
        # La, premultiplied grey, has no way of its own to RGBA.
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGBA", layer.size, _WHITE)
        flat = Image.alpha_composite(ground, layer).convert("RGB")
    else:
        flat = image.convert("RGB")
    return flat if turn is None else flat.transpose(turn)


def _refuse_without_range(image: Image.Image, what: str) -> None:
    sample_format = image.sample_format if isinstance(image, _Tiff) else _UNSIGNED
    if image.mode == "F" or sample_format == _FLOAT:
        raise DataError(
            f"{what}: expected whole numbers, got floats, and no tag says which value is white "
            f"(Pillow's mode {image.mode})",
            fix="scale it to 0..255 or 0..65535 and save it as PNG",
        )
    if sample_format != _UNSIGNED:
        raise DataError(
            f"{what}: expected unsigned samples, got SampleFormat {sample_format}, for which TIFF "
            "6.0 names no black and no white",
            fix="shift and scale it to 0..255 or 0..65535 and save it as PNG",
        )
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise DataError(
            f"{what}: expected 8 or 16 bits per channel, got Pillow's mode {image.mode}",
            fix="save it as PNG or JPEG",
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a picture upright; nothing where its EXIF cannot be read.

    The picture is whole all the same, and Pillow itself passes over such EXIF in a JPEG.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION)
    # Pillow raises many kinds on damaged EXIF (SyntaxError, struct.error, ValueError, ...).
    except Exception:
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _upper_bits(image: Image.Image, what: str) -> Image.Image:
    """Return the upper 8 bits of a grey picture that has 12, 16 or 32 of them."""
    values = np.asarray(image)
    # Pillow's "I" is signed, which turns the upper half of 32 unsigned bits negative.
    bits = image.bits if isinstance(image, _Tiff) else 16
    values = values.astype(np.int64) & 0xFFFF_FFFF if bits == 32 else values.astype(np.int64)
    if values.min() < 0 or values.max() >= 1 << bits:
        raise DataError(
            f"{what}: expected values of 0 to {(1 << bits) - 1}, got {values.min()} to "
            f"{values.max()}",
            fix="scale it to 0..255 or 0..65535 and save it as PNG",
        )
    grey = (values >> (bits - 8)).astype(np.uint8)
    if isinstance(image, _Tiff) and image.white_is_zero:
        grey = 255 - grey
    # A PNG may name one value as transparent; what is behind it is white.
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")
