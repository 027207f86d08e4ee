"""Numpy archives: arrays that people write, and archives that lie. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.tables import NAMES, own, recipe_of, spec, stack
from toolchain.core.arrays import Array
from toolchain.core.digest import sha256
from toolchain.core.errors import DataError
from toolchain.training import data
from toolchain.training.data import npz
from toolchain.training.data.splits import DomainData

OWN = spec("npz", files=("own.npz",), columns=NAMES)


def loaded(root: Path, **keys: Any) -> DomainData:
    return data.load(recipe_of(dataclasses.replace(OWN, **keys), size=8), root=root)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_four_arrays_are_two_parts(tmp_path: Path, save: Callable[..., None]) -> None:
    both = (*stack(8), *stack(4))
    save(tmp_path / "own.npz", notes=np.arange(3), **dict(zip(NAMES, both, strict=True)))
    dataset = loaded(tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (8, 4, ("0", "1"))
    assert dataset.notes[2:5] == (
        "train: pictures are x_train (uint8), labels y_train",
        "test: pictures are x_test (uint8), labels y_test",
        "left out: arrays that data.columns does not name: 'notes'",
    )


def test_six_arrays_have_a_validation_part(tmp_path: Path) -> None:
    pictures, labels = stack(6)
    # MedMNIST's form: labels [N, 1].
    own(tmp_path, x_val=pictures, y_val=labels[:, None])
    dataset = loaded(tmp_path, columns=(*NAMES, "x_val", "y_val"))
    assert dataset.validation is not None
    assert len(dataset.validation) == 6


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    array=arrays.arrays(
        st.sampled_from(["u1", "<i4", ">i4", "<f4", ">f8", "?", "<U3"]),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    ),
    fortran=st.booleans(),
)
def test_law_what_numpy_wrote_is_read(tmp_path: Path, array: Array, fortran: bool) -> None:
    np.savez(tmp_path / "a.npz", it=np.asfortranarray(array) if fortran else array)
    with npz._opened(tmp_path / "a.npz", None) as archive:
        read = archive.array("it")
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


def test_colour_and_names_for_classes(tmp_path: Path) -> None:
    colour = np.zeros((4, 8, 8, 3), np.uint8)
    colour[..., 1] = 77
    words = np.array(["möwe", "spatz"] * 2)
    own(tmp_path, x_test=colour, y_test=words, x_train=colour + 1, y_train=words)
    dataset = loaded(tmp_path)
    assert dataset.classes == ("möwe", "spatz")
    assert dataset.test.batch([0])[0][0, 3, 3].tolist() == [0, 77, 0]


@pytest.mark.parametrize(
    ("kind", "white"),
    [("f4", 1.0), ("f2", 1.0), ("f8", 255.0), ("u2", 65535.0), ("i8", 16.0), ("?", 1.0)],
)
def test_other_numbers_are_scaled_as_stated(tmp_path: Path, kind: str, white: float) -> None:
    ramp = np.linspace(0, white, 64).reshape(1, 8, 8).astype(kind)
    own(
        tmp_path,
        **dict.fromkeys(("x_train", "x_test"), np.tile(ramp, (4, 1, 1))),
        y_train=stack(4)[1],
    )
    with pytest.raises(DataError, match=r"expected uint8, got .*which value is white"):
        loaded(tmp_path)
    shown = loaded(tmp_path, white=white).train.batch([0])[0][0, :, :, 0]
    expected = np.rint(ramp[0].astype(np.float64) / white * 255)
    assert np.array_equal(shown, expected)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_values_outside_are_refused_with_their_picture(tmp_path: Path, value: float) -> None:
    pictures = np.full((300, 4, 4), 0.5, np.float32)
    pictures[290, 2, 1] = value
    own(tmp_path, x_train=pictures, y_train=stack(300)[1])
    with pytest.raises(DataError, match=r"train: expected values from 0 to .* in picture 290"):
        loaded(tmp_path, white=1.0)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 3, 6, 6), np.uint8), r"1 or 3 channels, got \[8, 3, 6, 6\]"),
        (np.zeros((8, 36), np.uint8), r"expected pictures \[N, H, W\]"),
        (np.zeros((8, 6, 6, 4), np.uint8), "1 or 3 channels"),
        (np.zeros((8, 0, 6), np.uint8), r"expected pictures \[N, H, W\]"),
        (np.zeros((7, 6, 6), np.uint8), r"got pictures \[7, 6, 6\] and labels \[8\]"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, array: Array, words: str) -> None:
    with pytest.raises(DataError, match=words):
        loaded(own(tmp_path, x_train=array))


@pytest.mark.parametrize(
    "labels", [np.eye(8), np.arange(8) / 2, np.zeros((8, 2), int), np.array(["", "a"] * 4)]
)
def test_arrays_that_are_no_labels(tmp_path: Path, labels: Array) -> None:
    with pytest.raises(DataError, match="train: expected labels"):
        loaded(own(tmp_path, y_train=labels))


def test_an_array_that_is_not_there_and_another_digest(tmp_path: Path) -> None:
    own(tmp_path)
    with pytest.raises(DataError, match="expected an array 'x', got 'x_train', 'y_train'"):
        loaded(tmp_path, columns=("x", "y"))
    digest = sha256((tmp_path / "own.npz").read_bytes())
    assert len(loaded(tmp_path, sha256=(digest,)).train) == 8
    own(tmp_path, x_train=stack(8)[0] + 1)
    with pytest.raises(DataError, match="these are other data"):
        loaded(tmp_path, sha256=(digest,))


# Hostile archives, each made by the function that is named after the attack


class Fired(Exception):
    """Raised by a pickle that was opened."""


class Trap:
    """Whoever unpickles it raises Fired."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_fire, ())


