"""Cut a split into segments that a host runs one after another, reading each gate itself.

Rules of this file: the slow reference of the linker, and the flavour for runtimes whose
conditionals do not skip; requires a split, ensures segments of plain operators without control
flow, backbone weights inside, slots as inputs. :mod:`toolchain.device.runtime.ort.staged` runs
them.

Per adapted site: ``side`` (whatever leads to the block, adaptor, gate), ``opened`` (block and
correction) and, with a gate, ``closed`` (input and correction). At the end: ``tail``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import Sketch, input_names
from toolchain.export.graph.cut import META_ROLE, Split
from toolchain.export.graph.join import add_correction
from toolchain.export.graph.names import BATCH, CLASSES, HEAD_SLOTS, LOGITS, Cut
from toolchain.export.graph.regions import Parts


@dataclass(frozen=True, slots=True)
class Stage:
    """The segments of one site; ``closed`` is None where no gate decides."""

    cut: Cut
    side: ir.Model
    opened: ir.Model
    closed: ir.Model | None


@dataclass(frozen=True, slots=True)
class Staged:
    """All segments in running order; ``tail`` gives the logits."""

    stages: tuple[Stage, ...]
    tail: ir.Model


def stage(halves: Split) -> Staged:
    """Return the segments of a split."""
    return _Stager(halves).run()


class _Stager:
    def __init__(self, halves: Split) -> None:
        self.halves = halves
        self.parts = Parts(halves)
        self.known = self._types()
        self.pending: list[ir.Node] = []

    def run(self) -> Staged:
        stages = []
        for cut in self.halves.cuts:
            self.pending += self.parts.glue(cut.input)
            if cut.correction in self.parts.sides:
                stages.append(self._stage(cut))
            else:
                self.pending += self.parts.passage(cut)
        self.pending += self.parts.glue(self.halves.features) + self.parts.head()
        return Staged(tuple(stages), self._segment("tail", self.pending, [LOGITS]))

    def _stage(self, cut: Cut) -> Stage:
        gated = self.parts.gated(cut)
        side = self.parts.side(cut)
        shared, block = self.parts.block(cut)
        outputs = [cut.correction] + [cut.gate] * gated
        if any(cut.input in [o.name for o in node.outputs] for node in self.pending):
            outputs.append(cut.input)
        first = self._segment(f"{cut.site}/side", self.pending + side + shared, outputs)
        self.pending = []
        return Stage(
            cut,
            first,
            self._joined(cut, f"{cut.site}/opened", block, cut.output),
            self._joined(cut, f"{cut.site}/closed", [], cut.input) if gated else None,
        )

    def _joined(self, cut: Cut, name: str, block: list[ir.Node], source: str) -> ir.Model:
        sketch = self._sketch(name, block, [cut.correction, *([] if block else [source])])
        self.parts.emit(sketch, block)
        add_correction(sketch, self.halves, cut, source, cut.result)
        return self._finish(sketch, [cut.result])

    def _segment(self, name: str, nodes: list[ir.Node], outputs: list[str]) -> ir.Model:
        sketch = self._sketch(name, nodes, [])
        self.parts.emit(sketch, nodes)
        return self._finish(sketch, outputs)

    def _sketch(self, name: str, nodes: list[ir.Node], extra: list[str]) -> Sketch:
        sketch = Sketch(name, opset=self.halves.backbone.graph.opset_imports[""])
        made = {o.name for node in nodes for o in node.outputs}
        read = [n for node in nodes for n in input_names(node)] + extra
        for wanted in dict.fromkeys(read):
            if wanted not in made and (wanted in self.known or not self.parts.constant(wanted)):
                sketch.input(wanted, *self._type(wanted, name))
        return sketch

    def _finish(self, sketch: Sketch, outputs: list[str]) -> ir.Model:
        for name in outputs:
            sketch.typed(name, *self.known[name])
        return sketch.model(
            outputs,
            ir_version=self.halves.backbone.ir_version,
            metadata={META_ROLE: f"staged {sketch.name}"},
        )

    def _type(self, wanted: str, segment: str) -> tuple[ir.DataType, list[int | str]]:
        if wanted not in self.known:
            raise LinkError(
                f"segment {segment!r} reads {wanted!r}, which is no cut point",
                fix="leave that block out of blocks, or use the swap flavour",
            )
        return self.known[wanted]

    def _types(self) -> dict[str, tuple[ir.DataType, list[int | str]]]:
        """Types of all that may cross between segments: image, cut points and slots."""
        known: dict[str, tuple[ir.DataType, list[int | str]]] = {}
        for half in (self.halves.backbone, self.halves.domain):
            for value in [*half.graph.inputs, *half.graph.outputs]:
                assert value.shape is not None
                assert value.dtype is not None
                sides = [d if isinstance(d, int) else BATCH for d in value.shape]
                known[value.name or ""] = (value.dtype, sides)
        for slot in self.halves.slots:
            tensor = self.parts.constant(slot)
            assert tensor is not None
            shape: list[int | str] = list(tensor.shape.numpy())
            known[slot] = (tensor.dtype, [CLASSES, *shape[1:]] if slot in HEAD_SLOTS else shape)
        # Left open, as in linked graphs: domains of any class count share the segments.
        known[LOGITS] = (known[LOGITS][0], [BATCH, CLASSES])
        return known
