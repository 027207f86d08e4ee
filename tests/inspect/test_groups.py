"""Grouping tensors by block."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolchain.inspect import TensorEntry
from toolchain.inspect.groups import grouped

WORDS = st.sampled_from(["block00", "block01", "head", "adaptor", "gate", "weight"])
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
TENSORS = st.builds(
    TensorEntry, NAMES, st.lists(st.integers(0, 5), max_size=3).map(tuple), st.just("float32")
)


@given(st.lists(TENSORS, max_size=20))
def test_law_no_tensor_is_lost(tensors: list[TensorEntry]) -> None:
    """Blocks and their parts add up to the tensors and elements that went in."""
    blocks = grouped(tensors)
    assert sum(block.tensors for block in blocks) == len(tensors)
    assert sum(block.elements for block in blocks) == sum(t.elements for t in tensors)
    assert all(sum(block.parts.values()) == block.elements for block in blocks)
    assert len({block.name for block in blocks}) == len(blocks)


def test_the_parts_of_a_block() -> None:
    slots = [
        TensorEntry("block00.adaptor.reduce.weight", (4, 2), "float32"),
        TensorEntry("block00.gate.bias", (1,), "float32"),
        TensorEntry("head.weight", (3, 2), "float32"),
    ]
    assert [(block.name, dict(block.parts)) for block in grouped(slots)] == [
        ("block00", {"adaptor": 8, "gate": 1}),
        ("head", {"own": 6}),
    ]
