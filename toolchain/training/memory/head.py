"""What fitting the head to stored features takes, and the sizes that keep it within a room.

Rules of this file: plain numbers. ``loop.baseline`` reads features in chunks and fits by L-BFGS,
with the sizes of a ``HeadFit``.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOM = 64 << 20
"""Bytes for a fit where nobody said what a training may take."""

_CHUNK_BYTES = 2 << 20  # more rows at once are not faster
_MOST_PAIRS, _LEAST_PAIRS, _LEAST_ROWS = 100, 5, 64
_FLOAT = 4
_COPIES = 3  # a chunk of features, the buffer that it is read through, and its squares
_MAPS = 4  # logits, their softmax, and the gradients of both
_VECTORS = 12  # parameters and gradients, and those of the line search


@dataclass(frozen=True, slots=True)
class HeadFit:
    """How a head is fitted: pictures at once (``rows``), and L-BFGS's history (``pairs``).

    ``bytes``: the most that it takes beside the weights, for any number of pictures.
    """

    rows: int
    pairs: int
    bytes: int


def head_fit(features: int, classes: int, room: int = 0) -> HeadFit:
    """Return the largest fit that ``room`` bytes hold, the smallest one where they hold none.

    Without a room it is the least that a head of so many ``features`` and ``classes`` takes.
    """
    vector, row = _FLOAT * (features + 1) * classes, _FLOAT * (_COPIES * features + _MAPS * classes)
    pairs, rows = _LEAST_PAIRS, _LEAST_ROWS
    half = room // 2
    if half >= rows * row + (_VECTORS + 2 * pairs) * vector:
        pairs = max(pairs, min(_MOST_PAIRS, (half - _VECTORS * vector) // (2 * vector)))
        rows = max(rows, min(_CHUNK_BYTES // (_FLOAT * max(features, classes)), half // row))
    return HeadFit(rows, pairs, rows * row + (_VECTORS + 2 * pairs) * vector)
