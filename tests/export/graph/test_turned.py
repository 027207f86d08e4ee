"""Constants that are turned views of other arrays, as a folded transpose leaves them."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from toolchain.export.graph.store import pack_tensors


@given(st.lists(st.integers(1, 4), min_size=0, max_size=4), st.randoms())
def test_a_turned_tensor_is_packed_as_it_reads_not_as_it_lies(
    shape: list[int], random: Random
) -> None:
    """Law: the packed bytes are the tensor's values in C order, whatever its strides."""
    straight = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    axes = list(range(len(shape)))
    random.shuffle(axes)
    turned = straight.transpose(axes)
    packed = pack_tensors({"a.weight": turned}, "x.safetensors")
    offset, length = packed.places["a.weight"]
    assert packed.data[offset : offset + length] == turned.tobytes()
