"""What an ONNX file holds: role, inputs, outputs, operators in and outside branches, tensors.

Rules of this file: it needs onnx and nothing else. It parses the graph and never runs it. It counts
external data and does not open their files. Source: ONNX IR specification, "Graphs" and "External
tensor data".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.core.errors import MissingPackageError, UsageError
from toolchain.core.files import read_limited

if TYPE_CHECKING:
    import onnx

# Room for a foreign model with its weights inside; ours stay below 64 MiB.
LIMIT_BYTES = 1 << 30
ROLE_KEY = "da3.role"
NAMES_LIMIT = 10_000
_MAIN, _BRANCH = "main", "branches"
_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output; a dimension is a number, a name, or ``?``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """A file beside the graph: how many tensors lie in it, and their bytes."""

    location: str
    tensors: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """An ONNX model.

    ``role`` is ours (``backbone``, ``domain``, ``swap-if``, ...), empty in a foreign model.
    ``inputs`` leaves out those that an initializer fills. ``operators`` counts nodes of the main
    graph, ``branch_operators`` those inside branches, at any depth.
    """

    role: str
    size_bytes: int
    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    branch_nodes: int
    branches: int
    operators: Mapping[str, int]
    branch_operators: Mapping[str, int]
    inline_tensors: int
    inline_bytes: int
    external: tuple[ExternalFile, ...]
    metadata: Mapping[str, str]


def graph(path: Path) -> GraphFacts:
    """Return what the model in ``path`` holds.

    Raises MissingPackageError without onnx, StorageError, UsageError for a file that is no model.
    """
    data = read_limited(path, limit_bytes=LIMIT_BYTES, what="ONNX graph")
    model = parsed(path, data)
    counts: dict[str, Counter[str]] = {_MAIN: Counter(), _BRANCH: Counter()}
    graphs = list(_graphs(model.graph, depth=0))
    for depth, one in graphs:
        place = counts[_BRANCH if depth else _MAIN]
        place.update(_operator(node) for node in one.node)
    tensors = [tensor for _, one in graphs for tensor in one.initializer]
    inline = [tensor for tensor in tensors if not tensor.external_data]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    constants = {tensor.name for tensor in model.graph.initializer}
    return GraphFacts(
        role=metadata.get(ROLE_KEY, ""),
        size_bytes=len(data),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=tuple(_port(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_port(value) for value in model.graph.output),
        nodes=counts[_MAIN].total(),
        branch_nodes=counts[_BRANCH].total(),
        branches=len(graphs) - 1,
        operators=dict(counts[_MAIN].most_common(NAMES_LIMIT)),
        branch_operators=dict(counts[_BRANCH].most_common(NAMES_LIMIT)),
        inline_tensors=len(inline),
        inline_bytes=sum(tensor.ByteSize() for tensor in inline),
        external=_external(tensors),
        metadata=metadata,
    )


def parsed(path: Path, data: bytes) -> onnx.ModelProto:
    """Return the model in ``data``; raises MissingPackageError, UsageError."""
    try:
        import onnx
        from google.protobuf.message import DecodeError

        from toolchain.export.graph.text import check_text
    except ImportError as err:
        raise MissingPackageError("onnx", "looking into an ONNX file", "check") from err
    try:
        model = onnx.load_model_from_string(data)
        check_text(model)
    except (DecodeError, ValueError) as err:
        raise UsageError(
            f"{path}: expected an ONNX model, got: {err}", fix="take it from its source again"
        ) from err
    if not model.ir_version or not (model.graph.node or model.graph.output):
        raise UsageError(
            f"{path}: expected an ONNX model with a graph, got none",
            fix="take it from its source again",
        )
    return model


def _graphs(graph: onnx.GraphProto, depth: int) -> Iterator[tuple[int, onnx.GraphProto]]:
    """Yield a graph and those inside its nodes; protobuf's parser bounds the nesting to 100."""
    yield depth, graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner, depth + 1)


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _port(value: onnx.ValueInfoProto) -> Port:
    import onnx

    kind = value.type.tensor_type
    try:
        dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    except ValueError:
        dtype = f"unknown ({kind.elem_type})"
    dims = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim
    )
    return Port(value.name, _NAMES.get(dtype, dtype), dims)


def _external(tensors: list[onnx.TensorProto]) -> tuple[ExternalFile, ...]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        location, length = entries.get("location", "?"), entries.get("length", "0")
        counts[location] += 1
        # A length that is no number is onnx.checker's to refuse; here it counts nothing.
        sizes[location] += int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0
    return tuple(ExternalFile(name, counts[name], sizes[name]) for name in sorted(counts))
