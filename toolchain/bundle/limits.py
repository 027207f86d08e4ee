"""How much a domain may hold: one set of limits, and what of a domain can never be packed.

Rules of this file: numbers, and one question that needs names and shapes only. It can be asked
before a training has made its first step. Every document that keeps the limits of its fields fits
into :data:`toolchain.core.canonical.LIMIT_BYTES`; a test builds the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolchain.core.errors import Fault, UsageError
from toolchain.core.fields import ListOf, printable
from toolchain.core.words import DTYPE, SHAPE, TENSOR_NAME, raise_faults, repeated

MAX_BLOCKS = 512
# A block has an adaptor with norms, and a gate: 14 tensors at most. The head has two.
MAX_SLOTS = 16 * MAX_BLOCKS
MAX_TAPS = 2 * MAX_BLOCKS
MAX_CLASSES = 4096
SLOWEST_PER_S = 5e8
"""Multiply-adds that the slowest board that anybody would use computes in a second."""
CLASS_NAME = printable(200)


def computing_seconds(flops: int, cases: int) -> float:
    """Return how long the slowest board computes ``cases`` pictures of ``flops`` multiply-adds.

    An export asks for as much for its self-test, and a device grants it by its own backbone.
    """
    return flops * cases / SLOWEST_PER_S


def require_packable(
    *,
    blocks: Sequence[str],
    slots: Mapping[str, tuple[str, Sequence[int]]],
    classes: Sequence[str],
) -> None:
    """Raise UsageError for a domain that no bundle can hold, with every reason.

    ``blocks``: the backbone's, by their names in graphs; ``slots``: dtype and shape of each tensor
    of the domain, by name.
    """
    faults: list[Fault] = []
    ListOf(TENSOR_NAME, 1, MAX_BLOCKS).read("blocks", list(blocks), faults)
    ListOf(CLASS_NAME, 1, MAX_CLASSES).read("classes", list(classes), faults)
    faults.extend(repeated("classes", classes))
    ListOf(TENSOR_NAME, 0, MAX_SLOTS).read("slots", list(slots), faults)
    for name, (dtype, shape) in slots.items():
        DTYPE.read(f"slots.{name:.60}", dtype, faults)
        SHAPE.read(f"slots.{name:.60}", list(shape), faults)
    raise_faults(
        "the domain cannot be packed",
        faults,
        error=UsageError,
        fix="adapt fewer blocks (adaptor.placement), leave out norms, or shorten the names",
    )
