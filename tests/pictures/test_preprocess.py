"""Preprocessing: one tensor for one picture, whatever file it came from."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.core.errors import DataError
from toolchain.pictures import decode
from toolchain.pictures.preprocess import Preprocessing, normalise, pixels, tensor

P = Preprocessing(
    size=16,
    resize=16,
    crop="center",
    interpolation="bilinear",
    colour="RGB",
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.25, 0.2),
)


def changed(**options: object) -> Preprocessing:
    return dataclasses.replace(P, **options)  # type: ignore[arg-type]


def noise(high: int, wide: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (high, wide, 3), dtype=np.uint8)


def test_a_picture_of_the_right_size_passes_untouched() -> None:
    picture = noise(16, 16)
    assert np.array_equal(pixels(P, picture), picture)


def test_path_image_and_array_agree(tmp_path: Path) -> None:
    picture = noise(40, 25)
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = pixels(P, picture)
    assert np.array_equal(pixels(P, tmp_path / "a.png"), expected)
    assert np.array_equal(pixels(P, str(tmp_path / "a.png")), expected)
    assert np.array_equal(pixels(P, Image.fromarray(picture)), expected)


def test_center_keeps_the_middle_and_none_squashes() -> None:
    thirds = np.zeros((30, 90, 3), np.uint8)
    thirds[:, 30:60] = 200
    assert (pixels(P, thirds)[2:-2, 2:-2] == 200).all()
    squashed = pixels(changed(crop="none"), thirds)
    assert squashed[:, 0].max() == 0
    assert (squashed[:, 8] == 200).all()


def test_resize_larger_than_size_cuts_the_border_off() -> None:
    framed = np.full((32, 32, 3), 255, np.uint8)
    framed[8:24, 8:24] = 7
    assert (pixels(changed(resize=32), framed) == 7).all()


def test_colour_orders() -> None:
    picture = noise(16, 16)
    assert np.array_equal(pixels(changed(colour="BGR"), picture), picture[..., ::-1])
    grey = pixels(changed(colour="L3"), picture)
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(picture).convert("L")))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = noise(16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(P, tmp_path / "turned.png"), np.rot90(picture, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "I;16"])
def test_every_usual_mode_gives_rgb_and_grey_stays_grey(mode: str, tmp_path: Path) -> None:
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((20, 20), 200 * 256, np.uint16))
        image = image.convert("I") if mode == "I" else image
    else:
        image = Image.new("L", (20, 20), 255 if mode == "1" else 200).convert(mode)
    assert image.mode == mode
    out = pixels(P, image)
    assert out.shape == (16, 16, 3)
    assert np.abs(out.astype(int) - (255 if mode == "1" else 200)).max() <= 2


def test_transparent_is_white_and_palette_transparency_too() -> None:
    clear = Image.new("RGBA", (16, 16), (9, 9, 9, 0))
    assert (pixels(P, clear) == 255).all()
    palette = Image.new("P", (16, 16), 0)
    palette.info["transparency"] = 0
    assert (pixels(P, palette) == 255).all()


def test_float_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="mode F"):
        pixels(P, Image.new("F", (4, 4)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected"):
        pixels(P, array)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm"])
def test_truncated_files_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    assert pixels(P, path).shape == (16, 16, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\."):
        pixels(P, path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, data, what in (
        ("a.png", b"", "whole picture"),
        ("b.jpg", b"text", "whole picture"),
        ("c.png", b"%!PS-Adobe-3.0 EPSF-3.0", "got PostScript, which is not read"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=what):
            pixels(P, tmp_path / name)
    with pytest.raises(DataError, match="no such picture"):
        pixels(P, tmp_path / "missing.png")


@pytest.mark.parametrize("side", [8_100, 13_500])
def test_a_bomb_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"expected 1 to 64000000 pixels|decompression bomb"):
        pixels(P, tmp_path / "large.png")


def test_a_large_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 bytes"):
        pixels(P, tmp_path / "a.png")


def test_a_strip_never_becomes_a_giant() -> None:
    strip = np.full((1, 50_000, 3), 77, np.uint8)
    assert (pixels(changed(size=64, resize=256), strip) == 77).all()


def test_contradictions_name_resize() -> None:
    assert [f.path for f in changed(resize=8).contradictions()] == ["resize"]
    assert [f.path for f in changed(crop="none", resize=20).contradictions()] == ["resize"]
    assert not list(P.contradictions())


def test_normalise_refuses_other_shapes() -> None:
    for bad in (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32)):
        with pytest.raises(DataError, match=r"N, H, W, 3"):
            normalise(P, bad)  # type: ignore[arg-type]


def test_tensor_is_the_two_steps() -> None:
    picture = noise(33, 21)
    out = tensor(P, picture)
    assert out.shape == (1, 3, 16, 16)
    assert out.dtype == np.float32
    assert np.array_equal(out, normalise(P, pixels(P, picture)[None]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_law_normalise_is_affine_in_each_channel(seed: int, count: int) -> None:
    """Law: normalise(x)[c] == (x / 255 - mean[c]) / std[c], to float32's last place."""
    batch = np.random.default_rng(seed).integers(0, 256, (count, 5, 3, 3), dtype=np.uint8)
    expected = (batch / 255.0 - np.array(P.mean)) / np.array(P.std)
    np.testing.assert_array_equal(
        normalise(P, batch), expected.transpose(0, 3, 1, 2).astype(np.float32)
    )


@given(st.integers(0, 2**32 - 1))
def test_law_normalise_is_batch_independent(seed: int) -> None:
    """Law: a picture's tensor is the same bit for bit alone and in a batch."""
    batch = np.random.default_rng(seed).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    alone = np.concatenate([normalise(P, batch[i : i + 1]) for i in range(3)])
    assert normalise(P, batch).tobytes() == alone.tobytes()


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["center", "none"]))
def test_law_any_size_of_picture_gives_the_square(high: int, wide: int, crop: str) -> None:
    """Law: every picture becomes [size, size, 3], and one of a single colour keeps it."""
    out = pixels(changed(crop=crop), np.full((high, wide, 3), 123, np.uint8))
    assert out.shape == (16, 16, 3)
    assert (out == 123).all()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="expected a picture file, got none"):
        pixels(P, tmp_path / "pipe.png")
