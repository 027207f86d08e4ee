"""Pictures as bytes, such as from a network: whole, known and not too large, or refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.core.errors import DataError
from toolchain.pictures.preprocess import Preprocessing, pixels

PLAIN = Preprocessing(8, 8, "none", "nearest", "RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def picture(data: bytes) -> tuple[int, ...]:
    return pixels(PLAIN, data).shape


def _saved(kind: str, mode: str = "RGB") -> bytes:
    drawn = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    saved = io.BytesIO()
    Image.fromarray(drawn).convert(mode).save(saved, kind)
    return saved.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_known_formats_are_read(kind: str) -> None:
    assert picture(_saved(kind)) == (8, 8, 3)


def _claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + head))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"hello", id="text"),
        pytest.param(_saved("PNG")[:-30], id="truncated"),
        pytest.param(_saved("JPEG")[:300], id="truncated JPEG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", id="PostScript"),
        pytest.param(_claims(2**31 - 1, 2**31 - 1), id="a claim of exapixels"),
        pytest.param(_claims(10_000, 6_401), id="a pixel bomb"),
        pytest.param(_claims(10, 10), id="no data"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        picture(data)
    assert "0x" not in caught.value.message


@given(st.binary(max_size=100), st.integers(0, 150))
def test_any_damage_is_a_picture_or_an_error(tail: bytes, keep: int) -> None:
    try:
        shape = picture(_saved("PNG")[:keep] + tail)
    except DataError:
        return
    assert shape == (8, 8, 3)