def _fire() -> None:
    raise Fired


def npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def headed(text: str, body: bytes = b"", version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin1") + body


def archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    good = {name: npy(array) for name, array in zip(NAMES, (*stack(8), *stack(4)), strict=True)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, content in {**good, **members}.items():
            file.writestr(f"{name}.npy", content)
    return stream.getvalue()


def described(shape: str, kind: str = "|u1") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def a_pickle_in_place_of_an_array() -> bytes:
    return archive({"x_train": pickle.dumps(Trap())})


def an_array_of_objects() -> bytes:
    return archive({"x_train": headed(described("(8,)", "|O"), pickle.dumps(Trap()))})


def objects_within_records() -> bytes:
    text = "{'descr': [('a', '|u1'), ('b', '|O')], 'fortran_order': False, 'shape': (8,)}"
    return archive({"x_train": headed(text, pickle.dumps(Trap()))})


def a_bomb_of_zeros() -> bytes:
    """16 KiB that unpack to 16 MiB, behind a header that promises 288 bytes."""
    return archive({"x_train": headed(described("(8, 6, 6)"), bytes(16 << 20))})


def a_header_that_promises_gigabytes() -> bytes:
    return archive({"x_train": headed(described("(5, 1024, 1048576)"), bytes(100))})


def a_header_and_a_directory_that_lie_alike() -> bytes:
    """Both promise 3 GiB; 100 bytes are there."""
    content = headed(described("(3, 1024, 1048576)"), bytes(100))
    data = archive({"x_train": content})
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"x_train.npy"))
    lie = struct.pack("<I", len(content) - 100 + (3 << 30))
    return data[: place + 24] + lie + data[place + 28 :]


def a_directory_that_lies_about_the_size() -> bytes:
    content = npy(stack(8)[0])
    data = archive({"x_train": content}, zipfile.ZIP_STORED)
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"x_train.npy"))
    lie = struct.pack("<I", len(content) - 1)
    return data[: place + 24] + lie + data[place + 28 :]


def a_shape_larger_than_its_bytes() -> bytes:
    return archive({"x_train": headed(described("(9, 6, 6)"), bytes(288))})


def a_shape_of_negative_sides() -> bytes:
    return archive({"x_train": headed(described("(-8, -6, 6)"), bytes(288))})


def a_shape_of_astronomic_sides() -> bytes:
    return archive({"x_train": headed(described(f"({10**30}, 6, 6)"), bytes(288))})


