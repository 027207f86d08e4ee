"""What a request may bring: every kind gives one tensor, everything else is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tests.support.drawn import pixels, same, tensor
from tests.support.stripes import RECIPE
from toolchain.core.errors import DataError
from toolchain.pictures import preprocess, request
from toolchain.pictures.decode import MAX_PIXELS

P = RECIPE.preprocess


def test_every_kind_of_one_picture_gives_the_same_tensor(tmp_path: Path) -> None:
    (array,) = pixels(1)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    expected = preprocess.tensor(P, array)
    pictures: list[Any] = [path, str(path), Image.fromarray(array), array, expected, expected[0]]
    for picture in pictures:
        assert same(request.one(P, picture), expected)


def test_every_kind_of_batch_gives_the_same_tensor(tmp_path: Path) -> None:
    drawn = pixels(3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, array in zip(paths, drawn, strict=True):
        Image.fromarray(array).save(path)
    expected = np.concatenate([preprocess.tensor(P, array) for array in drawn])
    mixed = [paths[0], Image.fromarray(drawn[1]), expected[2]]
    batches: list[Any] = [drawn, list(drawn), paths, tuple(paths), mixed, expected]
    for batch in batches:
        assert same(request.many(P, batch, 3), expected)


def test_pictures_of_other_sizes_are_scaled_and_grey_ones_are_read() -> None:
    grey = np.full((40, 7), 200, np.uint8)
    assert request.one(P, grey).shape == (1, 3, 12, 12)
    assert same(request.one(P, grey), request.one(P, np.full((5, 5, 3), 200, np.uint8)))


def test_a_view_in_another_order_of_memory_is_the_same_picture() -> None:
    turned = tensor(2).transpose(0, 1, 3, 2)
    assert not turned.flags.c_contiguous
    batch = request.tensor(P, turned, limit=2)
    assert batch.flags.c_contiguous
    assert same(batch, np.ascontiguousarray(turned))


REFUSED_TENSORS: dict[str, Any] = {
    "wrong size": np.zeros((1, 3, 13, 12), np.float32),
    "channels last": np.zeros((1, 12, 12, 3), np.float32),
    "one channel": np.zeros((1, 1, 12, 12), np.float32),
    "four channels": np.zeros((1, 4, 12, 12), np.float32),
    "float64": np.zeros((1, 3, 12, 12), np.float64),
    "float16": np.zeros((1, 3, 12, 12), np.float16),
    "other byte order": np.zeros((1, 3, 12, 12), ">f4"),
    "five axes": np.zeros((1, 1, 3, 12, 12), np.float32),
    "no axis": np.float32(1).reshape(()),
    "a list": [[0.0]],
    "nothing": None,
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_a_tensor_that_no_model_takes_is_refused(case: str) -> None:
    with pytest.raises(DataError, match=r"expected a (tensor float32|numpy array)"):
        request.tensor(P, REFUSED_TENSORS[case], limit=4)


@given(st.integers(0, 3 * 144 - 1), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_value_that_is_not_finite_is_enough(place: int, value: float) -> None:
    """Law: wherever it stands, a NaN or infinity is refused: it would close gates in silence."""
    bad = tensor(2)
    bad[1].flat[place] = value
    with pytest.raises(DataError, match="expected finite values"):
        request.tensor(P, bad, limit=2)
    with pytest.raises(DataError, match="expected finite values"):
        request.many(P, bad, 2)


REFUSED_PICTURES: dict[str, Any] = {
    "bytes": b"\x89PNG",
    "nothing": None,
    "a number": 7,
    "a list": [[0, 0, 0]],
    "int32": np.zeros((4, 4, 3), np.int32),
    "bool": np.zeros((4, 4, 3), np.bool_),
    "objects": np.full((4, 4, 3), None),
    "two channels": np.zeros((4, 4, 2), np.uint8),
    "four channels": np.zeros((4, 4, 4), np.uint8),
    "no pixels": np.zeros((0, 4, 3), np.uint8),
    "one axis": np.zeros(4, np.uint8),
    "a tensor of two": np.zeros((2, 3, 12, 12), np.float32),
    "a float picture": np.zeros((12, 12, 3), np.float32),
    "missing file": "nowhere.png",
    "a name with a null": "a\0b.png",
}


@pytest.mark.parametrize("case", REFUSED_PICTURES)
def test_a_picture_that_cannot_be_meant_is_refused(case: str) -> None:
    with pytest.raises(DataError):
        request.one(P, REFUSED_PICTURES[case])


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.bool_, np.complex64]),
        arrays.array_shapes(min_dims=0, max_dims=5, max_side=4),
    )
)
def test_any_array_is_a_tensor_or_a_data_error(array: Any) -> None:
    """Law: an array either becomes a finite tensor of the model's shape or raises DataError."""
    try:
        batch = request.one(P, array)
    except DataError:
        return
    assert batch.shape == (1, 3, 12, 12)
    assert np.isfinite(batch).all()


