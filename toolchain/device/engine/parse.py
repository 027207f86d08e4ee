"""From ONNX bytes to a TensorRT network, and what the network must take.

Rules of this file: bytes in, network out. Only TensorRT's own parser reads ONNX here. What the
parser refuses becomes an error with node, operator, block and, where it is known, the layer in
PyTorch. The graph is not mended: a slot that is not where the kit says is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from toolchain.core.errors import BuildError, EngineError, ModelRefusedError, first_few
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import KitSlot
from toolchain.device.engine.log import Messages
from toolchain.device.engine.wire import require_plain

# A line of the parser's log: While parsing node number 31 [If -> "out.block02"]:
_PARSING = re.compile(r'While parsing node number (\d+) \[(\w+) -> "([^"]*)"')
_NAMED = re.compile(r"Node name: (.+)|^name: \"([^\"]+)\"", re.MULTILINE)
_UNREADABLE = "MODEL_DESERIALIZE_FAILED"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """An input of a network: -1 in ``shape`` is open, ``element`` is its DataType's name."""

    shape: tuple[int, ...]
    element: str


@dataclass(frozen=True, slots=True)
class ParsedNetwork:
    """A parsed network; builder and parser must outlive it (TensorRT API, OnnxParser).

    ``warnings``: the parser's warnings.
    """

    trt: TensorRT
    builder: Any
    definition: Any
    parser: Any
    warnings: tuple[str, ...] = ()

    def interface(self) -> dict[str, NetworkInput]:
        """Return the inputs as values, which outlive the network."""
        return {
            name: NetworkInput(tuple(tensor.shape), tensor.dtype.name)
            for name, tensor in self.inputs().items()
        }

    def inputs(self) -> Mapping[str, Any]:
        """Return the network's inputs by name."""
        tensors = [self.definition.get_input(i) for i in range(self.definition.num_inputs)]
        return {tensor.name: tensor for tensor in tensors}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error of the parser: ``node`` and ``operator`` are "" where it names none."""

    node: str
    operator: str
    reason: str


def parse(
    trt: TensorRT,
    model: bytes,
    *,
    sites: Sequence[str] = (),
    layers: Mapping[str, str] = MappingProxyType({}),
    what: str = "the model",
) -> ParsedNetwork:
    """Return the network of a self-contained ONNX ``model``.

    ``sites``: names of the backbone's blocks, for messages; ``layers``: ONNX node to layer in
    PyTorch, likewise. Raises ModelRefusedError naming each refused node, BuildError where TensorRT
    does not start.
    """
    # Before TensorRT sees the bytes: its parser can end the whole process.
    require_plain(model, what)
    with trt.journal.watch() as messages:
        builder = new_builder(trt, messages)
        definition = builder.create_network(_creation_flags(trt))
        parser = trt.module.OnnxParser(definition, trt.logger)
        if trt.features.native_norm:
            # Without the flag the parser takes a plug-in, which runs in fp32 only and not on a DLA.
            parser.set_flag(trt.module.OnnxParserFlag.NATIVE_INSTANCENORM)
        if not parser.parse(model):
            raise _refused(
                trt, list(_refusals(trt, parser, messages)), messages, sites, layers, what
            )
        if not definition.num_outputs:
            # protobuf reads an empty file, and much that is no model, as a model without a graph.
            raise _unreadable(trt, what)
    return ParsedNetwork(trt, builder, definition, parser, tuple(messages.warnings))


def new_builder(trt: TensorRT, messages: Messages) -> Any:
    """Return a builder. Raises BuildError where TensorRT gives none: no driver, no memory."""
    try:
        builder = trt.module.Builder(trt.logger)
    except (TypeError, RuntimeError) as err:  # pybind: the factory returned nothing
        raise _not_started(trt, messages.first or str(err)) from err
    if builder is None:
        raise _not_started(trt, messages.first)
    return builder


def require_slots(
    inputs: Sequence[Mapping[str, NetworkInput]],
    slots: Iterable[KitSlot],
    *,
    whole: bool = False,
) -> None:
    """Compare the inputs of one flavour's networks, taken together, with the kit's slots.

    Each slot must be an input of at least one network, in fp32 and with the kit's shape (-1 for the
    class count). ``whole``: the networks read nothing from each other, so the picture is the only
    other input. Raises EngineError with every fault.
    """
    slots = tuple(slots)
    faults = [fault for slot in slots for fault in _faults(slot, inputs)]
    if whole:
        known = {slot.name for slot in slots} | {"image"}
        odd = {name for tensors in inputs for name in tensors} - known
        faults += [f"{name}: expected no such input, which nobody sets" for name in sorted(odd)]
    if faults:
        raise EngineError(
            "expected every slot of the kit as an input of the network:\n  "
            + first_few(faults, _SHOWN, "\n  "),
            fix="export the kit again for this target",
        )


def _faults(slot: KitSlot, inputs: Sequence[Mapping[str, NetworkInput]]) -> Iterator[str]:
    inputs_of_slot = [tensors[slot.name] for tensors in inputs if slot.name in tensors]
    if not inputs_of_slot:
        yield f"{slot.name}: expected an input, got none"
    shape = tuple(-1 if size is None else size for size in slot.shape)
    for tensor in inputs_of_slot:
        if tensor.shape != shape:
            yield f"{slot.name}: expected the shape {shape}, got {tensor.shape}"
        if tensor.element != "FLOAT":
            yield f"{slot.name}: expected float32, got {tensor.element}"


def site_of(names: Iterable[str], sites: Sequence[str]) -> str:
    """Return the block that one of ``names`` belongs to, "" if none does.

    Names in linked graphs are ``in.<site>``, ``gate.<site>``, ``<site>/then/...`` and the like.
    The longest site wins, because one site's name may begin with another's.
    """
    ordered = sorted(sites, key=len, reverse=True)
    for name in names:
        for site in ordered:
            if re.search(rf"(?<![\w]){re.escape(site)}(?![\w])", name):
                return site
    return ""


def _creation_flags(trt: TensorRT) -> int:
    creation, flags = trt.module.NetworkDefinitionCreationFlag, 0
    if trt.features.explicit_batch:
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    if trt.features.typing != "absent":
        flags |= 1 << int(creation.STRONGLY_TYPED)
    return flags


def _refusals(trt: TensorRT, parser: Any, messages: Messages) -> Iterator[Refusal]:
    """Yield the parser's errors. Older parsers name no node in them, but their log does."""
    logged = "\n".join(messages.errors)
    parsing, named = _PARSING.search(logged), _NAMED.search(logged)
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        node = operator = ""
        if trt.features.error_nodes:
            node, operator = error.node_name(), error.node_operator()
        if not node and parsing:
            # If the node has no name, the log has the name of its first output.
            node = (named and (named[1] or named[2])) or parsing[3]
            operator = operator or parsing[2]
        if not node and error.node() >= 0:
            node = f"number {error.node()}"
        yield Refusal(node, operator, " ".join(error.desc().split()))


