"""Cut the halves into segments that a host runs one after another, reading each gate itself.

Rules of this file: the slow reference of the linker, and what runs where a runtime's conditionals
do not skip. It requires halves. It ensures segments of plain operators without control flow,
backbone weights inside, slots as inputs. :mod:`toolchain.device.runtime.ort.staged` runs them.

Per adapted site: ``side`` (whatever leads to the block, adaptor, gate), ``opened`` (block and
correction) and, with a gate, ``closed`` (input and correction). At the end: ``tail``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import GraphBuilder, input_names, value_name
from toolchain.export.graph.halves import META_ROLE, Halves, batched, recompose
from toolchain.export.graph.join import add_correction
from toolchain.export.graph.names import BATCH, CLASSES, HEAD_SLOTS, LOGITS, Cut
from toolchain.export.graph.regions import Regions


@dataclass(frozen=True, slots=True)
class SiteSegments:
    """The segments of one site; ``closed`` is None where no gate decides."""

    cut: Cut
    side: ir.Model
    opened: ir.Model
    closed: ir.Model | None


@dataclass(frozen=True, slots=True)
class Staged:
    """All segments in running order; ``tail`` gives the logits."""

    sites: tuple[SiteSegments, ...]
    tail: ir.Model


def stage(halves: Halves) -> Staged:
    """Return the segments of two halves.

    Raises LinkError for a block that reads what is no cut point.
    """
    return _Stager(halves).staged()


@dataclass(frozen=True, slots=True)
class _Plan:
    """A segment that runs for every picture; ``outputs`` grows by what later ones read."""

    name: str
    nodes: list[ir.Node]
    outputs: list[str]


class _Stager:
    def __init__(self, halves: Halves) -> None:
        self.halves = halves
        self.regions = Regions(halves)
        self.types = self._types()
        # Nodes that wait for the next segment: what leads to a block runs in that block's ``side``.
        self.pending: list[ir.Node] = []

    def staged(self) -> Staged:
        sites: list[tuple[Cut, _Plan, list[ir.Node]]] = []
        for cut in self.halves.cuts:
            self.pending += self.regions.glue(cut.input)
            if self.regions.is_adapted(cut):
                sites.append((cut, *self._site(cut)))
            else:
                self.pending += self.regions.passage(cut)
        self.pending += self.regions.glue(self.halves.features) + self.regions.head()
        tail = _Plan("tail", self._with_sizes(self.pending), [LOGITS])
        self._hand_on([*(plan for _, plan, _ in sites), tail])
        return Staged(
            tuple(self._segments(cut, plan, block) for cut, plan, block in sites),
            self._segment(tail),
        )

    def _site(self, cut: Cut) -> tuple[_Plan, list[ir.Node]]:
        """Return what runs before a site's block for every picture, and the block."""
        side = self.regions.side(cut)
        shared, block = self.regions.block(cut)
        # Both branches need the correction, and only the host can read the gate and choose one.
        outputs = [cut.correction] + [cut.gate] * self.regions.is_gated(cut)
        # The block's input is handed on if this segment computes it; else the host has it already.
        if any(cut.input in [o.name for o in node.outputs] for node in self.pending):
            outputs.append(cut.input)
        nodes = self._with_sizes(self.pending + side + shared)
        self.pending = []
        return _Plan(f"{cut.site}/side", nodes, outputs), self._with_sizes(block)

    def _segments(self, cut: Cut, plan: _Plan, block: list[ir.Node]) -> SiteSegments:
        gated = self.regions.is_gated(cut)
        return SiteSegments(
            cut,
            self._segment(plan),
            self._joined(cut, f"{cut.site}/opened", block, cut.output),
            self._joined(cut, f"{cut.site}/closed", [], cut.input) if gated else None,
        )

    def _with_sizes(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """Return ``nodes`` behind those that tell them of the batch's shape.

        Each segment computes these anew: it may run for some rows of the batch only.
        """
        sizes: dict[int, ir.Node] = {}
        for name in _read(nodes):
            for node in self.regions.sizes([name]) or []:
                sizes.setdefault(id(node), node)
        own = {id(node) for node in nodes}
        return [*(node for key, node in sizes.items() if key not in own), *nodes]

    def _hand_on(self, plans: list[_Plan]) -> None:
        """Let each plan give what later ones read, such as the half of a map that passes blocks."""
        makers = {
            value_name(o): plan for plan in plans for node in plan.nodes for o in node.outputs
        }
        missing = [
            name
            for plan in plans
            for name in _read(plan.nodes)
            if name in makers and name not in self.types
        ]
        inferred = self._inferred() if missing else {}
        for name in dict.fromkeys(missing):
            makers[name].outputs.append(name)
            self.types[name] = inferred[name]

    def _inferred(self) -> dict[str, tuple[ir.DataType, list[int | str]]]:
        """Return the types and shapes that onnx infers for what the backbone makes."""
        # Inference needs shapes alone, and the files of external tensors may not be there yet.
        external = {
            name
            for half in (self.halves.backbone, self.halves.domain)
            for name, value in half.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        model = recompose(self.halves, fed=external)
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
        types: dict[str, tuple[ir.DataType, list[int | str]]] = {}
        for info in proto.graph.value_info:
            tensor = info.type.tensor_type
            sides = [
                d.dim_value or d.dim_param or f"{info.name}/{i}"
                for i, d in enumerate(tensor.shape.dim)
            ]
            types[info.name] = (ir.DataType(tensor.elem_type), sides)
        return types

    def _joined(self, cut: Cut, name: str, block: list[ir.Node], source: str) -> ir.Model:
        builder = self._builder(name, block, [cut.correction, *([] if block else [source])])
        self.regions.copy(builder, block)
        add_correction(builder, self.halves, cut, source, cut.result)
        return self._finish(builder, [cut.result])

    def _segment(self, plan: _Plan) -> ir.Model:
        builder = self._builder(plan.name, plan.nodes, [])
        self.regions.copy(builder, plan.nodes)
        return self._finish(builder, plan.outputs)

    def _builder(self, name: str, nodes: list[ir.Node], extra: list[str]) -> GraphBuilder:
        """Return a builder whose inputs are what ``nodes`` read and do not make, and ``extra``.

        A slot is an input although the domain has it as a constant; a frozen weight goes inside.
        """
        builder = GraphBuilder(name, opset=self.halves.backbone.graph.opset_imports[""])
        for value in dict.fromkeys([*_read(nodes), *extra]):
            if value in self.types or not self.regions.constant(value):
                builder.input(value, *self._type(value, name))
        return builder

    def _finish(self, builder: GraphBuilder, outputs: list[str]) -> ir.Model:
        for name in outputs:
            builder.typed(name, *self.types[name])
        return builder.model(
            outputs,
            ir_version=self.halves.backbone.ir_version,
            metadata={META_ROLE: f"staged {builder.name}"},
        )

    def _type(self, value: str, segment: str) -> tuple[ir.DataType, list[int | str]]:
        if value not in self.types:
            raise LinkError(
                f"segment {segment!r} reads {value!r}, which is no cut point",
                fix="leave that block out of blocks",
            )
        return self.types[value]

    def _types(self) -> dict[str, tuple[ir.DataType, list[int | str]]]:
        """Types of all that may cross between segments: image, cut points and slots."""
        types: dict[str, tuple[ir.DataType, list[int | str]]] = {}
        for half in (self.halves.backbone, self.halves.domain):
            for value in [*half.graph.inputs, *half.graph.outputs]:
                assert value.shape is not None
                assert value.dtype is not None
                types[value.name or ""] = (value.dtype, batched(value.shape))
        for slot in self.halves.slots:
            tensor = self.regions.constant(slot)
            assert tensor is not None
            shape: list[int | str] = list(tensor.shape.numpy())
            types[slot] = (tensor.dtype, [CLASSES, *shape[1:]] if slot in HEAD_SLOTS else shape)
        # Left open, as in linked graphs: domains of any class count share the segments.
        types[LOGITS] = (types[LOGITS][0], [BATCH, CLASSES])
        return types


def _read(nodes: list[ir.Node]) -> list[str]:
    """Return the values that ``nodes`` read and do not make, constants included."""
    made = {value_name(o) for node in nodes for o in node.outputs}
    read = dict.fromkeys(name for node in nodes for name in input_names(node))
    return [name for name in read if name not in made]