@given(st.data())
def test_a_truncated_file_is_a_data_error(data: st.DataObject) -> None:
    """Law: whatever is left of a JPEG, opened lazily or by name, it is no picture."""
    whole = io.BytesIO()
    Image.fromarray(pixels(1)[0]).resize((64, 64)).save(whole, "JPEG")
    left = whole.getvalue()[: data.draw(st.integers(160, len(whole.getvalue()) - 40))]
    try:
        opened = Image.open(io.BytesIO(left))
    except OSError:
        return
    with pytest.raises(DataError, match="expected a whole picture"):
        request.one(P, opened)


def test_a_truncated_file_by_its_path_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(1)[0]).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.png: expected a whole picture"):
        request.one(P, path)


def test_a_closed_image_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(1)[0]).save(path)
    opened = Image.open(path)
    opened.close()
    with pytest.raises(DataError, match="expected a whole picture"):
        request.one(P, opened)


def bomb(side: int) -> bytes:
    """A PNG that says it has ``side`` x ``side`` pixels, in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(8001))
    with pytest.raises(DataError, match=f"expected 1 to {MAX_PIXELS} pixels, got 8001 x 8001"):
        request.one(P, path)
    with Image.open(path) as opened, pytest.raises(DataError, match="8001 x 8001"):
        request.one(P, opened)


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("kind", ["pixels", "list", "tensor"])
def test_a_batch_that_is_empty_or_too_long_is_refused(count: int, kind: str) -> None:
    batch: Any = {"pixels": pixels(count), "list": list(pixels(count)), "tensor": tensor(count)}[
        kind
    ]
    with pytest.raises(DataError, match=f"expected 1 to 3 pictures at once, got {count}"):
        request.many(P, batch, 3)


def test_a_batch_beyond_the_limit_is_refused_before_any_file_is_opened() -> None:
    with pytest.raises(DataError, match="got 1000"):
        request.many(P, ["nowhere.png"] * 1000, 3)


@pytest.mark.parametrize("batch", ["a.png", Path("a.png"), b"abc", None, 3, {"a.png"}, iter(())])
def test_what_is_no_sequence_of_pictures_is_refused(batch: Any) -> None:
    with pytest.raises(DataError, match="expected a sequence of pictures, got"):
        request.many(P, batch, 3)


def test_one_picture_alone_is_no_batch() -> None:
    with pytest.raises(DataError, match=r"expected pictures \[N, H, W, 3\]"):
        request.many(P, pixels(1)[0], 3)
    with pytest.raises(DataError, match="expected a tensor float32"):
        request.many(P, tensor(1)[0], 3)


def test_the_bad_picture_of_a_batch_is_named_by_its_place(tmp_path: Path) -> None:
    good = pixels(1)[0]
    with pytest.raises(DataError, match=r"picture 2: .*nowhere\.png"):
        request.many(P, [good, good, tmp_path / "nowhere.png"], 3)
