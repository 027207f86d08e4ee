"""Decoding: one meaning for each file, or none; damage costs an error, never a wrong pixel."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.core.errors import DataError
from toolchain.pictures.decode import measured, upright_rgb

SIDE = 16
GREY = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def tiff(
    values: np.ndarray, *, endian: Literal["<", ">"], photometric: int, sample_format: int | None
) -> bytes:
    """A TIFF of one strip, written by hand: Pillow writes few of these layouts."""
    data = values.astype(values.dtype.newbyteorder(endian)).tobytes()
    tags = [
        (256, 4, SIDE),
        (257, 4, SIDE),
        (258, 3, values.dtype.itemsize * 8),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, None),
        (277, 3, 1),
        (278, 4, SIDE),
        (279, 4, len(data)),
        *([(339, 3, sample_format)] if sample_format is not None else []),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        number = start if value is None else value
        # A SHORT stands at the left of its four bytes.
        packed = struct.pack(endian + ("HH" if kind == 3 else "I"), number, *([0] * (kind == 3)))
        entries += struct.pack(endian + "HHI", tag, kind, 1) + packed
    head = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(endian + "I", 8)
    return head + struct.pack(endian + "H", len(tags)) + entries + bytes(4) + data


def grey_of(data: bytes) -> np.ndarray:
    """The grey in the picture, whose three channels are equal."""
    rgb = np.asarray(upright_rgb(data))
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("sample_format", [None, UNSIGNED, UNDEFINED])
def test_unsigned_tiffs_give_what_tiff_6_says(
    endian: Literal["<", ">"],
    photometric: int,
    kind: type[np.unsignedinteger],
    sample_format: int | None,
) -> None:
    """Page 37: the largest value is white with BlackIsZero, and 0 is with WhiteIsZero."""
    largest = int(np.iinfo(kind).max)
    values = (GREY.astype(np.uint64) * (largest // 255)).astype(kind)
    stored = values if photometric == BLACK_IS_ZERO else (largest - values).astype(kind)
    data = tiff(stored, endian=endian, photometric=photometric, sample_format=sample_format)
    assert np.array_equal(grey_of(data), GREY)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_signed_tiffs_are_refused(endian: Literal["<", ">"], kind: type[np.signedinteger]) -> None:
    values = GREY.astype(kind)
    data = tiff(values, endian=endian, photometric=BLACK_IS_ZERO, sample_format=SIGNED)
    with pytest.raises(DataError) as caught:
        upright_rgb(data)
    assert "save it as PNG" in caught.value.fix


@pytest.mark.parametrize("endian", ["<", ">"])
def test_float_tiffs_are_refused_with_a_fix(endian: Literal["<", ">"]) -> None:
    values = (GREY / 255).astype(np.float32)
    data = tiff(values, endian=endian, photometric=BLACK_IS_ZERO, sample_format=FLOAT)
    with pytest.raises(DataError, match="no tag says which value is white") as caught:
        upright_rgb(data)
    assert caught.value.fix == "scale it to 0..255 or 0..65535 and save it as PNG"


@pytest.mark.parametrize("low, high", [(-1, 0), (0, 1 << 16)])
def test_an_image_of_mode_i_beyond_16_bits_is_refused(low: int, high: int) -> None:
    values = np.array([[low, high]], dtype=np.int32)
    with pytest.raises(DataError, match=f"expected values of 0 to 65535, got {low} to {high}"):
        upright_rgb(Image.fromarray(values))


def test_the_transparent_value_of_a_16_bit_png_is_white() -> None:
    values = GREY.astype(np.uint16) * 257
    saved = io.BytesIO()
    Image.fromarray(values).save(saved, "PNG", transparency=int(values[3, 4]))
    expected = np.where(GREY[3, 4] == GREY, 255, GREY)
    assert np.array_equal(grey_of(saved.getvalue()), expected)


COLOURS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
GARBAGE = [
    pytest.param(b"Exif\0\0garbage", id="no header"),
    pytest.param(b"Exif\0\0II*\0\xff\xff\xff\x7f", id="directory outside"),
    pytest.param(b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", id="many entries"),
    pytest.param(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x09\0\0\0zzzz", id="text"),
    pytest.param(b"", id="nothing"),
]


# Pillow warns of what it passes over in a JPEG.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("exif", GARBAGE)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_garbage_exif_leaves_the_picture_as_it_is(kind: str, exif: bytes) -> None:
    plain, saved = io.BytesIO(), io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(COLOURS).save(plain, kind, **options)
    Image.fromarray(COLOURS).save(saved, kind, exif=exif, **options)
    expected = np.asarray(upright_rgb(plain.getvalue()))
    assert np.array_equal(np.asarray(upright_rgb(saved.getvalue())), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_undone_and_measured(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a", kind, exif=exif)
    image = upright_rgb(tmp_path / "a")
    assert image.size == ((24, 40) if orientation in (5, 6, 7, 8) else (40, 24))
    assert measured(tmp_path / "a").size == image.size


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"\xff\x0a\xff\xff", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\x01", "Photoshop"),
    ],
)
def test_formats_that_are_not_read_are_named_whatever_the_suffix(
    head: bytes, what: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(head + bytes(50))
    for read in (upright_rgb, measured):
        with pytest.raises(DataError, match=f"got {what}, which is not read") as caught:
            read(tmp_path / "a.jpg")
        assert "convert it to JPEG or PNG" in caught.value.fix


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(COLOURS).save(out, kind)
    return out.getvalue()


@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"]),
    cut=st.floats(0, 1),
    byte=st.integers(0, 255),
    shorten=st.booleans(),
)
def test_law_measuring_refuses_exactly_what_decoding_refuses(
    kind: str, cut: float, byte: int, shorten: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: a file is measured if and only if it is decoded, and the sizes agree."""
    data = saved(kind)
    place = int(cut * (len(data) - 1))
    damaged = data[:place] + (b"" if shorten else bytes([byte]) + data[place + 1 :])
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        size = upright_rgb(path).size
    except DataError:
        with pytest.raises(DataError):
            measured(path)
    else:
        assert measured(path).size == size


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_further_pictures_of_a_file_are_noticed(kind: str, count: int, tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOURS[:: 1 - 2 * (at % 2)]) for at in range(count)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], **options)
    assert measured(tmp_path / "a").several == (count > 1)
    frames[0].save(tmp_path / "b", kind, **options)
    # The first one is what is read.
    first, alone = (np.asarray(upright_rgb(tmp_path / name)) for name in "ab")
    assert np.array_equal(first, alone)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PPM", "MPO"])
def test_formats_of_one_picture_hold_one(kind: str, tmp_path: Path) -> None:
    """A camera's MPO is a JPEG with previews and further views of the same picture behind it."""
    more = {"save_all": True, "append_images": [Image.fromarray(COLOURS)]} if kind == "MPO" else {}
    Image.fromarray(COLOURS).save(tmp_path / "a", kind, **more)
    assert not measured(tmp_path / "a").several


def test_damage_behind_the_first_picture_is_no_fault(tmp_path: Path) -> None:
    out = io.BytesIO()
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1])]
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    one = io.BytesIO()
    frames[0].save(one, "TIFF")
    for end in range(len(one.getvalue()) + 1, len(out.getvalue()), 97):
        (tmp_path / "a").write_bytes(out.getvalue()[:end])
        assert measured(tmp_path / "a").size == upright_rgb(tmp_path / "a").size
