"""Encoded pictures as they come over a network: bytes to a Pillow image.

Rules of this file: the same formats and limits as for picture files (:mod:`toolchain.preprocess`),
checked before a pixel is decoded; nothing is resized here and no file is opened.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image

from toolchain.errors import DataError
from toolchain.preprocess import FORMATS, MAX_FILE_BYTES, MAX_PIXELS


def picture(data: bytes) -> Image.Image:
    """Return the decoded picture in ``data``, the bytes of a file in one of ``FORMATS``.

    Raises DataError for damaged or unknown bytes and for more than 64 million pixels.
    """
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"expected a picture of at most {MAX_FILE_BYTES} bytes, got {len(data)}")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a bomb; the area below is smaller than its own.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height <= MAX_PIXELS:
                image.load()
                return image
    # Pillow's decoders raise many kinds on damaged bytes (OSError, SyntaxError, struct.error, ...);
    # their texts may show objects of this process.
    except Exception as err:
        raise DataError(
            f"expected a whole picture ({', '.join(FORMATS)}), got {len(data)} other bytes"
        ) from err
    raise DataError(f"expected a picture of at most {MAX_PIXELS} pixels, got {width} x {height}")
