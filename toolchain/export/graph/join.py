"""Draw the join: ``result = source + upsample(correction)`` in the block's layout.

Rules of this file: standard operators. Nearest upsampling is a ``Resize`` followed by a plain
``Add``: onnxruntime keeps this form in its blocked layout (docs/decisions/0003-forms.md has the
figures of the forms that lost). A correction of one cell broadcasts and is not resized.
"""

from __future__ import annotations

import numpy as np

from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import GraphBuilder
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.names import Cut

_NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


def add_correction(
    builder: GraphBuilder, halves: Halves, cut: Cut, source: str, result: str
) -> str:
    """Draw the join into ``builder``; returns ``result``.

    ``source``: the block's output where its gate is open, its input where it is closed. Raises
    LinkError for an adaptor whose grid is not fixed.
    """
    # The correction is always [N, C, h, w]; the sum has the block's own layout.
    name = _upsampled(builder, cut, coarse_grid(halves, cut), result)
    if cut.layout == "NHWC":
        name = builder.node("Transpose", [name], f"{result}/nhwc", {"perm": [0, 2, 3, 1]})
    elif cut.layout == "NLC":
        tokens = builder.constant(f"{result}/shape", [-1, 1, cut.out_shape[1]], np.int64)
        name = builder.node("Reshape", [name, tokens], f"{result}/nlc")
    elif cut.layout == "NCL":
        signal = builder.constant(f"{result}/shape", [-1, cut.out_shape[0], 1], np.int64)
        name = builder.node("Reshape", [name, signal], f"{result}/ncl")
    return builder.node("Add", [source, name], result)


def _upsampled(builder: GraphBuilder, cut: Cut, coarse: tuple[int, int], result: str) -> str:
    sides = _sides(cut)
    # One cell broadcasts in the Add; a full grid needs no resizing.
    if coarse in ((1, 1), sides):
        return cut.correction
    ratios = [1.0, 1.0, sides[0] / coarse[0], sides[1] / coarse[1]]
    scales = builder.constant(f"{result}/scales", ratios, np.float32)
    return builder.node("Resize", [cut.correction, "", scales], f"{result}/up", _NEAREST)


def coarse_grid(halves: Halves, cut: Cut) -> tuple[int, int]:
    """Return the height and width of the adaptor's grid; raises LinkError where one is open."""
    value = next(v for v in halves.domain.graph.outputs if v.name == cut.correction)
    height, width = (None, None) if value.shape is None else value.shape[2:4]
    if not isinstance(height, int) or not isinstance(width, int):
        raise LinkError(
            f"{cut.correction}: expected a fixed coarse grid, got {value.shape}",
            fix="attach with a fixed input_shape",
        )
    return height, width


def _sides(cut: Cut) -> tuple[int, int]:
    """Return the height and width of the block's output; tokens and signals are one row."""
    if len(cut.out_shape) == 2:
        return 1, cut.out_shape[1 if cut.layout == "NCL" else 0]
    first = 0 if cut.layout == "NHWC" else 1
    return cut.out_shape[first], cut.out_shape[first + 1]
