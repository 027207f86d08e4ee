"""The published rules by which ONNX parsers find the readers of outer tensors and the results.

Written anew from onnx-tensorrt's ConditionalHelpers.cpp (branches 8.2-GA, 8.5-GA, 8.6-GA, 10.1-GA)
over plain values, so that they run on ONNX branches and on parsed networks alike. A table in which
the parser finds the first fitting entry is unordered there: here its order is given by ``shuffle``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from toolchain.export.emit.rewrite import branches, conditionals, constant

Edge = tuple[str, int]


@dataclass(frozen=True)
class Layer:
    """A layer by name; ``inputs`` and ``outputs`` are names of tensors, None for weights."""

    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Body:
    """A branch: its layers in order, and the name that ONNX gives its result."""

    layers: tuple[Layer, ...]
    result: str

    def readers(self) -> set[Edge]:
        """The truth: which layers read which place from outside."""
        made = {name for layer in self.layers for name in layer.outputs}
        return {
            (layer.name, place)
            for layer in self.layers
            for place, name in enumerate(layer.inputs)
            if name is not None and name not in made
        }

    def entering(self) -> set[str]:
        """The truth: the outer tensors."""
        places = dict(self.readers_by_tensor())
        return set(places)

    def readers_by_tensor(self) -> Iterator[tuple[str, list[Edge]]]:
        """Yield (outer tensor, its readers)."""
        edges: dict[str, list[Edge]] = {}
        by_name = {layer.name: layer for layer in self.layers}
        for name, place in sorted(self.readers()):
            tensor = by_name[name].inputs[place]
            assert tensor is not None
            edges.setdefault(tensor, []).append((name, place))
        yield from edges.items()


def rule_8_2(body: Body, shuffle: random.Random) -> set[Edge]:
    """The inputs are gathered in a copy: no layer reads anything."""
    return set()


def rule_8_5(body: Body, shuffle: random.Random) -> set[Edge]:
    """Keyed by the readers' names; a layer is the first reader whose name begins its own."""
    table: dict[str, set[int]] = {}
    for name, place in body.readers():
        table.setdefault(name, set()).add(place)
    return _matched(body, table, shuffle)


def rule_8_6(body: Body, shuffle: random.Random) -> set[Edge]:
    """Keyed by the outer tensors' names, with the places of all readers."""
    table = {
        tensor: {place for _, place in readers} for tensor, readers in body.readers_by_tensor()
    }
    return _matched(body, table, shuffle)


RULES = {"8.5": rule_8_5, "8.6 to 10.5": rule_8_6}


def results_8_5(body: Body, shuffle: random.Random) -> list[str]:
    """The first output of every layer that is taken for one that makes the result, in order."""
    read = {name for layer in body.layers for name in layer.inputs}
    keys = [
        layer.name
        for layer in body.layers
        if any(o not in read and o.startswith(body.result) for o in layer.outputs)
    ]
    return [
        layer.outputs[0] for layer in body.layers if any(layer.name.startswith(key) for key in keys)
    ]


def _matched(body: Body, table: dict[str, set[int]], shuffle: random.Random) -> set[Edge]:
    order = sorted(table)
    shuffle.shuffle(order)
    edges = set()
    for layer in body.layers:
        key = next((key for key in order if layer.name.startswith(key)), None)
        for place in table[key] if key is not None else ():
            if place < len(layer.inputs) and layer.inputs[place] is not None:
                edges.add((layer.name, place))
    return edges


def bodies(model: ir.Model) -> list[Body]:
    """The branches of an ONNX model, one layer per node, constants as weights."""
    return [
        Body(tuple(_layer(node) for node in branch), branch.outputs[0].name or "")
        for conditional in conditionals(model)
        for _, branch in branches(conditional)
    ]


def _layer(node: ir.Node) -> Layer:
    inputs = tuple(
        None if value is None or constant(value) is not None else value.name
        for value in node.inputs
    )
    return Layer(node.name or "", inputs, tuple(v.name or "" for v in node.outputs))


def network_bodies(trt: Any, network: Any) -> list[Body]:
    """The branches of a parsed network as they were before it made any boundary.

    Branches are what leads to a conditional's results; a boundary's reader reads its source.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    maker = {o.name: layer for layer in layers for o in _outputs(layer)}
    kinds = trt.LayerType
    source = {
        layer.get_output(0).name: layer.get_input(0).name
        for layer in layers
        if layer.type == kinds.CONDITIONAL_INPUT
    }
    bounds = kinds.CONDITIONAL_INPUT, kinds.CONDITIONAL_OUTPUT, kinds.CONDITION
    plain = [layer for layer in layers if layer.type not in bounds]
    return [
        _walked(plain, maker, source, end)
        for layer in layers
        if layer.type == kinds.CONDITIONAL_OUTPUT
        for end in (layer.get_input(0).name, layer.get_input(1).name)
    ]


def _walked(layers: Sequence[Any], maker: Any, source: dict[str, str], end: str) -> Body:
    inside, waiting = set(), [end]
    while waiting:
        name = waiting.pop()
        if name in source or maker[name].name in inside:
            continue
        inside.add(maker[name].name)
        waiting += [t.name for t in _inputs(maker[name]) if t is not None]
    members = []
    for layer in layers:
        if layer.name in inside:
            inputs = tuple(
                None if t is None else source.get(t.name, t.name) for t in _inputs(layer)
            )
            made = tuple(tensor.name for tensor in _outputs(layer))
            members.append(Layer(layer.name, inputs, made))
    return Body(tuple(members), end)


def _inputs(layer: Any) -> list[Any]:
    return [layer.get_input(place) for place in range(layer.num_inputs)]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(place) for place in range(layer.num_outputs)]