def _refused(
    trt: TensorRT,
    refusals: list[Refusal],
    messages: Messages,
    sites: Sequence[str],
    layers: Mapping[str, str],
    what: str,
) -> ModelRefusedError:
    if messages.memory:
        return ModelRefusedError(
            f"{trt.name} {trt.build} ran out of memory while it read {what}: {messages.memory[0]}",
            fix="close other programs, or add a swap file",
        )
    lines = [_line(one, messages, sites, layers) for one in refusals[:_SHOWN]]
    if not lines:
        lines = [messages.first or "it gives no reason"]
    if any(_UNREADABLE in line for line in messages.errors):
        return _unreadable(trt, what)
    return ModelRefusedError(
        f"{trt.name} {trt.build} refuses {what}:" + "".join(f"\n  {line}" for line in lines),
        fix="export for the target that this machine is (da3 doctor names it); a layer that its "
        "TensorRT lacks must be replaced in the PyTorch model",
    )


def _unreadable(trt: TensorRT, what: str) -> ModelRefusedError:
    return ModelRefusedError(
        f"{trt.name} {trt.build} cannot read {what}: expected an ONNX model, got other bytes",
        fix="copy the kit again, or export it again",
    )


def _line(one: Refusal, messages: Messages, sites: Sequence[str], layers: Mapping[str, str]) -> str:
    """Return one refusal with its place: node, operator, block, layer."""
    # In a branch, the node's own name may not show the block; the name of its If does.
    around = [match[3] for line in messages.errors if (match := _PARSING.search(line))]
    site = site_of([one.node, *around], sites)
    parts = [f"node {one.node!r}" if one.node else "no node is named"]
    parts += [
        f"{kind} {name}"
        for kind, name in (
            ("operator", one.operator),
            ("block", site),
            ("in the PyTorch model", layers.get(one.node, "")),
        )
        if name
    ]
    return f"{', '.join(parts)}: {one.reason}"


def _not_started(trt: TensorRT, reason: str) -> BuildError:
    return BuildError(
        f"expected {trt.name} {trt.build} to start a builder, got none: {reason or 'no reason'}",
        fix="it needs an NVIDIA driver and a free GPU; da3 doctor says what is here",
    )
