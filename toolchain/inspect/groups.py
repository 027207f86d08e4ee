"""Tensors of a domain, grouped by the block that they belong to.

A slot is named ``<block>.<part>.<...>`` or ``head.<...>``; names that are neither form a group of
their own, by their first word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PARTS = ("adaptor", "gate")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as its file describes it; ``dtype`` in the file's own words."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """The tensors of one block: how many, and how many elements in each part."""

    name: str
    tensors: int
    elements: int
    parts: Mapping[str, int]


def grouped(tensors: Iterable[TensorEntry]) -> tuple[Block, ...]:
    """Return the blocks in the order of their first tensor."""
    groups: dict[str, list[TensorEntry]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.name.partition(".")[0], []).append(tensor)
    return tuple(_block(name, entries) for name, entries in groups.items())


def _block(name: str, tensors: list[TensorEntry]) -> Block:
    parts: dict[str, int] = {}
    for tensor in tensors:
        second = tensor.name.split(".")[1:2]
        # The head's tensors, and whatever has no such part in its name.
        part = second[0] if second and second[0] in PARTS else "own"
        parts[part] = parts.get(part, 0) + tensor.elements
    return Block(name, len(tensors), sum(parts.values()), parts)
