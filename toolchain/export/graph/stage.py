"""Cut the halves into segments that a host runs one after another, reading each gate itself.

Rules of this file: the slow reference of the linker, and what runs where a runtime's conditionals
do not skip. It requires halves. It ensures segments of plain operators without control flow,
backbone weights inside, slots as inputs. :mod:`toolchain.device.runtime.ort.staged` runs them.

Per adapted site: ``side`` (whatever leads to the block, adaptor, gate), ``opened`` (block and
correction) and, with a gate, ``closed`` (input and correction). At the end: ``tail``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import GraphBuilder, input_names
from toolchain.export.graph.halves import META_ROLE, Halves, batched
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


class _Stager:
    def __init__(self, halves: Halves) -> None:
        self.halves = halves
        self.regions = Regions(halves)
        self.types = self._types()
        # Nodes that wait for the next segment: what leads to a block runs in that block's ``side``.
        self.pending: list[ir.Node] = []

    def staged(self) -> Staged:
        sites = []
        for cut in self.halves.cuts:
            self.pending += self.regions.glue(cut.input)
            if self.regions.is_adapted(cut):
                sites.append(self._site(cut))
            else:
                self.pending += self.regions.passage(cut)
        self.pending += self.regions.glue(self.halves.features) + self.regions.head()
        return Staged(tuple(sites), self._segment("tail", self.pending, [LOGITS]))

    def _site(self, cut: Cut) -> SiteSegments:
        gated = self.regions.is_gated(cut)
        side = self.regions.side(cut)
        shared, block = self.regions.block(cut)
        # Both branches need the correction, and only the host can read the gate and choose one.
        outputs = [cut.correction] + [cut.gate] * gated
        # The block's input is handed on if this segment computes it; else the host has it already.
        if any(cut.input in [o.name for o in node.outputs] for node in self.pending):
            outputs.append(cut.input)
        first = self._segment(f"{cut.site}/side", self.pending + side + shared, outputs)
        self.pending = []
        return SiteSegments(
            cut,
            first,
            self._joined(cut, f"{cut.site}/opened", block, cut.output),
            self._joined(cut, f"{cut.site}/closed", [], cut.input) if gated else None,
        )

    def _joined(self, cut: Cut, name: str, block: list[ir.Node], source: str) -> ir.Model:
        builder = self._builder(name, block, [cut.correction, *([] if block else [source])])
        self.regions.copy(builder, block)
        add_correction(builder, self.halves, cut, source, cut.result)
        return self._finish(builder, [cut.result])

    def _segment(self, name: str, nodes: list[ir.Node], outputs: list[str]) -> ir.Model:
        builder = self._builder(name, nodes, [])
        self.regions.copy(builder, nodes)
        return self._finish(builder, outputs)

    def _builder(self, name: str, nodes: list[ir.Node], extra: list[str]) -> GraphBuilder:
        """Return a builder whose inputs are what ``nodes`` read and do not make, and ``extra``.

        A slot is an input although the domain has it as a constant; a frozen weight goes inside.
        """
        builder = GraphBuilder(name, opset=self.halves.backbone.graph.opset_imports[""])
        made = {o.name for node in nodes for o in node.outputs}
        read = [n for node in nodes for n in input_names(node)] + extra
        for value in dict.fromkeys(read):
            if value not in made and (value in self.types or not self.regions.constant(value)):
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
                fix="leave that block out of blocks, or use the swap flavour",
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
