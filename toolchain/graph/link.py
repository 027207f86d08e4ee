"""Link a domain into the backbone: resolve slots, and turn dense gates into real skipping.

Rules of this file: requires a split, ensures one ONNX model of standard operators with the outputs
``logits`` and, where there are gates, ``gates`` (logits ``[N, G]`` in block order); changes no value
of any tensor. It runs nothing and writes nothing.

Two forms of one semantics (see :mod:`toolchain.adapt.adaptors`):

* ``if``: batch 1. Each gate is an ``If``; the block's weights lie *inside* the branch, where the
  runtime may lay them out for speed, and the adaptor's addition lies in both branches, so that a
  closed gate costs one pass over the map and no copy.
* ``rows``: any batch. The rows whose gate is open are gathered, computed and scattered back; a
  sample's answer never depends on its neighbours.

Flavours: ``swap`` (slots are pure run-time inputs: a missing or misshapen one is refused by the
runtime itself) and ``static`` (slots are constants; gates whose calibrated rate is 0 or 1 are
resolved).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from toolchain.errors import LinkError
from toolchain.graph.names import BATCH, GATES, IMAGE, LOGITS, Cut
from toolchain.graph.sketch import Sketch, input_names, region, value_name
from toolchain.graph.split import META_ROLE, Split

Flavour = Literal["swap", "static"]
Form = Literal["if", "rows"]


@dataclass(frozen=True, slots=True)
class Linking:
    """What a linked model shall be.

    ``rates``: calibrated open rate per site (0 to 1), used by ``static`` to resolve gates.
    ``taps``: also give every ``block``/``adaptor``/``out`` value that exists outside the branches,
    for finding the first tensor that diverges.
    """

    flavour: Flavour = "swap"
    form: Form = "if"
    rates: Mapping[str, float] = field(default_factory=dict)
    taps: bool = False

    @property
    def name(self) -> str:
        """File stem of the linked graph: ``swap-if``."""
        return f"{self.flavour}-{self.form}"


def link(halves: Split, linking: Linking) -> ir.Model:
    """Return the linked model. Raises LinkError naming the block that cannot be linked."""
    return _Linker(halves, linking).model()


class _Linker:
    def __init__(self, halves: Split, linking: Linking) -> None:
        self.halves = halves
        self.linking = linking
        self.batch: int | str = 1 if linking.form == "if" else BATCH
        self.backbone = list(halves.backbone.graph)
        self.domain = list(halves.domain.graph)
        self.weights = halves.backbone.graph.initializers
        self.slots = halves.domain.graph.initializers
        self.sketch = Sketch(linking.name, opset=halves.backbone.graph.opset_imports[""])
        self.emitted: set[int] = set()
        self.gates: list[str] = []

    def model(self) -> ir.Model:
        self._inputs()
        adapted = {cut.site for cut in self.halves.adapted}
        for cut in self.halves.cuts:
            self._emit(self.sketch, self._glue([cut.input]))
            if cut.site in adapted:
                self._site(cut)
            else:
                self._emit(self.sketch, self._glue([cut.output]))
                self._alias(cut)
        self._emit(self.sketch, self._glue([self.halves.features]))
        head = region(self.domain, [LOGITS], [self.halves.features])
        self._emit(self.sketch, [n for n in head if id(n) not in self.emitted])
        return self._finish()

    # -- inputs and outputs ------------------------------------------------------------------

    def _inputs(self) -> None:
        image = next(v for v in self.halves.backbone.graph.inputs if v.name == IMAGE)
        assert image.shape is not None
        assert image.dtype is not None
        sides = [d if isinstance(d, int) else BATCH for d in list(image.shape)[1:]]
        self.sketch.input(IMAGE, image.dtype, [self.batch, *sides])
        for slot in self.halves.slots:
            tensor = self.slots[slot].const_value
            assert tensor is not None
            if self.linking.flavour == "swap":
                self.sketch.input(slot, tensor.dtype, tensor.shape.numpy())
            else:
                self.sketch.initializer(slot, tensor)

    def _finish(self) -> ir.Model:
        outputs = [self.sketch.typed(LOGITS, ir.DataType.FLOAT, [self.batch, self._classes()])]
        if self.gates:
            width = len(self.gates)
            self.sketch.node("Concat", self.gates, GATES, {"axis": 1})
            outputs.append(self.sketch.typed(GATES, ir.DataType.FLOAT, [self.batch, width]))
        if self.linking.taps:
            outputs += self._taps()
        return self.sketch.model(
            outputs,
            ir_version=self.halves.backbone.ir_version or 10,
            metadata={META_ROLE: self.linking.name},
        )

    def _classes(self) -> int | str:
        logits = next(v for v in self.halves.domain.graph.outputs if v.name == LOGITS)
        assert logits.shape is not None
        last = logits.shape[-1]
        return last if isinstance(last, int) else "classes"

    def _taps(self) -> list[str]:
        taps = []
        for cut in self.halves.adapted:
            taps.append(
                self.sketch.typed(
                    cut.result, ir.DataType.FLOAT, [self.batch, *cut.out_shape]
                )
            )
        return taps

    # -- copying -----------------------------------------------------------------------------

    def _glue(self, targets: Sequence[str]) -> list[ir.Node]:
        """Backbone nodes that ``targets`` need and that nothing has emitted yet."""
        stops = [cut.result for cut in self.halves.cuts]
        found = region(self.backbone, targets, stops)
        return [node for node in found if id(node) not in self.emitted]

    def _emit(
        self, sketch: Sketch, nodes: Sequence[ir.Node], rename: Mapping[str, str] | None = None
    ) -> None:
        for node in nodes:
            for name in input_names(node):
                self._constant(sketch, name)
            sketch.copy(node, rename)
            self.emitted.add(id(node))

    def _constant(self, sketch: Sketch, name: str) -> None:
        """Bring a constant into the graph that reads it, branches included."""
        source = self.weights.get(name) or self.slots.get(name)
        if source is not None and source.const_value is not None and not sketch.has(name):
            sketch.initializer(name, source.const_value)

    def _alias(self, cut: Cut) -> None:
        """A block without adaptor: its result is its output."""
        self.sketch.node("Identity", [cut.output], cut.result)

    # -- one adapted block -------------------------------------------------------------------

    def _site(self, cut: Cut) -> None:
        targets = [n for n in (cut.correction, cut.gate) if n in self._domain_outputs()]
        side = region(self.domain, targets, [cut.input, *(c.result for c in self.halves.cuts)])
        self._emit(self.sketch, [n for n in side if id(n) not in self.emitted])
        gated = cut.gate in self._domain_outputs()
        if gated:
            self.gates.append(cut.gate)
        resolved = self._resolved(cut) if gated else True
        block = self._block(cut)
        if resolved is True:
            self._emit(self.sketch, block)
            self._add(self.sketch, cut, cut.output, cut.result)
        elif resolved is False:
            self._add(self.sketch, cut, cut.input, cut.result)
            self.emitted.update(id(n) for n in block)
        elif self.linking.form == "if":
            self._conditional(cut, block)
        else:
            self._rows(cut, block)

    def _domain_outputs(self) -> set[str]:
        return {value_name(v) for v in self.halves.domain.graph.outputs}

    def _resolved(self, cut: Cut) -> bool | None:
        """True or False where a static gate's rate is exactly 1 or 0, None where it decides."""
        if self.linking.flavour != "static":
            return None
        return {0.0: False, 1.0: True}.get(self.linking.rates.get(cut.site, 0.5))

    def _block(self, cut: Cut) -> list[ir.Node]:
        """The nodes that only this block needs; what others need too is emitted outside."""
        found = region(self.backbone, [cut.output], [cut.input, *self._results()])
        found = [node for node in found if id(node) not in self.emitted]
        own = {id(node) for node in found}
        for node in reversed(found):
            users = {id(use.node) for out in node.outputs for use in out.uses()}
            given = {value_name(v) for v in node.outputs} & self._backbone_outputs()
            if (users - own) or (given - {cut.output}):
                own.discard(id(node))
        self._emit(self.sketch, self._closed(found, own))
        return [node for node in found if id(node) in own and id(node) not in self.emitted]

    @staticmethod
    def _closed(found: list[ir.Node], own: set[int]) -> list[ir.Node]:
        """Return the nodes outside ``own`` together with all they need, in order."""
        shared = [node for node in found if id(node) not in own]
        names = {name for node in shared for name in input_names(node)}
        needed = {id(n) for n in region(found, names, [])} | {id(n) for n in shared}
        return [node for node in found if id(node) in needed]

    def _backbone_outputs(self) -> set[str]:
        return {value_name(v) for v in self.halves.backbone.graph.outputs}

    def _results(self) -> list[str]:
        return [cut.result for cut in self.halves.cuts]

    # -- joins -------------------------------------------------------------------------------

    def _add(self, sketch: Sketch, cut: Cut, source: str, result: str) -> str:
        """``result = source + upsample(correction)``, in the block's layout."""
        return sketch.node("Add", [source, self._raised(sketch, cut, result)], result)

    def _raised(self, sketch: Sketch, cut: Cut, result: str) -> str:
        """The correction at a shape that adds to the map: upsampled, or left to broadcast."""
        coarse = self._coarse(cut)
        channels, *sides = _channels_first(cut)
        name = cut.correction
        if coarse != (1, 1) and coarse != tuple(sides):
            scales = [1.0, 1.0, sides[0] / coarse[0], sides[1] / coarse[1]]
            constant = sketch.constant(f"{result}/scales", scales, np.float32)
            name = sketch.node(
                "Resize",
                [name, "", constant],
                f"{result}/up",
                {
                    "mode": "nearest",
                    "coordinate_transformation_mode": "asymmetric",
                    "nearest_mode": "floor",
                },
            )
        if cut.layout == "NHWC":
            return sketch.node("Transpose", [name], f"{result}/nhwc", {"perm": [0, 2, 3, 1]})
        if cut.layout == "NLC":
            target = sketch.constant(f"{result}/shape", [-1, 1, channels], np.int64)
            return sketch.node("Reshape", [name, target], f"{result}/nlc")
        return name

    def _coarse(self, cut: Cut) -> tuple[int, int]:
        value = next(v for v in self.halves.domain.graph.outputs if v.name == cut.correction)
        assert value.shape is not None
        height, width = value.shape[2], value.shape[3]
        if not isinstance(height, int) or not isinstance(width, int):
            raise LinkError(
                f"{cut.correction}: expected a fixed coarse grid, got {list(value.shape)}",
                fix="attach with a fixed input_shape",
            )
        return height, width

    def _open(self, cut: Cut) -> str:
        zero = self.sketch.constant("zero", 0.0, np.float32)
        return self.sketch.node("GreaterOrEqual", [cut.gate, zero], f"{cut.site}/open")

    def _conditional(self, cut: Cut, block: list[ir.Node]) -> None:
        scalar = self.sketch.constant("scalar_shape", [], np.int64)
        flag = self.sketch.node("Reshape", [self._open(cut), scalar], f"{cut.site}/flag")
        opset = self.sketch.opset
        opened = Sketch(f"{cut.site}/then", opset=opset, outer=self.sketch)
        self._emit(opened, block)
        closed = Sketch(f"{cut.site}/else", opset=opset, outer=self.sketch)
        branches = {}
        for key, branch, source in (
            ("then_branch", opened, cut.output),
            ("else_branch", closed, cut.input),
        ):
            result = self._add(branch, cut, source, f"{branch.name}/{cut.result}")
            branch.typed(result, ir.DataType.FLOAT, [self.batch, *cut.out_shape])
            branches[key] = branch.graph([result])
        self.sketch.node("If", [flag], cut.result, branches)

    def _rows(self, cut: Cut, block: list[ir.Node]) -> None:
        site, sketch = cut.site, self.sketch
        flat = sketch.constant("flat_shape", [-1], np.int64)
        mask = sketch.node("Reshape", [self._open(cut), flat], f"{site}/mask")
        rows = sketch.node(
            "Transpose", [sketch.node("NonZero", [mask], f"{site}/nonzero")], f"{site}/rows"
        )
        index = sketch.node("Reshape", [rows, flat], f"{site}/index")
        self._only_reads_input(cut, block)
        given = sketch.node("Gather", [cut.input, index], f"{site}/given", {"axis": 0})
        self._emit(sketch, block, {cut.input: given})
        merged = sketch.node("ScatterND", [cut.input, rows, cut.output], f"{site}/merged")
        self._add(sketch, cut, merged, cut.result)

    def _only_reads_input(self, cut: Cut, block: list[ir.Node]) -> None:
        made = {value_name(v) for node in block for v in node.outputs}
        for node in block:
            for name in input_names(node):
                known = name in made or name in self.weights or name == cut.input
                if not known and _varies(self.sketch.value(name)):
                    raise LinkError(
                        f"block {cut.module!r} reads {name!r} besides its input, so its rows cannot "
                        "be gathered alone",
                        fix="leave it out of blocks, or compute that value inside the block",
                    )


def _varies(value: ir.Value) -> bool:
    """Whether a value may differ per sample; constants and shape arithmetic do not."""
    return value.const_value is None and value.dtype not in (ir.DataType.INT64, None)


def _channels_first(cut: Cut) -> tuple[int, ...]:
    if cut.layout == "NHWC":
        height, width, channels = cut.out_shape
        return channels, height, width
    if cut.layout == "NLC":
        length, channels = cut.out_shape
        return channels, 1, length
    return cut.out_shape
