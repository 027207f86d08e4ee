"""The graphs of bundles: what one may hold, looked at before any library gets it.

Rules of this file: bytes in, a verdict out; no framework. A graph may hold what the exporter and
the linker write, and nothing else: the operators of :data:`OPERATORS`, tensors that lie in the
files that a graph may read, small constants, and conditionals. Lists and limits are closed: an
unknown field of a message is refused, too. The export holds every graph that it writes to the same
rules, so it makes nothing that a device refuses.

This bounds what a file *says*. It does not bound what a graph *computes*: small numbers may be
multiplied on their way. So the first session of a graph is made in a process of its own, with
limits on time and memory (:mod:`toolchain.device.runtime.ort.trial`).

Source: onnx.proto (field numbers), ONNX IR specification, "Graphs", "External tensor data".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import BundleError
from toolchain.core.wire import BYTES, Value, WireReader, signed

# The files beside a graph that its tensors may lie in: the backbone's and the domain's.
WEIGHTS_NAME, SLOTS_NAME = "weights.safetensors", "slots.safetensors"

LIMIT_GRAPH_BYTES = 64 << 20
LIMIT_NODES = 1 << 16
LIMIT_FIELDS = 1 << 22
LIMIT_INLINE_BYTES = 1024
"""A tensor with more bytes lies in a file beside the graph."""
LIMIT_ELEMENTS = 1 << 26
"""Elements of a tensor that constants make of nothing, or by which they enlarge another."""
LIMIT_NUMBER = 1 << 16
"""Largest number of an attribute: kernel sizes, pads, axes, groups."""
LIMIT_RANK = 16
LIMIT_DEPTH = 8
"""Conditionals inside conditionals."""

# What PyTorch's exporter writes for a net in evaluation, with the default domain's operators, and
# what the linker adds. Left out on purpose: loops, functions, sequences, optionals, strings, random
# numbers, losses, and every operator of another domain.
_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Col2Im Concat
ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Det DFT Div
Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND
Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN LSTM LayerNormalization
LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Mean Min Mish Mod
Mul Neg NonZero Not Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round
ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_NAMES.split())

# Bytes of an element, by onnx.proto's TensorProto.DataType: floats, integers, bool, complex numbers
# and bfloat16. Strings, and types of less than a byte, are not among them.
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
# Float, int32 and int64, in which sizes are given, as struct names them.
_FORMS = {1: "f", 6: "i", 7: "q"}
_EXTERNAL = 1
# The operands that say how large a result is, by operator.
_SIZES = {"ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Resize": (2, 3), "Pad": (1,)}
_FIX = "export the domain again"


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What a graph that was looked at holds: its operators, and the bytes of tensors it names."""

    operators: frozenset[str]
    nodes: int
    tensor_bytes: int


def require_graph(
    data: bytes, what: str, *, files: Collection[str], limit_tensor_bytes: int | None = None
) -> GraphSummary:
    """Return what the ONNX file ``data`` holds, if it is one that a bundle may hold.

    ``what`` names it in messages. ``files``: names of the files that its tensors may lie in.
    ``limit_tensor_bytes``: of all its tensors together, those that stand in several branches
    counted each time. Raises BundleError for everything else.
    """
    if len(data) > LIMIT_GRAPH_BYTES:
        _refuse(what, f"expected at most {LIMIT_GRAPH_BYTES} bytes of graph, got {len(data)}")
    looked = _Look(frozenset(files))
    try:
        looked.model(memoryview(data))
    except ValueError as err:
        _refuse(what, f"not an ONNX model that an export writes: {err}")
    if limit_tensor_bytes is not None and looked.tensor_bytes > limit_tensor_bytes:
        _refuse(
            what,
            f"expected tensors of at most {limit_tensor_bytes} bytes in all, "
            f"got {looked.tensor_bytes}",
        )
    return GraphSummary(frozenset(looked.operators), looked.nodes, looked.tensor_bytes)


def graph_files(linkage: Linkage) -> tuple[str, ...]:
    """Return the files that a linked graph may read: a folded domain's slots are constants."""
    return (WEIGHTS_NAME, SLOTS_NAME) if linkage.folds_domain else (WEIGHTS_NAME,)


def _refuse(what: str, fault: str) -> NoReturn:
    raise BundleError(f"{what}: {fault}", fix=_FIX)


Numbers = tuple[float, ...]


