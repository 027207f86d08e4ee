"""Forms of the linked graph that lost, made from the one that won, to time them again.

Rules of this file: each function takes the linked ``swap`` model of form ``if``, changes it in
place to another form with the same answers, and returns it. docs/decisions/0003-forms.md says what
the forms cost. Maps are NCHW only. It times nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from toolchain.export.graph.names import Cut

Change = Callable[[ModelProto, Sequence[Cut]], ModelProto]


def weights_outside(model: ModelProto, _: Sequence[Cut]) -> ModelProto:
    """Put the blocks' weights into the main graph, where a straight export leaves them."""
    for _, branch in _branches(model):
        model.graph.initializer.extend(branch.initializer)
        del branch.initializer[:]
    return model


def pool_first(model: ModelProto, cuts: Sequence[Cut]) -> ModelProto:
    """Begin each open branch with a 1x1 MaxPool, so that the runtime fuses the residual addition.

    Not exact: onnxruntime's MaxPool may turn -Inf into the lowest finite number.
    """
    inputs = {cut.result: cut.input for cut in cuts}
    for node, branch in _branches(model):
        source, pooled = inputs[node.output[0]], f"{branch.name}/pooled"
        # A closed branch only adds the correction: there is nothing to fuse.
        if len(branch.node) < 3:
            continue
        for inner in branch.node:
            inner.input[:] = [pooled if name == source else name for name in inner.input]
        first = helper.make_node("MaxPool", [source], [pooled], kernel_shape=[1, 1])
        branch.node.insert(0, first)
    return model


def resize_outside(model: ModelProto, _: Sequence[Cut]) -> ModelProto:
    """Upsample each correction once, before its gate decides, instead of in both branches."""
    drawn: dict[str, str] = {}
    for node, branch in _branches(model):
        for resize in [n for n in branch.node if n.op_type == "Resize"]:
            if resize.input[0] not in drawn:
                drawn[resize.input[0]] = resize.output[0]
                scales = next(t for t in branch.initializer if t.name == resize.input[2])
                model.graph.initializer.append(scales)
                # Before the If, as nodes stand in the order in which they run.
                model.graph.node.insert(list(model.graph.node).index(node), resize)
            _replace(branch, resize, [], drawn[resize.input[0]])
    return model


def broadcast(model: ModelProto, cuts: Sequence[Cut]) -> ModelProto:
    """Add on a six-dimensional view ``[1, C, h, p, w, q]`` instead of upsampling."""

    def joined(add: NodeProto, resize: NodeProto, shapes: dict[str, str]) -> list[NodeProto]:
        source, coarse, out = add.input[0], resize.input[0], add.output[0]
        return [
            helper.make_node("Reshape", [source, shapes["view"]], [f"{out}/x"]),
            helper.make_node("Reshape", [coarse, shapes["cells"]], [f"{out}/c"]),
            helper.make_node("Add", [f"{out}/x", f"{out}/c"], [f"{out}/sum"]),
            helper.make_node("Reshape", [f"{out}/sum", shapes["map"]], [out]),
        ]

    return _rejoined(model, cuts, joined)


def expand(model: ModelProto, cuts: Sequence[Cut]) -> ModelProto:
    """Upsample by Expand on the six-dimensional view instead of by Resize."""

    def joined(add: NodeProto, resize: NodeProto, shapes: dict[str, str]) -> list[NodeProto]:
        source, coarse, out = add.input[0], resize.input[0], add.output[0]
        return [
            helper.make_node("Reshape", [coarse, shapes["cells"]], [f"{out}/c"]),
            helper.make_node("Expand", [f"{out}/c", shapes["view"]], [f"{out}/e"]),
            helper.make_node("Reshape", [f"{out}/e", shapes["map"]], [f"{out}/u"]),
            helper.make_node("Add", [source, f"{out}/u"], [out]),
        ]

    return _rejoined(model, cuts, joined)


REJECTED: dict[str, Change] = {
    "weights outside": weights_outside,
    "1x1 MaxPool first": pool_first,
    "Resize outside": resize_outside,
    "6-D broadcast": broadcast,
    "Expand": expand,
}

_Join = Callable[[NodeProto, NodeProto, dict[str, str]], list[NodeProto]]


def _rejoined(model: ModelProto, cuts: Sequence[Cut], joined: _Join) -> ModelProto:
    sides = {cut.result: cut.out_shape for cut in cuts}
    for node, branch in _branches(model):
        resize = next((n for n in branch.node if n.op_type == "Resize"), None)
        if resize is None:
            continue
        add = next(n for n in branch.node if resize.output[0] in n.input)
        ratios = _ratios(branch, resize.input[2])
        shapes = _shapes(branch, sides[node.output[0]], ratios)
        _replace(branch, add, joined(add, resize, shapes))
        _replace(branch, resize, [])
    return model


def _branches(model: ModelProto) -> Iterator[tuple[NodeProto, GraphProto]]:
    for node in [n for n in model.graph.node if n.op_type == "If"]:
        for attribute in node.attribute:
            yield node, attribute.g


def _ratios(branch: GraphProto, name: str) -> tuple[int, int]:
    scales = next(t for t in branch.initializer if t.name == name)
    _, _, rows, columns = onnx.numpy_helper.to_array(scales).tolist()
    return round(rows), round(columns)


def _shapes(
    branch: GraphProto, out_shape: Sequence[int], ratios: tuple[int, int]
) -> dict[str, str]:
    channels, height, width = out_shape
    rows, columns = height // ratios[0], width // ratios[1]
    shapes = {
        "view": [1, channels, rows, ratios[0], columns, ratios[1]],
        "cells": [1, channels, rows, 1, columns, 1],
        "map": [1, channels, height, width],
    }
    for kind, shape in shapes.items():
        name = f"{branch.name}/{kind}"
        branch.initializer.append(
            helper.make_tensor(name, onnx.TensorProto.INT64, [len(shape)], shape)
        )
    return {kind: f"{branch.name}/{kind}" for kind in shapes}


def _replace(
    branch: GraphProto, old: NodeProto, new: Sequence[NodeProto], renamed: str = ""
) -> None:
    """Put ``new`` in the place of ``old``; ``renamed`` is the name its readers shall read."""
    place = next(i for i, node in enumerate(branch.node) if node.output[0] == old.output[0])
    gone = old.output[0]
    del branch.node[place]
    for offset, node in enumerate(new):
        branch.node.insert(place + offset, node)
    if renamed:
        for node in branch.node:
            node.input[:] = [renamed if name == gone else name for name in node.input]
