"""idx files: read as an independent writer wrote them, refused where the header lies."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.tables import FILES, fashion, idx_bytes, recipe_of, spec, stack, write_idx
from toolchain.core.digest import sha256
from toolchain.core.errors import DataError, StorageError
from toolchain.training import data
from toolchain.training.data import idx
from toolchain.training.data.forms import recognised

FASHION = spec("idx", files=FILES)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    array=st.sampled_from(["u1", "i1", ">i2", ">i4", ">f4", ">f8"]).flatmap(
        lambda kind: arrays.arrays(
            np.dtype(kind),
            arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
            elements={"allow_nan": False} if "f" in kind else None,
        )
    ),
    packed=st.booleans(),
)
def test_law_what_another_writer_wrote_is_read(
    tmp_path: Path, array: np.ndarray, packed: bool
) -> None:
    path = write_idx(tmp_path / ("a.gz" if packed else "a"), array)
    read = idx.read_array(path)
    assert read.shape == array.shape
    assert np.array_equal(read, array)


def test_both_parts_and_their_labels(tmp_path: Path) -> None:
    dataset = data.load(recipe_of(FASHION, size=12), root=fashion(tmp_path))
    assert dataset.classes == ("0", "1")
    assert (len(dataset.train), len(dataset.test), dataset.validation) == (12, 4, None)
    shown, labels = dataset.test.batch([0, 3])
    assert (shown.shape, labels.tolist()) == ((2, 12, 12, 3), [0, 1])
    assert shown[0, 0, 0].tolist() == [1, 1, 1]
    assert dataset.notes[:4] == (
        "12 to train, 4 to test (as the data say), 2 classes",
        "6 x 6 px, grey",
        "train: pictures are train-images-idx3-ubyte.gz, labels train-labels-idx1-ubyte",
        "test: pictures are t10k-images-idx3-ubyte, labels t10k-labels-idx1-ubyte.gz",
    )


def test_names_for_the_numbers(tmp_path: Path) -> None:
    named = dataclasses.replace(FASHION, labels=("0", "1"), classes=("shirt", "bag"))
    assert data.load(recipe_of(named), root=fashion(tmp_path)).classes == ("shirt", "bag")
    in_order = dataclasses.replace(FASHION, classes=("shirt", "bag"))
    assert data.load(recipe_of(in_order), root=tmp_path).classes == ("shirt", "bag")


def test_a_label_without_a_name(tmp_path: Path) -> None:
    named = dataclasses.replace(FASHION, labels=("0", "1"), classes=("shirt", "bag"))
    with pytest.raises(DataError, match=r"expected the labels 0, 1, got 2 besides"):
        data.load(recipe_of(named), root=fashion(tmp_path, classes=3))


def test_one_pair_of_files_is_parted(tmp_path: Path) -> None:
    one = dataclasses.replace(FASHION, files=FILES[:2])
    dataset = data.load(recipe_of(one), root=fashion(tmp_path, train=20))
    assert np.bincount(dataset.train.labels).tolist() == [8, 8]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    assert "0.2 of each class to test, chosen by data.seed 1" in dataset.notes[0]


def test_digests_of_the_recipe_are_those_of_the_files(tmp_path: Path) -> None:
    digests = tuple(sha256((fashion(tmp_path) / name).read_bytes()) for name in FILES)
    pinned = dataclasses.replace(FASHION, sha256=digests)
    assert len(data.load(recipe_of(pinned), root=tmp_path).train) == 12
    # The same numbers, packed otherwise, are other bytes.
    path = tmp_path / FILES[0]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=5))
    with pytest.raises(DataError, match=r"train-images.*: expected sha256:.*these are other data"):
        data.load(recipe_of(pinned), root=tmp_path)


def test_pairs_are_told_by_heads_and_names(tmp_path: Path) -> None:
    assert idx.recognised(fashion(tmp_path)) == FILES
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"a page about it")
    assert idx.recognised(tmp_path) == FILES
    (tmp_path / FILES[3]).unlink()
    (tmp_path / FILES[2]).rename(tmp_path / "t10k")
    assert idx.recognised(tmp_path) == FILES[:2]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>", b"\x1f\x8b\x08"])
def test_half_a_part_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = fashion(tmp_path) / name
    path.unlink()
    twin = FILES[FILES.index(name) ^ 1]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"for {twin}, got no" if content is None else name):
        recognised(tmp_path)


def test_two_data_sets_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in FILES[:2]:
        (fashion(tmp_path) / f"letters-{name}").write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(DataError, match="expected one pair of files for the part train"):
        idx.recognised(tmp_path)


# Hostile files, each named after its attack

HEAD = idx_bytes("u1", (3, 2, 2), b"")
GOOD = HEAD + bytes(12)
ATTACKS = {
    "empty": (b"", "expected an idx file .* got nothing"),
    "a_page": (b"<html>not found</html>", "got 3c 68 74 6d"),
    "cut_in_the_head": (HEAD[:9], "expected an idx file"),
    "a_head_alone": (HEAD, "expected 12 bytes, as its header says, got 0"),
    "one_byte_short": (GOOD[:-1], "expected 12 bytes, as its header says, got 11"),
    "one_byte_more": (GOOD + b"x", "expected 12 bytes, as its header says, got 13"),
    "an_unknown_type": (b"\0\0\x0a\1" + bytes(4), "expected an idx file"),
    "no_dimensions": (b"\0\0\x08\0" + bytes(8), "expected an idx file"),
    "255_dimensions": (b"\0\0\x08\xff" + bytes(2000), "expected an idx file"),
    "a_head_that_promises_terabytes": (
        idx_bytes("u1", (0xFFFFFFFF, 1024, 1024), bytes(12)),
        "expected at most 4294967296 bytes of arrays, got 4503599626321920",
    ),
    "nothing_of_astronomic_sides": (
        idx_bytes("u1", (0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), b""),
        "expected at most 4294967296 bytes beside sides of 0, got the shape",
    ),
    "a_product_that_wraps_at_64_bits": (
        idx_bytes("u1", (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), bytes(12)),
        "expected at most 4294967296 bytes",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_lying_file_is_refused_for_what_it_is(tmp_path: Path, attack: str, packed: bool) -> None:
    content, words = ATTACKS[attack]
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=words):
        idx.read_array(path)


def test_a_gzip_bomb_is_unpacked_no_further_than_its_head_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(HEAD)
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"expected 12 bytes, as its header says, got 13\+"):
        idx.read_array(path)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_gzip_file_that_was_cut_or_changed(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(GOOD)
    for content in (packed[:-cut], packed[:-cut] + b"\xff" * cut):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"expected a whole gzip file|expected an idx file"):
            idx.read_array(tmp_path / "a.gz")


def test_arrays_are_limited_together(tmp_path: Path) -> None:
    path = write_idx(tmp_path / "a", stack(3)[0])
    with pytest.raises(DataError, match="at most 4294967296 bytes of arrays, got 4294967304"):
        idx.read_array(path, taken=(4 << 30) - 100)


def test_a_file_out_of_the_folder_and_a_folder_in_its_place(tmp_path: Path) -> None:
    root = fashion(tmp_path / "in")
    (root / FILES[1]).rename(tmp_path / "labels")
    (root / FILES[1]).symlink_to(tmp_path / "labels")
    with pytest.raises(DataError, match="leads out of"):
        data.load(recipe_of(FASHION), root=root)
    (root / FILES[1]).unlink()
    (root / FILES[1]).mkdir()
    with pytest.raises(StorageError, match="expected a regular file, got a directory"):
        data.load(recipe_of(FASHION), root=root)