@dataclass(slots=True)
class _Look:
    """One look at a model; raises ValueError saying what no bundle holds."""

    files: frozenset[str]
    wire: WireReader = field(default_factory=lambda: WireReader(LIMIT_FIELDS))
    operators: set[str] = field(default_factory=set)
    nodes: int = 0
    tensor_bytes: int = 0

    def model(self, message: memoryview) -> None:
        """Look at a ModelProto."""
        graphs = 0
        for number, _, value in self.wire.fields(message):
            match number:
                case 1 | 2 | 3 | 4 | 5 | 6:  # versions, producer, names, documentation
                    pass
                case 14:  # metadata_props
                    self._texts(_bytes(value), "metadata")
                case 7:
                    graphs += 1
                    self.graph(_bytes(value), {}, 0)
                case 8:
                    self._opset(_bytes(value))
                case 25:
                    raise ValueError("expected plain operators, got functions of its own")
                case _:
                    raise ValueError(
                        f"expected a model as the exporter writes it, got field {number}"
                    )
        if graphs != 1:
            raise ValueError(f"expected an ONNX model with one graph, got {graphs}")

    def _opset(self, message: memoryview) -> None:
        for number, _, value in self.wire.fields(message):
            if number == 1 and (domain := _text(value, "opset")) not in ("", "ai.onnx"):
                raise ValueError(f"expected operators of the default domain, got {domain!r}")

    def graph(self, message: memoryview, outer: Mapping[str, Numbers], depth: int) -> None:
        """Look at a GraphProto; ``outer``: small constants of the graphs around it, by name."""
        if depth > LIMIT_DEPTH:
            raise ValueError(f"expected at most {LIMIT_DEPTH} graphs inside each other, got more")
        # Tensors first: in the file they stand behind the nodes that read them.
        constants, nodes = dict(outer), []
        for number, _, value in self.wire.fields(message):
            match number:
                case 1:
                    nodes.append(_bytes(value))
                case 5:
                    self._tensor(_bytes(value), constants)
                case 2 | 10:  # name, documentation
                    _text(value, "graph")
                case 11 | 12 | 13:  # inputs, outputs and values, whose shapes the runtime checks
                    self._value(_bytes(value))
                case 16:
                    self._texts(_bytes(value), "metadata")
                case _:
                    raise ValueError(
                        f"expected a graph as the linker writes it, got field {number}"
                    )
        self.nodes += len(nodes)
        if self.nodes > LIMIT_NODES:
            raise ValueError(f"expected at most {LIMIT_NODES} nodes, got more")
        for node in nodes:
            self._node(node, constants, depth)

    def _value(self, message: memoryview) -> None:
        for number, _, value in self.wire.fields(message):
            if number == 1:
                _text(value, "value")

    def _node(self, message: memoryview, constants: Mapping[str, Numbers], depth: int) -> None:
        inputs: list[str] = []
        name = operator = ""
        attributes: list[memoryview] = []
        for number, _, value in self.wire.fields(message):
            match number:
                case 1:
                    inputs.append(_text(value, "input"))
                case 2 | 6:
                    _text(value, "output")
                case 3:
                    name = _text(value, "node")
                case 4:
                    operator = _text(value, "operator")
                case 5:
                    attributes.append(_bytes(value))
                case 7:
                    if domain := _text(value, "domain"):
                        raise ValueError(f"expected the default domain, got {domain!r}")
                case 9:
                    self._texts(_bytes(value), "metadata")
                case _:
                    raise ValueError(f"{_shown(name)}: expected a plain node, got field {number}")
        if operator not in OPERATORS:
            raise ValueError(
                f"{_shown(name)}: expected an operator that exports write, got {_shown(operator)}"
            )
        self.operators.add(operator)
        for attribute in attributes:
            self._attribute(attribute, operator, name, constants, depth)
        _bounded(operator, name, [constants.get(one) for one in inputs])

    def _attribute(
        self,
        message: memoryview,
        operator: str,
        name: str,
        constants: Mapping[str, Numbers],
        depth: int,
    ) -> None:
        for number, kind, value in self.wire.fields(message):
            match number:
                case 1 | 4 | 9 | 13:  # name, text, texts, documentation
                    _text(value, "attribute")
                case 2 | 7 | 20:  # floats and the type's number, which ask for nothing
                    pass
                case 3 | 8:
                    packed = self.wire.varints(_bytes(value)) if kind == BYTES else [_number(value)]
                    for one in packed:
                        if abs(signed(one)) > LIMIT_NUMBER:
                            raise ValueError(
                                f"{_shown(name)}: expected numbers up to {LIMIT_NUMBER} in "
                                f"attributes, got {signed(one)}"
                            )
                case 5:
                    self._tensor(_bytes(value), {})
                case 6 if operator == "If":
                    self.graph(_bytes(value), constants, depth + 1)
                case _:
                    raise ValueError(
                        f"{_shown(name)}: expected plain attributes of {operator}, "
                        f"got field {number}"
                    )

    def _tensor(self, message: memoryview, constants: dict[str, Numbers]) -> None:
        """Look at a TensorProto; add it to ``constants`` if it is small and of numbers."""
        dims: list[int] = []
        kind = place = 0
        name = ""
        external: dict[str, str] = {}
        payload = memoryview(b"")
        for number, wire, value in self.wire.fields(message):
            match number:
                case 1:
                    dims += self.wire.varints(_bytes(value)) if wire == BYTES else [_number(value)]
                case 2:
                    kind = _number(value)
                case 8 | 12:
                    name = _text(value, "tensor") if number == 8 else name
                case 9:
                    payload = _bytes(value)
                case 13:
                    external.update([self._pair(_bytes(value))])
                case 14:
                    place = _number(value)
                case _:
                    # Values stand as bytes (9): the exporter writes no other form.
                    raise ValueError(f"{_shown(name)}: expected a plain tensor, got field {number}")
        if kind not in _ITEM_BYTES or len(dims) > LIMIT_RANK:
            got = f"data type {kind} of rank {len(dims)}"
            raise ValueError(
                f"{_shown(name)}: expected numbers of rank 0 to {LIMIT_RANK}, got {got}"
            )
        size = _ITEM_BYTES[kind] * math.prod(dims)
        if place == _EXTERNAL or external:
            self._external(name, external, size, place)
            self.tensor_bytes += size
            return
        if size > LIMIT_INLINE_BYTES or len(payload) != size:
            raise ValueError(
                f"{_shown(name)}: expected at most {LIMIT_INLINE_BYTES} bytes inside the graph, as "
                f"its shape says, got {len(payload)} for a shape of {size}"
            )
        if form := _FORMS.get(kind):
            constants[name] = struct.unpack(f"<{math.prod(dims)}{form}", payload)

    def _external(self, name: str, entries: Mapping[str, str], size: int, place: int) -> None:
        location = entries.get("location", "")
        if place != _EXTERNAL or location not in self.files:
            raise ValueError(
                f"{_shown(name)}: expected a tensor in {' or '.join(sorted(self.files))}, "
                f"got one in {_shown(location)}"
            )
        numbers = [entries.get(key, "") for key in ("offset", "length")]
        if set(entries) != {"location", "offset", "length"} or not all(
            text.isascii() and text.isdigit() and len(text) <= 13 for text in numbers
        ):
            raise ValueError(f"{_shown(name)}: expected an offset and a length, got others")
        if int(numbers[1]) != size:
            raise ValueError(f"{_shown(name)}: expected {size} bytes, got {int(numbers[1])}")

    def _pair(self, message: memoryview) -> tuple[str, str]:
        pair = {1: "", 2: ""}
        for number, _, value in self.wire.fields(message):
            if number not in pair:
                raise ValueError(f"expected a key and a value, got field {number}")
            pair[number] = _text(value, "entry")
        return pair[1], pair[2]

    def _texts(self, message: memoryview, what: str) -> None:
        """Read a pair of texts, as metadata are."""
        for number, _, value in self.wire.fields(message):
            if number not in (1, 2):
                raise ValueError(f"expected texts in {what}, got field {number}")
            _text(value, what)


