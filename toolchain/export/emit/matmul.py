"""Write convolutions whose kernel is a slot as matrix products.

Rules of this file: TensorRT before 10.4 has faults in convolutions with more than one input
(NVIDIA's release notes of 10.4), and 8.2 wants constant kernels. So no slot may feed a Conv there.
The pass takes batch 1 and two spatial dimensions, and leaves frozen convolutions alone. The sums
are the same; their order may differ: the result equals Conv's within 1e-6 of the sum of the
products' magnitudes.

A 1x1 kernel is one product of ``[G, O/G, C/G]`` with the map as ``[G, C/G, HW]``. For a larger
kernel the shifted views of the map come first, side by side (the "im2col" of Chellapilla, Puri and
Simard, 2006). One convolution per channel makes them; each of its constant kernels has a single 1,
so it copies numbers exactly. Slices would do the same, but the newest parser makes some 20 layers
of shape arithmetic for each Slice: 2565 layers for a ResNet-20 with nine 3x3 adaptors, against 360
this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit.rewrite import (
    Draft,
    copied,
    fed,
    finish,
    infer,
    known_dims,
    nodes,
    where,
)


def through_matmul(model: ir.Model) -> ir.Model:
    """Return a copy in which no run-time input is a kernel or bias of a Conv.

    Raises ModelRefusedError naming a node that is no two-dimensional convolution of batch 1.
    """
    changed = infer(copied(model))
    for node in nodes(changed):
        if node.op_type == "Conv" and any(fed(value) for value in node.inputs[1:]):
            _replace(node)
    return finish(changed)


@dataclass(frozen=True, slots=True)
class _Window:
    """A convolution's numbers; ``pads`` begin then end, as in ONNX."""

    channels: int
    grid: tuple[int, int]
    outputs: int
    kernel: tuple[int, int]
    groups: int
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def answer(self) -> tuple[int, int]:
        """Height and width of the result (ONNX operator Conv-11)."""
        top, left, bottom, right = self.pads
        padded = self.grid[0] + top + bottom, self.grid[1] + left + right
        height, width = (
            (side - dilation * (size - 1) - 1) // stride + 1
            for side, size, stride, dilation in zip(
                padded, self.kernel, self.strides, self.dilations, strict=True
            )
        )
        return height, width

    @property
    def plain(self) -> bool:
        """Whether every output reads exactly the input at its own place."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)


def _replace(node: ir.Node) -> None:
    draft = Draft(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if fed(node.inputs[1]):
        product = _product(draft, node, _window(node))
    else:
        # Only the bias is a slot: the convolution stays, without it.
        product = draft.node("Conv", node.inputs[:2], **dict(node.attributes))
    if bias is not None:
        shape = draft.constant([1, -1, 1, 1], np.int64)
        product = draft.node("Add", [product, draft.node("Reshape", [bias, shape])])
    draft.replace(product)


def _product(draft: Draft, node: ir.Node, window: _Window) -> ir.Value:
    groups, per_group = window.groups, window.channels // window.groups
    cells = window.kernel[0] * window.kernel[1]
    columns = _columns(draft, node.inputs[0], window)
    target = draft.constant([groups, per_group * cells, -1], np.int64)
    columns = draft.node("Reshape", [columns, target])
    target = draft.constant([groups, window.outputs // groups, per_group * cells], np.int64)
    kernel = draft.node("Reshape", [node.inputs[1], target])
    product = draft.node("MatMul", [kernel, columns])
    target = draft.constant([1, window.outputs, *window.answer], np.int64)
    return draft.node("Reshape", [product, target])


def _columns(draft: Draft, source: ir.Value | None, window: _Window) -> ir.Value | None:
    """Return ``[1, C * cells, H', W']``, or the map itself where one cell reads one place."""
    if window.plain:
        return source
    half = source is not None and source.dtype == ir.DataType.FLOAT16
    rows, columns = window.kernel
    # Kernel k of a channel has its 1 at cell k. So the copies of one channel lie side by side, in
    # the order of the numbers of the real kernel.
    picks = np.eye(rows * columns).reshape(rows * columns, 1, rows, columns)
    kernel = draft.constant(
        np.tile(picks, (window.channels, 1, 1, 1)), np.float16 if half else np.float32
    )
    return draft.node(
        "Conv",
        [source, kernel],
        group=window.channels,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
    )


def _window(node: ir.Node) -> _Window:
    """Read a convolution's numbers. Raises ModelRefusedError for a form that is not covered."""
    shape, kernel = known_dims(node.inputs[0], node), known_dims(node.inputs[1], node)
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    # VALID means no padding, and so do absent ``pads`` below. SAME depends on the sizes.
    if len(shape) != 4 or shape[0] != 1 or automatic not in ("NOTSET", "VALID"):
        raise ModelRefusedError(
            f"{where(node)}: expected a convolution of batch 1 over two dimensions with explicit "
            f"padding, got input {shape} and auto_pad {automatic}",
            fix="link the form 'if' at batch 1; give the adaptor's convolution its padding",
        )
    strides = _pair(node, "strides")
    dilations = _pair(node, "dilations")
    pads = tuple(node.attributes.get_ints("pads", (0, 0, 0, 0)))
    return _Window(
        channels=shape[1],
        grid=(shape[2], shape[3]),
        outputs=kernel[0],
        kernel=(kernel[2], kernel[3]),
        groups=node.attributes.get_int("group", 1),
        strides=strides,
        dilations=dilations,
        pads=(pads[0], pads[1], pads[2], pads[3]),
    )


def _pair(node: ir.Node, name: str) -> tuple[int, int]:
    first, second = node.attributes.get_ints(name, (1, 1))
    return first, second
