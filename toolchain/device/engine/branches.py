"""Conditionals of a parsed network: their layers, and what each branch reads from outside.

Rules of this file: it walks ``INetworkDefinition`` and changes nothing.

Two facts tell which layers belong to a branch. First, what the branch computes leads to its side of
the conditional's output layers. Second, the parser imports an ``If`` in one go (onnx-tensorrt,
importer of ``If``): condition, then-branch, else-branch, input layers, output layers. So the layers
of a branch lie between the condition and the outputs, and those of "then" come before those of
"else". If one branch makes a constant and the other reads it, the constant is outside for the other
branch; the parser's own input layers treat it so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolchain.device.engine.features import TensorRT

BRANCHES = ("then", "else")


@dataclass(frozen=True, slots=True)
class OuterRead:
    """A layer of a branch reads a tensor from outside.

    ``tensor`` is the outer tensor, at input ``slot`` of the layer ``reader`` (a place: the index of
    a layer). ``constant``: its value is known when the engine is built.
    """

    branch: str
    reader: int
    slot: int
    tensor: Any
    constant: bool


@dataclass(frozen=True, slots=True)
class Conditional:
    """One conditional: places of its layers, and what its branches read from outside.

    ``bounded``: reads through an input layer of this conditional; ``direct``: reads without one;
    ``left``: what cannot be decided, one sentence each.
    """

    handle: Any
    name: str
    condition: int
    outputs: tuple[int, ...]
    bounded: tuple[OuterRead, ...]
    direct: tuple[OuterRead, ...]
    left: tuple[str, ...]


class NetworkLayers:
    """The layers of a network with their tensors.

    It holds every object. TensorRT's bindings make Python objects as they are asked for, and a
    tensor must stay one object, because tensors are compared by ``id``.
    """

    def __init__(self, network: Any, trt: TensorRT) -> None:
        module, kinds_of = trt.module, trt.module.LayerType
        kinds = {
            kinds_of.CONDITION: module.IConditionLayer,
            kinds_of.CONDITIONAL_INPUT: module.IIfConditionalInputLayer,
            kinds_of.CONDITIONAL_OUTPUT: module.IIfConditionalOutputLayer,
        }
        self.layers = [network.get_layer(place) for place in range(network.num_layers)]
        self.handles: dict[int, Any] = {}
        self.kinds: dict[int, Any] = {}
        for place, layer in enumerate(self.layers):
            if layer.type in kinds:
                self.kinds[place] = layer.type
                # get_layer returns the base class, which has no attribute ``conditional``. Setting
                # the class of the kind gives access to it.
                layer.__class__ = kinds[layer.type]
                self.handles[place] = layer.conditional
        self.inputs = [
            [
                (slot, tensor)
                for slot in range(layer.num_inputs)
                if (tensor := layer.get_input(slot)) is not None
            ]
            for layer in self.layers
        ]
        # Python gives the id of a dropped object to a new one, so all stay here while ids count.
        self.outputs = [
            [layer.get_output(slot) for slot in range(layer.num_outputs)] for layer in self.layers
        ]
        self.producer = {
            id(tensor): place for place, outputs in enumerate(self.outputs) for tensor in outputs
        }
        self.constants = {
            place for place, layer in enumerate(self.layers) if layer.type == kinds_of.CONSTANT
        }

    def places(self, kind: Any, handle: Any = None) -> list[int]:
        """Places of the layers of a kind, of one conditional or of all."""
        return [
            place
            for place, kind_here in self.kinds.items()
            if kind_here == kind and (handle is None or self.handles[place] is handle)
        ]

    def source(self, tensor: Any) -> int:
        """Place of the layer that makes ``tensor``, -1 for an input of the network."""
        return self.producer.get(id(tensor), -1)

    def read(self, branch: str, reader: int, slot: int, tensor: Any) -> OuterRead:
        """Return one read of an outer tensor."""
        return OuterRead(branch, reader, slot, tensor, self.source(tensor) in self.constants)


def conditionals(walked: NetworkLayers, trt: TensorRT) -> list[Conditional]:
    """Return every conditional. If one lies inside another, neither is decided."""
    kinds = trt.module.LayerType
    spans = {
        place: tuple(walked.places(kinds.CONDITIONAL_OUTPUT, walked.handles[place]))
        for place in walked.places(kinds.CONDITION)
    }
    return [_conditional(walked, kinds, place, spans) for place in spans]


def _conditional(
    walked: NetworkLayers, kinds: Any, condition: int, spans: Mapping[int, tuple[int, ...]]
) -> Conditional:
    handle, outputs = walked.handles[condition], spans[condition]
    inner = [
        place
        for place, ends in spans.items()
        if place != condition and _crossing((condition, outputs), (place, ends))
    ]
    if inner or not outputs:
        reason = "lies inside another conditional, or holds one" if inner else "has no output"
        undecided = (f"the conditional {handle.name!r} {reason}",)
        return Conditional(handle, handle.name, condition, outputs, (), (), undecided)
    bounds = {
        id(walked.layers[place].get_output(0)): walked.layers[place].get_input(0)
        for place in walked.places(kinds.CONDITIONAL_INPUT, handle)
    }
    reads, left = _reads(walked, condition, outputs, set(bounds))
    bounded = tuple(
        walked.read(read.branch, read.reader, read.slot, bounds[id(read.tensor)])
        for read in reads
        if id(read.tensor) in bounds
    )
    direct = tuple(read for read in reads if id(read.tensor) not in bounds)
    return Conditional(
        handle=handle,
        name=handle.name,
        condition=condition,
        outputs=outputs,
        bounded=bounded,
        direct=direct,
        left=tuple(f"{handle.name}: {line}" for line in left),
    )


def _crossing(one: tuple[int, tuple[int, ...]], other: tuple[int, tuple[int, ...]]) -> bool:
    """Whether the span of layers of one conditional overlaps the other's."""
    (start, ends), (low, highs) = one, other
    return start < max(highs, default=low) and low < max(ends, default=start)


