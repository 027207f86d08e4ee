"""One bit per element, the same bytes on both paths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolchain.training.lean import bits

masks = st.lists(st.booleans(), max_size=70).map(lambda m: torch.tensor(m, dtype=torch.bool))


@given(mask=masks, dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_unpack_undoes_pack(mask: Tensor, dtype: torch.dtype) -> None:
    packed = bits.pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.untyped_storage().nbytes() == (mask.numel() + 7) // 8
    assert torch.equal(bits.unpack(packed, mask.shape, dtype), mask.to(dtype))


def test_both_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every byte, and every length of a rest: the other devices' path must make the same bytes.
    for count in range(2048, 2056):
        values = torch.arange(256, dtype=torch.uint8).repeat(2)
        mask = bits.unpack(values, torch.Size([count]), torch.bool)
        by_numpy = bits.pack(mask)
        with monkeypatch.context() as patch:
            patch.setattr(bits, "by_numpy", lambda _: False)
            assert torch.equal(bits.pack(mask), by_numpy)
            assert torch.equal(bits.unpack(by_numpy, mask.shape, torch.bool), mask)


def test_bits_stand_in_the_order_of_the_elements() -> None:
    mask = torch.tensor([[True, False, False], [True, False, False], [False, False, True]])
    assert bits.pack(mask).tolist() == [0b00001001, 0b1]