def _bounded(operator: str, name: str, operands: list[Numbers | None]) -> None:
    """Refuse a node whose constant operands ask for a huge result."""
    elements = 1.0
    if operator == "Range":
        if len(operands) == 3 and all(operands):
            start, limit, step = (values[0] for values in operands if values)
            elements = abs((limit - start) / step) if step else math.inf
    else:
        for place in _SIZES.get(operator, ()):
            values = operands[place] if place < len(operands) else None
            if not values:
                continue
            sizes = [abs(value) for value in values]
            elements = max(sizes) ** 2 if operator == "Pad" else math.prod(sizes)
            # A NaN fails every comparison.
            if not elements <= LIMIT_ELEMENTS:
                break
    if not elements <= LIMIT_ELEMENTS:
        raise ValueError(
            f"{_shown(name)}: expected a {operator} that makes at most {LIMIT_ELEMENTS} elements, "
            f"got one of {elements:g}"
        )


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("expected bytes in a field, got a number")  # noqa: TRY004  # of a file
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("expected a number in a field, got bytes")  # noqa: TRY004  # of a file
    return value


def _text(value: Value, what: str) -> str:
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError as err:
        raise ValueError(
            f"expected UTF-8 in the name of a {what}, got {bytes(value)[:40]!r}"
        ) from err


def _shown(name: str) -> str:
    return repr(name[:80])
