"""Laws of toolchain/core/digest.py."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolchain.core.digest import sha256, short, tensor_digest, weights_digest
from toolchain.core.errors import Da3Error, WeightsError

Array = npt.NDArray[np.generic]
DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
SETS = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=6)


def test_sha256_of_a_known_text() -> None:
    """FIPS 180-4, example of one block."""
    assert sha256(b"abc") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_tensor_digest_is_that_of_its_little_endian_bytes() -> None:
    expected = hashlib.sha256(bytes([1, 0, 0, 0, 2, 0, 0, 0])).hexdigest()
    assert tensor_digest(np.array([1, 2], "<i4")) == f"sha256:{expected}"


@given(ARRAYS)
def test_memory_layout_does_not_matter(array: Array) -> None:
    """Law: byte order, strides and order in memory change no digest."""
    digest = tensor_digest(array)
    assert tensor_digest(array.astype(array.dtype.newbyteorder(">"))) == digest
    assert tensor_digest(np.asfortranarray(array)) == digest
    assert tensor_digest(np.repeat(array[..., None], 2, axis=-1)[..., 0]) == digest


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array([1j])])
def test_only_plain_numbers_have_a_digest(array: Array) -> None:
    with pytest.raises(WeightsError, match="dtype"):
        tensor_digest(array)


@given(SETS, st.randoms(use_true_random=False))
def test_order_does_not_matter(tensors: dict[str, Array], rng: random.Random) -> None:
    """Law: weights_digest is a function of the set, not of the order of its tensors."""
    items = list(tensors.items())
    rng.shuffle(items)
    assert weights_digest(dict(items)) == weights_digest(tensors)


@given(SETS, st.data())
def test_every_part_matters(tensors: dict[str, Array], data: st.DataObject) -> None:
    """Law: name, dtype, shape and every element are part of the digest."""
    name = data.draw(st.sampled_from(sorted(tensors))) if tensors else "a"
    array = tensors.get(name, np.zeros(1, np.float32))
    whole = {**tensors, name: array}
    digest = weights_digest(whole)
    others = {key: value for key, value in whole.items() if key != name}
    assert weights_digest(others) != digest
    assert weights_digest({**others, name + "x": array}) != digest
    assert weights_digest({**whole, name: array[None]}) != digest
    if array.size:
        assert weights_digest({**whole, name: flipped(array)}) != digest
    if array.dtype.itemsize == 1:
        other = np.uint8 if array.dtype == np.bool_ else np.bool_
        assert weights_digest({**whole, name: array.view(other)}) != digest


def flipped(array: Array) -> Array:
    """Return a copy whose first byte differs in one bit."""
    data = bytearray(array.tobytes())
    data[0] ^= 1
    return np.frombuffer(bytes(data), array.dtype).reshape(array.shape)


def test_weights_digest_as_the_documents_define_it() -> None:
    zeros = hashlib.sha256(bytes(8)).hexdigest()
    text = f'[["a","float32",[2],"sha256:{zeros}"],["b","int64",[],"sha256:{zeros}"]]'
    tensors: dict[str, Array] = {"b": np.int64(0) * np.ones((), "int64"), "a": np.zeros(2, "<f4")}
    assert weights_digest(tensors) == sha256(text.encode())


def test_short_is_for_names() -> None:
    assert short(sha256(b"abc")) == "ba7816bf8f01"


@pytest.mark.parametrize("text", ["", "sha256:", "ba7816bf8f01", "sha256:" + "A" * 64, "md5:0"])
def test_short_takes_whole_digests_only(text: str) -> None:
    with pytest.raises(Da3Error, match="expected a digest"):
        short(text)
