"""Write and read ONNX models whose large tensors lie beside them in a safetensors file.

Rules of this file: bytes are deterministic. A tensor is external (ONNX external data with location,
offset and length into the safetensors file) when it has a state-dict name, is large, or is a matrix
of floats: such a matrix comes from weights, and a transposed one has no name. Every other tensor is
inline. What is read back is bounded. It gives no meaning to graphs.

Sources: ONNX IR specification, "External tensor data"; safetensors format, header of 8 bytes length
then JSON then data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from safetensors.numpy import save as safetensors_save

from toolchain.bundle.graphs import LIMIT_GRAPH_BYTES, LIMIT_INLINE_BYTES
from toolchain.core.errors import GraphError
from toolchain.core.files import read_limited
from toolchain.core.safetensors import LIBRARY_HEADER_BYTES, read_places
from toolchain.export.graph.text import check_text


@dataclass(frozen=True, slots=True)
class PackedTensors:
    """Tensors as the bytes of a safetensors file, and where each lies in it."""

    file: str
    data: bytes
    places: Mapping[str, tuple[int, int]]


def pack_tensors(tensors: Mapping[str, np.ndarray[Any, Any]], file: str) -> PackedTensors:
    """Serialise ``tensors`` for ``file``, their name beside the graph.

    Law: the same tensors give the same bytes in any order.

    Turned views (a transposed constant) are laid out first: safetensors writes memory as it lies.
    """
    data = safetensors_save(
        {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    )
    return PackedTensors(file, data, places(data))


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Return (offset, length) in bytes of each tensor in a safetensors file."""
    return {
        place.name: (place.offset, len(place.data))
        for place in read_places(data, limit_bytes=LIBRARY_HEADER_BYTES)
    }


def external_tensors(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """Return the initializers of the main graph that belong beside the model, by name."""
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and _is_external(name, value.const_value)
    }


def _is_external(name: str, tensor: ir.TensorProtocol) -> bool:
    matrix = tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 1
    return "." in name or matrix or tensor.nbytes > LIMIT_INLINE_BYTES


def externalise(model: ir.Model, packed: PackedTensors) -> ir.Model:
    """Point the model's tensors into ``packed`` in place, and return it."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name not in packed.places:
            continue
        offset, length = packed.places[name]
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            packed.file,
            offset,
            length,
            tensor.dtype,
            shape=shape,
            name=name,
        )
    return model


def to_bytes(model: ir.Model) -> bytes:
    """Serialise deterministically; external tensors stay references."""
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def from_bytes(data: bytes, *, what: str) -> ir.Model:
    """Parse a model; raises GraphError when the bytes are no ONNX model or a text is not UTF-8."""
    if len(data) > LIMIT_GRAPH_BYTES:
        raise GraphError(
            f"{what}: expected at most {LIMIT_GRAPH_BYTES} bytes of graph, got {len(data)}",
            fix="large tensors belong into the safetensors file beside it",
        )
    try:
        proto = onnx.load_model_from_string(data)
        check_text(proto)
        return ir.from_proto(proto)
    # Hostile bytes get past protobuf, and end where onnx-ir takes a field for granted.
    except (DecodeError, ir.serde.SerdeError, ValueError, TypeError, KeyError) as err:
        raise GraphError(
            f"{what}: not an ONNX model: {err}", fix="use a file that da3-export wrote"
        ) from err


def load_tensors(model: ir.Model, file: str, data: bytes) -> ir.Model:
    """Replace references into ``file`` by the tensors themselves, in place, and return it.

    Raises GraphError when a reference does not lie in the file.
    """
    view = memoryview(data)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or str(tensor.location) != file:
            continue
        offset, length = tensor.offset or 0, tensor.length or 0
        if offset + length > len(view) or length != tensor.nbytes:
            raise GraphError(
                f"tensor {name!r} points outside {file} ({offset}+{length} of {len(view)} bytes)",
                fix="the graph and the file do not belong together; export again",
            )
        # A view and no copy: the weights are in memory once.
        array = np.frombuffer(view[offset : offset + length], tensor.dtype.numpy())
        value.const_value = ir.Tensor(array.reshape(tensor.shape.numpy()), name=name)
    return model


def read_graph(path: Path) -> ir.Model:
    """Read one ``.onnx`` file without its external tensors."""
    data = read_limited(path, limit_bytes=LIMIT_GRAPH_BYTES, what="ONNX graph")
    return from_bytes(data, what=str(path))


def references(model: ir.Model, graph: ir.Graph | None = None) -> Iterable[ir.ExternalTensor]:
    """Yield every external tensor of a model, those inside branches included."""
    graph = model.graph if graph is None else graph
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from references(model, attribute.as_graph())


def check(path: Path) -> None:
    """Run onnx.checker with full check on a written model; raises GraphError with its message."""
    try:
        # By its path and not its bytes: so the checker finds the external tensors beside it.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise GraphError(
            f"{path.name}: onnx.checker refuses it: {err}",
            fix="report the model; every graph that is written must pass",
        ) from err