def _reads(
    walked: NetworkLayers, condition: int, outputs: tuple[int, ...], bounds: set[int]
) -> tuple[list[OuterRead], tuple[str, ...]]:
    """Return what both branches read from outside, boundaries too, and what is undecided."""
    end = min(outputs)
    cones = [
        _cone(walked, (condition, end), outputs, slot, bounds) for slot in range(len(BRANCHES))
    ]
    # The parser imported "then" first. So a layer that both branches reach belongs to "then", and
    # "else" begins after the last layer of "then".
    last = max(cones[0], default=condition)
    inside = [cones[0], {place for place in cones[1] if place > last}]
    # A layer without inputs makes a constant. The parser may share one between graphs, so it is no
    # fault.
    left = [
        f"the layer {walked.layers[place].name!r} belongs to both branches"
        for place in sorted(cones[1] - inside[1])
        if walked.inputs[place]
    ]
    left += _leaks(walked, inside, outputs)
    # What a layer inside reads from a layer that is not inside, it reads from outside.
    reads = [
        walked.read(branch, place, slot, tensor)
        for index, branch in enumerate(BRANCHES)
        for place in sorted(inside[index])
        for slot, tensor in walked.inputs[place]
        if walked.source(tensor) not in inside[index]
    ]
    # A branch may hand an outer tensor on as its result: then the output layer itself reads it.
    reads += [
        walked.read(branch, place, index, tensor)
        for place in outputs
        for index, branch in enumerate(BRANCHES)
        if walked.source(tensor := walked.inputs[place][index][1]) not in inside[index]
    ]
    return reads, tuple(left)


def _cone(
    walked: NetworkLayers,
    span: tuple[int, int],
    outputs: tuple[int, ...],
    slot: int,
    bounds: set[int],
) -> set[int]:
    """Return the layers within ``span`` that lead to input ``slot`` of the output layers.

    It walks back from the outputs, and stops at boundaries and at the ends of the span.
    """
    cone: set[int] = set()
    waiting = [walked.inputs[place][slot][1] for place in outputs]
    while waiting:
        tensor = waiting.pop()
        place = walked.source(tensor)
        if id(tensor) in bounds or place in cone or not span[0] < place < span[1]:
            continue
        cone.add(place)
        waiting.extend(other for _, other in walked.inputs[place])
    return cone


def _leaks(
    walked: NetworkLayers, inside: list[set[int]], outputs: tuple[int, ...]
) -> Iterator[str]:
    """Yield each layer of a branch that a layer outside reads, constants apart.

    The parser keeps one layer for a constant that several graphs share.
    """
    owned = inside[0] | inside[1]
    for place, inputs in enumerate(walked.inputs):
        if place in owned or place in outputs:
            continue
        for _, tensor in inputs:
            source = walked.source(tensor)
            if source in owned and walked.inputs[source]:
                name = walked.layers[source].name
                yield f"the layer {name!r} is read outside, by {walked.layers[place].name!r}"
