"""The models that swapping is compared with, made from the same halves as a domain's own.

Rules of this file: graphs in, bytes out. Every model computes what the linked one computes; only
its tensors lie elsewhere. ``whole`` is what people deploy without this toolchain: one file per
domain that holds everything. ``shared`` is the best that onnxruntime itself offers: whoever makes
the session gives it the backbone's tensors, one copy for all. onnxruntime takes such tensors for
the main graph only, so this file moves them out of the branches (docs/decisions/0003-forms.md puts
them there for speed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, TensorProto

from toolchain.bundle.linkage import STATIC_IF
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import PackedHalves

OPEN, CLOSED = 1.0, 0.0


def whole(halves: PackedHalves) -> bytes:
    """Return the static model, every gate decided at run time, with all tensors inside."""
    model = _proto(halves)
    _inline(model.graph, {WEIGHTS_FILE: halves.weights_data, SLOTS_FILE: halves.slots_data})
    return bytes(model.SerializeToString())


def shared(halves: PackedHalves) -> bytes:
    """Return the same model with the slots inside and the backbone's tensors in the main graph."""
    model = _proto(halves)
    _move_out(model.graph, model.graph)
    _inline(model.graph, {SLOTS_FILE: halves.slots_data})
    return bytes(model.SerializeToString())


def statics(halves: PackedHalves, gates: Sequence[str]) -> dict[str, bytes]:
    """Return the first domain's static graphs by name; their tensors are references.

    ``decided``: every gate at run time; ``open``, ``half``, ``closed``: every gate resolved (half:
    the first, third ... open); ``open BLOCK``: that gate resolved open, the others at run time.
    """
    states = {
        "open": dict.fromkeys(gates, OPEN),
        "half": {gate: OPEN if i % 2 == 0 else CLOSED for i, gate in enumerate(gates)},
        "closed": dict.fromkeys(gates, CLOSED),
    }
    single = {f"open {gate}": {gate: OPEN} for gate in gates}
    rates: dict[str, Mapping[str, float]] = {"decided": {}, **states, **single}
    return {
        name: store.to_bytes(link(halves, STATIC_IF, rates=forced))
        for name, forced in rates.items()
    }


def _proto(halves: PackedHalves) -> ModelProto:
    return ir.to_proto(link(halves, STATIC_IF))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the branches inside a graph, then the graph."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
    yield graph


def _inline(graph: GraphProto, files: Mapping[str, bytes]) -> None:
    """Put the tensors that are references into ``files`` into the graph and its branches."""
    for inner in _graphs(graph):
        for tensor in inner.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place.get("location") not in files:
                continue
            start, length = int(place["offset"]), int(place["length"])
            tensor.raw_data = files[place["location"]][start : start + length]
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT


def _move_out(main: GraphProto, graph: GraphProto) -> None:
    """Move every branch's tensors into the main graph, each once."""
    known = {tensor.name for tensor in main.initializer}
    # The last graph is the main graph itself.
    for inner in list(_graphs(graph))[:-1]:
        added = [tensor for tensor in inner.initializer if tensor.name not in known]
        main.initializer.extend(added)
        known |= {tensor.name for tensor in added}
        del inner.initializer[:]
