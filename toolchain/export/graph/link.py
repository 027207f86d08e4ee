"""Link a domain into the backbone: resolve slots, and turn dense gates into real skipping.

Rules of this file: requires a split, ensures one ONNX model of standard operators with the outputs
``logits`` and, where there are gates, ``gates`` (logits ``[N, G]`` in block order); changes no
value of any tensor. It runs nothing and writes nothing.

Two forms of one semantics (see :mod:`toolchain.training.adapt.adaptors`):

* ``if``: batch 1. Each gate is an ``If``; the block's weights lie *inside* the branch, where the
  runtime may lay them out for speed, and the adaptor's addition lies in both branches, so that a
  closed gate costs one pass over the map and no copy.
* ``rows``: any batch. The rows whose gate is open are gathered, computed and scattered back; a
  sample's answer never depends on its neighbours. An ``If`` keeps the block from running on no rows
  at all, which several of a runtime's kernels and fusions refuse.

Flavours: ``swap`` (slots are pure run-time inputs: a missing or misshapen one is refused by the
runtime itself) and ``static`` (slots are constants; gates whose calibrated rate is 0 or 1 are
resolved). :mod:`toolchain.bundle.linkage` lists every pair of flavour and form.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from toolchain.bundle.linkage import Linkage
from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import Sketch, input_names, value_name
from toolchain.export.graph.cut import META_ROLE, Split
from toolchain.export.graph.join import add_correction
from toolchain.export.graph.names import (
    BATCH,
    CLASSES,
    GATES,
    HEAD_SLOTS,
    IMAGE,
    LOGITS,
    Cut,
)
from toolchain.export.graph.regions import Parts

NO_RATES: Mapping[str, float] = MappingProxyType({})


def link(
    halves: Split,
    linkage: Linkage,
    *,
    rates: Mapping[str, float] = NO_RATES,
    taps: bool = False,
) -> ir.Model:
    """Return the linked model.

    ``rates``: calibrated open rate per site (0 to 1); a graph that folds the domain resolves gates
    by them. ``taps``: give every ``out.s`` too, for finding the first tensor that diverges.

    Raises LinkError naming the block that cannot be linked.
    """
    if linkage.is_segmented:
        raise LinkError(
            f"{linkage.stem} is a chain of segments and not one graph",
            fix="use toolchain.export.graph.stage.stage",
        )
    return _Linker(halves, linkage, rates, taps=taps).model()


class _Linker:
    def __init__(
        self, halves: Split, linkage: Linkage, rates: Mapping[str, float], *, taps: bool
    ) -> None:
        self.halves = halves
        self.linkage = linkage
        self.rates = rates
        self.taps = taps
        self.batch: int | str = 1 if linkage.takes_one_picture else BATCH
        self.parts = Parts(halves)
        self.sketch = Sketch(linkage.stem, opset=halves.backbone.graph.opset_imports[""])
        self.gates: list[str] = []

    def model(self) -> ir.Model:
        """Draw the whole graph in running order."""
        parts, sketch = self.parts, self.sketch
        self._inputs()
        for cut in self.halves.cuts:
            parts.emit(sketch, parts.glue(cut.input))
            if cut.correction in parts.sides:
                self._site(cut)
            else:
                parts.emit(sketch, parts.passage(cut))
        parts.emit(sketch, parts.glue(self.halves.features))
        parts.emit(sketch, parts.head())
        return self._finish()

    def _inputs(self) -> None:
        image = next(v for v in self.halves.backbone.graph.inputs if v.name == IMAGE)
        assert image.shape is not None
        assert image.dtype is not None
        sides = [d if isinstance(d, int) else BATCH for d in list(image.shape)[1:]]
        self.sketch.input(IMAGE, image.dtype, [self.batch, *sides])
        for slot in self.halves.slots:
            tensor = self.parts.constant(slot)
            assert tensor is not None
            if self.linkage.folds_domain:
                self.sketch.initializer(slot, tensor)
            else:
                self.sketch.input(slot, tensor.dtype, self._slot_shape(slot, tensor))

    def _slot_shape(self, slot: str, tensor: ir.TensorProtocol) -> list[int | str]:
        """Leave the class count open, so that domains of any count share a graph and a session."""
        shape: list[int | str] = list(tensor.shape.numpy())
        return [CLASSES, *shape[1:]] if slot in HEAD_SLOTS else shape

    def _finish(self) -> ir.Model:
        sketch, floats = self.sketch, ir.DataType.FLOAT
        outputs = [sketch.typed(LOGITS, floats, [self.batch, self._classes()])]
        if self.gates:
            sketch.node("Concat", self.gates, GATES, {"axis": 1})
            outputs.append(sketch.typed(GATES, floats, [self.batch, len(self.gates)]))
        if self.taps:
            outputs += [
                sketch.typed(cut.result, floats, [self.batch, *cut.out_shape])
                for cut in self.halves.adapted
            ]
        return sketch.model(
            outputs,
            ir_version=self.halves.backbone.ir_version,
            metadata={META_ROLE: self.linkage.stem},
        )

    def _classes(self) -> int | str:
        if not self.linkage.folds_domain:
            return CLASSES
        logits = next(v for v in self.halves.domain.graph.outputs if v.name == LOGITS)
        assert logits.shape is not None
        last = logits.shape[-1]
        return last if isinstance(last, int) else CLASSES

    def _site(self, cut: Cut) -> None:
        parts, sketch = self.parts, self.sketch
        parts.emit(sketch, parts.side(cut))
        shared, block = parts.block(cut)
        parts.emit(sketch, shared)
        if parts.gated(cut):
            self.gates.append(cut.gate)
        state = self._resolved(cut)
        if state is True:
            parts.emit(sketch, block)
            add_correction(sketch, self.halves, cut, cut.output, cut.result)
        elif state is False:
            add_correction(sketch, self.halves, cut, cut.input, cut.result)
        elif self.linkage.form == "if":
            self._conditional(cut, block)
        else:
            self._rows(cut, block)

    def _resolved(self, cut: Cut) -> bool | None:
        """True or False where the block's state is fixed, None where its gate decides."""
        if not self.parts.gated(cut):
            return True
        if cut.input == cut.output:  # the block does nothing: both states are one
            return False
        if not self.linkage.folds_domain:
            return None
        return {0.0: False, 1.0: True}.get(self.rates.get(cut.site, 0.5))

    def _open(self, cut: Cut) -> str:
        zero = self.sketch.constant("zero", 0.0, np.float32)
        return self.sketch.node("GreaterOrEqual", [cut.gate, zero], f"{cut.site}/open")

    def _conditional(self, cut: Cut, block: list[ir.Node]) -> None:
        scalar = self.sketch.constant("scalar_shape", [], np.int64)
        flag = self.sketch.node("Reshape", [self._open(cut), scalar], f"{cut.site}/flag")
        branches = {
            "then_branch": self._branch(cut, f"{cut.site}/then", block, cut.output),
            "else_branch": self._branch(cut, f"{cut.site}/else", [], cut.input),
        }
        self.sketch.node("If", [flag], cut.result, branches)

    def _branch(self, cut: Cut, name: str, block: list[ir.Node], source: str) -> ir.Graph:
        branch = Sketch(name, opset=self.sketch.opset, outer=self.sketch)
        self.parts.emit(branch, block)
        return self._joined(branch, cut, source)

    def _joined(self, branch: Sketch, cut: Cut, source: str) -> ir.Graph:
        result = add_correction(branch, self.halves, cut, source, f"{branch.name}/{cut.result}")
        branch.typed(result, ir.DataType.FLOAT, [self.batch, *cut.out_shape])
        return branch.graph([result])

    def _rows(self, cut: Cut, block: list[ir.Node]) -> None:
        self._refuse_other_rows(cut, block)
        site, sketch = cut.site, self.sketch
        flat = sketch.constant("flat_shape", [-1], np.int64)
        mask = sketch.node("Reshape", [self._open(cut), flat], f"{site}/mask")
        found = sketch.node("NonZero", [mask], f"{site}/nonzero")
        rows = sketch.node("Transpose", [found], f"{site}/rows")
        index = sketch.node("Reshape", [rows, flat], f"{site}/index")
        count = sketch.node("Size", [index], f"{site}/count")
        none = sketch.constant("none", 0, np.int64)
        some = sketch.node("Greater", [count, none], f"{site}/some")
        branches = {
            "then_branch": self._rows_branch(cut, block, rows, index),
            "else_branch": self._branch(cut, f"{site}/else", [], cut.input),
        }
        sketch.node("If", [some], cut.result, branches)

    def _rows_branch(self, cut: Cut, block: list[ir.Node], rows: str, index: str) -> ir.Graph:
        branch = Sketch(f"{cut.site}/then", opset=self.sketch.opset, outer=self.sketch)
        given = branch.node("Gather", [cut.input, index], f"{cut.site}/given", {"axis": 0})
        self.parts.emit(branch, block, {cut.input: given})
        merged = branch.node("ScatterND", [cut.input, rows, cut.output], f"{cut.site}/merged")
        return self._joined(branch, cut, merged)

    def _refuse_other_rows(self, cut: Cut, block: list[ir.Node]) -> None:
        """A block that reads other per-sample values would need their rows gathered as well."""
        made = {value_name(v) for node in block for v in node.outputs} | {cut.input}
        for node in block:
            for name in input_names(node):
                if name not in made and self.parts.constant(name) is None:
                    raise LinkError(
                        f"block {cut.module!r} reads {name!r} besides its input, so its rows "
                        "cannot be gathered alone",
                        fix="leave it out of blocks, or compute that value inside the block",
                    )