def a_shape_of_nothing_and_astronomic_sides() -> bytes:
    return archive({"x_train": headed(described(f"(0, {2**70}, 2)"))})


def text_without_letters() -> bytes:
    return archive({"y_train": headed(described(f"({2**70},)", "<U0"))})


def a_header_that_runs_code() -> bytes:
    text = "{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (8,)}"
    return archive({"x_train": headed(text)})


def a_header_that_nests() -> bytes:
    return archive({"x_train": headed("(" * 4000)})


def a_header_of_gigabytes() -> bytes:
    start = b"\x93NUMPY\x02\0" + struct.pack("<I", 0xFFFFFFF0)
    return archive({"x_train": start + bytes(1 << 20)})


def an_archive_cut_short() -> bytes:
    return archive({})[:-40]


def a_page_in_place_of_an_archive() -> bytes:
    return b"<html>not found</html>"


def a_changed_byte() -> bytes:
    data = bytearray(archive({}, zipfile.ZIP_STORED))
    data[data.index(npy(stack(8)[0])[-288:]) + 100] ^= 1
    return bytes(data)


def an_array_twice() -> bytes:
    stream = io.BytesIO(archive({}))
    with zipfile.ZipFile(stream, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x_train.npy", npy(stack(8)[0]))
    return stream.getvalue()


def many_arrays() -> bytes:
    return archive({str(number): b"" for number in range(1001)}, zipfile.ZIP_STORED)


def a_directory_of_megabytes() -> bytes:
    return archive({f"{number:060000}": b"" for number in range(40)}, zipfile.ZIP_STORED)


def packed_with_a_seldom_method() -> bytes:
    return archive({}, zipfile.ZIP_LZMA)


def encrypted() -> bytes:
    data = bytearray(archive({}))
    place = -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:
        data[place + 8] |= 1
    return bytes(data)


ATTACKS = {
    a_pickle_in_place_of_an_array: "expected an array of numpy's format",
    an_array_of_objects: "Python's objects are not read",
    objects_within_records: "Python's objects are not read",
    a_bomb_of_zeros: "expected 288 bytes, as its header says, got 16777216",
    a_header_that_promises_gigabytes: "expected 5368709120 bytes, as its header says, got 100",
    a_header_and_a_directory_that_lie_alike: "expected 3221225472 bytes, got 100",
    a_directory_that_lies_about_the_size: "expected a whole archive, got: Bad CRC-32",
    a_shape_larger_than_its_bytes: "expected 324 bytes, as its header says, got 288",
    a_shape_of_negative_sides: r"expected a shape, got \(-8, -6, 6\)",
    a_shape_of_astronomic_sides: "as its header says, got 288",
    a_shape_of_nothing_and_astronomic_sides: (
        rf"'x_train': expected at most 4294967296 bytes .* got the shape \[0, {2**70}, 2\]"
    ),
    text_without_letters: "'y_train': expected numbers or text, got <U0",
    a_header_that_runs_code: "expected a header of an array",
    a_header_that_nests: "expected a header of an array",
    a_header_of_gigabytes: "expected a header of at most 4096 bytes, got 4294967280",
    an_archive_cut_short: "expected a whole archive",
    a_page_in_place_of_an_archive: "expected a whole archive",
    a_changed_byte: "expected a whole archive, got: Bad CRC-32",
    an_array_twice: "'x_train': expected each array once",
    many_arrays: "expected at most 1000 arrays, got 1005",
    a_directory_of_megabytes: "a directory of more than 2097152 bytes",
    packed_with_a_seldom_method: "expected deflate, got packing method 14",
    encrypted: "expected plain bytes, got encrypted ones",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_archive_is_refused_for_what_it_is(
    tmp_path: Path, attack: Callable[[], bytes]
) -> None:
    (tmp_path / "own.npz").write_bytes(attack())
    with pytest.raises(DataError, match=ATTACKS[attack]):
        loaded(tmp_path)


def test_arrays_are_limited_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.training.data.arrays.MAX_BYTES", 200)
    monkeypatch.setattr(npz._Archive, "array", None)
    with pytest.raises(DataError, match="expected at most 200 bytes of arrays, got 444"):
        loaded(own(tmp_path))
