"""The slots file against its table. What is refused: attacks_manifest.py."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from toolchain.bundle import check_slots, slot_table
from toolchain.core.digest import tensor_digest
from toolchain.core.errors import BundleError

FINITE = hnp.arrays(
    st.sampled_from(["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
).filter(lambda array: bool(np.isfinite(array).all()))
NAMES = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){0,3}", fullmatch=True)
SETS = st.dictionaries(NAMES, FINITE, min_size=1, max_size=5)


@given(SETS)
def test_the_table_says_what_the_tensors_are(tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Law: name, shape, dtype and digest of each row are those of the array that was saved."""
    data = save(tensors)
    table = slot_table(data)
    assert [slot.name for slot in table] == sorted(tensors)
    for slot in table:
        array = tensors[slot.name]
        assert (slot.shape, slot.dtype) == (array.shape, array.dtype.name)
        assert slot.digest == tensor_digest(array)
    check_slots(table, data)


@given(SETS, SETS)
def test_a_table_fits_its_own_file_only(
    one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]
) -> None:
    """Law: the check passes exactly if the tables are equal."""
    if slot_table(save(one)) == slot_table(save(other)):
        check_slots(slot_table(save(one)), save(other))
    else:
        with pytest.raises(BundleError, match=r"slot|expected"):
            check_slots(slot_table(save(one)), save(other))


def test_bfloat16_is_read_and_checked() -> None:
    def file(bits: int) -> bytes:
        text = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
        return len(text).to_bytes(8, "little") + text + bits.to_bytes(2, "little")

    assert slot_table(file(0x3F80))[0].dtype == "bfloat16"
    assert slot_table(file(0x7F7F))[0].shape == (1,)
    for bits in (0x7F80, 0xFF80, 0x7FC0):
        with pytest.raises(BundleError, match="NaN or infinity"):
            slot_table(file(bits))


def test_every_difference_is_named() -> None:
    table = slot_table(save({"a": np.zeros(1, "f4"), "b": np.zeros(2, "f4")}))
    data = save({"b": np.zeros((2, 1), "f8"), "c": np.zeros(1, "f4")})
    with pytest.raises(BundleError) as caught:
        check_slots(table, data)
    for words in ("a: missing slot", "c: extra slot", "b: expected shape", "b: expected dtype"):
        assert words in caught.value.message
